"""The subjects side by side: saturation with kept and with fresh connections, and a fixed rate below saturation."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial

from bench import policy
from bench.conformance import check, passes
from bench.load import Ask
from bench.peer_gateways import peers
from bench.processes import Process, StartError
from bench.rig import Rig
from bench.settings import Settings
from bench.subjects import GATEWAY, HOST, OWN, Subject
from bench.turns import Comparison, take_turns

DIRECT = "upstream alone"
SAME_RATE = {DIRECT, HOST.name, GATEWAY.name}
KINDS = {"keep-alive": {}, "connection-per-request": {"Connection": "close"}}


def compare(rig: Rig, settings: Settings, own: Sequence[Subject] = OWN) -> Comparison:
    """Ask each subject what it decides, then measure those that pass, in turns.

    The fixed rate is half of the gateway's own saturation, the same for its host and for the upstream alone, which has
    nothing between load and service. Others whose half is less get that: they could not keep up.
    """
    result = Comparison()
    subjects = [*own]
    if settings.peers:
        found, result.absent = peers()
        subjects += found
    with ExitStack() as stack:
        running: dict[str, Process] = {DIRECT: rig.upstream}
        for subject in subjects:
            process = _ready(rig, subject, result, stack)
            if process is not None:
                running[subject.name] = process
        _measure(rig, settings, running, result)
    return result


def _ready(rig: Rig, subject: Subject, result: Comparison, stack: ExitStack) -> Process | None:
    """Start a subject that does what it should; note what was asked of it, and why it is absent where it is not."""
    result.subjects[subject.name] = subject.what
    result.lacks[subject.name] = subject.lacks
    checks = check(rig, subject) if subject.judged else []
    process = None
    if all(one.passed for one in checks):
        try:
            process = stack.enter_context(rig.running(subject.command(rig.upstream.port, policy.NEVER)))
        except StartError as error:
            result.absent[subject.name] = error.last_word
            return None
        checks = checks or passes(process)
    result.conformance[subject.name] = [asdict(one) | {"passed": one.passed} for one in checks]
    failed = [f"{one.what}: {one.seen} instead of {one.wanted}" for one in checks if not one.passed]
    if failed:
        result.absent[subject.name] = f"does not do what is measured: {'; '.join(failed)}"
        return None
    return process


def _measure(rig: Rig, settings: Settings, running: dict[str, Process], result: Comparison) -> None:
    bearers = (policy.bearer(),)
    asks = {kind: Ask(policy.PATH, headers, bearers) for kind, headers in KINDS.items()}
    kept = asks["keep-alive"]
    # Nobody pays for first times; and what is seen here gives the rates of the paced runs.
    warm = {name: rig.saturate(process, kept, min(2, settings.seconds)) for name, process in running.items()}
    half = warm["gateway"].requests_per_second / 2 if "gateway" in warm else 0.0
    turns = {
        (kind, name): partial(rig.saturate, process, ask, settings.seconds)
        for kind, ask in asks.items()
        for name, process in running.items()
        if ask is kept or process is not rig.upstream  # which never closes
    }
    if half:
        for name, process in running.items():
            rate = half if name in SAME_RATE else min(half, warm[name].requests_per_second / 2)
            turns["half load", name] = partial(rig.pace, process, kept, rate, settings.seconds)
    for (kind, name), samples in take_turns(settings.rounds, turns).items():
        series = result.half if kind == "half load" else result.saturation.setdefault(kind, {})
        series[name] = samples
