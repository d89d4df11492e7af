"""What a process knows of a list that others append to: whether, what decides while it does not, and who is told."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import ClassVar, Final, Literal

from mitmgate.audit.record import Event

logger = logging.getLogger(__name__)

FRESH: Final = 1.0
"""Seconds for which the list's answer is the newest that need be."""
START: Final = 2.0
"""Seconds that a start waits for the list."""

OnFailure = Literal["deny", "last-known"]


class SharedList:
    """Follows a list in a task of its own. Subclasses say how, and what follows from it."""

    subject: ClassVar[str]
    """What it tells, as in "… is known again"."""

    def __init__(self, on_failure: OnFailure, emit: Callable[[Event], None], *, followed: bool) -> None:
        """emit: takes audit events. followed: there is a list."""
        self.changed: Callable[[], None] = lambda: None
        """Called when something was withdrawn, for what goes on that was admitted before."""
        self._on_failure = on_failure
        self._emit = emit
        self._followed = followed
        self._until = -math.inf  # perf_counter: for what arrives later nothing is known
        self._lost = 0.0  # perf_counter: since when the list is not known, where it is not
        self._told: bool | None = None  # whether the audit says that the list is known; None: nothing yet
        self._first = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow the list; returns when it is known, or after START seconds."""
        if self._followed and self._task is None:
            self._task = asyncio.create_task(self._follow(), name=self.subject)
            with suppress(TimeoutError):
                async with asyncio.timeout(START):
                    await self._first.wait()

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        raise NotImplementedError

    def _event(self, seconds: float | None) -> Event:
        """Say that it is known. seconds: for which it was not; None: never before."""
        raise NotImplementedError

    def _event_unknown(self, why: str) -> Event:
        raise NotImplementedError

    def _fresh(self, asked: float) -> None:
        """Have what is known count for what arrives up to FRESH seconds after `asked`."""
        self._until = asked + FRESH if self._on_failure == "deny" else math.inf

    @property
    def _decides(self) -> str:
        """What decides while the list is not known."""
        return "deny" if self._until < math.inf else self._on_failure

    def _unknown(self, why: str) -> None:
        if self._told is not False:
            self._told, self._lost = False, perf_counter()
            logger.error("%s is not known (%s): %s", self.subject, self._decides, why)
            self._emit(self._event_unknown(why))

    def _known(self, asked: float) -> None:
        if self._told is False:
            logger.warning("%s is known again", self.subject)
        if self._told is not True:
            self._emit(self._event(None if self._told is None else max(0.0, asked - self._lost)))
        self._told = True
