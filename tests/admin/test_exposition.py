"""What we write is, byte for byte, what prometheus_client writes of the same values; and it is far faster."""

import random
import time
import timeit
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest

from mitmgate.admin.exposition import open_metrics
from mitmgate.admin.families import FAMILIES, Family, Series
from tests.admin.figures import samples

ODD = ("users", "-", 'a "quoted" name', "back\\slash", "two\nlines", "ünïcode", "")


class Collected:
    """The families as prometheus_client has them."""

    def __init__(self, series: dict[str, Series]) -> None:
        self.series = series

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            yield metric(family, self.series.get(family.name, {}))


def metric(family: Family, series: Series) -> Metric:
    if family.kind == "histogram":
        made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, value in series.items():
            assert isinstance(value, list)
            counts = [sum(value[: at + 1]) for at in range(len(value) - 1)]
            bounds = [*map(str, family.bounds), "+Inf"]
            made.add_metric(labels, list(zip(bounds, counts, strict=True)), value[-1])
        return made
    if family.kind == "info":
        info = InfoMetricFamily(family.name, family.help)
        for labels in series:
            info.add_metric((), dict(zip(family.labels, labels, strict=True)))
        return info
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    plain = kind(family.name, family.help, labels=family.labels)
    for labels, value in series.items():
        assert not isinstance(value, list)
        plain.add_metric(labels, value)
    return plain


def made(rows: int, seed: int = 1) -> dict[str, Series]:
    """Make values of every family, with labels of any characters."""
    chance = random.Random(seed)
    series: dict[str, Series] = {}
    for family in FAMILIES:
        here = series[family.name] = {}
        for row in range(rows if family.labels else 1):
            labels = tuple(f"{chance.choice(ODD)}{row}" for _ in family.labels)
            if family.kind == "histogram":
                here[labels] = [*(chance.randrange(1000) for _ in range(len(family.bounds) + 1)), chance.random() * 1e4]
            else:
                here[labels] = chance.choice([0, 1, 12345678, 0.25, 1e-7, 123456789012, float(chance.randrange(10**9))])
    return series


def test_it_is_what_prometheus_client_writes() -> None:
    for seed in range(20):
        series = made(5, seed)
        assert open_metrics(series) == generate_latest(Collected(series))


def test_nothing_is_written_of_what_there_is_nothing() -> None:
    assert open_metrics({}) == generate_latest(Collected({}))


def test_it_is_read_back_strictly() -> None:
    found = samples(open_metrics(made(50)).decode())
    assert len(found) > 2000


def test_it_is_written_several_times_as_fast() -> None:
    series = made(50)
    own = min(timeit.repeat(lambda: open_metrics(series), timer=time.process_time, number=1, repeat=5))
    theirs = min(timeit.repeat(lambda: generate_latest(Collected(series)), timer=time.process_time, number=1, repeat=3))
    assert own < theirs / 4
