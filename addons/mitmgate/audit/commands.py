"""`mitmgate audit verify|tail|show`: check, follow and search an audit file."""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mitmgate.audit.chain import key_from_env
from mitmgate.audit.reading import Members, events, follow, last_events, printable
from mitmgate.audit.refusals import refused_log
from mitmgate.audit.verification import Kind, Report, marks_in
from mitmgate.audit.verification import verify as verify_log
from mitmgate.usage import UserError

_PATH = click.argument("path", metavar="FILE", type=click.Path(dir_okay=False))
_POLL = 0.2  # seconds


@click.group()
def audit() -> None:
    """Verify, follow or show an audit file."""


@audit.command()
@_PATH
@click.option("--key-env", multiple=True, metavar="NAME", help="The environment variable with the chain's key.")
@click.option("--without-head", is_flag=True, help="For a copy without FILE.head: a cut end is not detected.")
@click.option(
    "--marks", metavar="LOG", multiple=True, help="A process log of the gateway, which says how far FILE was."
)
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
    accept: tuple[str, ...],
) -> None:
    """Check the hash chain of FILE, its rotated files and its log of refused requests, to the end: name every break.

    Exit status 0: every record is there and unchanged; 1: records were changed, put in, or are missing; 3: records are
    missing, or may be, and the log itself declares it; 4: the oldest files were taken away, and the rest is whole. Give
    --key-env again for a key that was used earlier.

    An old FILE that was put back together with its old FILE.head is whole. --marks tells: the gateway's own log says
    with which record FILE ended, at its start and end, at each rotation and every ten minutes.
    """
    keys: list[bytes | None] = [key_from_env(name, os.environ.get(name)) for name in key_env]
    marked: dict[int, str] = {}
    for name in marks:
        with _reading(name):
            marked |= marks_in(Path(name).read_text(encoding="utf-8", errors="replace"), os.path.basename(path))
    beside = refused_log(path)
    reports = [verify_log(path, keys or [None], with_head=not without_head, marks=marked)]
    if os.path.exists(beside):
        reports.append(verify_log(beside, keys or [None], with_head=not without_head))
    for name, report in zip((path, beside), reports, strict=False):
        _tell(name if len(reports) > 1 else "", report, keys)
    wrong = {kind.value for report in reports for kind in report.counts} - set(accept)
    broken = any(report.broken for report in reports)
    context.exit(1 if broken else 4 if Kind.BEGINNING in wrong else 3 if Kind.DECLARED in wrong else 0)


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


@audit.command()
@_PATH
@click.option("-f", "--follow", "following", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=20, show_default=True, help="Events to begin with.")
def tail(path: str, following: bool, lines: int) -> None:
    """Print the last events of FILE, one a line."""
    console = Console(highlight=False, soft_wrap=True)
    with _reading(path):
        for event in last_events(path, lines):
            console.print(_line(event))
        if following:
            for event in follow(path, _wait):
                console.print(_line(event))


@audit.command()
@_PATH
@click.option("--request-id", help="Only the event of this request.")
@click.option("--user", help="Only this user's.")
@click.option("--reason", help="Only with this reason code.")
@click.option("--status", type=int, help="Only with this status.")
@click.option("--last", type=click.IntRange(min=1), default=200, show_default=True, help="At most so many, the latest.")
def show(
    path: str, request_id: str | None, user: str | None, reason: str | None, status: int | None, last: int
) -> None:
    """Show the events of FILE and its rotated files as a table; one alone in full."""
    wanted = {"request_id": request_id, "user": user, "reason": reason, "status": status}
    asked = {name: value for name, value in wanted.items() if value is not None}
    with _reading(path):
        found = deque(
            (event for event in events(path) if all(event.get(name) == value for name, value in asked.items())),
            maxlen=last,
        )
    console = Console(highlight=False)
    if not found:
        console.print("No event matches." if asked else "There are no events.")
    elif len(found) == 1:
        console.print(_whole(found[0]))
    else:
        console.print(_table(list(found)))


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what goes wrong with reading into a message for the user."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"the audit file {path} can't be read: {error.strerror}") from error


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
        rest = {name: value for name, value in event.items() if name not in {"time", "event", "id", *_CHAIN}}
        facts = " ".join(f"{name}={value}" for name, value in rest.items())
        return [printable(cell) for cell in (event.get("time", ""), "", event.get("event", "?"), "", facts, "")]
    query = f"?{event['query']}" if "query" in event else ""
    asked = f"{event.get('method', '?')} {event.get('path', '')}{query}"
    who = event.get("user") or event.get("client_ip") or ""
    reason = f"{event.get('reason', '')} ({event['cause']})" if "cause" in event else event.get("reason", "")
    cells = (event.get("time", ""), event.get("status", ""), asked, event["outcome"], reason, who)
    return [printable(cell) for cell in cells]


_CHAIN = ("seq", "prev", "mac")


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


def _table(found: list[Members]) -> Table:
    table = Table("time", "status", "request", "outcome", "reason", "who", "route", "ms", "request id")
    for event in found:
        rest = [printable(event.get(name, "")) for name in ("route", "duration_ms", "request_id")]
        when, status, *cells = _cells(event)
        style = _style(event)
        table.add_row(Text(when, style="dim"), Text(status, style=style), *map(Text, cells), *map(Text, rest))
    return table


def _whole(event: Members) -> Table:
    table = Table(show_header=False, box=None)
    for name, value in event.items():
        table.add_row(Text(printable(name), style="bold"), Text(printable(value)))
    return table
