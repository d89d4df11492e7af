"""File descriptors: as many as the system gives, and what they are kept for.

Every connection of a client and every connection to a service takes one. A process that has none left can neither
accept nor connect, nor open the next audit file. So a share is kept for the gateway's own (audit, Redis, key sets, the
admin listener), clients get at most half of the rest, since each may need a connection to a service, and where those
to services have taken more than that, new clients are the first to be turned away.
"""

import errno
import logging
import resource
import socket
import time
from dataclasses import dataclass
from typing import Final

from mitmgate.usage import UserError

FEWEST: Final = 128
"""Below this nothing useful can be kept for anybody."""
OWN: Final = 160
"""Descriptors of the gateway's own: 100 of them for whoever looks at the admin listener."""
SHORTAGE: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}  # the last: no local port is left
)
"""Errors of a socket that say something of this machine, and nothing of the other side."""

KINDS: Final = 32
_KIND: Final = 500  # characters; what an error says may be of the client's choice

NO_DESCRIPTOR: Final = f"[Errno {errno.EMFILE}] too few file descriptors are left"
"""What a connection to a service is refused with, in mitmproxy's way of telling errors."""


def raise_limit() -> int:
    """Raise the process's soft limit to its hard one. Returns how many descriptors it may have.

    Raises UserError where they are too few to run with.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        wanted = _most() if hard == resource.RLIM_INFINITY else hard
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            wanted = soft
        soft = wanted
    limit = _most() if soft == resource.RLIM_INFINITY else soft
    if limit < FEWEST:
        raise UserError(f"this process may open {limit} file descriptors; at least {FEWEST} are needed (ulimit -n)")
    return limit


def _most() -> int:
    try:
        with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1 << 16


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The shares of `limit` descriptors.

    The kernel always gives the lowest number that is free: what number a new socket gets tells how many are in use.
    """

    limit: int

    @property
    def own(self) -> int:
        """What is left for audit, store, key sets and the admin listener."""
        return min(OWN, self.limit // 4)

    @property
    def clients(self) -> int:
        """How many clients may be connected, those that are being told that they are too many included."""
        return (self.limit - self.own) // 2

    def takes_client(self, number: int) -> bool:
        """Tell whether a client's new connection, with this number, leaves enough for services and for ourselves."""
        return number < self.limit - self.own - self.clients // 4

    def takes_upstream(self, number: int | None = None) -> bool:
        """Tell whether a new connection to a service leaves enough for ourselves. number: it has; None: find out."""
        if number is None:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    number = probe.fileno()
            except OSError:
                return False
        return number < self.limit - self.own


def is_shortage(error: OSError) -> bool:
    """Tell whether a connection failed for want of what this machine has."""
    return error.errno in SHORTAGE


def is_shortage_text(error: str) -> bool:
    """Tell the same from what mitmproxy has made of the error."""
    return any(f"[Errno {number}]" in error for number in SHORTAGE)


class Seldom:
    """A logger for what may happen thousands of times a second: a line a second, which says how many it stands for."""

    __slots__ = ("_last", "_left_out", "_logger")

    def __init__(self, logger: logging.Logger) -> None:
        """logger: whose lines they are."""
        self._logger = logger
        self._last = float("-inf")
        self._left_out = 0

    def log(self, level: int, message: str, *arguments: object, error: BaseException | None = None) -> None:
        """Log, unless something was logged less than a second ago. level: as logging's. error: with its traceback."""
        now = time.monotonic()
        if now < self._last + 1:
            self._left_out += 1
            return
        more = f" (and {self._left_out} times more since the last line)" if self._left_out else ""
        self._last, self._left_out = now, 0
        self._logger.log(level, message + more, *arguments, exc_info=error)

    def warning(self, message: str, *arguments: object) -> None:
        """Log a warning."""
        self.log(logging.WARNING, message, *arguments)


class SeldomEach:
    """The same for who may fail in several ways: a line a second of each of the first KINDS, and one of all others."""

    __slots__ = ("_kinds", "_logger")

    def __init__(self, logger: logging.Logger) -> None:
        """logger: whose lines they are."""
        self._logger = logger
        self._kinds: dict[str, dict[str, Seldom]] = {}

    def failed(self, message: str, subject: str, error: BaseException) -> None:
        """Log an error and its traceback. message: with a place for the subject, and one for what the error says.

        subject: who has failed, a name of the policy's or ours.
        """
        try:
            kind = repr(error)
        except BaseException:  # it is an operator's own, and may do anything
            kind = type(error).__name__
        kinds = self._kinds.setdefault(subject, {})
        known = kind if kind in kinds or (len(kinds) < KINDS and len(kind) <= _KIND) else ""
        seldom = kinds.setdefault(known, Seldom(self._logger))
        seldom.log(logging.ERROR, message, subject, kind, error=error)
