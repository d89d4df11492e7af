"""`./run.sh bench`: this gateway beside bare stock mitmdump and its peers, in turns, what is measured on one core.

Subjects stand in front of the same upstream: `stock` (mitmdump in reverse mode, no addon), `host` (the host and its
protocol layer, everything admitted), `gateway` (serve, the whole chain) and the peers. In every round each is measured
once, so that whatever else the machine does meets all of them; a ratio is the median of the rounds' own ratios.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

from rich.console import Console

from bench import plot, sheets
from bench.bars import Bar, bars
from bench.bodies import Carried, bodies
from bench.denials import Denials, denials
from bench.load import CONNECTIONS, wrk
from bench.machine import Machine, this_machine
from bench.ratios import Ratios, ratios
from bench.rig import Rig, beside, rig
from bench.settings import Settings
from bench.sheets import Sheet
from bench.sides import compare
from bench.stages import Cost, stages
from bench.turns import Comparison
from bench.workers import Scaling, workers

FILE_WIDTH = 130


@dataclass(frozen=True, slots=True)
class Outputs:
    """Files that are written beside the table on the terminal; None: not."""

    json: Path | None = None
    plot: Path | None = None
    markdown: Path | None = None


@dataclass(slots=True)
class Results:
    """Everything that one run found; a section that was not asked for is None."""

    machine: Machine
    settings: Settings
    comparison: Comparison | None = None
    stages: list[Cost] | None = None
    scaling: Scaling | None = None
    bodies: list[Carried] | None = None
    denials: Denials | None = None
    ratios: Ratios | None = None
    bars: list[Bar] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Sections for which no time was left."""

    def sheets(self) -> list[Sheet]:
        """Return the tables."""
        absent = self.ratios.absent if self.ratios is not None else {}
        made = [sheets.judged(self.bars, absent)] if self.bars else []
        if self.comparison is not None:
            made += sheets.compared(self.comparison)
        if self.stages is not None:
            made.append(sheets.costs(self.stages))
        if self.scaling is not None:
            made.append(sheets.scaled(self.scaling))
        if self.bodies is not None:
            made.append(sheets.carried(self.bodies))
        if self.denials is not None:
            made.append(sheets.refused(self.denials))
        return made


def terminal() -> Console:
    """Return where tables go; wide enough where it is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)


def run(settings: Settings, outputs: Outputs) -> None:
    """Measure, print the tables, write the files."""
    wrk()
    console = terminal()
    with rig() as made, beside(made.cores):
        results = Results(this_machine(made.cores), settings)
        measure(made, settings, results, console)
    results.bars = bars(results.comparison, results.scaling, results.denials)
    if results.ratios is not None:
        results.bars += results.ratios.bars
    machine = results.machine
    console.print(machine.words, highlight=False)
    if not machine.quiet:
        console.print("the machine was not quiet: don't believe these figures", style="bold")
    if results.left_out:
        console.print(f"no time was left for: {', '.join(results.left_out)} (--only measures one alone)", style="bold")
    console.print()
    sheets.show(results.sheets(), console)
    write(results, outputs)


def measure(made: Rig, settings: Settings, results: Results, console: Console) -> None:
    """Measure section after section, while there is time; the results take what was found."""
    began = monotonic()

    def begin(section: str, words: str) -> bool:
        """Tell whether a section is wanted, and has its time."""
        if section not in settings.sections:
            return False
        if settings.budget is not None and monotonic() - began > settings.budget:
            results.left_out.append(section)
            return False
        status.update(words)
        return True

    with console.status("") as status:
        if begin("compare", "subjects side by side"):
            results.comparison = compare(made, settings)
        if begin("stages", "what each part of a policy costs"):
            results.stages = stages(made, settings)
        if begin("workers", "one worker and two"):
            results.scaling = workers(made, settings)
        if begin("bodies", "bodies"):
            results.bodies = bodies(made, settings)
        if begin("denials", "refused requests"):
            results.denials = denials(made, settings)
        if begin("ratios", "one thing beside another"):
            results.ratios = ratios(made, settings)


def write(results: Results, outputs: Outputs) -> None:
    """Write the files that were asked for."""
    if outputs.json is not None:
        made = asdict(results) | {"connections": CONNECTIONS}
        made["bars"] = [asdict(bar) | {"met": bar.met} for bar in results.bars]
        outputs.json.write_text(json.dumps(made, indent=2, ensure_ascii=False, default=str) + "\n")
    if outputs.markdown is not None:
        outputs.markdown.write_text(sheets.markdown(results.sheets(), results.machine.words))
    if outputs.plot is not None and results.comparison is not None:
        series = dict(results.comparison.saturation["keep-alive"])
        series.pop("upstream alone", None)  # its bar would dwarf the others, and it is no gateway
        title = f"{CONNECTIONS} keep-alive connections at saturation, one core"
        outputs.plot.write_text(plot.as_svg(series, title, results.machine.words))
