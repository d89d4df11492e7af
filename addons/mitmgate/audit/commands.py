"""`mitmgate audit verify|tail|show|stats|schema`: check, follow, search and count an audit file."""

import csv
import json
import os
import re
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mitmgate.audit.anchors import Anchored
from mitmgate.audit.anchors import read as read_anchors
from mitmgate.audit.chain import key_from_env
from mitmgate.audit.reading import Members, events, follow, printable, size
from mitmgate.audit.refusals import refused_log
from mitmgate.audit.selection import Network, Selection, moment, network, statuses
from mitmgate.audit.statistics import Statistics
from mitmgate.audit.verification import Kind, Report, marks_in
from mitmgate.audit.verification import verify as verify_log
from mitmgate.usage import UserError

_PATH = click.argument("path", metavar="FILE", type=click.Path(dir_okay=False))
_POLL = 0.2  # seconds
_SHOWN: Final = 200  # events of a table
_MUCH: Final = 50 << 20  # bytes of which reading takes long enough to be looked at


@click.group()
def audit() -> None:
    """Verify, follow, show or count an audit file, or print the schema of its events."""


@audit.command()
@_PATH
@click.option("--key-env", multiple=True, metavar="NAME", help="The environment variable with the chain's key.")
@click.option("--without-head", is_flag=True, help="For a copy without FILE.head: a cut end is not detected.")
@click.option(
    "--marks", metavar="LOG", multiple=True, help="A process log of the gateway, which says how far FILE was."
)
@click.option("--anchors", metavar="FILE", help="Where the policy's audit.anchors have the ends of FILE.")
@click.option("--anchors-key-env", metavar="NAME", help="The environment variable with the anchors' key.")
@click.option(
    "--accept",
    type=click.Choice([Kind.DECLARED.value, Kind.BEGINNING.value]),
    multiple=True,
    help="Exit with 0 where nothing else is wrong.",
)
@click.pass_context
def verify(
    context: click.Context,
    path: str,
    key_env: tuple[str, ...],
    without_head: bool,
    marks: tuple[str, ...],
    anchors: str | None,
    anchors_key_env: str | None,
    accept: tuple[str, ...],
) -> None:
    """Check the hash chain of FILE, its rotated files and its log of refused requests, to the end: name every break.

    Exit status 0: every record is there and unchanged; 1: records were changed, put in, or are missing; 3: records are
    missing, or may be, and the log itself declares it; 4: the oldest files were taken away, and the rest is whole. Give
    --key-env again for a key that was used earlier.

    An old FILE that was put back together with its old FILE.head is whole. --marks tells: the gateway's own log says
    with which record FILE ended, at its start and end, at each rotation and every ten minutes. So do --anchors, under a
    key of their own and as often as the policy says.
    """
    keys: list[bytes | None] = [key_from_env(name, os.environ.get(name)) for name in key_env]
    marked: dict[int, str] = {}
    for name in marks:
        with _reading(name):
            marked |= marks_in(Path(name).read_text(encoding="utf-8", errors="replace"), os.path.basename(path))
    beside = refused_log(path)
    anchored, anchored_beside = (_anchored(anchors, anchors_key_env, log) for log in (path, beside))
    marked |= anchored.marks
    with _progress(path, "verifying") as read:
        reports = [verify_log(path, keys or [None], with_head=not without_head, marks=marked, read=read)]
        if os.path.exists(beside) or anchored_beside.marks:
            further = anchored_beside.marks
            reports.append(verify_log(beside, keys or [None], with_head=not without_head, marks=further, read=read))
    if anchors is not None and not (anchored.marks or anchored.wrong):
        reports[0].add(Kind.ANCHOR, anchors, f"has no anchor of {os.path.basename(path)}: it shows nothing of it")
    for place, what in anchored.wrong:
        reports[0].add(Kind.ANCHOR, place, what)
    for name, report in zip((path, beside), reports, strict=False):
        _tell(name if len(reports) > 1 else "", report, keys)
    wrong = {kind.value for report in reports for kind in report.counts} - set(accept)
    broken = any(report.broken for report in reports)
    context.exit(1 if broken else 4 if Kind.BEGINNING in wrong else 3 if Kind.DECLARED in wrong else 0)


@audit.command()
def schema() -> None:
    """Print the JSON Schema of events, one of which is a line of an audit file."""
    from mitmgate.audit.schema import schema as schema_of_events  # noqa: PLC0415 - pydantic takes its time

    click.echo(json.dumps(schema_of_events(), indent=2))


def _anchored(path: str | None, key_env: str | None, log: str) -> Anchored:
    if path is None:
        return Anchored({}, [])
    if key_env is None:
        raise UserError("anchors are signed: give --anchors-key-env NAME, the variable that holds their key")
    return read_anchors(path, key_from_env(key_env, os.environ.get(key_env)), log)


def _tell(name: str, report: Report, keys: list[bytes | None]) -> None:
    for note in report.notes:
        click.echo(f"note: {printable(note)}", err=True)
    for kind, place, what in report.breaks:
        click.echo(f"{kind.value}: {printable(place)}: {printable(what)}")
    untold = report.counts.total() - len(report.breaks)
    if untold:
        click.echo(f"… and {untold} more")
    end = "" if report.last is None else f", up to record {report.last.seq}" + f" of {report.time}" * bool(report.time)
    subject = f"{name}: {_verdict(report, keys)}" if name else _verdict(report, keys)
    click.echo(printable(f"{subject}: {report.records} sound records in {_files(report)}{end}"))


def _verdict(report: Report, keys: list[bytes | None]) -> str:
    counts = ", ".join(f"{kind.value} {count}" for kind, count in report.counts.items())
    if report.broken:
        return f"BROKEN ({counts})"
    if counts:
        return f"INCOMPLETE ({counts})"
    return "OK" if keys else "OK, but for the key (there is none, so whoever can write the file can forge it)"


def _files(report: Report) -> str:
    return f"{report.files} file{'s' * (report.files != 1)}"


def _asked[**P, R](command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that say which events are meant."""
    for names, (members, what) in reversed(_MEMBERS.items()):
        first, *others = names.split()
        flags = [f"--{name}" for name in (first, *others)]
        command = click.option(*flags, members, multiple=True, metavar=first.upper(), help=what)(command)
    options = (
        click.option("--since", callback=_moment, metavar="TIME", help="From then on: 2026-01-31, 10:30, 15m (ago) …"),
        click.option("--until", callback=_moment, metavar="TIME", help="Before then."),
        click.option(
            "--status", callback=_each(statuses, "401, 4xx or 400-418"), multiple=True, help="As in 401, 4xx, 400-418."
        ),
        click.option(
            "--client", callback=_each(network, "an address or a network"), multiple=True, help="An address or network."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


_MEMBERS: Final = {
    "user principal": ("user", "Of this user."),
    "issuer": ("issuer", "Of users of this issuer."),
    "route": ("route", "To this route."),
    "reason": ("reason", "With this reason."),
    "outcome": ("outcome", "proxied, allowed, denied, answered, failed or aborted."),
    "stage": ("stage", "Decided by this stage."),
    "method": ("method", "With this method."),
    "request-id": ("request_id", "The event of this request."),
    "id": ("id", "The event with this id."),
    "event": ("event", "Of this kind: request, policy-reloaded …"),
}


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else moment(value, time.time())
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(
            f"{value!r} is no time such as 2026-01-31T10:30:00Z, 2026-01-31, 10:30 (today, UTC) or 15m (ago)"
        ) from error


def _each[T](
    read: Callable[[str], T], what: str
) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[T, ...]]:
    def convert(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[T, ...]:
        found = []
        for value in values:
            try:
                found.append(read(value))
            except ValueError as error:
                raise click.BadParameter(f"{value!r} is not {what}") from error
        return tuple(found)

    return convert


def _selection(
    since: str | None,
    until: str | None,
    status: tuple[range, ...],
    client: tuple[Network, ...],
    **members: tuple[str, ...],
) -> Selection:
    wanted = {name: frozenset(values) for name, values in members.items() if values}
    return Selection(since, until, wanted, status, client)


@audit.command()
@_PATH
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=20, show_default=True, help="Events to begin with.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_asked
def tail(path: str, following: bool, lines: int, form: str, **asked: Any) -> None:
    """Print the last events of FILE, one a line."""
    console = Console(highlight=False, soft_wrap=True)
    wanted = _selection(**asked)

    def write(found: Iterable[Members]) -> None:
        if form == "json":
            _write_json(found)
        else:
            for event in found:
                console.print(_line(event))

    with _reading(path):
        with _progress(path) as read:
            last = deque(wanted.of(events(path, read)), maxlen=lines)
        write(last)
        if following:
            write(wanted.of(follow(path, _wait)))


@audit.command()
@_PATH
@_asked
@click.option("--last", type=click.IntRange(min=1), help="At most so many, the latest.  [default: 200 in a table]")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def show(path: str, last: int | None, form: str, **asked: Any) -> None:
    """Show the events of FILE and its rotated files: as a table, one alone in full; as JSON, one a line; or as CSV."""
    wanted = _selection(**asked)
    with _reading(path), _progress(path) as read:
        if form != "table":
            found = wanted.of(events(path, read))
            (_write_json if form == "json" else _write_csv)(found if last is None else deque(found, maxlen=last))
            return
        count = 0
        shown = deque[Members](maxlen=last or _SHOWN)
        for event in wanted.of(events(path, read)):
            count += 1
            shown.append(event)
    console = Console(highlight=False)
    if not shown:
        console.print("No event matches." if wanted.asks else "There are no events.")
    elif len(shown) == 1:
        console.print(_whole(shown[0]))
    else:
        table, left_out = _table(list(shown), console.width)
        console.print(table)
        if count > len(shown):
            console.print(f"The latest {len(shown)} of {count:,}; --last N shows more.")
        if left_out:
            console.print(f"Not shown for want of room: {', '.join(left_out)} (a wider terminal, or --format json).")


@audit.command()
@_PATH
@_asked
@click.option("--top", type=click.IntRange(min=1, max=1000), default=10, show_default=True, help="So many of each.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def stats(path: str, top: int, form: str, **asked: Any) -> None:
    """Count the events of FILE and its rotated files: outcomes, reasons, routes, users, clients, durations.

    Memory does not grow with the file. Durations are right to a hundredth; counts are exact up to 50,000 different
    users or clients, and beyond that the table says by how much they may be too low.
    """
    statistics = Statistics()
    with _reading(path), _progress(path) as read:
        for event in _selection(**asked).of(events(path, read, in_order=False)):
            statistics.add(event)
    if form == "json":
        click.echo(json.dumps(statistics.report(top), indent=2))
        return
    if form == "csv":
        _write_rows(("figure", "name", "value"), _rows(statistics.report(top)))
        return
    console = Console(highlight=False)
    for part in _figures(statistics, top):
        console.print(part)


def _write_json(found: Iterable[Members]) -> None:
    for event in found:
        click.echo(json.dumps(event, separators=(",", ":")))


def _write_csv(found: Iterable[Members]) -> None:
    _write_rows(_COLUMNS, ([event.get(name, "") for name in _COLUMNS] for event in found))


def _write_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table that a spreadsheet reads, and takes no cell of for a formula (OWASP, CSV injection)."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [printable(value) for value in row]
        writer.writerow([_FORMULA.sub(r"\g<0>'", cell) for cell in cells])


_FORMULA: Final = re.compile(r"(?:^|;)(?=\s*[=+\-@＝＋－＠])")  # noqa: RUF001 - spreadsheets take these, and `;` parts cells


def _rows(figures: Mapping[str, object], *names: str) -> Iterator[tuple[str, str, object]]:
    """Yield each figure of a report: the path to it, its own name, the value."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _rows(value, *names, name)
        else:
            yield " ".join(names), name, value


_COLUMNS: Final = (
    *("time", "event", "status", "outcome", "reason", "stage", "method", "host", "path", "query", "route", "upstream"),
    *("user", "issuer", "client_ip", "duration_ms", "upstream_ms", "bytes_in", "bytes_out", "request_id", "detail"),
)


def _figures(statistics: Statistics, top: int) -> Iterator[RenderableType]:
    requests = statistics.requests
    yield f"{requests:,} requests and {statistics.events - requests:,} other events" + (
        f", {printable(statistics.first)} to {printable(statistics.last)}" if statistics.events else ""
    )
    if not requests:
        return
    durations = Table("ms", *_QUANTILES)
    for name, quantiles in (("gateway and upstream", statistics.durations), ("upstream", statistics.upstream)):
        figures = quantiles.figures()
        if quantiles.count:
            durations.add_row(name, *(f"{figures[quantile]:g}" for quantile in _QUANTILES))
    yield durations
    for name, frequent in statistics.named.items():
        if name == "route":
            yield _routes(statistics, top)
            continue
        table = Table(name, "requests", "share")
        for value, count in frequent.top(top):
            table.add_row(Text(printable(value)), f"{count:,}", f"{100 * count / requests:.1f} %")
        if table.rows:
            yield table
        if frequent.missed:
            yield f"There are too many to count each exactly: a count may be up to {frequent.missed:,} too low."
        elif len(frequent.counts) > top:
            yield f"And {len(frequent.counts) - top:,} more; --top N shows more."


_QUANTILES: Final = ("p50", "p90", "p95", "p99", "max")


def _routes(statistics: Statistics, top: int) -> Table:
    table = Table("route", "requests", "proxied", "denied", "failed", "p50 ms", "p99 ms")
    for name, (durations, outcomes) in sorted(statistics.by_route.items(), key=lambda one: -one[1][1].total())[:top]:
        figures = durations.figures()
        counts = [f"{outcomes[outcome]:,}" for outcome in ("proxied", "denied", "failed")]
        row = (
            f"{outcomes.total():,}",
            *counts,
            *(f"{figures[each]:g}" if each in figures else "" for each in ("p50", "p99")),
        )
        table.add_row(Text(printable(name)), *row)
    return table


@contextmanager
def _progress(path: str, doing: str = "reading") -> Iterator[Callable[[int], object]]:
    """Show a bar on stderr, where it is a terminal and there is much to read."""
    total = size(path)
    if not sys.stderr.isatty() or total < _MUCH:
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what goes wrong with reading into a message for the user."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"the audit file {path} can't be read: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:  # of gzip, which gives BadGzipFile, an OSError, for its head alone
        raise UserError(f"the audit file {path}: a rotated file that was compressed is damaged: {error}") from error


def _wait() -> bool:
    time.sleep(_POLL)
    return True


def _style(event: Members) -> str:
    status = event.get("status")
    if not isinstance(status, int):
        return "magenta"
    return "red" if status >= 500 else "yellow" if status >= 400 else "green"


def _cells(event: Members) -> list[str]:
    """Return what every event is shown by: time, status, what was asked, what became of it, why, who."""
    if "outcome" not in event:
        rest = {name: value for name, value in event.items() if name not in {"time", *_OF_ALL}}
        facts = " ".join(f"{name}={value}" for name, value in rest.items())
        return [printable(cell) for cell in (event.get("time", ""), "", event.get("event", "?"), "", facts, "")]
    query = f"?{event['query']}" if "query" in event else ""
    asked = f"{event.get('method', '?')} {event.get('path', '')}{query}"
    who = event.get("user") or event.get("client_ip") or ""
    reason = f"{event.get('reason', '')} ({event['cause']})" if "cause" in event else event.get("reason", "")
    cells = (event.get("time", ""), event.get("status", ""), asked, event["outcome"], reason, who)
    return [printable(cell) for cell in cells]


_OF_ALL = ("event", "id", "worker", "v", "seq", "prev", "mac")


def _line(event: Members) -> Text:
    when, status, asked, outcome, reason, who = _cells(event)
    line = Text(f"{when} ", style="dim")
    line.append(f"{status:>3} {outcome:<8} ", style=_style(event))
    line.append(asked)
    line.append(f"  {reason}", style=_style(event))
    for fact in (who, event.get("route"), event.get("request_id")):
        if fact:
            line.append(f"  {printable(fact)}", style="dim")
    duration = event.get("duration_ms")
    if duration is not None:
        line.append(f"  {printable(duration)} ms", style="dim")
    return line


def _table(found: list[Members], width: int) -> tuple[Table, list[str]]:
    """Make a table for a terminal of so many columns; returns it with the names of those that have no room."""
    names = [name for name, room in _ROOM.items() if width >= room]
    table = Table(*names)
    for event in found:
        when, status, asked, outcome, reason, who = _cells(event)
        rest = {"route": "route", "ms": "duration_ms", "request id": "request_id"}
        style = _style(event)
        cells: dict[str, Text] = {
            "time": Text(when, style="dim"),
            "status": Text(status, style=style),
            "request": Text(asked),
            "outcome": Text(outcome),
            "reason": Text(reason),
            "who": Text(who),
            **{name: Text(printable(event.get(member, ""))) for name, member in rest.items()},
        }
        table.add_row(*(cells[name] for name in names))
    return table, [name for name in _ROOM if name not in names]


_ROOM: Final = {
    "time": 0,
    "status": 0,
    "request": 0,
    "outcome": 110,
    "reason": 0,
    "who": 90,
    "route": 140,
    "ms": 120,
    "request id": 180,
}
"""From how many columns of a terminal on each column of a table has room."""


def _whole(event: Members) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in event.items():
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    return table
