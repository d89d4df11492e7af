"""Coverage for people: a table of what was never exercised, and the policy with counts beside its lines."""

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from mitmgate.policy.problem import dotted
from mitmgate.replay.coverage import Coverage
from mitmgate.replay.report_table import console_for

_NEVER = "#####"
_MARGIN = 24
_MOST = 50


def as_table(coverage: Coverage, width: int | None = None, *, colour: bool = False) -> str:
    """Lay out what was never exercised, with its place."""
    console, out = console_for(width, colour=colour)
    document, never = coverage.policy.loaded.document, list(coverage.never())
    total = len(coverage.branches)
    console.print(
        f"coverage of {coverage.policy.path}: {coverage.percent:.1f} % "
        f"({total - len(never):,} of {total:,} branches of rules)",
        markup=False,
    )
    if never:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("never", "rule", "member", "place"):
            table.add_column(name, overflow="fold")
        for rule, branch in never:
            line, column = document.place(rule.location, key=True)
            place = f"{coverage.policy.path}:{line}:{column}"
            table.add_row(*(Text(word) for word in (branch, rule.what, dotted(rule.location), place)))
        console.print(table)
    if coverage.outside:
        console.print(f"outside of the OpenAPI documents: {coverage.outside.total():,} requests", markup=False)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("route", "reason", "operation", "what was wrong", "requests"):
            table.add_column(name, overflow="fold", justify="right" if name == "requests" else "left")
        for found, count in coverage.outside.most_common(_MOST):
            table.add_row(*(Text(word) for word in (*found, f"{count:,}")))
        console.print(table)
    return out.getvalue()


def annotated(coverage: Coverage, text: str) -> str:
    """Write the policy with what its rules did before each line: counts by branch, ##### for never."""
    by_line: dict[int, dict[str, int]] = {}
    for rule, branch, count in coverage.branches:
        line = coverage.policy.loaded.document.place(rule.location, key=True)[0]
        counts = by_line.setdefault(line, {})
        # Rules that share a line are one number a branch: the least, so that what never happened is seen.
        counts[branch] = min(count, counts.get(branch, count))
    lines = []
    for number, written in enumerate(text.splitlines(), 1):
        lines.append(f"{_margin(by_line.get(number, {})):>{_MARGIN}} | {written}".rstrip())
    return "\n".join(lines) + "\n"


def _margin(counts: Mapping[str, int]) -> str:
    return " ".join(f"{branch} {count or _NEVER}" for branch, count in counts.items())
