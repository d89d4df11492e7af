"""The commands `replay`, `redact`, `explain` and `learn`."""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mitmgate.core.decision_service import Said
from mitmgate.replay import coverage_report, explain_text, report_json, report_junit, report_table
from mitmgate.replay.cases import case, parse_claims, parse_header
from mitmgate.replay.coverage import Coverage
from mitmgate.replay.deciding import Decider
from mitmgate.replay.evidence import gather
from mitmgate.replay.expectations import Expectations, ExpectationWriter, beside, read_expectations
from mitmgate.replay.explain import explain as explain_decision
from mitmgate.replay.learn import propose
from mitmgate.replay.learn_openapi import Document
from mitmgate.replay.lists import read_lists
from mitmgate.replay.offline import load_offline, parse_jwks
from mitmgate.replay.output import output
from mitmgate.replay.plot import as_svg
from mitmgate.replay.privacy import CLAIMS, Privacy
from mitmgate.replay.recording import kind_of, open_traffic
from mitmgate.replay.redact_file import SignatureFinder, redact_file
from mitmgate.replay.redaction import Redactor
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.run import FailOn, Observer, Report
from mitmgate.replay.run import replay as run_replay
from mitmgate.replay.traffic import Entry, Recorded, Traffic
from mitmgate.replay.what_if import Timeline, parse_changes
from mitmgate.usage import UserError

LARGE = 4 * 2**20  # bytes that take a second or more to be redacted
_POLICY = click.option("--policy", "policy_path", required=True, metavar="FILE", help="The policy to decide with.")
_JWKS = click.option("--jwks", multiple=True, metavar="NAME=FILE", help="An issuer's keys, a JWK set in a file.")
_ASSUME = click.option(
    "--assume-signed", is_flag=True, help="Take every signature that nobody has checked for a good one."
)

_ASSUME_DECISION = click.option(
    "--assume-decision",
    type=click.Choice(["allow", "deny", "unavailable"]),
    default="unavailable",
    help="What a decision service is taken to say where nobody asked it.",
)


@click.command()
@click.argument("traffic", nargs=-1, required=True, metavar="TRAFFIC...")
@_POLICY
@click.option("--against", metavar="FILE", help="Compare with this policy instead of the recorded verdicts.")
@click.option("--format", "form", type=click.Choice(["table", "json", "junit"]), default="table", show_default=True)
@click.option(
    "--fail-on",
    type=click.Choice(["loosened", "tightened", "any", "none"]),
    help="Differences that make the exit status 1.  [default: any; none with --what-if]",
)
@click.option("--coverage", is_flag=True, help="Say which rules were never exercised.")
@click.option("--annotate", metavar="FILE", help="Write the policy with counts beside its lines.")
@click.option("--min-coverage", type=click.FloatRange(0, 100), metavar="PERCENT", help="Fail below this coverage.")
@click.option("--what-if", multiple=True, metavar="NAME.MEMBER=VALUE", help="Change a limit or a circuit.")
@click.option("--plot", metavar="FILE", help="With --what-if: draw admitted and limited requests over time, as SVG.")
@click.option("--write-expected", is_flag=True, help="Write these decisions as expectations beside the recording.")
@_ASSUME
@_ASSUME_DECISION
@_JWKS
def replay(
    traffic: Sequence[str],
    policy_path: str,
    against: str | None,
    form: str,
    fail_on: FailOn | None,
    coverage: bool,
    annotate: str | None,
    min_coverage: float | None,
    what_if: Sequence[str],
    plot: str | None,
    write_expected: bool,
    assume_signed: bool,
    assume_decision: Said,
    jwks: Sequence[str],
) -> int:
    """Decide recorded requests again, offline and at their recorded time, and compare.

    TRAFFIC is a flow file of the gateway or of mitmproxy, a HAR, or an audit file; several files are one recording.
    Compared is with --against, else with TRAFFIC.expect.yaml where it is there, else with the recorded verdicts.
    """
    if plot is not None and not what_if:
        raise UserError("--plot: only with --what-if")
    keys = parse_jwks(jwks)
    policy = load_offline(policy_path, os.environ, keys)
    other = None if against is None else load_offline(against, os.environ)
    if what_if:
        other = other or policy
        policy = load_offline(policy_path, os.environ, keys, parse_changes(policy, what_if))
    recording = open_traffic(traffic)
    expected = None if other is not None or write_expected else _expectations(traffic)
    observers: list[Observer] = []
    covered = Coverage(policy) if coverage or annotate or min_coverage is not None else None
    timeline = Timeline() if what_if else None
    observers += [observer for observer in (covered, timeline) if observer is not None]
    # What is loaded by now stays; the collector need not look at it again and again.
    gc.freeze()
    with ExitStack() as outputs:
        if write_expected:
            path = beside(_only(traffic))
            observers.append(ExpectationWriter(path, recording.name, outputs.enter_context(output(str(path)))))
        with _progress(len(recording), "deciding") as advance:
            report = run_replay(
                recording,
                policy,
                against=other,
                expected=expected,
                compared_with="" if expected is None else str(expected.path),
                assume_signed=assume_signed,
                assume_decision=assume_decision,
                observers=observers,
                progress=advance,
            )
    if write_expected:
        click.echo(f"{beside(traffic[0])}: {report.decided:,} expectations written", err=True)
    if expected is not None and expected.unmet:
        report.notes.append(f"{expected.unmet} expectations are of requests that the recording does not have")
    chosen: FailOn = fail_on or ("none" if what_if else "any")
    shown = covered if coverage or min_coverage is not None else None
    click.echo(_written(report, form, chosen, shown, timeline, min_coverage or 0.0))
    if annotate is not None and covered is not None:
        _write(annotate, coverage_report.annotated(covered, Path(policy_path).read_text(encoding="utf-8-sig")))
    if plot is not None and timeline is not None:
        _write(plot, as_svg(timeline, f"{recording.name} with {', '.join(what_if)}"))
    short = covered is not None and min_coverage is not None and covered.percent < min_coverage
    if short and covered is not None:
        click.echo(f"coverage {covered.percent:.1f} % is below {min_coverage:g} %", err=True)
    return int(report.failed(chosen) or short)


def _expectations(traffic: Sequence[str]) -> Expectations | None:
    path = beside(traffic[0])
    return read_expectations(path) if len(traffic) == 1 and path.exists() else None


def _only(traffic: Sequence[str]) -> str:
    if len(traffic) > 1:
        raise UserError("--write-expected: expectations belong to one file")
    return traffic[0]


def _written(
    report: Report, form: str, fail_on: FailOn, covered: Coverage | None, timeline: Timeline | None, wanted: float
) -> str:
    if form == "junit":
        percent = None if covered is None else covered.percent
        return report_junit.as_junit(report, fail_on, percent, wanted).rstrip("\n")
    if form == "json":
        more: dict[str, object] = {}
        if covered is not None:
            more["coverage"] = covered.members()
        if timeline is not None:
            more["what_if"] = timeline.members()
        return report_json.as_json(report, **more)
    colour = sys.stdout.isatty()
    width = Console().width if colour else None
    parts = [report_table.as_table(report, width, colour=colour)]
    if timeline is not None:
        parts.append(report_table.timeline_table(timeline, width, colour=colour))
    if covered is not None:
        parts.append(coverage_report.as_table(covered, width, colour=colour))
    return "\n".join(parts).rstrip("\n")


def _write(path: str, text: str) -> None:
    with output(path) as file:
        file.write(text.encode())


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr, where it is a terminal and the work is long enough to be looked at."""
    if not sys.stderr.isatty() or total < 5000:
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if done % 500 == 0:
                bar.update(task, completed=done)

        yield advance


@contextmanager
def _reading(path: str) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, where it is a terminal and the file is large; told is how many bytes of it are read."""
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if not sys.stderr.isatty() or size < LARGE:
        yield lambda at: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("redacting", total=size)
        yield lambda at: bar.update(task, completed=at)


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--policy", "policy_path", metavar="FILE", help="Check tokens with the keys of this policy.")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    help=f"A claim to hash, by name or JSON pointer, beside {', '.join(CLAIMS[:4])} and others.",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    help="A header field to hash, beside those that are known to hold credentials.",
)
@click.option("--query", multiple=True, help="A query parameter to hash, beside access_token and its kind.")
@click.option("--bodies", is_flag=True, help="Keep bodies, as they are: they may hold anything.")
@_JWKS
def redact(
    source: str,
    target: str,
    policy_path: str | None,
    claims: Sequence[str],
    headers: Sequence[str],
    query: Sequence[str],
    bodies: bool,
    jwks: Sequence[str],
) -> int:
    """Write a recording without usable credentials: tokens are signed again, cookies and keys hashed, bodies left out.

    IN is a flow file or a HAR; OUT becomes a flow file. With --policy the tokens' signatures are checked first, and
    what was found out goes along; a replay can then rely on it.
    """
    if kind_of(source) == "audit file":
        raise UserError(f"{source}: an audit file holds no credentials")
    privacy = Privacy((*CLAIMS, *claims), tuple(headers), tuple(query), bodies)
    keys = parse_jwks(jwks)
    snapshot = None if policy_path is None else load_offline(policy_path, os.environ, keys).snapshot
    with _reading(source) as advance:
        done = redact_file(source, target, Redactor(privacy), SignatureFinder(snapshot), advance)
    click.echo(
        f"{target}: {done.written:,} requests" + (f", {done.dropped:,} other flows dropped" * bool(done.dropped))
    )
    if done.unchecked:
        click.echo(f"note: the signatures of {done.unchecked:,} tokens were not checked; --policy gives the keys")
    return 0


@click.command()
@click.argument("method", required=False)
@click.argument("url", required=False)
@_POLICY
@click.option("--token", help="A bearer token, checked with the policy's keys.")
@click.option("--claims", help="Claims as JSON, taken for signed; iss, aud, iat and exp are filled in.")
@click.option("--ip", default="127.0.0.1", show_default=True, help="The address that the request comes from.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header field; may be given again.")
@click.option("--body", type=click.IntRange(min=0), default=0, metavar="BYTES", help="The length of a body.")
@click.option("--flow", metavar="FILE#ID", help="A recorded request, after all that came before it.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_ASSUME
@_ASSUME_DECISION
@_JWKS
def explain(
    method: str | None,
    url: str | None,
    policy_path: str,
    token: str | None,
    claims: str | None,
    ip: str,
    headers: Sequence[str],
    body: int,
    flow: str | None,
    form: str,
    assume_signed: bool,
    assume_decision: Said,
    jwks: Sequence[str],
) -> int:
    """Show what every stage reads and says of one request: METHOD and URL, or one of a recording (--flow)."""
    policy = load_offline(policy_path, os.environ, parse_jwks(jwks))
    lists = read_lists(policy.snapshot) if flow is None else None  # a recording says what was known then
    decider = Decider(
        policy.snapshot,
        OfflineRing(assume_signed=assume_signed),
        assume_decision,
        None if lists is None else lists.keys,
        None if lists is None else lists.revocations,
    )
    if flow is not None:
        if method is not None:
            raise UserError("give METHOD and URL, or --flow, not both")
        recorded = _before(flow, decider)
    elif method is None or url is None:
        raise UserError("give METHOD and URL, like GET /api/v1/users/7, or --flow FILE#ID")
    elif token is not None and claims is not None:
        raise UserError("give --token or --claims, not both")
    else:
        recorded = case(
            policy.snapshot,
            method,
            url,
            at=time.time(),
            claims=None if claims is None else parse_claims(claims),
            token=token,
            headers=map(parse_header, headers),
            ip=ip,
            body=body,
        )
    exchange = decider.decide(recorded)
    explanation = explain_decision(policy, recorded, exchange, decider.stages)
    explanation.notes += [] if lists is None else lists.said_of(exchange)
    if form == "json":
        click.echo(json.dumps(explanation.members(), indent=2, ensure_ascii=True, default=str))
    else:
        click.echo(explain_text.as_text(explanation).rstrip("\n"))
    return 0


def _before(flow: str, decider: Decider) -> Recorded:
    """Decide everything that came before a recorded request, so that limits and circuits are what they were; find it.

    The id may be given by its beginning.
    """
    path, sharp, identity = flow.rpartition("#")
    if not sharp or not identity or not path:
        raise UserError(f"--flow {flow}: must be FILE#ID; `replay` shows ids")
    recording = open_traffic([path])
    with _progress(len(recording), "deciding") as advance:
        for entry in recording:
            if entry.id.startswith(identity):
                if not isinstance(entry, Recorded):
                    raise UserError(f"--flow {flow}: {entry.reason}")
                return entry
            if isinstance(entry, Recorded):
                decider.decide(entry)
            advance()
    raise UserError(f"--flow {flow}: {path} has no request {identity}")


@click.command()
@click.argument("traffic", nargs=-1, required=True, metavar="TRAFFIC...")
@click.option("--out", metavar="FILE", help="Write the policy to this file instead of printing it.")
@click.option("--openapi", "described", metavar="FILE", help="Write an OpenAPI document of the requests, too.")
def learn(traffic: Sequence[str], out: str | None, described: str | None) -> int:
    """Propose a least-privilege policy from what succeeded in a recording, with the evidence as comments.

    Routes by path template, methods, scopes and roles that all of its requests had, limits with room above what was
    needed. Read it before you use it: it knows no more than the recording.
    """
    recording = open_traffic(traffic)
    with _progress(len(recording), "reading") as advance:
        document = Document()
        entries = _told(recording, advance)
        evidence = gather(entries if described is None else document.watch(entries))
    if not evidence.successes:
        raise UserError(f"{recording.name}: no request of it succeeded, so there is nothing to learn")
    text = propose(evidence, recording.name)
    if described is not None:
        if not document.operations:
            raise UserError(f"{recording.name}: no request of it has a path that a document could describe")
        _write(described, document.write(recording.name))
    if out is None:
        click.echo(text, nl=False)
    else:
        _write(out, text)
    return 0


def _told(recording: Traffic, advance: Callable[[], None]) -> Iterator[Entry]:
    for entry in recording:
        advance()
        yield entry
