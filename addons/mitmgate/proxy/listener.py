"""The listener: it accepts connections in every host, knows those that are open, and ends them when the host ends.

    socket → in plain text             ─┬─ HTTP/1.1         →  Http1Connection (proxy/http1.py)
                                        └─ HTTP/2's preface →  Http2Connection (proxy/http2.py)
    socket → SecuredConnection → ALPN  ─┬─ http/1.1         →  Http1Connection
                                        └─ h2               →  Http2Connection

An addon, the same in `serve`, in mitmweb and in stock mitmproxy: there mitmproxy's own server is switched off (its
option `server`), and this one listens on the addresses of the reverse mode. Flows reach the host's addons by
mitmproxy's hooks, and so its lists and its interface.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import ClassVar, Final, Protocol

from mitmproxy import ctx
from mitmproxy.certs import Cert
from mitmproxy.connection import Address, Client, ConnectionState
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.proxy.server_hooks import (
    ClientConnectedHook,
    ClientDisconnectedHook,
    ServerConnectionHookData,
)
from mitmproxy.utils.human import format_address
from OpenSSL import SSL

from mitmgate.collector import give_back
from mitmgate.core.http1 import Bounds
from mitmgate.core.http1.known import KnownFields
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.descriptors import Descriptors, Seldom, raise_limit
from mitmgate.hostoptions import MISTAKE
from mitmgate.net.dialler import Dialler
from mitmgate.pipeline.exchange import Exchange, reject
from mitmgate.policy.snapshot import SnapshotSource
from mitmgate.proxy.acceptor import accept
from mitmgate.proxy.hooks import HookTable, StockHooks
from mitmgate.proxy.http1 import Http1Connection
from mitmgate.proxy.http2 import Http2Connection
from mitmgate.proxy.limits import Connections, PolicyBounds, address_key
from mitmgate.proxy.memory import Account, Memory
from mitmgate.proxy.pool import UpstreamPool
from mitmgate.proxy.tls import READ_BYTES, UNUSABLE, ListenerContexts, TlsTransport
from mitmgate.proxy.transaction import Engine, Transaction

logger = logging.getLogger(__name__)

LAST_CALL: Final = 0.5
"""Seconds for which a retired connection that waits for a request is kept: one may be on its way already."""
GIVE_BACK: Final = 5.0
"""Seconds after a connection has ended, at which its memory is given back to the system, with that of others."""
GENERATION: Final = 5.0
"""Seconds after which fields that did not come again begin to be forgotten; after twice as many they are."""


class FrontClient(Client):
    """The record of a connection that this listener has accepted."""


class Connection(Protocol):
    """A client's connection, whatever it speaks."""

    client: Client
    account: Account

    @property
    def transactions(self) -> list[Transaction]:
        """The requests that run."""
        ...

    @property
    def transport(self) -> asyncio.Transport | None:
        """What it is on; None: it has ended."""
        ...

    def last_call(self, seconds: float) -> None:
        """Let the connection end: with its next response, which says so, or when it was idle for so long."""
        ...

    def retire(self) -> None:
        """Take no further request."""
        ...

    def end(self) -> None:
        """End the connection now."""
        ...

    def relieve(self) -> None:
        """End what holds the most memory of what is held for this client."""
        ...


class Listener:
    """Accept connections, bound how many there are, and make the protocol of each.

    Reads: the policy's limits and listener. Denies: 503 connections-exhausted, and through its connections all that the
    reasons of the stage `protocol` say. On failure: a connection that gets no protocol is closed.
    """

    name: ClassVar[str] = "mitmgate-listener"

    def __init__(
        self,
        source: SnapshotSource,
        fail_over: Callable[[Exchange, Reason], Endpoint | None],
        dialler: Dialler | None = None,
        bound: socket.socket | None = None,
        workers: int = 1,
        *,
        unanswered: Callable[[Exchange], None] = lambda exchange: None,
        withdrawn: Callable[[Exchange], Reason | None] = lambda exchange: None,
    ) -> None:
        """source: the policy in force. fail_over: the next endpoint after one that could not be used.

        dialler: connects to endpoints; None: one of its own. unanswered: told of an endpoint that lets a connection
        wait. withdrawn: says why what admitted an exchange no longer holds; None: it does.
        bound: the socket to accept on, bound already; None: one for each of the host's reverse modes is made. workers:
        processes that serve the same clients, and share the machine's memory.
        """
        self.descriptors = Descriptors(raise_limit())
        self.bounds = PolicyBounds(source, self.descriptors, workers)
        self.memory = Memory(self.bounds)
        self.fail_over = fail_over
        self._unanswered = unanswered
        self._withdrawn = withdrawn
        self._dialler = dialler or Dialler()
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.known = KnownFields()
        self.clients: set[Connection] = set()
        self.engine: Engine
        self.handshakes = Seldom(logger)
        self._seldom = Seldom(logger)
        self._source = source
        self._bound = bound
        self._connections = Connections()
        self._tls = ListenerContexts(source)
        self._servers: list[asyncio.Server] = []
        self._ageing: asyncio.TimerHandle | None = None
        self._giving_back: asyncio.TimerHandle | None = None
        self._last_call: float | None = None
        self._retired = False
        self._closed = False
        self._ended = False

    # The host's hooks.

    async def running(self) -> None:
        """Listen. A failure is logged as an error, for which mitmproxy's ErrorCheck ends the process."""
        if self._closed:  # the host was told to end meanwhile
            return
        loop = asyncio.get_running_loop()
        table = ctx.master.addons
        if not isinstance(table, HookTable):
            table = StockHooks(table)
        self.bounds()  # says so where they are narrower than the policy's
        pool = UpstreamPool(table, self.bounds, self.buffer, self.descriptors, self._dialler)
        self.engine = Engine(loop, table, pool, self.fail_over, self._unanswered, self._withdrawn)
        proxyserver = ctx.master.addons.get("proxyserver")
        if proxyserver is not None:
            from mitmproxy.addons.proxyserver import Proxyserver  # noqa: PLC0415 - all of mitmproxy's own protocols

            if isinstance(proxyserver, Proxyserver):
                # A script is loaded after the host's own server was started, on the same addresses.
                await proxyserver.servers.update([])
        try:
            self._tls.context()
        except UNUSABLE as error:
            logger.error("the listener's certificate can't be used: %s", error, extra=MISTAKE)
            return
        for text in ctx.options.mode:
            mode = ProxyMode.parse(text)
            if not isinstance(mode, ReverseMode):
                continue
            host, port = mode.listen_host(ctx.options.listen_host), mode.listen_port(ctx.options.listen_port)
            protocol = self._factory(mode)
            try:
                if self._bound is not None:
                    server = await loop.create_server(protocol, sock=self._bound, start_serving=False)
                else:
                    server = await loop.create_server(protocol, host, port, start_serving=False)
            except OSError as error:
                logger.error("can't listen on %s:%s: %s", host, port, error.strerror or error, extra=MISTAKE)
                return
            accept(server, protocol, self.descriptors, self._seldom)
            self._servers.append(server)
        if isinstance(table, StockHooks):  # our own hosts say it themselves
            for address in self.listen_addrs():
                logger.info("mitmgate is listening on %s", self.url(address))

    def client_connected(self, client: Client) -> None:
        """Close what mitmproxy's own server has accepted: only this listener is strict, and held to the policy."""
        if not isinstance(client, FrontClient):
            client.error = "only the gateway's own listener takes connections"

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Refuse a live request that came by another way than this listener."""
        if flow.live and not isinstance(flow.client_conn, FrontClient):
            reject(flow, Reason.POLICY_UNAVAILABLE, "The gateway was not ready when the connection was opened.")

    def done(self) -> None:
        """Accept no more connections, and end those that are open, and those that come to speak HTTP from now on."""
        self._ended = True
        self.close()
        for timer in (self._ageing, self._giving_back):
            if timer is not None:
                timer.cancel()
        self._ageing = self._giving_back = None
        for client in list(self.clients):
            client.end()
        if hasattr(self, "engine"):
            self.engine.pool.close()

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Refuse to connect to ourselves."""
        if data.server.address is None:
            return
        host, port = data.server.address[:2]
        for address in self.listen_addrs():
            if port == address[1] and host in ("localhost", "127.0.0.1", "::1", address[0]):
                data.server.error = f"{format_address(address)} is the gateway itself"

    # The host's questions and orders.

    def url(self, address: Address) -> str:
        """Write an address as clients do."""
        host, port = address[:2]
        scheme = "http" if self._tls.context() is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def listen_addrs(self) -> list[Address]:
        """Return the addresses that connections are accepted on."""
        return [endpoint.getsockname() for server in self._servers for endpoint in server.sockets]

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        return self._connections.total

    @property
    def lasting(self) -> list[Exchange]:
        """The exchanges that outlive their decision: streamed responses and WebSockets."""
        transactions = [
            transaction for client in self.clients for transaction in client.transactions if transaction.lasts
        ]
        return [transaction.exchange for transaction in transactions if transaction.exchange is not None]

    def cut(self, exchange: Exchange, reason: Reason) -> None:
        """End an exchange that lasts, because what admitted it no longer holds."""
        for client in list(self.clients):
            for transaction in client.transactions:
                if transaction.exchange is exchange:
                    transaction.cut(reason)

    def cut_withdrawn(self) -> None:
        """End every exchange that lasts, and that what admitted it no longer holds for."""
        for client in list(self.clients):
            for transaction in client.transactions:
                transaction.cut_withdrawn()

    def reloaded(self) -> None:
        """End the connections whose clients' certificates other authorities have vouched for than those of the policy.

        As connections to a service are of the files that they were made with. What lasts goes on where the certificate
        counts all the same.
        """
        former = self._tls.client_ca
        context = self._tls.context()
        if self._tls.client_ca != former:
            for client in list(self.clients):
                transport = client.transport
                if isinstance(transport, TlsTransport) and context is not None and not transport.admitted_by(context):
                    self.uncertified(transport)
                client.retire()

    def uncertified(self, transport: TlsTransport) -> None:
        """End a connection whose client's certificate counts no more, with what lasts on it."""
        for client in list(self.clients):
            if client.transport is transport:
                for transaction in client.transactions:
                    transaction.outlived(Reason.CERTIFICATE_WITHDRAWN)
                client.retire()

    @property
    def client_ca(self) -> bytes | None:
        """The authorities of clients' certificates, for connections that are made now."""
        return self._tls.client_ca

    def close(self) -> None:
        """Accept no more connections; those that are open go on."""
        self._closed = True
        for server in self._servers:
            server.close()
        self._servers.clear()

    def last_call(self) -> None:
        """Let every connection end: with its next response, which says so, or when it was idle for LAST_CALL seconds.

        A client that sends one request after the other on a connection never meets a closed one.
        """
        if self._last_call is None:
            self._last_call = LAST_CALL
            for client in list(self.clients):
                client.last_call(LAST_CALL)

    def retire(self) -> None:
        """Take no further request on any connection: idle ones end now, the others with their response."""
        self._retired = True
        if hasattr(self, "engine"):
            self.engine.pool.close()
        for client in list(self.clients):
            client.retire()

    def cut_all(self, reason: Reason = Reason.GATEWAY_STOPPING) -> int:
        """End what still runs, because patience is over; return how many requests that were.

        What lasts is ended in its protocol's own way: the caller waits a moment for that to be sent.
        """
        running = [transaction for client in self.clients for transaction in client.transactions]
        for transaction in running:
            transaction.stop(reason)
        return len(running)

    # What connections ask for.

    def _factory(self, mode: ReverseMode) -> Callable[[], asyncio.BufferedProtocol]:
        def protocol() -> asyncio.BufferedProtocol:
            context = self._tls.context()
            front = Front(self, mode)
            if context is None:
                return Http1Connection(front, self.bounds())
            return SecuredConnection(front, context, self.bounds())

        return protocol

    def count(self, peer: str) -> int | None:
        """Count a client's connection. Returns by how many there are too many; None: close it without a word."""
        bounds = self.bounds()
        total, here = self._connections.enter(peer)
        excess = total - bounds.connections
        if here > bounds.per_address and not self.bounds.trusts(peer):
            excess = max(excess, here - bounds.per_address)
        return None if excess > bounds.turned_away or self._retired else excess

    def uncount(self, peer: str) -> None:
        """Take a client's connection off the count."""
        self._connections.leave(peer)

    def join(self, connection: Connection) -> bool:
        """Take a connection among those that speak HTTP; False where an addon of the host does not want it."""
        self.clients.add(connection)
        if self._ageing is None:
            self._ageing = self.engine.loop.call_later(GENERATION, self._age)
        if self._last_call is not None:  # accepted at the moment when the host began to shut down
            self.engine.loop.call_soon(connection.last_call, self._last_call)
        self._tell(ClientConnectedHook, connection.client)
        return connection.client.error is None and not self._ended

    def replace(self, connection: Connection, successor: Connection) -> None:
        """Take another in the place of a connection: it is the same client's, and speaks another protocol."""
        self.clients.discard(connection)
        self.clients.add(successor)

    def part(self, connection: Connection) -> None:
        """Take the end of a connection."""
        if connection in self.clients:
            self.clients.discard(connection)
            if self._giving_back is None and not self._closed:
                self._giving_back = self.engine.loop.call_later(GIVE_BACK, self._give_back)
            self._tell(ClientDisconnectedHook, connection.client)

    def _tell(self, hook: type[ClientConnectedHook] | type[ClientDisconnectedHook], client: Client) -> None:
        pending = self.engine.table.run(hook, client)
        if pending is not None:
            self.engine.background(pending)

    def _give_back(self) -> None:
        self._giving_back = None
        give_back()

    def _age(self) -> None:
        self.known.age()
        again = len(self.known) or self.clients
        self._ageing = self.engine.loop.call_later(GENERATION, self._age) if again else None


class Front:
    """What one connection asks of its listener."""

    __slots__ = ("_excess", "_listener", "_mode", "_secured", "buffer", "engine", "known")

    def __init__(self, listener: Listener, mode: ReverseMode) -> None:
        """mode: the one that the connection came by."""
        self._listener = listener
        self._mode = mode
        self._excess: int | None = 0
        self._secured = False
        self.engine, self.buffer, self.known = listener.engine, listener.buffer, listener.known

    def client(self, transport: asyncio.Transport) -> Client:
        """Make mitmproxy's record of the connection."""
        client = FrontClient(
            peername=transport.get_extra_info("peername"),
            sockname=transport.get_extra_info("sockname"),
            timestamp_start=time.time(),
            state=ConnectionState.OPEN,
            proxy_mode=self._mode,
        )
        if isinstance(transport, TlsTransport):
            describe_tls(client, transport.tls)
        return client

    @property
    def client_ca(self) -> bytes | None:
        """The authorities of clients' certificates, as the listener has them now."""
        return self._listener.client_ca

    def uncertified(self, transport: TlsTransport) -> None:
        """Take the end of the time for which the client's certificate is valid."""
        self._listener.uncertified(transport)

    def secure(self, peer: str) -> bool:
        """Count a TLS connection, before the handshake; False: close it without a word."""
        self._secured = True
        self._excess = self._listener.count(peer)
        # A handshake is dear, and only after it comes a word.
        return self._excess is not None and self._excess <= 0

    def handshake_failed(self, why: str) -> None:
        """Put on the log, a line a second at most, that a client did not come to speak."""
        self._listener.handshakes.log(logging.INFO, "a TLS handshake failed: %s", why)

    def unsecure(self, peer: str) -> None:
        """Take a TLS connection off the count."""
        self._listener.uncount(peer)

    def enter(self, connection: Connection, peer: str) -> int | None:
        """Take a connection that speaks HTTP. Returns by how many there are too many; None: close it."""
        if not self._secured:
            self._excess = self._listener.count(peer)
        self._open_account(connection, peer)
        return self._excess if self._listener.join(connection) else None

    def speak_http2(
        self, connection: Connection, transport: asyncio.Transport, bounds: Bounds, data: bytes
    ) -> Http2Connection:
        """Put HTTP/2 in the place of HTTP/1.1, on a connection that was counted. data: what has come on it."""
        successor = Http2Connection(self, bounds, b"http")
        connection.account.close()
        self._open_account(successor, connection.client.peername[0])
        self._listener.replace(connection, successor)
        transport.set_protocol(successor)
        successor.take_over(transport, connection.client, data)
        return successor

    def _open_account(self, connection: Connection, peer: str) -> None:
        connection.account = self._listener.memory.account(peer, address_key(peer), connection.relieve)

    def leave(self, connection: Connection, peer: str) -> None:
        """Take the end of the connection."""
        connection.account.close()
        self._listener.part(connection)
        if not self._secured:
            self._listener.uncount(peer)


class SecuredConnection(TlsTransport):
    """A client's TLS connection: counted from its first byte on; what it speaks is settled by ALPN."""

    def __init__(self, front: Front, context: SSL.Context, bounds: Bounds) -> None:
        """context: for new connections. bounds: of the policy in force."""
        tls = SSL.Connection(context)
        tls.set_accept_state()
        super().__init__(tls, front.buffer, bounds.head_timeout, self._speak, front.handshake_failed)
        self._front = front
        self._bounds = bounds
        self._peer: str | None = None
        self._client_ca = front.client_ca
        self._expiry: asyncio.TimerHandle | None = None  # of the client's certificate

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, and begin the handshake."""
        peer = transport.get_extra_info("peername")
        if peer is not None:
            self._peer = peer[0]
        if peer is not None and self._front.secure(peer[0]):
            super().connection_made(transport)
        elif isinstance(transport, asyncio.Transport):
            self.abandon(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the connection off the count."""
        super().connection_lost(exc)
        if self._expiry is not None:
            self._expiry.cancel()
        peer, self._peer = self._peer, None
        if peer is not None:
            self._front.unsecure(peer)

    def _speak(self, transport: TlsTransport) -> asyncio.BufferedProtocol:
        http2 = self.tls.get_alpn_proto_negotiated() == b"h2"
        made = (Http2Connection if http2 else Http1Connection)(self._front, self._bounds, b"https")
        certificate = self.tls.get_peer_certificate(as_cryptography=True)
        if certificate is not None:  # no request counts by a certificate that is over, on whatever connection
            left = (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
            if self._client_ca != self._front.client_ca:  # a reload came between
                left = 0.0
            self._expiry = asyncio.get_running_loop().call_later(max(0.0, left), self._front.uncertified, self)
        return made


def describe_tls(client: Client, tls: SSL.Connection) -> None:
    """Say in mitmproxy's terms what the handshake has settled."""
    client.tls = True
    client.tls_version = tls.get_protocol_version_name()  # type: ignore[assignment]  # OpenSSL's names are mitmproxy's
    client.cipher = tls.get_cipher_name()
    client.alpn = tls.get_alpn_proto_negotiated()
    name = tls.get_servername()
    client.sni = None if name is None else name.decode("ascii", "replace")
    certificate = tls.get_peer_certificate(as_cryptography=True)
    if certificate is not None:
        client.certificate_list = [Cert(certificate)]
    client.timestamp_tls_setup = time.time()
