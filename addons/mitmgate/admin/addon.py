"""Admin: the addon that brings the admin listener into a host with one process. Without `admin` in the policy it rests.

A host with several workers uses Metrics, `workers` and Listener itself; see the package.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from mitmproxy import ctx, exceptions
from mitmproxy.addons.proxyserver import Proxyserver

from mitmgate.admin.listener import Listener, bind
from mitmgate.admin.metrics import Metrics
from mitmgate.admin.readings import Sources
from mitmgate.admin.report import Report
from mitmgate.audit.writer import SinkState
from mitmgate.chain import Gateway
from mitmgate.core.circuit import State
from mitmgate.keys.ring import KeySetState
from mitmgate.policy.snapshot import Snapshot
from mitmgate.usage import UserError


class Admin:
    """Bind the policy's admin address at the first configuration, serve from `running` to `done`.

    An observer of the gateway, behind the chain. On failure to bind: OptionsError, so that the host does not start.
    """

    name: ClassVar[str] = "mitmgate-admin"

    def __init__(self) -> None:
        """Wait for the gateway that a host attaches."""
        self.addons: list[object] = []
        self._sources: Sources | None = None
        self._metrics: Metrics | None = None
        self._listener: Listener | None = None

    def attach(self, sources: Sources) -> None:
        """Take what the report asks; before the host is configured."""
        self._sources = sources

    def configure(self, updated: set[str]) -> None:
        """Bind, once there is a policy that asks for it."""
        snapshot = None if self._sources is None else self._sources.policy()
        if self._listener is not None or self._sources is None or snapshot is None or snapshot.policy.admin is None:
            return
        where = snapshot.policy.admin
        try:
            sockets = bind(where.host, where.port)
        except UserError as error:
            raise exceptions.OptionsError(str(error)) from error
        self._metrics = Metrics(self._sources)
        self._listener = Listener(where.host, sockets, self._report)
        self.addons = [self._metrics]

    def running(self) -> None:
        """Serve."""
        if self._listener is not None:
            self._listener.start()

    async def done(self) -> None:
        """Stop serving."""
        if self._listener is not None:
            await self._listener.close()

    def drain(self) -> None:
        """Say from now on that no further requests should be sent here."""
        if self._metrics is not None:
            self._metrics.draining = True

    async def _report(self) -> Report:
        if self._metrics is None:
            raise RuntimeError("the listener was started without metrics")
        return self._metrics.report()


def sources_of(
    gateway: Gateway,
    connected: Callable[[], int],
    accepting: Callable[[], bool] | None = None,
    shadow: Callable[[], Mapping[tuple[str, str], int]] = dict,
) -> Sources:
    """Name what a gateway's report asks. connected: clients, of all listeners. accepting: None: mitmproxy's own."""

    def policy() -> Snapshot | None:
        source = gateway.policy.source
        return None if source is None else source.snapshot

    def circuits() -> Mapping[str, State]:
        return {} if gateway.breaker is None else gateway.breaker.states()

    def key_sets(now: float) -> Sequence[KeySetState]:
        return [] if gateway.services is None else gateway.services.ring.states(now)

    def store_available() -> bool:
        return gateway.services is not None and gateway.services.store.available

    def sinks() -> Sequence[SinkState]:
        return [] if gateway.services is None else gateway.services.trail.states()

    return Sources(
        policy=policy,
        accepting=accepting or _listens,
        connected=connected,
        circuits=circuits,
        key_sets=key_sets,
        store_available=store_available,
        sinks=sinks,
        history=gateway.history,
        shadow=shadow,
    )


def _listens() -> bool:
    """Ask mitmproxy's proxyserver whether it accepts connections."""
    proxyserver = ctx.master.addons.get("proxyserver")
    return isinstance(proxyserver, Proxyserver) and bool(proxyserver.listen_addrs())
