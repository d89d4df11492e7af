"""./run.sh mutants: change what decides, one expression at a time, and see whether a test notices."""

import os
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.mutation.making import PACKAGE, ROOT, Mutant, mutants_of
from tests.mutation.quick import admitting, quick
from tests.mutation.running import FOLDERS, Known, Runs, Tests, rows, with_tests

MODULES = ("pipeline/*.py", "stages/*.py", "core/*.py", "core/http1/*.py", "keys/verify.py", "keys/ring.py")
"""Whose mutants are made: what decides on a request, and what lets it through."""

ADMISSION = {
    "proxy/transaction.py": (
        "begin", "_refused", "_decided", "_admitted", "_stream_request", "_ask_for_body", "body", "_queued_body",
        "body_end", "_streamed", "_buffered", "_forward_whole", "_send_request", "body_refused", "_connect", "_dial",
        "_reached", "_not_reached", "_idempotent", "_repeatable", "_next_endpoint", "_over", "_killed", "crashed",
        "_hook", "_wait", "_go_on", "_later", "_answer", "_end_buffered", "_fail", "_abort", "_leave_upstream",
        "client_gone", "_ingress", "unadmitted",
    ),
    "proxy/http1.py": ("buffer_updated", "_guarded", "_broken", "_take", "_begin", "_refuse", "_next"),
    "proxy/http2.py": (
        "_handle", "_begin", "_refuse", "_take_body", "_take_trailers", "_begin_waiting", "_end_body", "_closed",
    ),
    "proxy/hooks.py": ("start", "run", "_finish"),
}  # fmt: skip
"""Of the engine, the functions on the way of a request to a service."""


def modules(only: tuple[str, ...]) -> list[str]:
    """Return the modules, those that decide most first."""
    found = [str(file.relative_to(PACKAGE)) for pattern in MODULES for file in sorted(PACKAGE.glob(pattern))]
    return [path for path in (*found, *ADMISSION) if not only or any(fnmatch(path, pattern) for pattern in only)]


def mutants(path: str) -> list[Mutant]:
    """Return the mutants of a module that are of interest."""
    names = ADMISSION.get(path)
    return [each for each in mutants_of(path) if names is None or each.place.rpartition(".")[2] in names]


def test_folders(paths: list[str]) -> list[str]:
    """Return where the tests are that may notice mutants of modules: the engine's cost much, and run for it alone."""
    engine = any(path in ADMISSION for path in paths)
    return [f"tests/{folder}" for folder in FOLDERS if engine or folder != "protocol"]


@click.command("mutants")
@click.option(
    "--quick", "short", is_flag=True, help="Only those that are known to admit, in a few seconds; CI runs this."
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True)
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Modules below addons/mitmgate: stages/*.py; repeatable."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="Of tests for each mutant; they go from those most like its module to others that execute its lines.",
)
@click.option("--again", is_flag=True, help="Forget what earlier runs have found of modules that have not changed.")
def command(short: bool, minutes: float, jobs: int, only: tuple[str, ...], seconds: float, again: bool) -> int:
    """Make mutants of what decides on requests, and run the tests that execute what each one changes.

    What earlier runs have found of a module as it is holds, so that a run can be ended and gone on with; one that no
    test has noticed is tried again where its tests have changed. Exit status 1: one survives that docs/mutants.md does
    not list with a reason.
    """
    started = time.monotonic()
    paths = modules(only)
    status = 0
    nowhere = Path(os.devnull)

    def act(session: pytest.Session) -> None:
        nonlocal status
        chosen = list(quick()) if short else [mutant for path in paths for mutant in mutants(path)]
        known = Known(nowhere if short else ROOT / ".mutants.jsonl")
        console = Console(stderr=True)
        traced = sorted({each.path for each in chosen}) if short else modules(())
        tests = Tests(session, traced, nowhere if short else ROOT / ".mutants.lines")
        tests.cover(console.print)
        runs = Runs(tests, jobs, seconds, started + 60 * minutes)
        status = hold(chosen, runs, known, console)

    files = sorted(set(admitting().values())) if short else test_folders(paths)
    if again and not short:
        (ROOT / ".mutants.jsonl").unlink(missing_ok=True)
    with_tests(files, act)
    click.echo(f"{time.monotonic() - started:.0f} s")
    return status


def hold(chosen: list[Mutant], runs: Runs, known: Known, console: Console) -> int:
    """Hold tests against mutants, and say what was found. Returns the exit status."""
    survivors = []
    left = []
    for mutant in chosen:
        result = known.result(mutant)
        if result is None or not (result.noticed or result.tests == runs.tests.digest(runs.chosen(mutant))):
            left.append(mutant)
        elif not result.noticed:
            survivors.append(mutant)
    done = len(chosen) - len(left)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Without a thread of its own: forks would wait for its locks.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("mutants", total=len(chosen), completed=done)
        try:
            for mutant, result in runs.each(left):
                known.note(mutant, result)
                done += 1
                if not result.noticed:
                    survivors.append(mutant)
                progress.update(task, completed=done, description=f"{len(survivors)} survive")
                progress.refresh()
        finally:
            runs.stop()
    listed = rows("What survives")
    unknown = [mutant for mutant in survivors if not any(row.takes(mutant) for row in listed)]
    for mutant in unknown:
        click.echo(f"survives: {mutant.path}:{mutant.line} {mutant.name}")
    paths = {mutant.path for mutant in chosen}
    idle = [row for row in listed if row.name.partition(" ")[0] in paths and not any(map(row.takes, survivors))]
    for row in idle if done == len(chosen) else ():
        click.echo(f"listed in docs/mutants.md, and does not survive: {row.name}")
    noticed = done - len(survivors)
    click.echo(
        f"{len(chosen)} mutants: {noticed} noticed, {len(survivors)} not ({len(survivors) - len(unknown)} of them "
        f"listed in docs/mutants.md), {len(chosen) - done} not tried"
    )
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(command(standalone_mode=False))
