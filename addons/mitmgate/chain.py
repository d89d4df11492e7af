"""The chain: THE ordered list of stages, and the addon that wires them into mitmproxy. A reader starts here."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader

from mitmgate.audit.opening import open_trail
from mitmgate.audit.writer import AuditTrail
from mitmgate.core.rules import Endpoint
from mitmgate.hostoptions import refuse_weakening, required_options
from mitmgate.keys.ring import KeyRing
from mitmgate.policy.loader import PolicyError
from mitmgate.policy.watcher import PolicySource
from mitmgate.stages.arrival import Arrival, SnapshotSource
from mitmgate.stages.audit import Audit
from mitmgate.stages.authentication import Authentication
from mitmgate.stages.authorization import Authorization
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stages.client_quota import ClientQuota
from mitmgate.stages.cors import Cors
from mitmgate.stages.endpoints import Endpoints
from mitmgate.stages.enforcer import Enforcer
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.hygiene import Hygiene
from mitmgate.stages.network_access import NetworkAccess
from mitmgate.stages.rate_limit import RateLimit
from mitmgate.stages.response_headers import ResponseHeaders
from mitmgate.stages.rewrite import Rewrite
from mitmgate.stages.routing import Routing
from mitmgate.stages.size_limit import SizeLimit
from mitmgate.stages.stage import Stage
from mitmgate.stores.opening import open_store
from mitmgate.stores.protocol import CounterStore

logger = logging.getLogger(__name__)


def stages(
    source: SnapshotSource,
    store: CounterStore,
    ring: KeyRing,
    clock: Callable[[], float] = time.time,
) -> tuple[Stage, ...]:
    """Make the stages, in the order in which every request meets them. Enforcer asks each for its signature."""
    return (
        Arrival(source, clock),
        Hygiene(),
        Endpoints(),
        Routing(),
        Cors(),
        NetworkAccess(),
        SizeLimit(),
        ClientQuota(store),
        Authentication(ring),
        Authorization(),
        RateLimit(store),
        CircuitBreaker(clock),
        Rewrite(),
    )


REQUIRED = (
    "arrival",
    "hygiene",
    "endpoints",
    "routing",
    "cors",
    "network-access",
    "size-limit",
    "client-quota",
    "authentication",
    "authorization",
    "rate-limit",
    "circuit-breaker",
    "rewrite",
)
"""The signatures that Enforcer asks for. Written out, so that a stage lost from the list above denies everything."""


class ProtocolFactory(Protocol):
    """Makes the addon that replaces mitmproxy's HTTP layers."""

    def __call__(self, source: SnapshotSource, fail_over: Callable[[Exchange], Endpoint | None]) -> object:
        """source: the policy in force. fail_over: the next endpoint after one that could not be reached."""
        ...


@dataclass(slots=True)
class Services:
    """What the stages need beside the policy: made once, when the first policy is loaded."""

    store: CounterStore
    ring: KeyRing
    trail: AuditTrail


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
        policy: str | None = None,
        observers: Sequence[object] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """policy: the policy file; None: the option `mitmgate_policy` names it. observers: addons after the chain."""
        self.addons: list[object] = []
        self.source: PolicySource | None = None
        self.services: Services | None = None
        self._protocol = protocol
        self._policy = policy
        self._observers = observers
        self._environ = environ
        self._watch: asyncio.Task[None] | None = None

    def load(self, loader: Loader) -> None:
        """Declare the options, and put Enforcer at the end of the host's own addon chain."""
        loader.add_option("mitmgate_policy", str, self._policy or "", "The policy file of the gateway.")
        loader.add_option("mitmgate_allow_scripts", bool, False, "Let other scripts run beside the gateway.")
        if ctx.master.addons.get(Enforcer.name) is None:
            ctx.master.addons.add(Enforcer(self, REQUIRED))

    @property
    def snapshot(self) -> Snapshot:
        """The policy in force; LookupError before there is one."""
        if self.source is None:
            raise LookupError("no policy is in force")
        return self.source.snapshot

    def configure(self, updated: set[str]) -> None:
        """Set the options that the chain needs, refuse those that weaken it, build the chain once."""
        refusal = refuse_weakening(ctx.options, ctx.options.mitmgate_allow_scripts)
        if refusal is not None:
            raise exceptions.OptionsError(refusal)
        wrong = required_options(ctx.options)
        if wrong:
            ctx.options.update(**wrong)
        if self.source is None and ctx.options.mitmgate_policy:
            self._build(ctx.options.mitmgate_policy)
        elif self.source is not None and "mitmgate_policy" in updated:
            raise exceptions.OptionsError("mitmgate_policy can't change while the gateway runs; reload the file")

    def _build(self, path: str) -> None:
        try:
            source = PolicySource(Path(path), self._environ)
        except PolicyError as error:
            raise exceptions.OptionsError(str(error)) from error
        snapshot = source.snapshot
        services = open_services(snapshot)
        chain = stages(self, services.store, services.ring)
        breaker = next(stage for stage in chain if isinstance(stage, CircuitBreaker))
        self.source, self.services = source, services
        self.addons = [
            self._protocol(self, breaker.fail_over),
            *chain,
            ResponseHeaders(),
            Audit(services.trail),
            *self._observers,
        ]

    async def running(self) -> None:
        """Start the services and watch the policy file."""
        if self.services is None:
            raise exceptions.OptionsError("no policy: set mitmgate_policy")
        await self.services.store.start()
        await self.services.ring.start()
        self.services.trail.start()
        self._emit("gateway-started", {"policy_digest": self.snapshot.digest})
        self._watch = asyncio.create_task(self._watch_policy())

    async def done(self) -> None:
        """Stop watching, flush what is queued, close what is open."""
        if self._watch is not None:
            self._watch.cancel()
        if self.services is None:
            return
        self._emit("gateway-stopped", {})
        await self.services.ring.close()
        await self.services.store.close()
        await asyncio.to_thread(self.services.trail.close)

    async def _watch_policy(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                if self.source is not None and self.source.changed():
                    self.reload()
            except Exception:
                logger.exception("the policy file could not be watched")

    def reload(self) -> bool:
        """Load the policy file again. A bad file keeps the old policy, and the log and the audit trail say why."""
        if self.source is None or self.services is None:
            return False
        raise NotImplementedError
