"""A replay's report for people: a table of differences and a summary that says what was decided and what was not."""

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mitmgate.audit.reading import printable
from mitmgate.replay.differences import Group, Kind
from mitmgate.replay.run import Report
from mitmgate.replay.what_if import Timeline, moment

WIDTH = 140
"""Columns where the output is no terminal, so that it does not depend on where it runs."""

_STYLES = {Kind.LOOSENED: "bold red", Kind.TIGHTENED: "yellow"}
_SHOWN = 200


def console_for(width: int | None = None, *, colour: bool = False) -> tuple[Console, StringIO]:
    """Make a console that writes into memory, for tables that are the same everywhere."""
    out = StringIO()
    console = Console(
        file=out, width=width or WIDTH, force_terminal=colour, no_color=not colour, highlight=False, soft_wrap=False
    )
    return console, out


def plural(count: int, what: str) -> str:
    """Write a count with its noun."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def as_table(report: Report, width: int | None = None, *, colour: bool = False) -> str:
    """Lay the report out as text. width: columns. colour: whether a terminal shows it."""
    console, out = console_for(width, colour=colour)
    console.print(f"{report.traffic} decided by {report.policy}, compared with {report.compared_with}", markup=False)
    groups = report.tally.groups
    if groups:
        console.print(_table(groups[:_SHOWN]))
    if len(groups) > _SHOWN:
        console.print(f"… and {len(groups) - _SHOWN} further groups; --format json has them all")
    for line in summary(report):
        console.print(line, markup=False)
    return out.getvalue()


def _table(groups: list[Group]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, folds in (("change", False), ("before", True), ("after", True), ("route", True), ("principals", True)):
        table.add_column(name, overflow="fold" if folds else "ellipsis", no_wrap=not folds)
    table.add_column("requests", justify="right", no_wrap=True)
    table.add_column("examples", overflow="fold")
    for group in groups:
        table.add_row(
            Text(group.kind.value, _STYLES.get(group.kind, "")),
            *(Text(printable(word)) for word in (group.before, group.after, group.route, _principals(group))),
            Text(f"{group.count:,}"),
            Text(printable(", ".join(map(_short, group.examples[:3])))),
        )
    return table


def _short(identity: str) -> str:
    """Shorten a UUID; `explain --flow` takes the beginning of an id."""
    return identity[:8] if len(identity) == 36 else identity


def _principals(group: Group) -> str:
    ranked = group.ranked
    words = [f"{name} ({count:,})" if len(ranked) > 1 else name for name, count in ranked[:3]]
    return ", ".join(words) + (f" and {len(ranked) - 3} more" if len(ranked) > 3 else "")


def timeline_table(timeline: Timeline, width: int | None = None, *, colour: bool = False) -> str:
    """Lay out who would have been limited, and when."""
    console, out = console_for(width, colour=colour)
    ranked = [(who, line) for who, line in timeline.ranked if line.newly or line.relieved]
    console.print(f"{plural(len(ranked), 'principal')} would have been limited otherwise", markup=False)
    if ranked:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("principal", overflow="fold")
        for name in ("newly limited", "no longer", "limited in all", "admitted"):
            table.add_column(name, justify="right")
        table.add_column("first")
        table.add_column("last")
        for who, line in ranked[:_SHOWN]:
            counts = (line.newly, line.relieved, line.limited, line.admitted)
            times = (moment(line.first) or "", moment(line.last) or "")
            table.add_row(Text(printable(who)), *(f"{count:,}" for count in counts), *times)
        console.print(table)
    return out.getvalue()


def summary(report: Report) -> list[str]:
    """Say how many requests were decided, skipped and why, and how they compare."""
    tally, total = report.tally, report.decided + report.skipped.total()
    lines = [f"{plural(total, 'entry').replace('entrys', 'entries')}: {report.decided:,} decided, "]
    lines[0] += f"{report.skipped.total():,} skipped"
    lines += [f"  skipped {count:,}: {reason}" for reason, count in sorted(report.skipped.items())]
    if report.compared:
        kinds = [f"{tally.kinds[kind]:,} {kind.value}" for kind in Kind if tally.kinds[kind]]
        found = f"{tally.total:,} differ ({', '.join(kinds)})" if kinds else "no difference"
        lines.append(f"{report.compared:,} compared: {found}, {report.compared - tally.total:,} the same")
    if not report.decided:
        lines.append("nothing was decided: this replay says nothing of the policy, and fails")
    elif not report.compared:
        lines += [
            f"  {count:,} {label}" for label, count in sorted(report.answers.items(), key=lambda a: (-a[1], a[0]))
        ]
    lines += [f"note: {printable(note)}" for note in report.notes]
    return lines
