"""Requests that have ended, gathered so that their events are made together.

Making one event takes a fifth of the time when the code that makes it has just run: so a request's facts wait here, for
GATHER seconds or until there are MOST of them, and no client waits for the making of its event. Where no event loop
runs, and from `hurry` on, nothing waits.
"""

import threading
from asyncio import get_running_loop
from collections.abc import Callable, Sequence

from mitmgate.audit.ended import Ended

GATHER = 0.01  # seconds
MOST = 64


class Gathering:
    """What waits, in the order in which it ended. `add` is for the event loop's thread, `settle` for any."""

    __slots__ = ("_busy", "_hurried", "_lock", "_round", "_write", "pending")

    def __init__(self, write: Callable[[Sequence[Ended]], None]) -> None:
        """write: makes the events of some requests and queues them; it must not raise."""
        self.pending: list[Ended] = []
        self._write = write
        self._lock = threading.RLock()
        self._busy = self._hurried = False
        self._round = 0

    def add(self, one: Ended) -> None:
        """Take a request that has ended."""
        pending = self.pending
        pending.append(one)
        waiting = len(pending)
        if waiting == 1:
            self._put_off()
        elif waiting >= MOST:
            self.settle()

    def settle(self) -> None:
        """Write what waits."""
        with self._lock:
            if self._busy:  # what is being written has something to say itself
                return
            self._busy = True
            try:
                while self.pending:  # also what comes meanwhile: with others before it, it has set no timer
                    self._round += 1
                    batch = self.pending[:]
                    self._write(batch)
                    del self.pending[: len(batch)]  # only now: in between the backlog is too large, never too small
            finally:
                self._busy = False

    def hurry(self) -> None:
        """Write what waits, and from now on everything at once."""
        self._hurried = True
        self.settle()

    def _put_off(self) -> None:
        try:
            loop = get_running_loop()
        except RuntimeError:
            self.settle()
            return
        if self._hurried:
            self.settle()
        else:
            loop.call_later(GATHER, self._due, self._round)

    def _due(self, planned: int) -> None:
        if planned == self._round:  # otherwise MOST came first, and what waits now has a timer of its own
            self.settle()
