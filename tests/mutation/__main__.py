"""./run.sh mutants: change what decides, one expression at a time, and see whether a test notices."""

import os
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.mutation.making import PACKAGE, ROOT, Mutant, mutants_of
from tests.mutation.quick import UNCHANGED, quick
from tests.mutation.running import KILLED, SURVIVED, Known, Runs, accepted, prepare

MODULES = ("stages/*.py", "core/*.py", "core/http1/*.py", "keys/verify.py", "keys/ring.py")
"""Whose mutants are made: what decides on a request, and what lets it through."""


def modules(only: tuple[str, ...]) -> list[str]:
    """Return the modules, those that decide most first."""
    found = [str(file.relative_to(PACKAGE)) for pattern in MODULES for file in sorted(PACKAGE.glob(pattern))]
    return [path for path in found if not only or any(fnmatch(path, pattern) for pattern in only)]


@click.command("mutants")
@click.option(
    "--quick", "short", is_flag=True, help="Only those that are known to admit, in a few seconds; CI runs this."
)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True)
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Modules below addons/mitmgate: stages/*.py; repeatable."
)
@click.option("--whole", is_flag=True, help="Before one counts as survivor, run all tests of core/ and stages/ on it.")
@click.option("--again", is_flag=True, help="Forget what earlier runs have found of modules that have not changed.")
def command(short: bool, minutes: float, jobs: int, only: tuple[str, ...], whole: bool, again: bool) -> int:
    """Make mutants of stages/, core/ and keys/, and run the tests of each one's module.

    What earlier runs have found of a module as it is holds, so that a run can be ended and gone on with. Exit status
    1: one survives that docs/mutants.md does not list with a reason.
    """
    started = time.monotonic()
    prepare()
    chosen = quick() if short else [mutant for path in modules(only) for mutant in mutants_of(path)]
    file = Path(os.devnull) if short else ROOT / ".mutants.jsonl"
    if again and not short:
        file.unlink(missing_ok=True)
    known = Known(file)
    runs = Runs(jobs, started + 60 * minutes)
    survivors = [mutant for mutant in chosen if known.status(mutant) == SURVIVED and not whole]
    left = [mutant for mutant in chosen if known.status(mutant) is None or (whole and known.status(mutant) == SURVIVED)]
    done = len(chosen) - len(left)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Without a thread of its own: forks would wait for its locks.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("tests as they are", total=len(chosen), completed=done)
        progress.refresh()
        try:
            paths = UNCHANGED if short else sorted({mutant.path for mutant in left})
            unchanged = (Mutant(path, "module", "as it is", 0, None) for path in paths)
            failing = [mutant.path for mutant, status in runs.each(unchanged) if status == KILLED]
            if failing:
                raise click.ClickException(f"the tests of {', '.join(failing)} fail without a mutant")
            for mutant, status in runs.each(left, whole=whole):
                known.note(mutant, status)
                done += 1
                if status == SURVIVED:
                    survivors.append(mutant)
                progress.update(task, completed=done, description=f"{len(survivors)} survive")
                progress.refresh()
        finally:
            runs.stop()
    reasons = accepted()
    unknown = [mutant for mutant in survivors if mutant.name not in reasons]
    for mutant in unknown:
        click.echo(f"survives: {mutant.path}:{mutant.line} {mutant.name}")
    killed = done - len(survivors)
    click.echo(
        f"{len(chosen)} mutants: {killed} noticed, {len(survivors)} not ({len(survivors) - len(unknown)} of them listed"
        f" in docs/mutants.md), {len(chosen) - done} not tried; {time.monotonic() - started:.0f} s"
    )
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(command(standalone_mode=False))
