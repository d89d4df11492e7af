"""The lane of one process: its clients, its pool, and the way out to mitmproxy's layers."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from mitmproxy.proxy.mode_specs import ReverseMode

from mitmgate.core.http1.known import KnownFields
from mitmgate.core.reason import Reason
from mitmgate.engine.hooks import HookTable
from mitmgate.engine.lane.client import LaneClient
from mitmgate.engine.lane.pool import UpstreamPool
from mitmgate.engine.lane.upstream import READ_BYTES
from mitmgate.engine.lane.waiting import Ways
from mitmgate.engine.layer import ProtocolLayer
from mitmgate.stages.exchange import Exchange

logger = logging.getLogger(__name__)

GENERATION: Final = 5.0
"""Seconds after which fields that did not come again begin to be forgotten; after twice as many they are."""


class Lane:
    """Makes the protocol of every connection that is accepted, and knows those that are open."""

    def __init__(
        self,
        table: HookTable,
        layers: ProtocolLayer,
        mode: ReverseMode,
        hand_over: Callable[[asyncio.Transport, bytes], None],
    ) -> None:
        """layers: counts clients, and has the bounds. hand_over: gives a connection to them, with its first bytes."""
        self.mode = mode
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.clients: set[LaneClient] = set()
        self.known = KnownFields()
        self._ageing: asyncio.TimerHandle | None = None
        self._layers = layers
        self._last_call: float | None = None
        self._hand_over = hand_over
        pool = UpstreamPool(table, layers.bounds, self.buffer, layers.descriptors)
        self.ways = Ways(asyncio.get_running_loop(), table, pool, layers.fail_over)

    def protocol(self) -> LaneClient:
        """Make the protocol of a new connection."""
        return LaneClient(self, self._layers.bounds())

    def enter(self, client: LaneClient, peer: str) -> int | None:
        """Count the connection. Returns by how many there are too many; None: close it."""
        self.clients.add(client)
        if self._ageing is None:
            self._ageing = self.ways.loop.call_later(GENERATION, self._age)
        if self._last_call is not None:  # accepted at the moment when the host began to shut down
            self.ways.loop.call_soon(client.last_call, self._last_call)
        return self._layers.enter(peer)

    def leave(self, client: LaneClient, peer: str) -> None:
        """Take the connection off the count."""
        self.clients.discard(client)
        self._layers.leave(peer)

    def _age(self) -> None:
        self.known.age()
        again = len(self.known) or self.clients
        self._ageing = self.ways.loop.call_later(GENERATION, self._age) if again else None

    def hand_over(self, transport: asyncio.Transport, received: bytes) -> None:
        """Give the connection to mitmproxy's layers, with what was received of its current request."""
        self._hand_over(transport, received)

    @property
    def lasting(self) -> list[Exchange]:
        """The exchanges that outlive their decision: streamed responses."""
        transits = [client.transit for client in self.clients if client.transit is not None and client.transit.lasts]
        return [transit.exchange for transit in transits if transit.exchange is not None]

    def cut(self, exchange: Exchange, reason: Reason) -> None:
        """End an exchange that lasts, because what admitted it no longer holds."""
        for client in list(self.clients):
            if client.transit is not None and client.transit.exchange is exchange:
                client.transit.cut(reason)

    def retire(self) -> None:
        """Take no further request on any connection: idle ones end now, the others with their response."""
        self.ways.pool.close()
        for client in list(self.clients):
            client.retire()

    def last_call(self, seconds: float) -> None:
        """Let every connection end: with its next response, which says so, or when it was idle for so long."""
        self._last_call = seconds
        for client in list(self.clients):
            client.last_call(seconds)

    def cut_all(self, reason: Reason) -> int:
        """End what still runs, and return how many requests that were; `close` is to follow."""
        running = [client.transit for client in self.clients if client.transit is not None]
        for transit in running:
            transit.stop(reason)
        return len(running)

    def close(self) -> None:
        """End every connection now."""
        if self._ageing is not None:
            self._ageing.cancel()
        self.ways.pool.close()
        for client in list(self.clients):
            client.end()
