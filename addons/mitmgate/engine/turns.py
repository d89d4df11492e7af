"""Ends of connections, a few in each turn of the event loop, so that a crowd that leaves holds nobody up."""

import asyncio
from collections import deque
from typing import Final

AT_ONCE: Final = 4
"""Ends that one turn of the loop begins. In mitmweb, which asks a hundred addons, one costs about a millisecond."""


class Turns:
    """Lets `AT_ONCE` callers pass in each turn of the loop, in the order in which they came."""

    __slots__ = ("_armed", "_left", "_waiting")

    def __init__(self) -> None:
        """Start with nobody waiting. All callers belong to one event loop."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = AT_ONCE
        self._armed = False

    async def turn(self) -> None:
        """Return when it is the caller's turn; a cancelled caller gives it up."""
        loop = asyncio.get_running_loop()
        if not self._armed:
            self._armed = True
            loop.call_soon(self._next, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = AT_ONCE
        while self._left and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._left -= 1
        self._armed = bool(self._waiting)
        if self._armed:
            loop.call_soon(self._next, loop)
