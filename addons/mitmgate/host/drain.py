"""The drain: how a gateway process ends without failing a request, and what its exit status says.

    a signal → no more connections, each ends with its next response → all have ended → stopped
                        └─ patience is over, or a second signal → what still runs is cut → stopped

The process is not ready from the first signal on. What a third signal does is the system's own: it kills.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

logger = logging.getLogger(__name__)

PATIENCE: Final = 30.0
"""Seconds for which running requests are waited for, unless --drain-timeout says otherwise."""
FAREWELL: Final = 0.5
"""Seconds in which what was cut may still send its protocol's own end (a WebSocket's close frame)."""
_LOOK_EVERY: Final = 0.01


class Listening(Protocol):
    """What a host that shuts down asks of its listener."""

    @property
    def connected(self) -> int:
        """How many clients are connected."""
        ...

    def close(self) -> None:
        """Accept no more connections; those that are open go on."""
        ...

    def last_call(self) -> None:
        """Let every connection end: with its next response, which says so, or when it was idle for a moment."""
        ...

    def cut_all(self) -> int:
        """End what still runs, because patience is over; return how many requests that were."""
        ...


class Drain:
    """One process's way to its end. `begin` and `hurry` are for signal handlers; `result` is then the outcome."""

    def __init__(
        self, listener: Listening, patience: float, begun: Callable[[], None], stop: Callable[[], None]
    ) -> None:
        """patience: seconds that running requests get. begun: told of the beginning. stop: ends the host, at last."""
        self.cut = 0
        """Requests that had to be cut; 0 until the drain has ended."""
        self._listener = listener
        self._patience = patience
        self._tell = begun
        self._stop = stop
        self._hurry = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the process is on its way to its end: it is no longer ready."""
        return self._draining is not None

    def begin(self) -> None:
        """Begin, where that has not happened yet."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._run(), name="drain")

    def hurry(self) -> None:
        """Be out of patience now."""
        self.begin()
        self._hurry.set()

    def signalled(self) -> None:
        """Begin with the first signal, end at once with the second."""
        if self.begun:
            self._hurry.set()
        self.begin()

    async def _run(self) -> None:
        listener = self._listener
        try:
            self._tell()
            listener.close()
            listener.last_call()
            if not await self._gone(self._patience):
                self.cut = listener.cut_all()
                if self.cut:
                    logger.warning("%d requests were cut: they had not ended in time", self.cut)
                    self._hurry.clear()
                    await self._gone(FAREWELL)
        finally:
            self._stop()

    async def _gone(self, seconds: float) -> bool:
        """Wait until no client is connected; False where it took too long, or somebody is in a hurry."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            await asyncio.sleep(_LOOK_EVERY)  # first: who was accepted just now does not count as connected yet
            if not self._listener.connected:
                return True
            if self._hurry.is_set() or loop.time() >= until:
                return False
