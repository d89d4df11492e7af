"""One worker and two, with their counters in Redis."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from bench import policy
from bench.load import Ask
from bench.policy import Parts
from bench.processes import Process, StartError
from bench.rig import Rig
from bench.settings import Settings
from bench.subjects import READY, serve
from bench.turns import Series, take_turns

COUNTS = (1, 2)
CONNECTIONS = 64  # enough for both workers to be busy, however the kernel deals connections out
HALF = f"1 worker, {CONNECTIONS // 2} connections"
"""One worker with as many connections as each of two has, so that both find as much to do at once."""


@dataclass(slots=True)
class Scaling:
    """What more workers give. shared: the second worker's core also made the load, so that only CPU can be compared."""

    shared: bool
    series: Series = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def name(count: int) -> str:
    """Name a number of workers."""
    return f"{count} worker" if count == 1 else f"{count} workers"


def workers(rig: Rig, settings: Settings) -> Scaling:
    """Measure both in turns; each has a core a worker."""
    result = Scaling(rig.cores.shared)
    ask = Ask(policy.PATH, bearers=(policy.bearer(),), connections=CONNECTIONS)
    half = replace(ask, connections=CONNECTIONS // 2)
    running: dict[str, Process] = {}
    with ExitStack() as stack:
        for count in COUNTS:
            command = serve(rig.upstream.port, Parts(store=rig.redis_url), count)
            cores = rig.cores.subject if count == 1 else rig.cores.pair
            try:
                running[name(count)] = stack.enter_context(rig.running(command, cores, READY))
            except StartError as error:
                result.absent[name(count)] = error.last_word
        if not settings.reduced:
            for process in running.values():
                rig.saturate(process, ask, 1)
        subjects = {key: partial(rig.saturate, process, ask, settings.seconds) for key, process in running.items()}
        if name(1) in running:
            subjects[HALF] = partial(rig.saturate, running[name(1)], half, settings.seconds)
        result.series = take_turns(settings.rounds, subjects)
    return result
