"""Questions to a server that may fail: batched, bounded in time, without waiting while the server is away.

A question is queued, and the first connection that is free sends everything that is queued as one batch. A connection
belongs to its batch, never to a question: one whose request is cancelled leaves no reply behind that another request
could read. A batch has the deadline of its oldest question, `timeout` after it was asked. No question is sent twice,
since the first time may have counted.

When a batch fails, everything that waits is answered None at once, and nothing more is asked until the connections
have been opened again in the background: after PAUSE seconds, then at doubling intervals. So an outage delays those
requests alone that discover it.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger(__name__)

BATCH = 128
PAUSE = 0.2
LONGEST_PAUSE = 2.0
COMPLAINT_INTERVAL = 10.0
OPENING = 2.0
"""Seconds that opening all connections may take: more than a question may, and no request waits for it."""
START = 0.5
"""Seconds that a start waits for it."""

Words = tuple[str | bytes | int, ...]
"""One command."""


class Link(Protocol):
    """One connection. It closes itself when anything goes wrong, cancellation included, and opens itself when asked."""

    async def open(self) -> None:
        """Connect, and wait for the server to answer something."""
        ...

    async def ask(self, commands: Sequence[Words]) -> list[object]:
        """Return the reply to each command, in order; an exception in the list is an error reply."""
        ...

    async def close(self) -> None:
        """Close at once, without waiting for the peer."""
        ...


@dataclass(slots=True, eq=False)
class _Question:
    """What waits for a reply, as long as the event loop's clock has not reached the deadline."""

    words: Words
    deadline: float
    answer: asyncio.Future[object | None]

    def settle(self, reply: object | None) -> None:
        """Answer; nobody may be listening any more."""
        if not self.answer.done():
            self.answer.set_result(reply)


class Batches:
    """A fixed number of connections to one server. name: what the log calls it; without credentials."""

    available: bool
    """Whether questions are sent at all."""
    pause: float
    """Seconds after which an unavailable server is tried next."""

    def __init__(self, name: str, links: Sequence[Link], timeout: float) -> None:
        """timeout: seconds from a question to its answer, or to None."""
        self.available = True  # before `start`, too: a question opens the connection that it needs
        self.pause = PAUSE
        self._name = name
        self._links = links
        self._timeout = timeout
        self._idle: list[Link] = list(links)
        self._queue: deque[_Question] = deque()
        self._waking = False
        self._recovering = False
        self._opened = self._complained = -math.inf
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, words: Words) -> asyncio.Future[object | None]:
        """Queue a command while `available`. The future has the reply, or None where there is none in time.

        An error reply is None, too: the server is there and refuses (out of memory, no permission).
        """
        loop = asyncio.get_running_loop()
        question = _Question(words, loop.time() + self._timeout, loop.create_future())
        self._queue.append(question)
        if self._idle and not self._waking:
            self._waking = True
            self._spawn(self._send(self._idle.pop()))
        return question.answer

    async def start(self) -> None:
        """Connect. Where the server can't be reached, that is logged, and tried again in the background.

        Returns after START seconds at the latest; the opening goes on.
        """
        await asyncio.wait({self._spawn(self._open_first())}, timeout=START)

    async def _open_first(self) -> None:
        try:
            await self._open()
        except Exception as error:
            self._fail(error)

    async def close(self) -> None:
        """End all tasks and connections; answer what still waits."""
        self.available = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._answer_none()
        for link in self._links:
            await link.close()

    async def _send(self, link: Link) -> None:
        """Send what is queued, until nothing is."""
        self._waking = False
        batch: list[_Question] = []
        try:
            while batch := self._next_batch():
                async with asyncio.timeout_at(batch[0].deadline):
                    replies = await link.ask([question.words for question in batch])
                for question, reply in zip(batch, replies, strict=True):
                    question.settle(self._checked(reply))
        except Exception as error:  # whatever it is: nobody may wait for an answer that does not come
            self._fail(error)
        finally:
            for question in batch:
                question.settle(None)
            self._idle.append(link)

    def _next_batch(self) -> list[_Question]:
        batch: list[_Question] = []
        while self._queue and len(batch) < BATCH:
            question = self._queue.popleft()
            if not question.answer.done():  # else its request was cancelled
                batch.append(question)
        return batch

    def _checked(self, reply: object) -> object | None:
        if not isinstance(reply, Exception):
            return reply
        moment = asyncio.get_running_loop().time()
        if moment - self._complained > COMPLAINT_INTERVAL:
            self._complained = moment
            logger.error("%s refuses: %s", self._name, reply)
        return None

    def _fail(self, error: Exception) -> None:
        self.available = False
        self._answer_none()
        if self._recovering:
            return
        self._recovering = True
        if asyncio.get_running_loop().time() - self._opened > LONGEST_PAUSE:
            self.pause = PAUSE  # else it comes and goes: the pauses grow on
        logger.error("%s is away: %r", self._name, error)
        self._spawn(self._recover())

    def _answer_none(self) -> None:
        while self._queue:
            self._queue.popleft().settle(None)

    async def _recover(self) -> None:
        while not self.available:
            await asyncio.sleep(self.pause)
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            try:
                await self._open()
            except Exception as error:
                logger.debug("%s is still away: %r", self._name, error)
        self._recovering = False
        logger.warning("%s answers again", self._name)

    async def _open(self) -> None:
        """Open the connections that no batch has, one after the other, so that the rest can be used meanwhile."""
        async with asyncio.timeout(OPENING):
            for link in list(self._idle):
                if link in self._idle:
                    self._idle.remove(link)
                    try:
                        await link.open()
                    finally:
                        self._idle.append(link)
        self._opened = asyncio.get_running_loop().time()
        self.available = True

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
