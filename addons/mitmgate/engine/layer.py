"""The protocol layer: what mitmproxy's engine does by itself must not reach a service or a client.

An addon that puts our layers where mitmproxy's HTTP layers would be, the same in `serve` and in mitmweb. It owns all
use of mitmproxy's semi-private layer API, in the modules `engine/layer*.py`; mitmproxy is pinned to 12.3.

mitmproxy makes no layer before a client has sent something, so a silent connection would be nobody's. Therefore the
top layer is put in place when the client connects; the `next_layer` hook is there for whatever comes by another way.
"""

import logging
import weakref
from collections.abc import Callable
from typing import ClassVar, cast

from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer, NextLayer
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from mitmgate.core.rules import Endpoint
from mitmgate.engine.layer_connection import GatewayLayer
from mitmgate.engine.layer_tls import ClientTls, Listener
from mitmgate.engine.layer_wire import Handler, Wire
from mitmgate.engine.limits import TURNED_AWAY, Connections, PolicyBounds
from mitmgate.policy.snapshot import SnapshotSource
from mitmgate.stages.exchange import Exchange

logger = logging.getLogger(__name__)


class ProtocolLayer:
    """Install the gateway's HTTP layers for every reverse proxy connection, and bound how many there are.

    Reads: the policy's limits. Denies: 503 connections-exhausted, and through the layers all that the reasons of the
    stage `protocol` say. On failure: a connection that gets no layer of ours is closed.
    """

    name: ClassVar[str] = "mitmgate-protocol"

    def __init__(self, source: SnapshotSource, fail_over: Callable[[Exchange], Endpoint | None]) -> None:
        """source: the policy in force. fail_over: the next endpoint after one that could not be used."""
        self._bounds = PolicyBounds(source)
        self._fail_over = fail_over
        self._connections = Connections()
        self._wires: weakref.WeakKeyDictionary[Client, Wire] = weakref.WeakKeyDictionary()
        self._listener = Listener(source)

    def client_connected(self, client: Client) -> None:
        """Put the top layer in place, or turn the client away."""
        if not isinstance(client.proxy_mode, ReverseMode):
            return
        try:
            bounds, peer = self._bounds(), client.peername[0]
            total, here = self._connections.enter(peer)
            exhausted = total > bounds.connections or (here > bounds.per_address and not self._bounds.trusts(peer))
            if total > bounds.connections + TURNED_AWAY or here > bounds.connections + TURNED_AWAY:
                client.error = "too many connections"
                return
            proxyserver = ctx.master.addons.get("proxyserver")
            if not isinstance(proxyserver, Proxyserver):
                raise TypeError("this mitmproxy has no proxyserver")
            handler = proxyserver.connections[client.id]
            wire = Wire(cast(Handler, handler), client)
            self._wires[client] = wire
            context = handler.layer.context
            context.layers.clear()
            handler.layer = self.layer(context, wire, exhausted)
        except Exception:
            logger.exception("no protocol layer for a connection")
            client.error = "no protocol layer"

    def layer(self, context: Context, wire: Wire, exhausted: bool = False) -> Layer:
        """Make the layers of a client connection."""
        bounds, tls = self._bounds(), self._listener.context()
        outer = None if tls is None else ClientTls(context, tls, bounds.head_timeout)
        inner = GatewayLayer(context, bounds, wire, self._fail_over, exhausted)
        if outer is None:
            return inner
        outer.child_layer = inner
        return outer

    def next_layer(self, nextlayer: NextLayer) -> None:
        """Take the place of mitmproxy's HTTP layer wherever one would be made."""
        client = nextlayer.context.client
        if nextlayer.layer is None and isinstance(client.proxy_mode, ReverseMode):
            nextlayer.layer = self.layer(nextlayer.context, self._wires.get(client) or Wire(None, client))

    def client_disconnected(self, client: Client) -> None:
        """Take the client off the count, and see to it that its socket is closed."""
        if not isinstance(client.proxy_mode, ReverseMode):
            return
        self._connections.leave(client.peername[0])
        wire = self._wires.pop(client, None)
        if wire is not None:
            wire.detach(client)

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Put the connection's socket under control."""
        wire = self._wires.get(data.client)
        if wire is not None:
            wire.attach(data.server)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """Forget a connection that could not be opened."""
        wire = self._wires.get(data.client)
        if wire is not None:
            wire.forget(data.server)

    def server_disconnected(self, data: ServerConnectionHookData) -> None:
        """See to it that the upstream's socket is closed."""
        wire = self._wires.get(data.client)
        if wire is not None:
            wire.detach(data.server)
