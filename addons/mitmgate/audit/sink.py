"""A sink: where records go, the thread that takes them there, and what is told when it fails."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, sleep, time
from typing import Protocol

from mitmgate.audit.event import audit_dropped, sink_failed, sink_recovered
from mitmgate.audit.record import Event

logger = logging.getLogger(__name__)

BATCH = 1000  # records that are written at once
LINGER = 0.01  # seconds that single records gather: a thread woken for every one would cost the event loop its GIL
_OWN = 1000  # places of a queue for the gateway's own events
_FIRST_RETRY = 0.1
_LAST_RETRY = 2.0

Emit = Callable[[Event], None]


class SinkError(Exception):
    """The sink took nothing of what it was given; the writer keeps it and tries again. Never names a credential."""


class Sink(Protocol):
    """Takes records, in order. Only its own thread calls it while that runs, but for `open`."""

    name: str

    def open(self) -> None:
        """Open what can be opened before the first record. Raises UserError for what only the user can put right."""
        ...

    def write(self, records: Sequence[bytes]) -> int:
        """Take the first n records and return n; 0: what is older had to go first, and more of it may go at once.

        Raises SinkError where it can't take any.
        """
        ...

    def idle(self) -> float | None:
        """Do what is due; return the seconds after which to be called again, None: not before the next record."""
        ...

    def close(self) -> None:
        """Make durable what was taken, close what is open."""
        ...


class Health:
    """Whether a sink works. A failure is declared once, in the process log and in the trail, and so is its end."""

    def __init__(self, sink: str, emit: Emit) -> None:
        """emit: where the events go: to all sinks, the failing one included, which gets them when it is back."""
        self.failures = 0
        self.failing = False
        self.spilling = False  # the sink itself says when it has recovered
        self.spilled = 0  # records that a spill file had to take, ever
        self._sink = sink
        self._emit = emit
        self._since = 0.0
        self._waiting = False  # records wait in memory: the spill file, too, takes none

    def failed(self, error: str, spilling: bool = False) -> None:
        """Count a failure."""
        self.failures += 1
        if self.failing and (spilling or self._waiting):
            return
        if not self.failing:
            self._since = monotonic()
        self.failing = True
        self.spilling |= spilling
        self._waiting = not spilling
        where = "its records are spilled to a file" if spilling else "its records wait in memory"
        logger.error("audit sink %s failed, %s: %s", self._sink, where, error)
        self._emit(sink_failed(time(), self._sink, error, spilling))

    def recovered(self, count: int) -> None:
        """Say that the sink works; count: records that it has caught up with."""
        if not self.failing:
            return
        self.failing = self.spilling = self._waiting = False
        seconds = monotonic() - self._since
        logger.warning("audit sink %s works again after %.1f s", self._sink, seconds)
        self._emit(sink_recovered(time(), self._sink, seconds, count))


class SinkThread:
    """A bounded queue and the thread that empties it into one sink.

    A sink that fails keeps its records here, in order, and is tried again until it works; nothing that it raises
    ends the thread. What the queue can't hold is counted, and the count is written where the records are missing.
    """

    def __init__(
        self,
        sink: Sink,
        health: Health,
        hard_limit: int,
        rendered: Callable[[Event], bytes],
        taken: Callable[[], None],
    ) -> None:
        """Make the thread; `start` starts it.

        hard_limit: records beyond which they are dropped. rendered: makes a record of an event. taken: called when the
        queue has become shorter.
        """
        self.sink = sink
        self.health = health
        self.written = 0
        self.dropped = 0
        self._declared = 0
        self._hard_limit = hard_limit
        self._rendered = rendered
        self._taken = taken
        self._waited = 0  # records that have waited for a failing sink
        self._troubled = False
        self._queue: deque[bytes] = deque()
        self._hand: Sequence[bytes] = ()
        self._asleep = False
        self._wake = threading.Event()
        self._gathered = threading.Event()  # ends lingering
        self._stop = threading.Event()  # ends waiting for a retry
        self._deadline = float("inf")
        self._ended = self._closed = self._left_alone = False
        self._dropping = threading.Lock()
        self._ending = threading.Lock()
        self._settled = threading.Condition()
        self._writing = threading.Thread(target=self._run, name=f"audit {sink.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._writing.start()

    @property
    def backlog(self) -> int:
        """Records that the sink has not taken yet."""
        return len(self._queue) + len(self._hand)

    def put(self, records: Sequence[bytes], gathered: bool, own: bool = False) -> None:
        """Queue records. Never blocks, never raises. gathered: they need not wait for others any more.

        own: of the gateway itself, not of a request; what it says of a full queue must find room in it.
        """
        room = max(0, self._hard_limit + own * _OWN - len(self._queue))
        if room < len(records):
            self.drop(len(records) - room)
            records = records[:room]
        self._queue.extend(records)
        if gathered:
            self._gathered.set()
        if self._asleep:
            self._asleep = False
            self._wake.set()

    def drop(self, count: int = 1) -> None:
        """Count records that are not written."""
        with self._dropping:
            self.dropped += count

    def flush(self, timeout: float) -> bool:
        """Wait until everything queued is written; False where it took too long."""
        with self._settled:
            return self._settled.wait_for(lambda: self.backlog == 0, timeout)

    def stop(self, deadline: float) -> None:
        """Tell the thread to write what is queued and end; by `deadline` (monotonic) at the latest."""
        self._deadline = deadline
        self._stop.set()
        self._gathered.set()
        self._wake.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end that `stop` asks for. False: it took too long, and the thread closes the sink when it ends.

        Otherwise what is queued after it is for `catch_up`, and `close` has to be called.
        """
        self._writing.join(timeout)
        with self._ending:
            self._left_alone = not self._ended
        return self._ended

    def catch_up(self) -> bool:
        """Write what was queued after the thread's end, by its deadline. Returns whether there was anything."""
        if self._closed or self._empty or monotonic() >= self._deadline:
            return False
        self._round(None)
        return True

    def close(self) -> None:
        """Close the sink, whose thread has ended."""
        if self._closed:
            return
        self._closed = True
        if self.backlog:
            logger.error("audit sink %s: %d records are lost", self.sink.name, self.backlog)
        try:
            self.sink.close()
        except Exception as error:
            logger.error("audit sink %s could not be closed: %r", self.sink.name, error)
        with self._settled:
            self._settled.notify_all()

    @property
    def _empty(self) -> bool:
        return not self._queue and self.dropped == self._declared

    def _run(self) -> None:
        pause: float | None = None
        while True:
            pause = self._round(pause)
            if self._hand or (self._stop.is_set() and self._empty):
                break
        with self._ending:
            self._ended = True
        if self._left_alone:
            self.close()

    def _round(self, pause: float | None) -> float | None:
        """Write a batch, and do what is due. A batch that is still in hand did not find its way out in time."""
        self._take(pause)
        if self._hand and not self._deliver():
            return None
        with self._settled:
            self._settled.notify_all()
        return self._idle()

    def _take(self, pause: float | None) -> None:
        """Wait for records, at most `pause` seconds, and take a batch of them in hand."""
        queue = self._queue
        if not queue and self.dropped == self._declared and not self._stop.is_set():
            self._asleep = True
            if not queue:  # one that came before the line above woke nobody
                self._wake.wait(pause)
            self._asleep = False
            self._wake.clear()
        if 0 < len(queue) < BATCH and not self._stop.is_set():
            self._gathered.wait(LINGER)
        self._gathered.clear()
        # In hand before it leaves the queue: in between the backlog is too large, never too small.
        hand = [queue[at] for at in range(min(len(queue), BATCH))]
        self._hand = hand
        for _ in hand:
            queue.popleft()
        missing = self.dropped - self._declared
        if missing:
            self._declared += missing
            hand.append(self._rendered(audit_dropped(time(), missing, self._declared)))

    def _deliver(self) -> bool:
        """Hand the batch to the sink, however long it takes; False where the process ends first."""
        retry = _FIRST_RETRY
        while self._hand:
            try:
                count = self.sink.write(self._hand)
            except Exception as error:
                self._failed(error)
                left = self._deadline - monotonic()
                if left <= 0:
                    return False
                if self._stop.wait(retry):
                    sleep(min(_FIRST_RETRY, left))
                retry = min(retry * 2, _LAST_RETRY)
                continue
            if count:
                self._hand = self._hand[count:]
                self.written += count
                self._taken()
            elif self._deadline <= monotonic():
                return False
        return True

    def _idle(self) -> float | None:
        try:
            pause = self.sink.idle()
        except Exception as error:
            self._failed(error)
            return _LAST_RETRY
        if self._troubled and not self.health.spilling:
            self.health.recovered(self._waited)
            self._troubled, self._waited = False, 0
        return pause

    def _failed(self, error: Exception) -> None:
        self._troubled = True
        self._waited = max(self._waited, self.backlog)
        self.health.failed(str(error) if isinstance(error, SinkError) else repr(error))
