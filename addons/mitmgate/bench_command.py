"""bench: measure this gateway beside stock mitmdump; the measurements live in bench/ of a checkout."""

import importlib
import sys
from pathlib import Path

import click

from mitmgate.usage import UserError

ROOT = Path(__file__).resolve().parents[2]


@click.command("bench")
@click.option("--seconds", type=click.IntRange(1, 120), default=5, show_default=True, help="Seconds for each run.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="Runs of each subject.")
@click.option("--json", "output", type=click.Path(dir_okay=False, path_type=Path), help="Write all samples here.")
def command(seconds: int, rounds: int, output: Path | None) -> None:
    """Measure the gateway beside stock mitmdump on one core; six runs a round."""
    if not (ROOT / "bench" / "compare.py").is_file():
        raise UserError("bench needs a checkout of mitmgate: the measurements are not installed with it")
    sys.path.insert(0, str(ROOT))
    importlib.import_module("bench.compare").run(seconds, rounds, output)
