"""The listener itself: bound before anything else starts, so that a port in use is a user's mistake."""

import logging
import socket
from typing import Final

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application

from mitmgate.admin.feed import Feed
from mitmgate.admin.pages import Ask, Page, application
from mitmgate.admin.revoking import Events, Revocations, Revoker
from mitmgate.admin.workers import Inquire
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
    ) -> None:
        """host: `admin.host` of the policy: besides addresses and localhost, the only name that is answered to.

        snapshot: says whether revocations are taken, and for which secret the status page is shown. Raises UserError
        where their list can't be opened. inquire: asks the processes for what is no figure.
        """
        self._sockets = sockets
        pages = _pages(ask, frozenset({"localhost", host.lower()}), snapshot, inquire)
        self._feed: Feed = pages.settings["feed"]
        self._server = _Server(
            pages,
            idle_connection_timeout=_IDLE,
            body_timeout=_BODY,
            max_header_size=_HEAD,
            max_body_size=_HEAD,
        )

    @property
    def address(self) -> str:
        """The address that is listened on, as HOST:PORT."""
        host, port = self._sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Accept connections, on the running event loop."""
        self._server.add_sockets(self._sockets)
        logger.info("the admin listener is on http://%s", self.address)

    async def close(self) -> None:
        """Accept no more, and close what is open."""
        self._server.stop()
        await self._feed.close()
        await self._server.close_all_connections()


def _pages(ask: Ask, hosts: frozenset[str], snapshot: Snapshot | None, inquire: Inquire | None) -> Application:
    rule = None if snapshot is None else snapshot.policy.revocation
    further: list[tuple[str, type[Page]]] = []
    if snapshot is not None and snapshot.revocation_token is not None:
        further.append(("/revocations", Revocations))
    if rule is not None and rule.events is not None:
        further.append(("/events", Events))
    pages = application(ask, hosts, further, inquire, None if snapshot is None else snapshot.admin_token)
    if snapshot is not None and further:
        pages.settings["revoker"] = Revoker(snapshot)
    return pages


class _Server(HTTPServer):
    """tornado's server with a bound on its connections."""

    def initialize(self, *args: object, **settings: object) -> None:
        """Take tornado's settings."""
        super().initialize(*args, **settings)  # type: ignore[arg-type]  # handed through
        self._open = 0
        self._most = min(CONNECTIONS, Descriptors(raise_limit()).own // 2)

    def handle_stream(self, stream: IOStream, address: tuple[object, ...]) -> None:
        """Take a connection, or close it at once where there are too many."""
        if self._open >= self._most:
            stream.close()
            return
        self._open += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        """Take a connection off the count."""
        self._open -= 1
        super().on_close(server_conn)
