"""Admin: the addon that brings the admin listener, or its worker's part, into a host. Without `admin` it rests."""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from mitmgate.admin.console import Console
from mitmgate.admin.metrics import Metrics
from mitmgate.admin.readings import Held, Sources
from mitmgate.admin.report import Report
from mitmgate.admin.workers import Answer, Inquire, Reporter
from mitmgate.audit.writer import SinkState
from mitmgate.chain import Gateway
from mitmgate.core.circuit import State
from mitmgate.hostoptions import MISTAKE
from mitmgate.keys.assertion import Jwk, signer_of
from mitmgate.keys.ring import KeySetState
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.circuit_breaker import Turn
from mitmgate.usage import UserError

if TYPE_CHECKING:
    from mitmgate.admin.listener import Listener

logger = logging.getLogger(__name__)

PUBLISHED: Final = 2
"""Keys of assertions that are published: after a change of the key, the former one for what is still on its way."""


def check_admin(policy: Policy) -> None:
    """Raise UserError where the policy's admin address can't be listened on; better before a host begins to start."""
    if policy.admin is not None:
        from mitmgate.admin.listener import bind  # noqa: PLC0415 - tornado takes 80 ms to import

        for bound in bind(policy.admin.host, policy.admin.port):
            bound.close()


class Admin:
    """Bind the policy's admin address at the first configuration, serve from `running` to `done`.

    An observer of the gateway, behind the chain. One of several workers is given a `link` to its supervisor, which has
    the listener: it reports over that instead. Where it can't be bound the log says so, which ends the start of
    any host.
    """

    name: ClassVar[str] = "mitmgate-admin"

    def __init__(self, link: socket.socket | None = None) -> None:
        """link: a worker's end of a socket pair, see workers.Reporter; closed where the policy has no `admin`."""
        self.addons: list[object] = []
        self.draining: Callable[[], bool] = bool
        """Whether the host is on its way to its end; the host sets it."""
        self._link = link
        self._sources: Sources | None = None
        self._metrics: Metrics | None = None
        self._listener: Listener | None = None
        self._failed = False
        self._reporter: Reporter | None = None

    def attach(self, sources: Sources) -> None:
        """Take what the report asks; before the host is configured."""
        self._sources = sources

    def configure(self, updated: set[str]) -> None:
        """Bind, once there is a policy that asks for it."""
        sources = self._sources
        snapshot = None if sources is None else sources.policy()
        if self._metrics is not None or self._failed or sources is None or snapshot is None:
            return
        where, link = snapshot.policy.admin, self._link
        if where is None:
            if link is not None:
                link.close()
            return
        metrics = Metrics(sources)
        console = Console(metrics.denials, sources)
        if link is not None:
            self._reporter = Reporter(link, metrics.snapshot, console.answer)
        else:
            from mitmgate.admin.listener import Listener, bind  # noqa: PLC0415 - as above

            try:
                bound = bind(where.host, where.port)
                self._listener = Listener(
                    where.host, bound, self._report, snapshot, alone(console.answer), sources.policy
                )
            except UserError as error:  # no OptionsError: mitmproxy takes its options back then, and asks again
                logger.error("%s", error, extra=MISTAKE)
                self._failed = True
                return
        self._metrics, self.addons = metrics, [metrics]

    async def running(self) -> None:
        """Serve, or report."""
        if self._listener is not None:
            self._listener.start()
        if self._reporter is not None:
            await self._reporter.start()

    async def done(self) -> None:
        """Count what has not ended, and stop. The chain has ended: its audit events are written."""
        if self._metrics is not None:
            self._metrics.conclude()
        if self._reporter is not None:
            await self._reporter.close()
        if self._listener is not None:
            await self._listener.close()

    async def _report(self) -> Report:
        if self._metrics is None:
            raise RuntimeError("the listener was started without metrics")
        return self._metrics.report()


def alone(answer: Answer) -> Inquire:
    """Ask the one process that there is."""

    async def inquire(question: Mapping[str, object], process: int | None = None) -> Mapping[int, Mapping[str, object]]:
        own = os.getpid()
        return {own: answer(question)} if process in {None, own} else {}

    return inquire


def sources_of(
    gateway: Gateway,
    connected: Callable[[], int],
    accepting: Callable[[], bool] = bool,
    shadow: Callable[[], Mapping[tuple[str, str], int]] = dict,
    draining: Callable[[], bool] = bool,
    memory: Callable[[], Held] = lambda: Held(0, 0, 0),
) -> Sources:
    """Name what a gateway's report asks, see Sources."""

    def policy() -> Snapshot | None:
        source = gateway.policy.source
        return None if source is None else source.snapshot

    def circuits() -> Mapping[str, State]:
        return {} if gateway.breaker is None else gateway.breaker.states()

    def failed_shares() -> Mapping[str, float]:
        return {} if gateway.breaker is None else gateway.breaker.failed_shares()

    def key_sets() -> Sequence[KeySetState]:
        return [] if gateway.services is None else gateway.services.ring.states()

    def store_available() -> bool:
        return gateway.services is not None and gateway.services.store.available

    def sinks() -> Sequence[SinkState]:
        return [] if gateway.services is None else gateway.services.trail.states()

    def audit_admits() -> bool:
        return gateway.services is not None and gateway.services.trail.admits

    def loaded() -> Loaded | None:
        return None if gateway.policy.source is None else gateway.policy.source.loaded

    def turned() -> Mapping[str, Turn]:
        return {} if gateway.breaker is None else gateway.breaker.turned

    def turns() -> Sequence[Turn]:
        return () if gateway.breaker is None else tuple(gateway.breaker.turns)

    published: deque[Jwk] = deque(maxlen=PUBLISHED)

    def keys() -> Sequence[Jwk]:
        snapshot = policy()
        rule = None if snapshot is None else snapshot.forward.assertion
        if rule is not None and (jwk := signer_of(rule).jwk) not in published:
            published.appendleft(jwk)
        return tuple(published)

    return Sources(
        policy=policy,
        accepting=accepting,
        connected=connected,
        circuits=circuits,
        failed_shares=failed_shares,
        key_sets=key_sets,
        store_available=store_available,
        sinks=sinks,
        audit_admits=audit_admits,
        history=gateway.history,
        shadow=shadow,
        draining=draining,
        keys=keys,
        memory=memory,
        loaded=loaded,
        stages=lambda: gateway.stages,
        turned=turned,
        turns=turns,
    )
