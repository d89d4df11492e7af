"""What each part of a policy costs: the same load on policies that grow by one part at a time."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from bench import policy
from bench.load import Ask, Sample
from bench.policy import Parts
from bench.processes import Process, StartError, free_port
from bench.rig import Rig
from bench.settings import Settings
from bench.subjects import bare_host, serve
from bench.turns import Spread, paired, take_turns

BARE = Parts(token=False, rules=False, limit=None, circuit=False, rewrite=False, response_headers=False, file=False)


@dataclass(frozen=True, slots=True)
class Rung:
    """One policy: what it adds to the one of `base`, whose name it gives. parts None: the host without the chain.

    numbered: each request has a field of its own, so that nothing is known of its fields.
    """

    name: str
    base: str | None
    parts: Parts | None
    essential: bool = False
    numbered: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """What a rung costs. added: CPU microseconds a request more than its base; None: it has none, or was not measured.

    absent: why it could not be measured.
    """

    name: str
    base: str | None
    samples: list[Sample]
    added: Spread | None
    absent: str | None = None


def ladder(redis_url: str | None) -> list[Rung]:
    """Return the policies, each after its base. redis_url None: without those that need a Redis server."""
    token = replace(BARE, token=True)
    rules = replace(token, rules=True)
    limit = replace(rules, limit=policy.NEVER)
    circuit = replace(limit, circuit=True)
    rewrite = replace(circuit, rewrite=True)
    headers = replace(rewrite, response_headers=True)
    file = replace(headers, file=True)
    host, chain = "host, no chain", "the chain with a bare route"
    rungs = [
        Rung(host, None, None, essential=True),
        Rung(chain, host, BARE, essential=True),
        Rung("+ token", chain, token),
        Rung("+ scope, role, condition", "+ token", rules),
        Rung("+ limit, memory", "+ scope, role, condition", limit),
        Rung("+ slow answers open the circuit", "+ limit, memory", circuit),
        Rung("+ rewriting", "+ slow answers open the circuit", rewrite),
        Rung("+ response headers", "+ rewriting", headers),
        Rung("+ audit file: the full policy", "+ response headers", file, essential=True),
        Rung("full, no two requests have the same fields", "+ audit file: the full policy", file, numbered=True),
        Rung("full, /metrics served", "+ audit file: the full policy", replace(file, admin=free_port())),
    ]
    if redis_url is not None:
        shared = replace(file, store=redis_url)
        rungs += [
            Rung("full, limit in Redis", "+ audit file: the full policy", shared, essential=True),
            Rung("… and audit to a Redis stream", "full, limit in Redis", replace(shared, stream=True)),
        ]
    return rungs


def stages(rig: Rig, settings: Settings) -> list[Cost]:
    """Measure the whole ladder, or its essential rungs."""
    rungs = ladder(rig.redis_url)
    return climb(rig, settings, _reduced(rungs) if settings.reduced else rungs)


def climb(rig: Rig, settings: Settings, rungs: list[Rung]) -> list[Cost]:
    """Measure rungs in turns; differences are taken round by round."""
    asks = {one: Ask(policy.PATH, bearers=(policy.bearer(),), numbered=one) for one in (False, True)}
    numbered = {rung.name: rung.numbered for rung in rungs}
    absent: dict[str, str] = {}
    running: dict[str, Process] = {}
    with ExitStack() as stack:
        for rung in rungs:
            up = rig.upstream.port
            command = bare_host(up) if rung.parts is None else serve(up, rung.parts)
            try:
                running[rung.name] = stack.enter_context(rig.running(command))
            except StartError as error:
                absent[rung.name] = error.last_word
        if not settings.reduced:
            for process in running.values():
                rig.saturate(process, asks[False], 1)
        found = take_turns(
            settings.rounds,
            {
                name: partial(rig.saturate, process, asks[numbered[name]], settings.seconds)
                for name, process in running.items()
            },
        )
    return [_cost(rung, found, absent) for rung in rungs]


def _reduced(rungs: list[Rung]) -> list[Rung]:
    """Keep the essential rungs, each upon the nearest kept one below it."""
    bases = {rung.name: rung.base for rung in rungs}
    kept = {rung.name for rung in rungs if rung.essential}

    def base(name: str | None) -> str | None:
        return name if name is None or name in kept else base(bases[name])

    return [replace(rung, base=base(rung.base)) for rung in rungs if rung.essential]


def _cost(rung: Rung, found: dict[str, list[Sample]], absent: dict[str, str]) -> Cost:
    samples = found.get(rung.name, [])
    below = found.get(rung.base, []) if rung.base is not None else []
    added = paired(samples, below, lambda a, b: a.cpu_us - b.cpu_us) if samples and below else None
    return Cost(rung.name, rung.base, samples, added, absent.get(rung.name))
