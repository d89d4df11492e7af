"""The results as tables: made once, shown on a terminal or written as Markdown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.bars import Bar, added_to_direct
from bench.bodies import Carried
from bench.denials import Denials
from bench.load import CONNECTIONS
from bench.stages import Cost
from bench.turns import Comparison, Series, Spread
from bench.workers import Scaling

FULL_CORE = 0.9  # a load that uses more of its core than this may be what limits


@dataclass(slots=True)
class Sheet:
    """One table. The first column is text, the others are figures. notes: lines below it."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def show(sheets: Iterable[Sheet], console: Console) -> None:
    """Print tables on a terminal."""
    for sheet in sheets:
        table = Table(title=escape(sheet.title), title_justify="left")
        for at, heading in enumerate(sheet.headings):
            table.add_column(escape(heading), justify="right" if at else "left")
        for row in sheet.rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)
        for note in sheet.notes:
            console.print(f"  {escape(note)}", highlight=False)
        console.print()


def markdown(sheets: Iterable[Sheet], machine: str) -> str:
    """Write tables as Markdown, with the machine's words first; made to be pasted into the README."""
    parts = [f"Measured on {machine}.", ""]
    for sheet in sheets:
        parts += [f"**{sheet.title}**", "", _line(sheet.headings)]
        parts.append(_line(["---", *["---:"] * (len(sheet.headings) - 1)]))
        parts += [_line(row) for row in sheet.rows]
        parts.append("")
        if sheet.notes:
            parts += [*(f"* {note}" for note in sheet.notes), ""]
    return "\n".join(parts)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def spread(value: Spread, pattern: str = ",.0f", unit: str = "") -> str:
    """Write a median, and its range where rounds differ visibly."""
    middle, low, high = (format(one, pattern) for one in (value.median, value.low, value.high))
    shown = f"{middle} {unit}".strip() if unit else middle
    return shown if low == high else f"{shown} ({low} to {high})"


def compared(comparison: Comparison) -> list[Sheet]:
    """Return a table for each kind of connection, one for half load, and what was asked before."""
    sheets = [
        _series(f"At saturation, {kind}, {CONNECTIONS} connections", series)
        for kind, series in comparison.saturation.items()
    ]
    if comparison.half:
        sheet = _series("At half load, keep-alive, latency from the intended time (open loop)", comparison.half)
        sheet.headings = ("", "rate", *sheet.headings[2:], "sent late, ms")
        sheet.rows = [
            (row[0], f"{samples[0].rate:,.0f}", *row[2:], f"{median(s.late_ms for s in samples):.2f}")
            for row, samples in zip(sheet.rows, comparison.half.values(), strict=True)
        ]
        added = added_to_direct(comparison.half)
        if added is not None:
            sheet.notes.append(f"the gateway's p50 less the upstream's alone: {spread(added, '.2f', 'ms')}")
        sheets.append(sheet)
    return [*sheets, _conformance(comparison)]


def _series(title: str, series: Series) -> Sheet:
    headings = ("", "requests/s", "CPU µs", "core", "p50 ms", "p99 ms", "RSS MiB", "failed", "load's core")
    sheet = Sheet(title, headings)
    for name, samples in series.items():
        load = median(s.load_core for s in samples)
        sheet.rows.append(
            (
                name,
                spread(Spread.of(s.requests_per_second for s in samples)),
                spread(Spread.of(s.cpu_us for s in samples)),
                f"{median(s.core for s in samples):.0%}",
                f"{median(s.p50_ms for s in samples):.2f}",
                f"{median(s.p99_ms for s in samples):.2f}",
                f"{samples[-1].resident_mib:.0f}",
                str(sum(s.failed for s in samples)),
                f"{load:.0%}",
            )
        )
        if load > FULL_CORE and title.startswith("At saturation"):
            sheet.notes.append(f"{name}: the load itself filled its core; requests/s are at least this, CPU µs hold")
    return sheet


def _conformance(comparison: Comparison) -> Sheet:
    sheet = Sheet("What was measured", ("subject", "checks passed", "what it is, or why it is not there"))
    for name in [*comparison.subjects, *(name for name in comparison.absent if name not in comparison.subjects)]:
        checks = comparison.conformance.get(name, [])
        passed = sum(bool(check["passed"]) for check in checks)
        missing = comparison.absent.get(name)
        words = comparison.subjects.get(name, "") if missing is None else f"not measured: {missing}"
        sheet.rows.append((name, f"{passed} of {len(checks)}" if checks else "-", words))
    sheet.notes += [f"{name} does not do: {'; '.join(lacks)}" for name, lacks in comparison.lacks.items() if lacks]
    return sheet


def costs(found: list[Cost]) -> Sheet:
    """Return the table of what each part of a policy costs."""
    sheet = Sheet(
        "What each part costs, CPU µs a request", ("policy", "CPU µs", "added", "to", "requests/s", "Redis µs")
    )
    for cost in found:
        if cost.absent is not None:
            sheet.rows.append((cost.name, "-", "-", cost.base or "", "-", "-"))
            sheet.notes.append(f"{cost.name}: not measured: {cost.absent}")
            continue
        redis = median(s.redis_us for s in cost.samples)
        sheet.rows.append(
            (
                cost.name,
                spread(Spread.of(s.cpu_us for s in cost.samples)),
                spread(cost.added, "+,.0f") if cost.added is not None else "",
                cost.base or "",
                f"{median(s.requests_per_second for s in cost.samples):,.0f}",
                f"{redis:.0f}" if redis >= 1 else "",
            )
        )
    sheet.notes.append(
        "hygiene, networks, sizes, routing, the circuit and the request id are always on: the bare route"
    )
    return sheet


def scaled(scaling: Scaling) -> Sheet:
    """Return the table of one worker and two."""
    sheet = _series("Workers, counters in Redis", scaling.series)
    sheet.notes += [f"{name}: not measured: {why}" for name, why in scaling.absent.items()]
    if scaling.shared:
        sheet.notes.append("two cores in all: the load shares the second worker's core")
    return sheet


def carried(found: list[Carried]) -> Sheet:
    """Return the table of bodies."""
    sheet = Sheet("Bodies", ("", "size", "way", "requests/s", "MB/s", "CPU µs", "peak RSS MiB", "failed"))
    for one in found:
        samples = one.samples
        rate = Spread.of(s.requests_per_second for s in samples)
        sheet.rows.append(
            (
                one.subject,
                one.size,
                one.direction,
                spread(rate),
                f"{rate.median * one.bytes / 1e6:,.1f}",
                spread(Spread.of(s.cpu_us for s in samples)),
                f"{max(s.resident_mib for s in samples):.0f}",
                str(sum(s.failed for s in samples)),
            )
        )
    return sheet


def refused(found: Denials) -> Sheet:
    """Return the table of what refused requests cost: the dearest heads, the median one, a plain one."""
    sheet = Sheet("Refused requests, one at a time, client limit used up", ("head", "CPU µs", "of the median"))
    middle = found.middle
    rows = found.dearest()[:12]
    rows += [("(the median of all)", middle), ("plain", median(found.costs["plain"]))]
    rows.append(("(admitted, for comparison)", median(found.admitted)))
    sheet.rows = [(name, f"{cost:,.0f}", f"{cost / middle:.1f}") for name, cost in rows]
    sheet.notes.append(f"{len(found.costs)} kinds of heads, each as long as the bounds allow")
    return sheet


def judged(found: list[Bar], absent: Mapping[str, str] | None = None) -> Sheet:
    """Return the table of bars. absent: why others were not measured, by name."""
    sheet = Sheet("Bars", ("", "measured", "bar", ""))
    for bar in found:
        sign = "≥" if bar.at_least else "≤"
        pattern = ",.0f" if bar.unit == "µs" else ".2f"
        unit = f" {bar.unit}" if bar.unit else ""
        sheet.rows.append(
            (
                bar.what,
                spread(bar.figure, pattern, bar.unit),
                f"{sign} {bar.bound:.3g}{unit}",
                "met" if bar.met else "missed",
            )
        )
        if bar.note:
            sheet.notes.append(f"{bar.what}: {bar.note}")
    sheet.notes += [f"{what}: not measured: {why}" for what, why in (absent or {}).items()]
    return sheet
