"""`./run.sh bench --soak`: leaks over requests and connections, crashes and reloads under load, beside the bars."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench import incidents, leaks, sheets
from bench.compare import terminal
from bench.finding import Finding
from bench.load import wrk
from bench.machine import this_machine
from bench.rig import Rig, beside, rig
from bench.sheets import Sheet


@dataclass(frozen=True, slots=True)
class Length:
    """How much of each: requests and those before memory is read first, connections, seconds of load an incident."""

    requests: int
    warm: int
    connections: int
    seconds: int


FULL = Length(requests=500_000, warm=20_000, connections=50_000, seconds=30)
QUICK = Length(requests=4_000, warm=1_000, connections=550, seconds=5)


def run(quick: bool, json_path: Path | None, markdown_path: Path | None) -> int:
    """Run everything, print and write what was found. Returns the exit status: 1 where a bar was not met."""
    wrk()
    console = terminal()
    length = QUICK if quick else FULL
    findings: list[Finding] = []
    with rig() as made, beside(made.cores):
        machine = this_machine(made.cores)
        console.print(machine.words, highlight=False)
        for step in _steps(made, length):
            finding = step()
            findings.append(finding)
            console.print(f"{finding.word}: {finding.what}: {finding.seen}", highlight=False, markup=False)
    sheet = Sheet("Soak", ("", "seen", "bar", ""))
    sheet.rows = [(one.what, one.seen, one.bar, one.word) for one in findings]
    if json_path is not None:
        told = {"machine": asdict(machine), "length": asdict(length), "findings": [asdict(one) for one in findings]}
        json_path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    if markdown_path is not None:
        markdown_path.write_text(sheets.markdown([sheet], machine.words))
    console.print()
    sheets.show([sheet], console)
    return 0 if all(one.passed for one in findings) else 1


def _steps(made: Rig, length: Length) -> list[Callable[[], Finding]]:
    return [
        partial(leaks.memory, made, length.requests, length.warm),
        partial(leaks.descriptors, made, length.connections),
        partial(incidents.policy_reloaded, made, length.seconds, 1),
        partial(incidents.policy_reloaded, made, length.seconds, 2),
        partial(incidents.worker_killed, made, length.seconds),
        partial(incidents.code_reloaded, made, length.seconds),
    ]
