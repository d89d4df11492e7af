"""The sockets behind a client connection: back-pressure, resets, and closing without leaks.

mitmproxy's layers can't stop reading: whatever arrives while a layer waits for a hook or for a connection is queued
without bound. `Wire` stands between mitmproxy's connection handler and its sockets and lets the layers hold them.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final, Protocol

from mitmproxy.connection import Client, Connection, ConnectionState
from mitmproxy.proxy import events
from mitmproxy.proxy.server import ConnectionIO

from mitmgate.engine.turns import Turns

FLUSH_SECONDS: Final = 30.0
"""What a peer gets to take what was written before the connection was closed."""
UNREAD: Final = 256 * 1024
"""Bytes of answers that a client may leave unread while it is still read from. More than a download can pile up."""
UPSTREAMS: Final = 64
"""Upstream connections to one endpoint that a client connection may have; mitmproxy's own bound of 5 would make the
sixth HTTP/2 stream wait for ever, because idle ones are kept."""


class ByteReader(Protocol):
    """What mitmproxy's handler reads a socket by."""

    async def read(self, n: int, /) -> bytes:
        """Return up to n bytes, b"" at the end."""
        ...


class Handler(Protocol):
    """The parts of mitmproxy's `ConnectionHandler` that are used here."""

    transports: MutableMapping[Connection, ConnectionIO]
    max_conns: Any
    drain_writers: Callable[[], Awaitable[None]]
    layer: Any
    timeout_watchdog: Any

    async def server_event(self, event: events.Event) -> None:
        """Hand an event to the layers."""
        ...


class _Gone:
    """What a handler has in place of its layers when they are gone."""

    def handle_event(self, event: events.Event) -> tuple[()]:
        """Do nothing."""
        return ()


_GONE: Final = _Gone()


async def _rest() -> None:
    """Stand in for mitmproxy's watchdog, which would refer to its handler."""


class Gate:
    """Open, or shut: then reading waits."""

    __slots__ = ("_opened", "_waiter")

    def __init__(self) -> None:
        """Start open."""
        self._opened = True
        self._waiter: asyncio.Event | None = None

    def swing(self, opened: bool) -> None:
        """Open or shut the gate."""
        if opened is self._opened:
            return
        self._opened = opened
        if opened and self._waiter is not None:
            self._waiter.set()
            self._waiter = None

    async def passed(self) -> None:
        """Wait until the gate is open."""
        while not self._opened:
            if self._waiter is None:
                self._waiter = asyncio.Event()
            await self._waiter.wait()


class GatedReader:
    """A reader that waits at a gate."""

    __slots__ = ("_connection", "_gate", "_reader", "_turns")

    def __init__(self, reader: ByteReader, gate: Gate, connection: Connection, turns: Turns | None) -> None:
        """Read through the gate. turns: the end waits for its turn among others."""
        self._turns = turns
        self._reader = reader
        self._gate = gate
        self._connection = connection

    async def read(self, n: int) -> bytes:
        """Return up to n bytes, once the gate is open; b"" at the end.

        mitmproxy ends a connection by cancelling its task, and keeps the CancelledError in the frame that it has the
        traceback of: the reader, with what was not read, would wait for the garbage collector. Told as an end of the
        connection it has the same effect.
        """
        data = b""
        try:
            await self._gate.passed()
            data = await self._reader.read(n)
        except asyncio.CancelledError:
            self._connection.state = ConnectionState.CLOSED
        except OSError as error:  # mitmproxy takes it for an end as well; who must know it asks the connection
            self._connection.error = f"The connection was reset: {error}"
        if not data and self._turns is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._turns.turn()
        return data


class Wire:
    """The sockets of one client connection and of the upstream connections that were made for it."""

    __slots__ = ("_client", "_gates", "_handler", "_posted", "_turns", "_writers")

    def __init__(self, handler: Handler | None, client: Client, turns: Turns | None = None) -> None:
        """handler: None in tests without sockets; then nothing is held. turns: in which clients' connections end."""
        self._turns = turns
        self._gates: dict[Connection, Gate] = {}
        self._handler = handler
        self._client = client
        self._posted: set[asyncio.Future[None]] = set()
        self._writers: dict[Connection, asyncio.StreamWriter] = {}
        if handler is not None:
            handler.max_conns.default_factory = partial(asyncio.Semaphore, UPSTREAMS)
            handler.drain_writers = self.drain
            self.attach(client)

    def attach(self, connection: Connection) -> None:
        """Take over a connection's reader, and remember its writer until `detach`."""
        if self._handler is None:
            return
        io = self._handler.transports[connection]
        gate = self._gates[connection] = Gate()
        turns = self._turns if connection is self._client else None
        io.reader = GatedReader(io.reader, gate, connection, turns)  # type: ignore[arg-type, assignment]  # read() is all that is used
        if isinstance(io.writer, asyncio.StreamWriter):
            self._writers[connection] = io.writer

    def detach(self, connection: Connection) -> None:
        """Close a connection's socket for good: at once where nothing is left to send, later where the peer is slow.

        mitmproxy leaves a socket to the garbage collection where its handler is cancelled twice.
        """
        self._gates.pop(connection, None)
        writer = self._writers.pop(connection, None)
        if writer is None:
            return
        transport = writer.transport
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, transport.abort)

    def post(self, event: events.Event) -> None:
        """Hand an event of the gateway's own to the layers."""
        if self._handler is not None:
            task = asyncio.ensure_future(self._handler.server_event(event))
            self._posted.add(task)
            task.add_done_callback(self._posted.discard)

    def release(self) -> bool:
        """Close what mitmproxy has left open; tells whether there was anything."""
        left = list(self._writers)
        for connection in left:
            self.detach(connection)
        return bool(left)

    def dismantle(self) -> None:
        """Let go of the handler and its layers, when every socket is closed; nothing comes from it any more."""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.layer = _GONE
            vars(handler).pop("drain_writers", None)
            handler.timeout_watchdog.callback = _rest
            handler.max_conns.clear()
            handler.transports.clear()  # a dial that was cancelled is still there

    @property
    def open(self) -> bool:
        """Whether a socket is still under control."""
        return bool(self._writers)

    def swing(self, connection: Connection, opened: bool) -> None:
        """Let a connection's socket be read, or not."""
        gate = self._gates.get(connection)
        if gate is not None:
            gate.swing(opened)

    def forget(self, connection: Connection) -> None:
        """Drop what mitmproxy keeps of a connection that could not be opened, for as long as its client stays."""
        if self._handler is not None:
            self._handler.transports.pop(connection, None)

    def congested(self, connection: Connection) -> bool:
        """Tell whether bytes for this connection wait to be taken by its peer."""
        writer = self._writers.get(connection)
        return writer is not None and writer.transport.get_write_buffer_size() > 0

    def reset(self, connection: Connection) -> None:
        """Make closing visible as a reset, where an orderly end would look like the end of a body."""
        writer = self._writers.get(connection)
        if writer is None:
            return
        endpoint = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def drain(self) -> None:
        """Wait for those that the reading side writes to, in place of mitmproxy's wait for all of them.

        A client that is slow to read must not keep its own upload from being read, nor the other way round; unless it
        sends what makes us answer, and never reads the answers.
        """
        handler = self._handler
        if handler is None:
            return
        own = handler.transports.get(self._client)
        from_client = own is not None and own.handler is asyncio.current_task()
        for connection, writer in list(self._writers.items()):
            if (connection is self._client) is from_client and (
                writer.transport.get_write_buffer_size() < UNREAD or not from_client
            ):
                continue
            try:
                await writer.drain()
            except OSError as error:
                io = handler.transports.get(connection)
                if io is not None and io.handler is not None:
                    io.handler.cancel(f"Error sending data: {error}")
