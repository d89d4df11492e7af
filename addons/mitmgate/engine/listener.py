"""The listener of `serve`: it accepts connections, and ends them when the host shuts down."""

import asyncio
import logging
import socket
from typing import ClassVar, Final, Protocol

from mitmproxy import ctx
from mitmproxy.addonmanager import traverse
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Address
from mitmproxy.proxy.layers.modes import ReverseProxy
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.utils.human import format_address

from mitmgate.chain import Gateway
from mitmgate.core.reason import Reason
from mitmgate.descriptors import Descriptors, Seldom, raise_limit
from mitmgate.engine.acceptor import accept
from mitmgate.engine.connection import ClientConnection, LeanContext
from mitmgate.engine.hooks import HookTable
from mitmgate.engine.lane.front import Lane
from mitmgate.engine.layer import ProtocolLayer
from mitmgate.engine.layer_events import Retire
from mitmgate.engine.layer_stream import GatewayStream
from mitmgate.hostoptions import MISTAKE

logger = logging.getLogger(__name__)

LAST_CALL: Final = 0.5
"""Seconds for which a retired connection that waits for a request is kept: one may be on its way already."""
_LOOK_EVERY: Final = 0.01


class Listening(Protocol):
    """What a host that shuts down asks of its listener."""

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        ...

    def close(self) -> None:
        """Accept no more connections; those that are open go on."""
        ...

    def retire(self) -> None:
        """Let every connection end: with its next response, which says so, or when it was idle for LAST_CALL seconds.

        A client that sends one request after the other on a connection never meets a closed one.
        """
        ...

    def cut(self) -> int:
        """End what still runs, because patience is over; return how many requests that were.

        What lasts is ended in its protocol's own way: the caller waits a moment for that to be sent.
        """
        ...


class Listener(Proxyserver):
    """mitmproxy's proxyserver, listening for one reverse proxy mode itself, so that it makes our ClientConnections."""

    name: ClassVar[str] = "proxyserver"

    def __init__(self, bound: socket.socket | None = None) -> None:
        """bound: the socket to accept on, bound already; None: one is made for the address in mitmproxy's mode."""
        super().__init__()  # type: ignore[no-untyped-call]  # mitmproxy's own
        self._bound = bound
        self._mode: ReverseMode | None = None
        self._server: asyncio.Server | None = None
        self._retired = False
        self._lane: Lane | None = None

    async def setup_servers(self) -> bool:
        """Listen, once the gateway's services are started. An error is a user's mistake, which ends the process."""
        gateway = ctx.master.addons.get(Gateway.name)
        if isinstance(gateway, Gateway):
            await gateway.start()
        mode = ProxyMode.parse(ctx.options.mode[0])
        if not isinstance(mode, ReverseMode):
            raise TypeError("serve is a reverse proxy")
        self._mode = mode
        host, port = mode.listen_host(ctx.options.listen_host), mode.listen_port(ctx.options.listen_port)
        loop, layers = asyncio.get_running_loop(), self._layers()
        table = ctx.master.addons
        if layers is not None and not layers.secured and isinstance(table, HookTable):
            layers.lane = self._lane = Lane(table, layers, mode, self._hand_over)
        factory = self._layered if self._lane is None else self._lane.protocol
        try:
            if self._bound is not None:
                self._server = await loop.create_server(factory, sock=self._bound, start_serving=False)
            else:
                self._server = await loop.create_server(factory, host, port, start_serving=False)
        except OSError as error:
            logger.error("can't listen on %s:%s: %s", host, port, error.strerror or error, extra=MISTAKE)
            return False
        if layers is None:
            accept(self._server, factory, Descriptors(raise_limit()), Seldom(logger))
        else:
            accept(self._server, factory, layers.descriptors, layers.seldom)
        return True

    def listen_addrs(self) -> list[Address]:
        """Return the addresses that connections are accepted on."""
        return [] if self._server is None else [endpoint.getsockname() for endpoint in self._server.sockets]

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        layers = self._layers()
        return 0 if layers is None else layers.connected

    def close(self) -> None:
        """Accept no more connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def done(self) -> None:
        """Accept no more connections, and end those that are open."""
        self.close()
        if self._lane is not None:
            self._lane.close()

    def retire(self) -> None:
        """Let every connection end: with its next response, which says so, or idle for LAST_CALL seconds."""
        protocol = self._layers()
        if protocol is not None and not self._retired:
            self._retired = True
            self._look(protocol, {})
            if self._lane is not None:
                self._lane.last_call(LAST_CALL)

    def _look(self, protocol: ProtocolLayer, idle_since: dict[str, float]) -> None:
        """Retire each connection whose next response's head can still say so, and each that has been idle too long.

        A response that streams has told the client that the connection goes on: its end, and what then follows, is
        waited for.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        for client_id, seat in list(protocol._seats.items()):
            streams = seat.layer.streams.values()
            if not streams:
                if now - idle_since.setdefault(client_id, now) >= LAST_CALL:
                    seat.wire.post(Retire())
                continue
            idle_since.pop(client_id, None)
            if not any(isinstance(stream, GatewayStream) and stream.lasts for stream in streams):
                seat.wire.post(Retire())
        # Also without any: one may have been accepted that is not seated yet.
        loop.call_later(_LOOK_EVERY, self._look, protocol, idle_since)

    def cut(self) -> int:
        """End what still runs, because patience is over; return how many requests that were."""
        protocol = self._layers()
        if protocol is None:
            return 0
        count = 0 if self._lane is None else self._lane.cut_all(Reason.GATEWAY_STOPPING)
        for seat in list(protocol._seats.values()):
            for stream in seat.layer.streams.values():
                count += 1
                if isinstance(stream, GatewayStream) and stream.exchange is not None:
                    stream.exchange.failure = Reason.GATEWAY_STOPPING
        for exchange in protocol.lasting:
            protocol.cut(exchange, Reason.GATEWAY_STOPPING)
        return count

    @staticmethod
    def _layers() -> ProtocolLayer | None:
        addons = traverse(ctx.master.addons.chain)
        return next((addon for addon in addons if isinstance(addon, ProtocolLayer)), None)

    def _layered(self) -> asyncio.StreamReaderProtocol:
        """Make the protocol of a connection that is mitmproxy's layers' from its first byte."""
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._accept)

    def _hand_over(self, transport: asyncio.Transport, received: bytes) -> None:
        """Take a connection from the lane. received: what has come of its current request."""
        protocol = self._layered()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(received)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = ClientConnection(ctx.master, reader, writer, ctx.options, self._mode)
        handler.layer = ReverseProxy(LeanContext(handler.layer.context))
        with self.register_connection(handler.client.id, handler):
            await handler.handle_client()

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Refuse to connect to ourselves."""
        if data.server.sockname is None:
            data.server.sockname = self._connect_addr
        if data.server.address is None:
            return
        host, port = data.server.address[:2]
        for address in self.listen_addrs():
            if port == address[1] and host in ("localhost", "127.0.0.1", "::1", address[0]):
                data.server.error = f"{format_address(address)} is the gateway itself"
