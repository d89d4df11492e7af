"""The protocol layer: what mitmproxy's engine does by itself must not reach a service or a client.

An addon that puts our layers where mitmproxy's HTTP layers would be, the same in `serve` and in mitmweb. It owns all
use of mitmproxy's semi-private layer API, in the modules `engine/layer*.py`; mitmproxy is pinned to 12.3.

mitmproxy makes no layer before a client has sent something, so a silent connection would be nobody's. Therefore the
top layer is put in place when the client connects; the `next_layer` hook is there for whatever comes by another way.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar, Final, NamedTuple, Protocol, cast

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import ConnectionClosed
from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.descriptors import NO_DESCRIPTOR, Descriptors, Seldom, raise_limit
from mitmgate.engine.acceptor import accept
from mitmgate.engine.layer_connection import GatewayLayer
from mitmgate.engine.layer_events import ClientGone, Cut, Retire
from mitmgate.engine.layer_leaving import dismantle
from mitmgate.engine.layer_tls import ClientTls, Listener
from mitmgate.engine.layer_wire import Handler, Wire
from mitmgate.engine.limits import Connections, PolicyBounds
from mitmgate.engine.turns import Turns
from mitmgate.policy.snapshot import SnapshotSource
from mitmgate.stages.exchange import Exchange

logger = logging.getLogger(__name__)


LEFT_OVER_SECONDS: Final = 5.0
"""What mitmproxy gets to close upstream connections after their client has gone."""


class Beside(Protocol):
    """Another way that connections of the same listener are served in: the fast lane."""

    @property
    def lasting(self) -> list[Exchange]:
        """The exchanges that outlive their decision."""
        ...

    def cut(self, exchange: Exchange, reason: Reason) -> None:
        """End an exchange that lasts."""
        ...

    def retire(self) -> None:
        """Take no further request on any connection."""
        ...


class _Seat(NamedTuple):
    """A client connection: its sockets and its layer."""

    wire: Wire
    layer: GatewayLayer

    def dismantle(self) -> bool:
        """Take both apart; tells whether that could be done yet."""
        done = dismantle(self.layer)
        if done:
            self.wire.dismantle()
        return done


class ProtocolLayer:
    """Install the gateway's HTTP layers for every reverse proxy connection, and bound how many there are.

    Reads: the policy's limits. Denies: 503 connections-exhausted, and through the layers all that the reasons of the
    stage `protocol` say. On failure: a connection that gets no layer of ours is closed.
    """

    name: ClassVar[str] = "mitmgate-protocol"

    def __init__(self, source: SnapshotSource, fail_over: Callable[[Exchange, Reason], Endpoint | None]) -> None:
        """source: the policy in force. fail_over: the next endpoint after one that could not be used."""
        self.descriptors = Descriptors(raise_limit())
        self.seldom = Seldom(logger)
        self.bounds = PolicyBounds(source, self.descriptors)
        self.fail_over = fail_over
        self._connections = Connections()
        self._seats: dict[str, _Seat] = {}  # by the client connection's id
        self._listener = Listener(source)
        self._retired = False
        self.lane: Beside | None = None
        self._turns = Turns()

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return self._connections.total

    @property
    def lasting(self) -> list[Exchange]:
        """The exchanges that outlive their decision: streamed responses and WebSockets."""
        beside = [] if self.lane is None else self.lane.lasting
        return beside + [exchange for seat in self._seats.values() for exchange in seat.layer.lasting]

    def cut(self, exchange: Exchange, reason: Reason) -> None:
        """End an exchange that lasts, because what admitted it no longer holds; nothing happens where it has ended."""
        for seat in self._seats.values():
            if exchange in seat.layer.lasting:
                seat.wire.post(Cut(exchange, reason))
        if self.lane is not None:
            self.lane.cut(exchange, reason)

    def retire(self) -> None:
        """Take no further request on any connection: idle ones end now, the others with their response.

        For a host that shuts down: it waits until `connected` is 0, or its patience ends.
        """
        self._retired = True
        for seat in list(self._seats.values()):
            seat.wire.post(Retire())
        if self.lane is not None:
            self.lane.retire()

    def running(self) -> None:
        """Take the accepting over from asyncio, where mitmproxy's own server listens."""
        self.bounds()  # says so where they are narrower than the policy's
        proxyserver = ctx.master.addons.get("proxyserver")
        for instance in getattr(proxyserver, "servers", ()):
            for server in vars(instance).get("_servers", ()):
                if isinstance(server, asyncio.Server):
                    accept(server, partial(_protocol, instance.handle_stream), self.descriptors, self.seldom)

    def client_connected(self, client: Client) -> None:
        """Put the top layer in place, or turn the client away."""
        if not isinstance(client.proxy_mode, ReverseMode):
            return
        if client.peername is None:
            client.error = "reset before it was accepted"
            return
        try:
            excess = self.enter(client.peername[0])
            if excess is None or (excess > 0 and self.secured):  # a handshake is dear, and only after it comes a word
                client.error = "too many connections"
                return
            proxyserver = ctx.master.addons.get("proxyserver")
            if not isinstance(proxyserver, Proxyserver):
                raise TypeError("this mitmproxy has no proxyserver")
            handler = proxyserver.connections[client.id]
            wire = Wire(cast(Handler, handler), client, self._turns)
            context = handler.layer.context
            context.layers.clear()
            handler.layer = self._seat(context, wire, exhausted=excess > 0)
        except Exception:
            logger.exception("no protocol layer for a connection")
            client.error = "no protocol layer"

    @property
    def secured(self) -> bool:
        """Whether the listener speaks TLS. Raises where the policy's files are not what they should be."""
        return self._listener.context() is not None

    def enter(self, peer: str) -> int | None:
        """Count a client's connection. Returns by how many there are too many; None: close it without a word."""
        bounds = self.bounds()
        total, here = self._connections.enter(peer)
        excess = total - bounds.connections
        if here > bounds.per_address and not self.bounds.trusts(peer):
            excess = max(excess, here - bounds.per_address)
        return None if excess > bounds.turned_away or self._retired else excess

    def leave(self, peer: str) -> None:
        """Take a client's connection off the count."""
        self._connections.leave(peer)

    def _seat(self, context: Context, wire: Wire, *, exhausted: bool = False) -> Layer:
        """Make the layers of a client connection, and remember them while it is open."""
        bounds, tls = self.bounds(), self._listener.context()
        outer = None if tls is None else ClientTls(context, tls, bounds.head_timeout)
        inner = GatewayLayer(context, bounds, wire, self.fail_over, exhausted)
        self._seats[context.client.id] = _Seat(wire, inner)
        if outer is None:
            return inner
        outer.child_layer = inner
        return outer

    def next_layer(self, nextlayer: NextLayer) -> None:
        """Take the place of mitmproxy's HTTP layer wherever one would be made."""
        client = nextlayer.context.client
        if nextlayer.layer is None and isinstance(client.proxy_mode, ReverseMode):
            seat = self._seats.get(client.id)
            nextlayer.layer = self._seat(
                nextlayer.context, Wire(None, client, self._turns) if seat is None else seat.wire
            )

    def client_disconnected(self, client: Client) -> None:
        """Take the client off the count, and see to it that its sockets are closed."""
        if not isinstance(client.proxy_mode, ReverseMode) or client.peername is None:
            return
        self.leave(client.peername[0])
        seat = self._seats.get(client.id)
        if seat is None:
            return
        seat.wire.detach(client)
        client.state = ConnectionState.CLOSED
        seat.wire.post(ClientGone())
        if seat.wire.open:  # upstream connections: mitmproxy ends them after this hook
            asyncio.get_running_loop().call_later(LEFT_OVER_SECONDS, self._release, client.id)
        else:
            self._vacate(client.id)

    def _vacate(self, client_id: str) -> bool:
        """Forget a client connection whose sockets are closed, or are to be; tells whether one had to be closed."""
        seat = self._seats.pop(client_id, None)
        if seat is None:
            return False
        left_open = seat.wire.release()
        if not seat.dismantle():
            asyncio.get_running_loop().call_later(LEFT_OVER_SECONDS, seat.dismantle)
        return left_open

    def _release(self, client_id: str) -> None:
        if self._vacate(client_id):
            logger.warning("an upstream connection had to be closed for mitmproxy")

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Refuse a connection for which too few descriptors are left; the lane has a way of its own to make room."""
        if data.client.id in self._seats and not self.descriptors.takes_upstream():
            data.server.error = NO_DESCRIPTOR

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Put the connection's socket under control."""
        seat = self._seats.get(data.client.id)
        if seat is not None:
            seat.wire.attach(data.server)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """Forget a connection that could not be opened."""
        seat = self._seats.get(data.client.id)
        if seat is not None:
            seat.wire.forget(data.server)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """See to it that the upstream's socket is closed."""
        seat = self._seats.get(data.client.id)
        if seat is not None:
            seat.wire.detach(data.server)
            # mitmproxy loses the event where it cancels what waits for its lock; the layers take it once
            data.server.state = ConnectionState.CLOSED
            seat.wire.post(ConnectionClosed(data.server))
            if not seat.wire.open:
                self._vacate(data.client.id)


def _protocol(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> asyncio.StreamReaderProtocol:
    """Make the protocol of a connection that mitmproxy's server handles, as asyncio.start_server does."""
    return asyncio.StreamReaderProtocol(asyncio.StreamReader(), handle)
