"""A slot: one of the places for a worker, with a listening socket that outlives whoever works there."""

import random
import socket
from typing import Final

from mitmgate.host.child import Child
from mitmgate.usage import UserError

WELL: Final = 10.0
"""Seconds after which a worker that crashes has worked well: the next crash is a first one again."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """Bind a TCP socket. shared: others may be bound to the same address; the kernel spreads connections over them.

    Raises UserError.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise UserError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
    return bound


def pause(failures: int, chance: float) -> float:
    """Return the seconds to wait before a restart. failures: crashes in a row. chance: 0 to 1, spreads restarts.

    The first crash is not waited for: its clients are.
    """
    if failures <= 1:
        return 0.0
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 2, 30))
    return longest * (0.5 + chance / 2)


class Slot:
    """Connections that the kernel has put into the queue of a slot's socket wait there for the next worker."""

    def __init__(self, number: int, listening: socket.socket) -> None:
        """listening: bound; the first worker makes it listen."""
        self.number = number
        self.listening = listening
        self.current: Child | None = None
        self.successor: Child | None = None
        """The worker that will take over in a rolling restart, when it is ready."""
        self._failures = 0

    @property
    def ready(self) -> bool:
        """Whether somebody works here."""
        return self.current is not None and self.current.ready and self.current.status is None

    def failed(self, ran: float) -> float:
        """Count a crash of a worker that ran for so many seconds; return the seconds to wait before the next one."""
        self._failures = 1 if ran >= WELL else self._failures + 1
        return pause(self._failures, random.random())  # noqa: S311 - spreads restarts, guards nothing

    def renew(self) -> None:
        """Take a new socket for the same address: what waits on the old one is refused, new clients go elsewhere.

        For a slot that nobody will work in for a while. (Listening can't be ended: shutdown(2) on the socket would do
        that, but then it does not rejoin the group of SO_REUSEPORT on every kernel.)
        """
        host, port = self.listening.getsockname()[:2]
        fresh = bind(host, port, shared=True)
        self.listening.close()
        self.listening = fresh
