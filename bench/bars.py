"""What the gateway is held to, and what was measured of it."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench.denials import Denials
from bench.load import Sample
from bench.sides import DIRECT
from bench.turns import Comparison, Series, Spread, paired
from bench.workers import HALF, Scaling, name


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure and its bound. at_least: the figure must not be below the bound; otherwise not above it."""

    what: str
    figure: Spread
    unit: str
    bound: float
    at_least: bool
    note: str = ""

    @property
    def met(self) -> bool:
        """Say whether the median is on the right side."""
        return self.figure.median >= self.bound if self.at_least else self.figure.median <= self.bound


def bars(comparison: Comparison | None, scaling: Scaling | None, denials: Denials | None = None) -> list[Bar]:
    """Return the bars for what was measured; one whose subjects are absent is left out, and its absence is told."""
    found: list[Bar | None] = []
    if comparison is not None:
        kept = comparison.saturation.get("keep-alive", {})
        fresh = comparison.saturation.get("connection-per-request", {})
        half = comparison.half
        found += [
            _bar("requests/s, of stock's", kept, "gateway", "stock", _rate, "", 3.0, at_least=True),
            _bar("CPU a request, of stock's", kept, "gateway", "stock", _share, "", 1 / 3, at_least=False),
            _bar("CPU of the chain a request", kept, "gateway", "host", _cpu, "µs", 90, at_least=False),
            _bar("p50 that the chain adds at half load", half, "gateway", "host", _p50, "ms", 0.3, at_least=False),
            _bar("connection-per-request, of stock's", fresh, "gateway", "stock", _rate, "", 2.5, at_least=True),
        ]
    if scaling is not None:
        found += [_scaling(scaling, HALF, "32 connections a worker"), _scaling(scaling, name(1), "64 in all")]
    if denials is not None:
        shape, worst = denials.dearest()[0]
        what = "CPU of the dearest refused head, of"
        for other, cost in (
            (" the median one's", denials.middle),
            (" an admitted request's", median(denials.admitted)),
        ):
            found.append(Bar(what + other, Spread.of([worst / cost]), "", 3.0, at_least=False, note=shape))
    return [bar for bar in found if bar is not None]


def added_to_direct(half: Series) -> Spread | None:
    """Return the milliseconds of p50 that the gateway adds to the upstream reached directly, at the same rate."""
    if "gateway" not in half or DIRECT not in half:
        return None
    return paired(half["gateway"], half[DIRECT], _p50)


def _bar(
    what: str,
    series: Series,
    first: str,
    second: str,
    figure: Callable[[Sample, Sample], float],
    unit: str,
    bound: float,
    *,
    at_least: bool,
) -> Bar | None:
    if first not in series or second not in series:
        return None
    return Bar(what, paired(series[first], series[second], figure), unit, bound, at_least)


def _scaling(scaling: Scaling, base: str, how: str) -> Bar | None:
    """Compare two workers with one: with the same load for each worker, or with the same load in all."""
    what = f"2 workers, of 1, with Redis, {how}"
    one, two = scaling.series.get(base), scaling.series.get(name(2))
    if one is None or two is None:
        return None
    if not scaling.shared:
        return Bar(what, paired(two, one, _rate), "", 1.8, at_least=True)
    # With two cores in all the load takes part of the second worker's core: what two whole cores would do.
    spread = paired(two, one, lambda a, b: 2 * b.cpu_us / a.cpu_us)
    note = "by CPU a request, as the load shares the second worker's core"
    return Bar(what, spread, "", 1.8, at_least=True, note=note)


def _rate(first: Sample, second: Sample) -> float:
    return first.requests_per_second / second.requests_per_second


def _share(first: Sample, second: Sample) -> float:
    return first.cpu_us / second.cpu_us


def _cpu(first: Sample, second: Sample) -> float:
    return first.cpu_us - second.cpu_us


def _p50(first: Sample, second: Sample) -> float:
    return first.p50_ms - second.p50_ms
