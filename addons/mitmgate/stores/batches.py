"""Questions to a server that may fail: batched, bounded in time, without waiting while the server is away.

A question is queued, and the first connection that is free sends everything that is queued as one batch. A connection
belongs to its batch, never to a question: one whose request is cancelled leaves no reply behind that another request
could read. A batch has the deadline of its oldest question, `timeout` after it was asked, or half of that after it was
sent, where that is later: what this process has lost itself is not the server's fault. No question is sent twice, since
the first time may have counted.

A hiccup is not an outage. When a batch is due, what its connection has received by then is looked at first: where the
process stood still, the reply is there. A batch that has none is late: those who wait for it are answered None, and
told the reply when it comes. Its connection waits for it; the others go on, and while all are late nobody waits, nor is
asked for. A connection that stays silent for SILENCE is closed.

When a connection fails, or is silent and no other has heard of the server since, everything that waits is answered None
at once, and nothing more is asked until the connections have been opened again in the background: after PAUSE seconds,
then at doubling intervals. So an outage delays those requests alone that discover it.

A server that answers with errors (out of memory, no permission) is there and refuses. It is asked on, so that each
decision finds out, and also where no request comes: with `probe`, at the same intervals.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Protocol

from mitmgate.audit.event import store_lost, store_recovered
from mitmgate.audit.record import Event

logger = logging.getLogger(__name__)

BATCH = 128
PAUSE = 0.2
LONGEST_PAUSE = 2.0
COMPLAINT_INTERVAL = 10.0
OPENING = 2.0
"""Seconds that opening all connections may take: more than a question may, and no request waits for it."""
START = 0.5
"""Seconds that a start waits for it."""
SILENCE = 2.0
"""Seconds without a reply after which a connection is closed, and at least TIMEOUTS timeouts."""
TIMEOUTS = 5
SLOW = 3
"""Late replies in a row that make a server a slow one."""
LOOKS = 4
"""Turns of the event loop for what has arrived to become a reply."""

Words = tuple[str | bytes | int, ...]
"""One command."""

Learn = Callable[[object | None], None]


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
    """What waits for a reply, as long as the event loop's clock has not reached the deadline.

    learn: told the reply where nobody waits for it any more, and None where there is, and will be, none.
    """

    words: Words
    deadline: float
    answer: asyncio.Future[object | None]
    learn: Learn | None

    def settle(self, reply: object | None) -> None:
        """Answer, in time or late. None: there will be no reply."""
        waited = not self.answer.done()
        if waited:
            self.answer.set_result(reply)
        if self.learn is not None and (reply is None or not waited):
            self.learn(reply)

    def put_off(self) -> None:
        """Answer that there is no reply yet."""
        if not self.answer.done():
            self.answer.set_result(None)


@dataclass(slots=True, eq=False)
class _Batch:
    """Questions on their way. task: sends them. timer: calls `_due`, and where they are late `_silent`."""

    questions: list[_Question]
    task: asyncio.Task[None] | None
    sent: float
    timer: asyncio.Handle | None = None
    late: bool = False
    silent: bool = False

    def watch(self, timer: asyncio.Handle | None) -> None:
        """Have a timer in place of the one before."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


class Batches:
    """A fixed number of connections to one server. name: what the log calls it; without credentials."""

    pause: float
    """Seconds after which an unavailable server is tried next."""
    refused: bool
    """Whether the last reply was an error."""

    def __init__(
        self,
        name: str,
        links: Sequence[Link],
        timeout: float,
        probe: Words,
        emit: Callable[[Event], None] | None = None,
    ) -> None:
        """timeout: seconds from a question to its answer, or to None. probe: a question that harms nothing.

        emit: takes audit events.
        """
        self.pause = PAUSE
        self.refused = False
        self._name = name
        self._links = links
        self._timeout = timeout
        self._probe = probe
        self._up = True  # before `start`, too: a question opens the connection that it needs
        self._idle: list[Link] = list(links)
        self._late = 0  # connections whose reply is late
        self._lateness = 0  # late replies in a row
        self._heard = -math.inf
        self._queue: deque[_Question] = deque()
        self._waking = False
        self._recovering = self._probing = False
        self._opened = self._complained = -math.inf
        self._tasks: set[asyncio.Task[None]] = set()
        self._emit = emit
        self._lost: float | None = None  # since when (monotonic) the audit says that the server is lost

    def _tell_lost(self, error: str) -> None:
        if self._lost is None and self._emit is not None:
            self._lost = monotonic()
            self._emit(store_lost(time(), self._name, error))

    def _tell_recovered(self) -> None:
        if self._lost is not None and self._emit is not None and self._up and not self.refused:
            self._emit(store_recovered(time(), self._name, monotonic() - self._lost))
            self._lost = None

    @property
    def available(self) -> bool:
        """Whether a question makes sense now."""
        return self._up and self._late < len(self._links)

    @property
    def slow(self) -> bool:
        """Whether replies come, and come too late."""
        return self._lateness >= SLOW

    def ask(self, words: Words, learn: Learn | None = None) -> asyncio.Future[object | None]:
        """Queue a command while `available`. The future has the reply, or None where there is none in time.

        An error reply is None, too: the server is there and refuses. learn: told a reply that is late, and None where
        there is none and will be none; at once or later.
        """
        loop = asyncio.get_running_loop()
        question = _Question(words, loop.time() + self._timeout, loop.create_future(), learn)
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
        self._up = False
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
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        batch: _Batch | None = None
        try:
            while questions := self._next_batch():
                now = loop.time()
                batch = _Batch(questions, task, now)
                due = max(questions[0].deadline, now + self._timeout / 2)
                batch.watch(loop.call_at(due, self._due, batch, LOOKS))
                try:
                    replies = await link.ask([question.words for question in questions])
                finally:
                    batch.watch(None)
                    self._late -= batch.late
                self._heard = loop.time()
                self._lateness = self._lateness + 1 if batch.late else 0
                for question, reply in zip(questions, replies, strict=True):
                    question.settle(self._checked(reply))
                batch = None
        except asyncio.CancelledError:
            if batch is None or not batch.silent:
                raise
            if self._heard > batch.sent:
                logger.warning("%s left a connection without an answer; it is closed", self._name)
            else:
                self._fail(TimeoutError(f"no answer in {loop.time() - batch.sent:.1f} s"))
        except Exception as error:  # whatever it is: nobody may wait for an answer that does not come
            self._fail(error)
        finally:
            for question in [] if batch is None else batch.questions:
                question.settle(None)
            self._idle.append(link)

    def _next_batch(self) -> list[_Question]:
        batch: list[_Question] = []
        while self._queue and len(batch) < BATCH:
            question = self._queue.popleft()
            if not question.answer.done():
                batch.append(question)
            else:  # its request was cancelled
                question.settle(None)
        return batch

    def _due(self, batch: _Batch, looks: int) -> None:
        """Take the deadline of a batch, after a look at what has arrived."""
        loop = asyncio.get_running_loop()
        if looks:
            batch.watch(loop.call_soon(self._due, batch, looks - 1))
            return
        batch.late = True
        batch.watch(loop.call_later(max(SILENCE, TIMEOUTS * self._timeout), self._silent, batch))
        self._late += 1
        for question in batch.questions:
            question.put_off()
        if not self.available:
            self._answer_none()
        self._complain(logging.WARNING, f"does not answer within {self._timeout:g} s")

    @staticmethod
    def _silent(batch: _Batch) -> None:
        batch.silent = True
        if batch.task is not None:
            batch.task.cancel()

    def _checked(self, reply: object) -> object | None:
        self.refused = isinstance(reply, Exception)
        if not self.refused:
            return reply
        self._complain(logging.ERROR, f"refuses: {reply}")
        self._tell_lost(f"refuses: {reply}")
        if not self._probing:
            self._probing = True
            self._spawn(self._ask_on())
        return None

    def _complain(self, level: int, what: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._complained > COMPLAINT_INTERVAL:
            self._complained = now
            logger.log(level, "%s %s", self._name, what)

    async def _ask_on(self) -> None:
        """Ask until there is no refusal."""
        pause = PAUSE
        while self.refused:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if self.available:
                await self.ask(self._probe)
        self._probing = False
        self._tell_recovered()

    def _fail(self, error: Exception) -> None:
        self._up = False
        self._answer_none()
        if self._recovering:
            return
        self._recovering = True
        if asyncio.get_running_loop().time() - self._opened > LONGEST_PAUSE:
            self.pause = PAUSE  # else it comes and goes: the pauses grow on
        logger.error("%s is away: %r", self._name, error)
        self._tell_lost(repr(error))
        self._spawn(self._recover())

    def _answer_none(self) -> None:
        while self._queue:
            self._queue.popleft().settle(None)

    async def _recover(self) -> None:
        while not self._up:
            await asyncio.sleep(self.pause)
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            try:
                await self._open()
            except Exception as error:
                logger.debug("%s is still away: %r", self._name, error)
        self._recovering = False
        logger.warning("%s answers again", self._name)
        if not self._probing:
            self._tell_recovered()

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
        self._opened = self._heard = asyncio.get_running_loop().time()
        self._up = True
        self.ask(self._probe)  # whether it refuses

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
