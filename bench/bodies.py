"""Bodies of several sizes, down and up, beside stock mitmdump, with counters in memory and in Redis."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from bench import policy
from bench.load import CONNECTIONS, Ask, Sample
from bench.policy import Parts
from bench.processes import Process
from bench.rig import Rig
from bench.settings import Settings
from bench.subjects import Command, mitmdump, serve
from bench.turns import take_turns

SIZES = {"0": 0, "1 KB": 1_000, "100 KB": 100_000, "10 MB": 10_000_000}
REDUCED = ("10 MB",)
LARGE = 1_000_000
FEW = 4  # connections for what is large, so that some are answered within a second


@dataclass(frozen=True, slots=True)
class Carried:
    """One size in one direction through one subject. The samples' resident memory is the run's peak."""

    subject: str
    direction: str
    size: str
    bytes: int
    samples: list[Sample]


def bodies(rig: Rig, settings: Settings) -> list[Carried]:
    """Measure stock mitmdump and the gateway, with its counters in memory and in Redis."""
    up = rig.upstream.port
    commands = {"stock": mitmdump(up), "gateway, memory": serve(up)}
    if not settings.reduced:
        commands["gateway, Redis"] = serve(up, Parts(store=rig.redis_url))
    return carry(rig, settings, commands)


def carry(rig: Rig, settings: Settings, commands: Mapping[str, Command]) -> list[Carried]:
    """Measure subjects in turns: response bodies (down), then request bodies (up)."""
    sizes = {size: count for size, count in SIZES.items() if not settings.reduced or size in REDUCED}
    with ExitStack() as stack:
        running = {name: stack.enter_context(rig.running(command)) for name, command in commands.items()}
        asks = [("down", size, _ask(count, up=False)) for size, count in sizes.items()]
        asks += [("up", size, _ask(count, up=True)) for size, count in sizes.items() if count]
        turns = {
            (name, direction, size): partial(_peak, rig, process, ask, settings.seconds)
            for direction, size, ask in asks
            for name, process in running.items()
        }
        found = take_turns(settings.rounds, turns)
    return [Carried(name, direction, size, SIZES[size], samples) for (name, direction, size), samples in found.items()]


def _ask(count: int, *, up: bool) -> Ask:
    path = policy.PATH if up else f"{policy.PREFIX}/bytes/{count}"
    connections = FEW if count > LARGE else CONNECTIONS
    return Ask(path, bearers=(policy.bearer(),), body=count if up else 0, connections=connections)


def _peak(rig: Rig, process: Process, ask: Ask, seconds: int) -> Sample:
    process.forget_peak()
    sample = rig.saturate(process, ask, seconds)
    return replace(sample, resident_mib=process.resident_mib("VmHWM"))
