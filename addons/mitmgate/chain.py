"""The chain: THE ordered list of stages, and the addon that wires them into mitmproxy. A reader starts here."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader

from mitmgate.audit.event import policy_rejected, policy_reloaded
from mitmgate.core.api_key import ISSUER as API_KEY
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.hostoptions import MISTAKE, listens_elsewhere, refuse_weakening, required_options, spare_start
from mitmgate.net.dialler import Dialler
from mitmgate.pipeline.enforcer import Enforcer
from mitmgate.pipeline.exchange import Exchange, reports
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.declared import declare
from mitmgate.policy.history import History
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.own_stages import Own, in_place
from mitmgate.policy.problem import PolicyError, Problem, Stamp
from mitmgate.policy.snapshot import Snapshot, SnapshotSource
from mitmgate.policy.watcher import InForce, PolicySource
from mitmgate.services import Services, open_services
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.audit import Audit
from mitmgate.stages.authentication import Authentication
from mitmgate.stages.authorization import Authorization
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stages.client_quota import ClientQuota
from mitmgate.stages.cors import Cors
from mitmgate.stages.decision_service import DecisionServices
from mitmgate.stages.endpoints import Endpoints
from mitmgate.stages.hygiene import Hygiene
from mitmgate.stages.network_access import NetworkAccess
from mitmgate.stages.openapi import OpenApi
from mitmgate.stages.own import own_class, own_stage
from mitmgate.stages.rate_limit import RateLimit
from mitmgate.stages.response_headers import ResponseHeaders
from mitmgate.stages.rewrite import Rewrite
from mitmgate.stages.routing import Routing
from mitmgate.stages.size_limit import SizeLimit
from mitmgate.usage import UserError

logger = logging.getLogger(__name__)

WATCH_EVERY = 1.0  # seconds between two looks at the policy's files
SWITCH_EVERY = 0.0005  # seconds that the thread of a reload runs before a request gets its turn
OPENED_ONCE = ("listen", "admin", "store", "audit", "resolver", "revocation", "api_keys")


def stages(
    source: SnapshotSource,
    services: Services,
    clock: Callable[[], float] = time.time,
    ticks: Callable[[], float] = time.perf_counter,
    own: Mapping[str, Own] = MappingProxyType({}),
    offline: bool = False,
    decides: bool = False,
) -> tuple[Stage, ...]:
    """Make the stages, in the order in which every request meets them. Enforcer asks each for its signature.

    clock: Unix seconds, for what the world dates, such as tokens. ticks: seconds of a clock that nobody sets, for what
    lasts: limits and circuits. Replay brings its own. own: the stages of the operator's own. offline: nothing can be
    waited for, and no clock is looked at. decides: requests are checks (core/check.py).

    Raises UserError where they are not those that Enforcer will ask, in their order: it would deny everything.
    """
    made: tuple[Stage, ...] = (
        Arrival(source, services.trail.pressure, clock, ticks, decides),
        Hygiene(),
        Endpoints(),
        Routing(),
        NetworkAccess(),
        ClientQuota(services.store),
        Authentication(services.ring, services.revocations, services.proofs, services.api_keys, offline=offline),
        Cors(),
        SizeLimit(),
        Authorization(),
        OpenApi(decides=decides),
        RateLimit(services.store),
        DecisionServices(services.decisions),
        CircuitBreaker(ticks),
        Rewrite(),
    )
    by_name = {stage.name: stage for stage in made}
    in_order = [name for name in REQUIRED if name in by_name] == list(by_name)
    try:
        by_name |= {one.name: one() for one in STAGES if one.name not in by_name}
    except TypeError as error:
        raise UserError(f"a stage is not given what it needs ({error}): this copy of mitmgate is damaged") from error
    if not in_order or by_name.keys() != set(REQUIRED):
        raise UserError(
            f"the chain is {', '.join(by_name)}, but what has to sign is {', '.join(REQUIRED)}: "
            "this copy of mitmgate is damaged"
        )
    by_name |= {name: own_stage(one, services.store, services.trail.emit, offline) for name, one in own.items()}
    for stage in by_name.values():
        stage.tell = services.trail.emit
    return tuple([by_name[name] for name in signatures(own)])


def warnings(loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
    """Yield what the stages warn of in a policy, for `check`. snapshot: what the policy was compiled to."""
    kinds = {one.name: one for one in STAGES} | {name: own_class(own) for name, own in loaded.stages.items()}
    for name in signatures(loaded.stages):
        yield from kinds[name].warnings(loaded, snapshot)


def signatures(own: Mapping[str, Own]) -> tuple[str, ...]:
    """Return the names of all stages, in order: what Enforcer asks for. own: the stages of the operator's own.

    Raises UserError where one of them has no place.
    """
    names = in_place(REQUIRED, {name: stage.after for name, stage in own.items()})
    if len(names) != len(REQUIRED) + len(own):
        raise UserError(f"stages without a place in the chain: {', '.join(own.keys() - set(names))}")
    return names


REQUIRED = (
    "arrival",
    "hygiene",
    "endpoints",
    "routing",
    "network-access",
    "client-quota",
    "authentication",
    "cors",
    "size-limit",
    "authorization",
    "openapi",
    "rate-limit",
    "decision-service",
    "circuit-breaker",
    "rewrite",
)
"""All stages, in their order: the signatures that Enforcer asks for. NAME is the class of that name in stages/NAME.py.

One that needs none of the services is added by its line here. Those above are written out there as well, so that a
stage lost from either list is no way around it.
"""


def _stage(name: str) -> type[Stage]:
    module = import_module(f"mitmgate.stages.{name.replace('-', '_')}")
    found = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Stage)]
    found = [one for one in found if vars(one).get("name") == name]
    if len(found) != 1:
        raise UserError(
            f"{module.__name__} has {len(found)} stages of the name {name}: this copy of mitmgate is damaged"
        )
    return found[0]


STAGES: Final = tuple(map(_stage, REQUIRED))
declare(STAGES)


async def _start(services: Services) -> None:
    """Start the services side by side: what one waits for, the others need not."""
    starts = [services.store.start(), services.ring.start(), services.revocations.start(), services.api_keys.start()]
    failures = await asyncio.gather(*starts, return_exceptions=True)
    last = [services.proofs.start()]  # it asks the store
    failures += await asyncio.gather(*last, return_exceptions=True)
    for failure in failures:
        if isinstance(failure, Exception):
            logger.error("a service could not be started", exc_info=failure)


async def _beside_the_loop[Made](make: Callable[[], Made]) -> Made:
    """Run in a thread what keeps the interpreter busy, and let requests wait less for the interpreter meanwhile.

    A thread that computes gives way after the switch interval (5 ms, unless set) each time, and a request needs several
    turns (sys.setswitchinterval).
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_EVERY)
    try:
        return await asyncio.to_thread(make)
    finally:
        sys.setswitchinterval(usual)


class Proxying(Protocol):
    """The addon that listens and proxies, as the chain knows it."""

    def cut_withdrawn(self) -> None:
        """End what outlives its decision, and what `withdrawn` has a reason for."""
        ...

    def reloaded(self) -> None:
        """Take what another policy that is in force says of connections."""
        ...

    def done(self) -> None:
        """Accept no more connections, and end those that are open; also where that was done before."""
        ...


class ProtocolFactory(Protocol):
    """Makes the addon that listens and proxies, in place of mitmproxy's server."""

    def __call__(
        self,
        source: SnapshotSource,
        fail_over: Callable[[Exchange, Reason], Endpoint | None],
        dialler: Dialler,
        *,
        unanswered: Callable[[Exchange], None],
        withdrawn: Callable[[Exchange], Reason | None],
    ) -> Proxying:
        """source: the policy in force. fail_over: the next endpoint after one that failed for this reason.

        dialler: connects to endpoints. unanswered: told of an endpoint that lets a connection wait. withdrawn: says why
        what admitted an exchange no longer holds; None: it does.
        """
        ...


class Approve(Protocol):
    """Asked before a changed policy is put in force."""

    async def __call__(self, candidate: Snapshot, current: Snapshot) -> str | None:
        """Say why the candidate must not be put in force; None where it may."""
        ...


class Gateway:
    """The addon that a host loads. Its sub-addons are the chain; Enforcer is an entry of its own behind all others.

    The same addon runs in `serve`, in mitmweb and in stock mitmdump. Its `load` declares the options
    `mitmgate_policy` and `mitmgate_allow_scripts`; the first `configure` loads the policy and builds the chain. Until
    then, and where that fails, Enforcer finds no exchange and denies everything.
    """

    name = "mitmgate"

    def __init__(
        self,
        protocol: ProtocolFactory,
        policy: Loaded | str | None = None,
        observers: Sequence[object] = (),
        environ: Mapping[str, str] = os.environ,
        decides: bool = False,
    ) -> None:
        """policy: the policy, where the host has loaded it already, or its file; None: the option `mitmgate_policy`.

        observers: addons after the chain. decides: only answer the checks of proxies; or as the option
        `mitmgate_decide` says.
        """
        self.addons: list[object] = []
        self.policy = InForce()
        self.history = History()
        self.services: Services | None = None
        self._protocol = protocol
        self.protocol: Proxying | None = None
        """The addon that listens and proxies, once there is a policy."""
        self._loaded = policy if isinstance(policy, Loaded) else None
        self._path = policy.path if isinstance(policy, Loaded) else policy
        self._observers = observers
        self._environ = environ
        self._enforcer = Enforcer(self.policy, REQUIRED)
        self._decides = decides
        self.audit: Audit | None = None
        self.breaker: CircuitBreaker | None = None
        self.stages: Mapping[str, Stage] = MappingProxyType({})
        self.approve: Approve | None = None
        """The host's last word on a changed policy: a policy that it refuses, or fails on, is not put in force."""
        self._failure: exceptions.OptionsError | None = None
        self._watch: asyncio.Task[None] | None = None
        self._reloading = asyncio.Lock()
        self._asked = self._answered = 0  # reloads that were asked for, ever; those that a reload has begun after
        self._asking: dict[str, None] = {}  # who has asked since the last one began
        self._taken = False  # what the last reload came to
        self._started: asyncio.Task[None] | None = None
        self._done = False

    def load(self, loader: Loader) -> None:
        """Declare the options."""
        loader.add_option("mitmgate_policy", str, self._path or "", "The policy file of the gateway.")
        loader.add_option("mitmgate_decide", bool, self._decides, "Only answer the checks of proxies (forward-auth).")
        loader.add_option("mitmgate_allow_scripts", bool, False, "Let other scripts run beside the gateway.")

    def configure(self, updated: set[str]) -> None:
        """Put Enforcer behind everything, set the options that the chain needs, refuse those that weaken it, build.

        Enforcer comes first of all, so that it stands also where what follows fails. It can't be added in `load`: an
        addon is appended to the host's chain only after its `load` has run, and Enforcer would stand before it.
        """
        if ctx.master.addons.get(Enforcer.name) is None:
            ctx.master.addons.add(self._enforcer)
            spare_start(ctx.master.addons.get("errorcheck"))
        if self._failure is not None:  # mitmproxy takes its options back then, and asks again
            raise self._failure
        refusal = refuse_weakening(ctx.options, ctx.options.mitmgate_allow_scripts)
        if refusal is not None:
            raise exceptions.OptionsError(refusal)
        wrong = required_options(ctx.options)
        if wrong:
            ctx.options.update(**wrong)
        source, path = self.policy.source, ctx.options.mitmgate_policy
        if source is None and path:
            self._build(path)
        elif source is not None and str(source.path) != str(Path(path)):
            raise exceptions.OptionsError("mitmgate_policy can't change while the gateway runs; reload the file")
        elif source is not None and ctx.options.mitmgate_decide is not self._enforcer.decides:
            raise exceptions.OptionsError("mitmgate_decide can't change while the gateway runs")

    def _build(self, path: str) -> None:
        try:
            source = PolicySource(path, self._environ, self._loaded)
            services = open_services(source.snapshot)
            own = source.snapshot.own
            for name in own:
                if ctx.master.addons.get(name) is not None:
                    raise UserError(f"{path}: the stage {name} is called like an addon of this host; rename it")
            decides = self._enforcer.decides = ctx.options.mitmgate_decide
            chain = stages(self.policy, services, own=own, decides=decides)
            self._enforcer.required = signatures(own)
            services.trail.start(source.snapshot.digest)
        except (PolicyError, UserError) as error:
            self._failure = exceptions.OptionsError(str(error))
            raise self._failure from error
        self.stages = {stage.name: stage for stage in chain}
        self.breaker = breaker = next(stage for stage in chain if isinstance(stage, CircuitBreaker))
        self.audit = Audit(services.trail)
        self.policy.source, self.services = source, services
        self.history.first(time.time(), source.snapshot.digest)
        self.protocol = self._protocol(
            self.policy,
            breaker.fail_over,
            services.dialler,
            unanswered=breaker.unanswered,
            withdrawn=self._withdrawn,
        )
        services.revocations.changed = services.api_keys.changed = self.protocol.cut_withdrawn
        if self._path is None:  # a stock mitmproxy, which knows nothing of what the policy says of it
            listen = source.snapshot.policy.listen
            elsewhere = listens_elsewhere(ctx.options, listen.host, listen.port)
            if elsewhere is not None:
                logger.warning("%s", elsewhere)
        self.addons = [
            self.protocol,
            *chain,
            ResponseHeaders(),
            self.audit,
            *self._observers,
        ]

    def _withdrawn(self, exchange: Exchange) -> Reason | None:
        services, principal = self.services, exchange.principal
        if services is None or principal is None or reports(exchange):
            return None
        for one in (principal, *exchange.beside):
            if one.issuer == API_KEY:
                reason = services.api_keys.ended(one)
                if reason is not None:
                    return reason
            elif services.revocations.revoked(one):
                return Reason.TOKEN_REVOKED
        return None

    async def start(self) -> None:
        """Start the services, once: connect to the store, fetch the keys. Awaited before requests are taken.

        What is away does not keep a gateway from its start: each service waits for a bounded time, and goes on in the
        background. Cancelled, as by a host that ends meanwhile, it closes them: such a host runs no hook `done`.
        """
        services = self.services
        if services is None:
            return
        if self._started is None:
            self._started = asyncio.create_task(_start(services), name="start of the services")
        try:
            await asyncio.shield(self._started)
        except asyncio.CancelledError:
            await self.done()
            raise

    async def running(self) -> None:
        """Start the services, where the host has not, and watch the policy file."""
        source = self.policy.source
        if self.services is None or source is None:
            logger.error("no policy is in force; every request is denied", extra=MISTAKE)
            return
        await self.start()
        self._watch = asyncio.create_task(self._watch_policy(source))

    async def done(self) -> None:
        """Stop watching, write what is queued, close what is open; once.

        Clients first: mitmproxy tells this addon before those that are a part of it, and a request that is answered
        behind the end of the trail would have no record.
        """
        services, audit = self.services, self.audit
        if self._done or services is None or audit is None:
            return
        self._done = True
        if self.protocol is not None:
            self.protocol.done()
            for _ in range(2):  # connections are closed, and what ran on them ends, in the next turns of the loop
                await asyncio.sleep(0)
        for task in (self._watch, self._started):
            if task is not None:
                task.cancel()
        audit.conclude()
        await services.revocations.close()
        await services.api_keys.close()
        await services.ring.close()
        await services.decisions.close()
        await services.store.close()
        await services.dialler.resolver.close()
        await asyncio.to_thread(services.trail.close)

    async def _watch_policy(self, source: PolicySource) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY)
            try:
                if await asyncio.to_thread(source.changed):
                    await self.reload("a changed file")
            except Exception:
                logger.exception("the policy could not be reloaded; the old one stays in force")

    async def reload(self, by: str = "") -> bool:
        """Load the policy file again. A bad file keeps the old policy, and the log and the audit trail say why.

        What a process opens once (listen, store, audit, admin, resolver) keeps its old value until a restart, and the
        log says so. Returns whether a new policy is in force. Requests are decided meanwhile: files are read and
        compiled in a thread, and the new policy is put in force in one step.

        One reload follows the other: a later file is never overtaken by an earlier one. All who ask while one runs
        share the next, which reads what the files are then. by: who or what asks, for the record.
        """
        self._asked += 1
        self._asking[by] = None
        mine = self._asked
        async with self._reloading:
            if self._answered < mine:
                asked, by = self._asked, ", ".join(filter(None, self._asking))
                self._asking.clear()
                self._taken = await self._reload(by)
                self._answered = asked
            return self._taken

    async def _reload(self, by: str) -> bool:
        source, services = self.policy.source, self.services
        if source is None or services is None:
            return False
        before = source.snapshot
        try:
            candidate = await _beside_the_loop(source.read)
        except PolicyError as error:
            return self._refuse(source, services, error.stamps, [str(problem) for problem in error.problems], by)
        result = candidate.snapshot
        # Keys first, so that there is no moment in which a new issuer's tokens can't be verified.
        await services.ring.prepare(result.issuers)
        refusal = await self._approved(result, before)
        if refusal is not None:
            return self._refuse(source, services, candidate.looked_at, [f"{source.path}: {refusal}"], by)
        # From here to the end without an await: no request sees half of it.
        source.activate(candidate)
        services.ring.configure(result.issuers)
        if self.protocol is not None:
            self.protocol.reloaded()
        self.history.accept(time.time(), result.digest)
        fixed = [name for name in OPENED_ONCE if getattr(before.policy, name) != getattr(result.policy, name)]
        if fixed:
            logger.warning("changes of %s take effect after a restart", ", ".join(fixed))
        logger.info("policy %s is in force", result.digest)
        services.trail.emit(policy_reloaded(time.time(), result.digest, before.digest, by))
        return True

    async def _approved(self, candidate: Snapshot, before: Snapshot) -> str | None:
        if self.approve is None:
            return None
        try:
            return await self.approve(candidate, before)
        except Exception:
            logger.exception("the changed policy could not be tried")
            return "it could not be tried on the last requests"

    def _refuse(
        self, source: PolicySource, services: Services, stamps: Mapping[Path, Stamp], texts: list[str], by: str
    ) -> bool:
        """Keep the old policy. stamps: of the files as they were read; what has changed since is another change."""
        source.seen(stamps)
        logger.error("policy rejected, the old one stays in force: %s", "; ".join(texts))
        services.trail.emit(policy_rejected(time.time(), source.snapshot.digest, texts, by))
        self.history.reject(time.time(), texts)
        return False
