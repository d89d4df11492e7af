"""The audit trail: what the gateway says happened, on its way from the request path to the sinks.

Theory of operation. An event is serialised, behind structlog's processors where there are any; the record, a line of
JSON, is appended to one bounded queue a sink. A thread of its own empties each queue in batches, so that neither a disk
nor a network is waited for on the request path, and a slow sink does not hold up another. `emit` does that at once;
the facts of requests that have ended (`gather`) wait a moment first (gathering.py), and count as queued. Records are in
the order of the calls.

A queue that is full is the operator's choice (`on_full`), made where a request arrives, by `pressure`:
  block  requests wait for room, `block_for` seconds at most, and are then denied (503 audit-unavailable);
  deny   requests are denied at once (503 audit-unavailable) while there is no room;
  drop   requests go on, and records that find no room are dropped.
With `block` and `deny` the requests that are on their way, and the denials, still owe their records: they get as many
places again. Beyond that, and with `drop`, the count of missing records is written in their place (`audit-dropped`).
The gateway's own events, such as `sink-recovered`, have places that no request takes.
"""

import asyncio
import logging
import os
import secrets
from collections import deque
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from itertools import count
from time import monotonic, time
from typing import NamedTuple

from structlog.typing import Processor

from mitmgate.audit.ended import Ended, told
from mitmgate.audit.event import VERSION, gateway_started, gateway_stopped
from mitmgate.audit.gathering import Gathering
from mitmgate.audit.logger import renderer
from mitmgate.audit.record import Event, render
from mitmgate.audit.redact import Redaction
from mitmgate.audit.settings import OnFull
from mitmgate.audit.sink import Health, Sink, SinkThread
from mitmgate.core.reason import Reason

logger = logging.getLogger(__name__)


class Denial(NamedTuple):
    """Why a request can't be let in: its record would have no place."""

    reason: Reason
    detail: str


DENIAL = Denial(Reason.AUDIT_UNAVAILABLE, "The request could not be recorded.")


class SinkState(NamedTuple):
    """What one sink has done so far, for metrics and readiness."""

    name: str
    backlog: int
    written: int
    dropped: int
    failures: int
    failing: bool
    spilled: int


class AuditTrail:
    """Takes events on the request path, and gets them to every sink. One a process, started after a fork.

    `redaction` says what a request's event leaves out; a reload may replace it.
    """

    def __init__(
        self,
        *,
        redaction: Redaction,
        queue: int = 10_000,
        on_full: OnFull = "block",
        block_for: float = 5.0,
        processors: Sequence[Processor] = (),
    ) -> None:
        """Make a trail without sinks.

        queue: records that may wait for each sink. block_for: seconds. processors: structlog's, run on each event
        before it is serialised.
        """
        self.redaction = redaction
        self.failed = 0
        self.enabled = False
        """Whether there is any sink; without one, events need not be made."""
        self._capacity = queue
        self._on_full = on_full
        self._takes = True  # without sinks there is nothing to wait for
        self._waited_in_vain = False
        self._block_for = block_for
        self._instance = secrets.token_hex(6)
        self._worker = 0  # the process: the trail is started behind the fork
        self._numbers = count(1)
        self._threads: tuple[SinkThread, ...] = ()
        self._gathering = Gathering(self._write)
        self.gather, self.settle = self._gathering.add, self._gathering.settle
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._started = self._closed = self._ended = False
        self._record = renderer(processors)

    def add(self, sink: Sink, health: Health) -> None:
        """Add a sink, before the start."""
        hard_limit = self._capacity if self._on_full == "drop" else 2 * self._capacity
        thread = SinkThread(sink, health, hard_limit, self._rendered, self._room_made)
        self._threads = (*self._threads, thread)
        self.enabled = True
        self._takes = self._started

    def start(self, policy: str = "", **facts: object) -> None:
        """Open the sinks, start their threads, write `gateway-started`.

        policy: the digest in force. Raises UserError for a sink that only the user can put right. A Redis that is away
        is not one: its records are spilled.
        """
        self._worker = os.getpid()
        for thread in self._threads:
            thread.sink.open()
        for thread in self._threads:
            thread.start()
        self._started = self._takes = True
        self.emit(gateway_started(time(), policy, pid=os.getpid(), instance=self._instance, **facts))

    def emit(self, event: Event) -> None:
        """Record an event; from any thread. Never blocks, never raises."""
        if self._gathering.pending:
            self.settle()
        own = event.get("event") != "request"
        record = self._recorded(event)
        if record is not None:
            for thread in self._threads:
                thread.put((record,), gathered=False, own=own)

    def _write(self, batch: Sequence[Ended]) -> None:
        """Record requests that have ended, each for itself: one that can't be told takes no other along."""
        records = []
        for one in batch:
            record = self._recorded(told(one, self.redaction))
            if record is not None:
                records.append(record)
        for thread in self._threads:
            thread.put(records, gathered=True)

    def _recorded(self, event: Event) -> bytes | None:
        """Make a record; None where that can't be done, which is counted and told."""
        if self._ended:
            self.failed += 1
            logger.error("an audit event came after the end of the trail and is lost: %s", event.get("event"))
            return None
        try:
            return self._record(self._marked(event))
        except Exception:
            self.failed += 1
            logger.exception("an audit event could not be recorded")
            for thread in self._threads:
                thread.drop()
            return None

    def pressure(self) -> Denial | Awaitable[Denial | None] | None:
        """Ask whether a new request may come in: None, a denial, or (`block`) an awaitable of either.

        Called once a request, on the event loop, before anything is decided. But for `drop`, a trail that has sinks
        and is not started, or is closed, lets nobody in: a start that failed must not mean requests without a record.
        """
        if self._on_full == "drop":
            return None
        if self._takes and not self._full():
            return None
        return self._room() if self._takes and self._on_full == "block" else DENIAL

    @property
    def admits(self) -> bool:
        """Whether a request would find room for its record; where requests wait for it, as the last one found."""
        if self._on_full == "drop" or (self._takes and not self._full()):
            return True
        return self._takes and self._on_full == "block" and not self._waited_in_vain

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until every sink has taken everything; False where it took too long. Blocks: not for the event loop."""
        self.settle()
        deadline = monotonic() + timeout
        return all(thread.flush(max(0.0, deadline - monotonic())) for thread in self._threads)

    def close(self, timeout: float = 10.0) -> bool:
        """Write `gateway-stopped` and everything queued, end the threads; False where records were lost.

        Blocks for `timeout` seconds at most: not for the event loop. What a sink has not taken by then is declared in
        the process log, and by the next start (`audit-recovered`, unclean).
        """
        if not self._started or self._closed:
            return True
        self._closed = True
        self._takes = False
        self._gathering.hurry()
        self.emit(gateway_stopped(time(), pid=os.getpid(), instance=self._instance))
        deadline = monotonic() + timeout
        for thread in self._threads:
            thread.stop(deadline)
        ended = [thread for thread in self._threads if thread.join(max(0.0, deadline - monotonic()))]
        # What one says as its last word (that its sink works again) may come after the end of another.
        while any(thread.catch_up() for thread in ended):
            pass
        self._ended = True
        for thread in ended:
            thread.close()
        return len(ended) == len(self._threads) and not any(thread.backlog for thread in self._threads)

    def states(self) -> list[SinkState]:
        """Return what each sink has done so far. Its backlog includes what gathers."""
        gathering = len(self._gathering.pending)
        return [
            SinkState(
                thread.sink.name,
                thread.backlog + gathering,
                thread.written,
                thread.dropped,
                thread.health.failures,
                thread.health.failing,
                thread.health.spilled,
            )
            for thread in self._threads
        ]

    def _rendered(self, event: Event) -> bytes:
        return render(self._marked(event))

    def _marked(self, event: Event) -> Event:
        """Say of an event which one it is, which process made it, and by which schema."""
        event["id"] = f"{self._instance}-{next(self._numbers)}"
        event["worker"] = self._worker
        event["v"] = VERSION
        return event

    def _full(self) -> bool:
        room = self._capacity - len(self._gathering.pending)
        for thread in self._threads:  # noqa: SIM110 - a generator costs three times as much, on every request
            if thread.backlog >= room:
                return True
        return False

    async def _room(self) -> Denial | None:
        """Wait until every queue has room."""
        try:
            async with asyncio.timeout(self._block_for):
                while True:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.append(waiter)
                    if not self._full():  # it may have got room before the waiter stood in the list
                        self._waited_in_vain = False
                        return None
                    await waiter
        except TimeoutError:
            self._waited_in_vain = True
            return DENIAL

    def _room_made(self) -> None:
        """Wake those that wait, when there is room. Called by the sinks' threads."""
        while self._waiters and not self._full():
            waiter = self._waiters.popleft()
            with suppress(RuntimeError):  # its loop is closed
                waiter.get_loop().call_soon_threadsafe(_release, waiter)


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
