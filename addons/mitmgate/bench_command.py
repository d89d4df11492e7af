"""bench: measure this gateway beside stock mitmdump and its peers; the measurements live in bench/ of a checkout."""

import importlib
import sys
from pathlib import Path

import click

from mitmgate.usage import UserError

ROOT = Path(__file__).resolve().parents[2]
FILE = click.Path(dir_okay=False, path_type=Path)
SECTIONS = ("compare", "stages", "workers", "bodies", "denials", "ratios")


@click.command("bench")
@click.option("--seconds", type=click.IntRange(1, 120), help="Seconds for each measurement; 5 unless --quick.")
@click.option("--rounds", type=click.IntRange(1, 20), help="Turns of each subject; 3 unless --quick.")
@click.option(
    "--quick", is_flag=True, help="A minute or two: one round of a second; sections that no time is left for are named."
)
@click.option("--peers", is_flag=True, help="Measure HAProxy and a fastify gateway too, where they are installed.")
@click.option(
    "--beside",
    type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True),
    help="An older checkout of mitmgate: the ratios compare with its code too.",
)
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, help="Measure this section alone; repeatable.")
@click.option(
    "--soak", is_flag=True, help="Leaks, crashes and reloads under load instead; exit 1 where a bar is missed."
)
@click.option("--json", "json_path", type=FILE, help="Write everything here.")
@click.option("--plot", "plot_path", type=FILE, help="Write requests/s and CPU a request here, as SVG.")
@click.option("--markdown", "markdown_path", type=FILE, help="Write the tables here, to be pasted into a README.")
def command(
    seconds: int | None,
    rounds: int | None,
    quick: bool,
    peers: bool,
    beside: Path | None,
    only: tuple[str, ...],
    soak: bool,
    json_path: Path | None,
    plot_path: Path | None,
    markdown_path: Path | None,
) -> None:
    """Measure the gateway beside stock mitmdump, each on one core, in turns."""
    if not (ROOT / "bench" / "compare.py").is_file():
        raise UserError("bench needs a checkout of mitmgate: the measurements are not installed with it")
    sys.path.insert(0, str(ROOT))
    if soak:
        if seconds or rounds or peers or beside or only or plot_path:
            raise UserError("--soak goes with --quick, --json and --markdown alone")
        raise SystemExit(importlib.import_module("bench.soak").run(quick, json_path, markdown_path))
    settings = importlib.import_module("bench.settings")
    chosen = settings.choose(seconds=seconds, rounds=rounds, quick=quick, peers=peers, sections=only, beside=beside)
    compare = importlib.import_module("bench.compare")
    compare.run(chosen, compare.Outputs(json_path, plot_path, markdown_path))
