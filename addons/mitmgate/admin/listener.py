"""The listener itself: bound before anything else starts, so that a port in use is a user's mistake."""

import logging
import os
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application

from mitmgate.admin.feed import Feed
from mitmgate.admin.pages import Ask, Page, application
from mitmgate.admin.revoking import Events, Revocations, Revoker
from mitmgate.admin.workers import Inquire
from mitmgate.core.rules import ListenTls
from mitmgate.descriptors import Descriptors, raise_limit
from mitmgate.policy.snapshot import Snapshot
from mitmgate.usage import UserError

logger = logging.getLogger(__name__)

CONNECTIONS: Final = 100
"""How many may be open at once: whoever can reach this port must not use up the gateway's file descriptors.

Fewer, where half of what is kept for the gateway's own is less.
"""

_IDLE: Final = 30.0  # seconds, for a head as well
_BODY: Final = 5.0
_HEAD: Final = 16 << 10  # bytes


def bind(host: str, port: int) -> list[socket.socket]:
    """Bind the admin listener's address; raises UserError where that can't be done."""
    try:
        return bind_sockets(port, host)
    except OSError as error:
        raise UserError(f"the admin listener can't listen on {host}:{port}: {error.strerror or error}") from error


class Listener:
    """Serves the pages on sockets that are bound already. One for the gateway's process, or for the supervisor's."""

    def __init__(
        self,
        host: str,
        sockets: list[socket.socket],
        ask: Ask,
        snapshot: Snapshot | None = None,
        inquire: Inquire | None = None,
        current: Callable[[], Snapshot | None] | None = None,
    ) -> None:
        """host: `admin.host` of the policy: besides addresses and localhost, the only name that is answered to.

        snapshot: says whether revocations are taken, and for which secret the status page is shown. Raises UserError
        where their list can't be opened, or its certificate can't be used. inquire: asks the processes for what is no
        figure. current: the policy in force, whose files for TLS new connections are made with; None: snapshot's.
        """
        tls = None if snapshot is None else snapshot.admin_tls
        self._scheme = "http" if tls is None else "https"
        self._sockets = sockets
        pages = _pages(ask, frozenset({"localhost", host.lower()}), snapshot, inquire)
        self._feed: Feed = pages.settings["feed"]
        self._server = _Server(
            pages,
            idle_connection_timeout=_IDLE,
            body_timeout=_BODY,
            max_header_size=_HEAD,
            max_body_size=_HEAD,
            ssl_options=None if tls is None else _context(tls),
        )
        self._server.tls, self._server.current = tls, current

    @property
    def address(self) -> str:
        """The address that is listened on, as HOST:PORT."""
        host, port = self._sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Accept connections, on the running event loop."""
        self._server.add_sockets(self._sockets)
        logger.info("the admin listener is on %s://%s", self._scheme, self.address)

    async def close(self) -> None:
        """Accept no more, and close what is open."""
        self._server.stop()
        await self._feed.close()
        await self._server.close_all_connections()


def _context(tls: ListenTls) -> ssl.SSLContext:
    """Make the context for who asks. Raises UserError for files that OpenSSL does not take.

    TLS 1.3 alone, and no session is resumed: each connection shows its certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    try:
        with tempfile.TemporaryDirectory() as directory:  # of this user alone; `ssl` reads files only
            chain, key = Path(directory, "certificate"), Path(directory, "key")
            chain.write_bytes(tls.certificate)
            os.close(os.open(key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            key.write_bytes(tls.key)
            context.load_cert_chain(chain, key)
        if tls.client_ca is not None:
            context.load_verify_locations(cadata=tls.client_ca.decode("ascii"))
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise UserError(f"the admin listener's certificate can't be used: {error}") from error
    return context


def _pages(ask: Ask, hosts: frozenset[str], snapshot: Snapshot | None, inquire: Inquire | None) -> Application:
    rule = None if snapshot is None else snapshot.policy.revocation
    further: list[tuple[str, type[Page]]] = []
    if snapshot is not None and snapshot.revocation_token is not None:
        further.append(("/revocations", Revocations))
    if rule is not None and rule.events is not None:
        further.append(("/events", Events))
    tls = None if snapshot is None else snapshot.admin_tls
    certificates = tls is not None and tls.client_ca is not None
    token = None if snapshot is None else snapshot.admin_token
    pages = application(ask, hosts, further, inquire, token, certificates=certificates)
    if snapshot is not None and further:
        pages.settings["revoker"] = Revoker(snapshot)
    return pages


class _Server(HTTPServer):
    """tornado's server with a bound on its connections."""

    def initialize(self, *args: object, **settings: object) -> None:
        """Take tornado's settings."""
        super().initialize(*args, **settings)  # type: ignore[arg-type]  # handed through
        self._open = 0
        self._waiting: dict[IOStream, None] = {}  # for a whole request, the one that waits for longest first
        self.tls: ListenTls | None = None
        self.current: Callable[[], Snapshot | None] | None = None
        self._most = min(CONNECTIONS, Descriptors(raise_limit()).own // 2)

    def _handle_connection(self, connection: socket.socket, address: tuple[object, ...]) -> None:
        """Take the files of the policy in force, where they were renewed."""
        snapshot = None if self.tls is None or self.current is None else self.current()
        if snapshot is not None and snapshot.admin_tls not in {None, self.tls}:
            self.tls = snapshot.admin_tls
            try:
                self.ssl_options = _context(self.tls)
            except UserError as error:
                logger.error("the files of before are used on: %s", error)
        super()._handle_connection(connection, address)

    def handle_stream(self, stream: IOStream, address: tuple[object, ...]) -> None:
        """Take a connection. Where there are too many, the one that has said nothing for longest goes for it.

        So that those who connect and say nothing keep nobody's probe away.
        """
        if self._open >= self._most:
            silent = next(iter(self._waiting), None)
            if silent is None:
                stream.close()
                return
            del self._waiting[silent]
            silent.close()
        self._open += 1
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Begin to wait for a request."""
        delegate = super().start_request(server_conn, request_conn)
        if not isinstance(server_conn, HTTP1ServerConnection):
            return delegate
        stream = server_conn.stream
        self._waiting.pop(stream, None)
        self._waiting[stream] = None
        return _Whole(delegate, lambda: self._waiting.pop(stream, None))

    def on_close(self, server_conn: object) -> None:
        """Take a connection off the count."""
        self._open -= 1
        if isinstance(server_conn, HTTP1ServerConnection):
            self._waiting.pop(server_conn.stream, None)
        super().on_close(server_conn)


class _Whole(HTTPMessageDelegate):
    """Hands a request on, and tells when it is whole."""

    def __init__(self, delegate: HTTPMessageDelegate, whole: Callable[[], object]) -> None:
        self._delegate = delegate
        self._tell = whole

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._tell()
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()
