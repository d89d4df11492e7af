"""Accepting connections, in place of asyncio's own loop, which knows no bound.

asyncio accepts as many as wait in one go, goes on where no descriptor is left, and writes a traceback each time: a
thousand silent clients stop a process, and fill its disk. Here a few are accepted in each turn of the event loop, and
those for which there is no room are closed before anything is made for them.
"""

import asyncio
import os
import socket
import weakref
from collections.abc import Callable
from typing import Final

from mitmgate.descriptors import Descriptors, Seldom

BACKLOG: Final = 1024
"""Connections that may wait to be accepted; what the kernel can't queue it resets later."""
AT_ONCE: Final = 16
"""Connections that are accepted in one turn of the loop: the others get theirs."""
PAUSE: Final = 0.1
"""Seconds until it is tried again where the system gives no descriptor."""


def accept(
    server: asyncio.Server,
    factory: Callable[[], asyncio.BaseProtocol],
    descriptors: Descriptors,
    seldom: Seldom,
) -> None:
    """Accept the connections of a server, until it is closed. factory: makes the protocol of each."""
    loop = asyncio.get_running_loop()
    for shown in server.sockets:
        loop.remove_reader(shown.fileno())  # asyncio's own, where it has begun
        listening = socket.socket(fileno=os.dup(shown.fileno()))  # asyncio shows its own without `accept`
        listening.listen(BACKLOG)
        acceptor = _Acceptor(loop, shown, listening, factory, descriptors, seldom)
        weakref.finalize(acceptor, listening.close)


class _Acceptor:
    """Accepts on one socket. It belongs to the event loop, until the server takes the socket away from that."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shown: socket.socket,
        listening: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        descriptors: Descriptors,
        seldom: Seldom,
    ) -> None:
        """shown: the server's socket. listening: a duplicate of it."""
        self._loop = loop
        self._shown = shown
        self._listening = listening
        self._factory = factory
        self._descriptors = descriptors
        self._seldom = seldom
        self._starting: set[asyncio.Task[None]] = set()
        self._resume()

    def _resume(self) -> None:
        if self._shown.fileno() >= 0:
            self._loop.add_reader(self._shown.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._seldom.warning("no connection can be accepted: %s", error.strerror or error)
                self._loop.remove_reader(self._shown.fileno())
                self._loop.call_later(PAUSE, self._resume)
                return
            if not self._descriptors.takes_client(connection.fileno()):
                connection.close()
                self._seldom.warning("a client is turned away: too few file descriptors are left")
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._start(connection))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self, connection: socket.socket) -> None:
        try:
            connection.getpeername()  # which fails where the client has reset it: nothing is made for that
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:  # it has gone already
            connection.close()
