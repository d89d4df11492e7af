"""A deadline that is moved at every request, on a timer that is not."""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final

SLACK: Final = 0.002
"""Seconds that a timer may fire before its deadline, for want of finer clocks."""
FLUSH_SECONDS: Final = 30.0
"""What a peer gets to take what was written before its connection was closed."""
LINGER_SECONDS: Final = 2.0
"""How long a client that was answered early may go on sending, so that it reads the answer and not a reset."""


class Deadline:
    """Call `action` once, when the time that was set last has come.

    A timer of the event loop is made only where none fires early enough; one that fires too early looks when it is
    wanted next. So a connection that is kept busy costs no timer a request.
    """

    __slots__ = ("_action", "_due", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        """action: called without arguments; it may set the deadline anew."""
        self._loop = loop
        self._action = action
        self._due = inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Expire in so many seconds, instead of when it was to expire."""
        self.at(self._loop.time() + seconds)

    def at(self, due: float) -> None:
        """Expire at a time of the loop's clock."""
        self._due = due
        timer = self._timer
        if timer is None:
            self._timer = self._loop.call_at(due, self._fire)
        elif timer.when() > due:
            timer.cancel()
            self._timer = self._loop.call_at(due, self._fire)

    def clear(self) -> None:
        """Don't expire."""
        self._due = inf

    def close(self) -> None:
        """Don't expire, and let go of the timer and of the owner, which has ended and can so be freed at once."""
        self._due = inf
        self._action = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        if self._due == inf:
            return
        if self._due > self._loop.time() + SLACK:
            self._timer = self._loop.call_at(self._due, self._fire)
            return
        self._due = inf
        self._action()


def _nothing() -> None:
    """Do nothing."""
