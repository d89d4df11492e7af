"""The pool of upstream connections, shared by all clients of a process."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy.server_hooks import ServerConnectHook, ServerConnectionHookData

from mitmgate.core.cause import Cause, Failure
from mitmgate.core.http1 import Bounds
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint, UpstreamTls
from mitmgate.descriptors import Descriptors, is_shortage
from mitmgate.net.cause import certificate_cause, connect_cause
from mitmgate.net.dialler import Dialler, peer_of
from mitmgate.proxy.hooks import HookTable
from mitmgate.proxy.tls import UNUSABLE, ClientSide, HandshakeError, client_connection
from mitmgate.proxy.upstream import Key, UpstreamConnection, UpstreamSide
from mitmgate.proxy.upstream_http2 import Http2UpstreamConnection, NotHttp2Error

FRESH_SECONDS: Final = 1.0
"""An idle connection that is older is not used for a request that can't be sent again: it may be stale."""
IDLE_SECONDS: Final = 4.0
"""How long an idle connection is kept where the upstream does not say: many servers close theirs after 5 s."""
LONGEST_IDLE: Final = 60.0
"""How long it is kept at most, whatever the upstream says."""
MARGIN: Final = 1.0
"""So much earlier than the upstream says, so that it does not close a connection while a request is on its way."""
LEARNED_FOR: Final = 60.0
"""Seconds for which it is believed how long a service keeps an idle connection: one that restarts closes all."""
OLDEST: Final = 300.0
"""Seconds after its opening in which a connection is used for a next request: what balances connections (a virtual
address) gets to choose again."""
UNANSWERED: Final = 0.25
"""Seconds after which others avoid an endpoint that lets a connection wait, or wait for that one (RFC 8305, section 5,
has as much for addresses)."""
DOUBTED: Final = 2.0
"""Seconds for which one connection at a time is made to an endpoint after one that was not made in time."""
KEPT: Final = 256
"""Idle connections to one endpoint."""


class Unreachable(Exception):  # noqa: N818  # the requester asks another endpoint: no error of the program
    """The endpoint could not be connected to: UPSTREAM_UNREACHABLE, UPSTREAM_TIMEOUT or DESCRIPTORS_EXHAUSTED."""

    def __init__(self, reason: Reason, cause: Cause | None = None, detail: str = "") -> None:
        """cause: None: nothing that would be the endpoint's. detail: words for the log."""
        super().__init__(reason.value)
        self.failure = Failure(reason, cause, detail)


class UpstreamPool:
    """Idle connections by endpoint, the one used last first.

    A connection is here only where the exchange before was complete on both sides and nothing has come since: it is
    read all the time, and one that is closed, or says anything, is dropped at that moment.
    """

    def __init__(
        self,
        table: HookTable,
        bounds: Callable[[], Bounds],
        buffer: memoryview,
        descriptors: Descriptors,
        dialler: Dialler,
    ) -> None:
        """table: `server_connect` may refuse an address. buffer: what sockets are read into. dialler: connects."""
        self._dialler = dialler
        self._descriptors = descriptors
        self._table = table
        self._bounds = bounds
        self._buffer = buffer
        self._idle: dict[Key, list[UpstreamConnection]] = {}
        self._shared: dict[Key, list[Http2UpstreamConnection]] = {}  # HTTP/2's, which take many requests at once
        self._sharing: dict[tuple[Key, float], asyncio.Task[Http2UpstreamConnection]] = {}
        # Seconds after which a service has closed an idle connection, and until when that is believed.
        self._learned: dict[Key, tuple[float, float]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._dials: dict[tuple[Key, float], _Dial] = {}  # with the time that each may take

    def take(self, endpoint: Endpoint, tls: UpstreamTls | None, *, repeatable: bool) -> UpstreamSide | None:
        """Return an idle connection. One that may be stale is only for a request that can be sent again.

        Of an HTTP/2 connection, a stream: a service that closes one says which requests it has not looked at.
        """
        if endpoint.http2:
            for shared in list(self._shared.get((endpoint, tls), ())):
                if self._outdated(shared):
                    shared.retire()
                elif shared.room:
                    return shared.stream()
            return None
        idle = self._idle.get((endpoint, tls))
        while idle and (self._outdated(idle[-1]) or (not repeatable and idle[-1].ended)):
            idle[-1].abandon()
        if not idle:
            return None
        kept = self._kept(idle[-1])
        if idle[-1].idle_since < time.monotonic() - (kept if repeatable else min(FRESH_SECONDS, kept)):
            return None
        return idle.pop()

    def _outdated(self, connection: UpstreamConnection | Http2UpstreamConnection) -> bool:
        """Tell whether the name has other addresses now, or the connection is older than any should be."""
        if connection.opened < time.monotonic() - OLDEST:
            return True
        return not self._dialler.answers(connection.key[0].host, connection.peer)

    def closed_idle(self, connection: UpstreamConnection) -> None:
        """Learn from a service that closes an idle connection how long it keeps one: the next are given up before."""
        now = time.monotonic()
        self._learned[connection.key] = now - connection.idle_since, now + LEARNED_FOR
        self.drop(connection)

    def _kept(self, connection: UpstreamConnection) -> float:
        kept = _kept(connection)
        learned = self._learned.get(connection.key) if self._learned else None
        if learned is None:
            return kept
        if learned[1] < time.monotonic():
            del self._learned[connection.key]
            return kept
        return min(kept, learned[0] / 2)

    async def open(self, endpoint: Endpoint, tls: UpstreamTls | None, within: float, client: Client) -> UpstreamSide:
        """Open a connection in `within` seconds, TLS included. Raises Unreachable.

        Requests that want one to an HTTP/2 endpoint at the same time share it.
        """
        if not endpoint.http2:
            connection = UpstreamConnection(self, (endpoint, tls), self._bounds(), self._buffer, _server(endpoint))
            await self._open(connection, within, client)
            return connection
        key = (endpoint, tls), within
        while True:
            dial, begun = self._sharing.get(key), False
            if dial is None:
                begun = True
                dial = asyncio.get_running_loop().create_task(self._share(endpoint, tls, within, client))
                self._sharing[key] = dial
            shared = await asyncio.shield(dial)  # who leaves does not take the others' connection along
            if begun or shared.room:
                return shared.stream()
            stream = self.take(endpoint, tls, repeatable=True)
            if stream is not None:
                return stream

    async def _share(
        self, endpoint: Endpoint, tls: UpstreamTls | None, within: float, client: Client
    ) -> Http2UpstreamConnection:
        key = endpoint, tls
        try:
            connection = Http2UpstreamConnection(self, key, self._bounds(), self._buffer, _server(endpoint))
            await self._open(connection, within, client)
            if not connection.retired:  # the service may have said goodbye with its first words
                self._shared.setdefault(key, []).append(connection)
                self._sweep_soon()
            return connection
        finally:
            del self._sharing[key, within]

    async def _open(
        self, connection: UpstreamConnection | Http2UpstreamConnection, within: float, client: Client
    ) -> None:
        """Connect, in `within` seconds. Raises Unreachable."""
        key, server = connection.key, connection.server
        asked = self._table.start(ServerConnectHook(ServerConnectionHookData(server, client)))
        if asked is not None:
            await asked
        if server.error is not None:
            raise Unreachable(Reason.UPSTREAM_UNREACHABLE, Cause.ADDRESS_REFUSED, server.error)
        begun = time.monotonic()
        try:
            async with asyncio.timeout(within):
                dial = await self._turn((key, within))
        except TimeoutError as error:
            raise Unreachable(Reason.UPSTREAM_TIMEOUT, Cause.CONNECT_TIMEOUT, "waited for another's") from error
        if dial is None:
            await self._connect(connection, within)
            return
        left = max(0.0, begun + within - time.monotonic())
        dial.task = task = asyncio.get_running_loop().create_task(self._answer_for(dial, connection, left))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:  # its client has left, and others wait for what comes of it
            task.add_done_callback(partial(_unwanted, connection))
            raise

    async def _answer_for(
        self, dial: "_Dial", connection: UpstreamConnection | Http2UpstreamConnection, within: float
    ) -> None:
        """Connect, and tell those who wait for what comes of it. Raises Unreachable."""
        try:
            await self._connect(connection, within)
        except Unreachable as error:
            silent = error.failure.reason is Reason.UPSTREAM_TIMEOUT
            dial.end(error.failure, doubted=DOUBTED if silent else 0.0)
            raise
        finally:
            dial.end(None)

    async def _turn(self, key: tuple[Key, float]) -> "_Dial | None":
        """Wait for what comes of a connection that others wait behind: its failure is theirs, too.

        Only those wait for it who would wait as long for their own. Returns what the caller has to end; None: there is
        one on its way, or was made, and no reason to doubt the next. Raises Unreachable.
        """
        before, now = self._dials.get(key), time.monotonic()
        doubtful = now + UNANSWERED
        if before is not None and not before.done.done():
            if now < before.doubtful:
                return None
            failure = await asyncio.shield(before.done)
            if failure is not None:
                raise Unreachable(*failure)
            return None  # the endpoint takes connections, if slowly: nobody waits for one after the other
        if before is not None and now < before.doubted:
            doubtful = now
        if len(self._dials) >= KEPT:
            self._dials = {key: dial for key, dial in self._dials.items() if not dial.done.done()}
        dial = self._dials[key] = _Dial(doubtful)
        return dial

    async def _connect(self, connection: UpstreamConnection | Http2UpstreamConnection, within: float) -> None:
        (endpoint, tls), server = connection.key, connection.server
        loop = asyncio.get_running_loop()
        if not self._descriptors.takes_upstream():
            await self._make_room()
        secured = endpoint.scheme == "https"
        secure: ClientSide | None = None
        server.timestamp_start = time.time()
        late = Cause.LOOKUP_TIMEOUT
        try:
            async with asyncio.timeout(within):
                addresses = await self._dialler.look_up(endpoint.host, endpoint.port, in_turn=True)
                late = Cause.CONNECT_TIMEOUT
                connected = await self._dialler.connect_to(addresses)
                late = Cause.TLS_TIMEOUT
                connection.peer = peer_of(connected)
                if secured:
                    secure = ClientSide(client_connection(endpoint, tls), self._buffer, 2 * within, connection)
                transport, _ = await loop.create_connection(lambda: secure or connection, sock=connected)
                if secure is not None:
                    await secure.established()
                    if endpoint.http2 and secure.tls.get_alpn_proto_negotiated() != b"h2":
                        secure.abort()
                        raise NotHttp2Error
                if isinstance(connection, Http2UpstreamConnection):
                    late = Cause.NOT_HTTP2
                    await connection.established()
        except TimeoutError as error:
            raise Unreachable(Reason.UPSTREAM_TIMEOUT, late, f"within {within:g} s") from error
        except NotHttp2Error as error:
            raise Unreachable(Reason.UPSTREAM_UNREACHABLE, Cause.NOT_HTTP2) from error
        except OSError as error:
            if is_shortage(error):
                raise Unreachable(Reason.DESCRIPTORS_EXHAUSTED) from error
            raise Unreachable(Reason.UPSTREAM_UNREACHABLE, connect_cause(error), str(error)) from error
        except (HandshakeError, *UNUSABLE) as error:
            cause = certificate_cause(error.code if isinstance(error, HandshakeError) else 0)
            raise Unreachable(Reason.UPSTREAM_UNREACHABLE, cause, str(error)) from error
        server.timestamp_tcp_setup = time.time()
        server.state = ConnectionState.OPEN
        server.peername, server.sockname = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        server.tls = secured

    async def _make_room(self) -> None:
        """Close idle connections for the sake of a new one. Raises Unreachable where that is not enough."""
        for idle in list(self._idle.values()):
            for connection in idle[:]:
                connection.abandon()
        for shared in [one for some in self._shared.values() for one in some if one.idle]:
            shared.retire()
        for _ in range(2):  # their sockets are closed in the next turns of the loop
            await asyncio.sleep(0)
        if not self._descriptors.takes_upstream():
            raise Unreachable(Reason.DESCRIPTORS_EXHAUSTED)

    def keep(self, connection: UpstreamConnection) -> None:
        """Take a connection on which both messages are complete."""
        idle = self._idle.setdefault(connection.key, [])
        if len(idle) >= KEPT:
            idle.pop(0).abandon()
        idle.append(connection)
        self._sweep_soon()

    def _sweep_soon(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(MARGIN, self._close_old)

    def forget(self, connection: Http2UpstreamConnection) -> None:
        """Give an HTTP/2 connection no more requests."""
        shared = self._shared.get(connection.key)
        if shared is not None and connection in shared:
            shared.remove(connection)
            if not shared:
                del self._shared[connection.key]

    def drop(self, connection: UpstreamConnection) -> None:
        """Forget a connection that is closed."""
        idle = self._idle.get(connection.key)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Close every idle connection."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for idle in list(self._idle.values()):
            for connection in list(idle):
                connection.abandon()
        self._idle.clear()
        for shared in [one for some in self._shared.values() for one in some]:
            shared.close()

    @property
    def size(self) -> int:
        """How many connections are idle."""
        shared = [one for some in self._shared.values() for one in some if one.idle]
        return len(shared) + sum(map(len, self._idle.values()))

    def _close_old(self) -> None:
        now = time.monotonic()
        for key, idle in list(self._idle.items()):
            for connection in [one for one in idle if one.idle_since + self._kept(one) <= now]:
                connection.abandon()
            if not idle:
                del self._idle[key]
        for shared in [one for some in self._shared.values() for one in some]:
            if shared.idle_since + LONGEST_IDLE <= now or (shared.idle and self._outdated(shared)):
                shared.retire()
        self._sweep = None
        if self._idle or self._shared:
            self._sweep_soon()


def _server(endpoint: Endpoint) -> Server:
    return Server(address=(endpoint.host, endpoint.port))


class _Dial:
    """A connection that is being made, also when its client has left.

    From `doubtful` on others wait for what comes of it; until `doubted`, behind its end, they wait for the next one
    from its beginning (monotonic seconds).
    """

    __slots__ = ("done", "doubted", "doubtful", "task")

    def __init__(self, doubtful: float) -> None:
        self.doubtful = doubtful
        self.doubted = 0.0
        self.done: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    def end(self, failure: Failure | None, *, doubted: float = 0.0) -> None:
        """Tell those who wait, once. failure: None: it was made. doubted: seconds."""
        if not self.done.done():
            self.doubted = time.monotonic() + doubted
            self.done.set_result(failure)


def _unwanted(connection: UpstreamConnection | Http2UpstreamConnection, task: asyncio.Task[None]) -> None:
    """Close a connection whose client has left while it was made."""
    if task.cancelled() or task.exception() is not None:
        return
    if isinstance(connection, UpstreamConnection):
        connection.abandon()
    else:
        connection.close()


def _kept(connection: UpstreamConnection) -> float:
    said = connection.keep_seconds
    return IDLE_SECONDS if said is None else min(LONGEST_IDLE, max(0.0, said - MARGIN))
