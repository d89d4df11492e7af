"""What is revoked, as this process knows it: learnt from a file or from Redis, and asked about every principal.

Theory of operation. Whoever revokes appends to a list that every process follows: a file, which is looked at every
EVERY seconds, or a stream in Redis, which tells news at once. A process keeps what it has learnt until that is about no
token any more. Each answer of the list, also that there is nothing new, holds for FRESH seconds from when it was asked
for; beyond that nobody knows what has been revoked meanwhile, and the policy says what follows: `deny`, or with
`last-known` what was known goes on to count. Before the list was read once, nothing is known, and all is denied.
"""

import asyncio
import heapq
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import ClassVar, Final, Protocol

from mitmgate.audit.event import revocation_learnt, revocations_known, revocations_unknown
from mitmgate.audit.record import Event
from mitmgate.core.principal import Principal
from mitmgate.core.refusal import Refusal
from mitmgate.core.revocation import REVOKED, UNKNOWN, Revocation, both, read, written
from mitmgate.stores.list_file import ListFile, read_part
from mitmgate.stores.shared_list import OnFailure, SharedList

logger = logging.getLogger(__name__)

EVERY: Final = 0.2
"""Seconds between two looks at a file, and at the most for which a stream is waited for."""
PAUSE: Final = 0.2
"""Seconds after which a list that can't be read is tried again."""
MOST: Final = 100_000
"""Revocations that hold at the same time. More are not taken; a process that finds more denies everything."""
TIDY: Final = 1 << 20
"""Bytes of a file from which on it is written anew, without what is over, where that is half of it."""


class ListFullError(Exception):
    """There are as many revocations as may be."""


class Learner(Protocol):
    """Who follows a list."""

    def heard(self, news: Iterable[bytes], asked: float, *, anew: bool = False) -> list[float | None]:
        """Take lines that the list has gained. asked: when (perf_counter). anew: what was learnt before is void.

        Returns until when each of them holds (Unix seconds); None: it can't be read.
        """
        ...

    def known(self) -> list[Revocation]:
        """Return everything that holds."""
        ...


class Source(Protocol):
    """A list that outlives processes."""

    async def follow(self, learner: Learner) -> None:
        """Tell a learner everything, then all that is new; never returns. Raises where the list can't be read."""
        ...

    async def add(self, revocation: Revocation) -> None:
        """Append, durably as far as the list is. Raises ListFullError, OSError and what Redis raises."""
        ...

    async def lines(self) -> list[bytes]:
        """Return the list."""
        ...


class Revocations(SharedList):
    """What is revoked. Without a source nothing can be, and nothing is asked."""

    subject: ClassVar[str] = "what is revoked"

    def __init__(
        self,
        source: Source | None = None,
        on_failure: OnFailure = "deny",
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """emit: takes audit events."""
        super().__init__(on_failure, emit, followed=source is not None)
        self.source = source
        if source is None:
            self._until = math.inf
        self._held: dict[str, Revocation] = {}
        self._ends: list[tuple[float, str]] = []  # a heap: until, mark
        self._unreadable: str | None = None

    def __len__(self) -> int:
        """Return how many hold."""
        return len(self._held)

    def refusal(self, principal: Principal, started: float) -> Refusal | None:
        """Say why a principal must not be admitted; None: nothing of it is revoked.

        started: when its request arrived, or the present (seconds, time.perf_counter).
        """
        if started > self._until:
            return UNKNOWN
        held, marks = self._held, principal.marks
        if held and not held.keys().isdisjoint(marks):
            for mark in marks:
                revocation = held.get(mark)
                if revocation is not None and revocation.holds(principal.issued):
                    return REVOKED
        return None

    def revoked(self, principal: Principal) -> bool:
        """Tell whether what is known says that a principal is revoked."""
        return bool(self._held) and any(
            revocation is not None and revocation.holds(principal.issued)
            for revocation in map(self._held.get, principal.marks)
        )

    async def _follow(self) -> None:
        source = self.source
        while source is not None:
            try:
                await source.follow(self)
            except Exception as error:  # whatever it is: nobody knows what is revoked meanwhile
                self._unknown(repr(error))
            await asyncio.sleep(PAUSE)

    def heard(self, news: Iterable[bytes], asked: float, *, anew: bool = False) -> list[float | None]:
        """Take lines that the list has gained; see Learner."""
        before = self._held
        if anew:
            self._held, self._ends, self._unreadable = {}, [], None
        now, ends, added = time.time(), list[float | None](), False
        for line in news:
            try:
                revocation = read(line)
            except ValueError as error:
                self._unreadable = f"an entry of the list of revocations {error}"
                ends.append(None)
                continue
            ends.append(revocation.until)
            added |= self._learn(revocation, before.get(revocation.mark), now)
        self._sweep(now)
        if len(self._held) > MOST:
            self._until = -math.inf
            self._unknown(f"there are more than {MOST} revocations")
        elif self._unreadable is not None and self._on_failure == "deny":
            self._until = -math.inf
            self._unknown(self._unreadable)
        else:
            self._fresh(asked)
            if self._unreadable is not None:
                self._unknown(self._unreadable)
            else:
                self._known(asked)
        self._first.set()
        if added:
            self.changed()
        return ends

    def known(self) -> list[Revocation]:
        """Return everything that holds."""
        return list(self._held.values())

    def _learn(self, revocation: Revocation, before: Revocation | None, now: float) -> bool:
        """Take one; returns whether something is revoked that was not."""
        mark = revocation.mark
        if revocation.lifted:
            known = self._held.pop(mark, None) is not None
        else:
            earlier = self._held.get(mark)
            if revocation.until <= now:
                return False
            known = earlier is None or earlier != revocation
            self._held[mark] = revocation if earlier is None else both(earlier, revocation)
            heapq.heappush(self._ends, (self._held[mark].until, mark))
        if known and before != revocation and self._first.is_set():
            self._emit(revocation_learnt(now, revocation))
        return known and not revocation.lifted

    def _sweep(self, now: float) -> None:
        """Forget what is over."""
        while self._ends and self._ends[0][0] <= now:
            _, mark = heapq.heappop(self._ends)
            revocation = self._held.get(mark)
            if revocation is not None and revocation.until <= now:
                del self._held[mark]
        if len(self._ends) > 4 * len(self._held) + 1000:  # of those that came again, or were lifted
            self._ends = [(one.until, mark) for mark, one in self._held.items()]
            heapq.heapify(self._ends)

    def _event(self, seconds: float | None) -> Event:
        return revocations_known(time.time(), seconds, len(self._held))

    def _event_unknown(self, why: str) -> Event:
        return revocations_unknown(time.time(), self._decides, why)


class RevocationFile(ListFile):
    """A list in a file, one JSON object a line, that processes of one machine share.

    Lines are only appended, under a lock; what has no end yet is not read, and goes with the next line. A file that
    takes another's place is read anew, and so is one in which the last line that was read does not stand where it
    stood; processes that run tell it what it lacks. Only a line that lifts a revocation takes it back.
    """

    def __init__(self, path: str) -> None:
        """path: absolute."""
        super().__init__(path)
        self._file: tuple[int, int] | None = None  # device and inode of what was read
        self._offset = 0
        self._last = b""  # the line that ends there

    async def follow(self, learner: Learner) -> None:
        """Look at the file again and again."""
        self._file = None
        while True:
            asked = perf_counter()
            news, anew = await asyncio.to_thread(self._news)
            known = learner.known() if anew else []
            learner.heard([*map(written, known), *news], asked, anew=anew)
            if missing(news, known):
                await self._tell(known)
            await asyncio.sleep(EVERY)

    async def add(self, revocation: Revocation) -> None:
        """Append a line, and have it on the disk."""
        await asyncio.to_thread(self.append, written(revocation))

    async def _tell(self, known: Sequence[Revocation]) -> None:
        def lacking(content: bytes) -> bytes:
            return b"\n".join(map(written, missing(content.split(b"\n"), known)))

        try:
            await asyncio.to_thread(self.append, lacking)
        except (OSError, ListFullError) as error:  # this process goes by what it knows all the same
            logger.error("the list of revocations lacks some that hold, and can't be told: %r", error)

    async def lines(self) -> list[bytes]:
        """Return every line."""
        self._file = None
        return (await asyncio.to_thread(self._news))[0]

    def _news(self) -> tuple[list[bytes], bool]:
        descriptor = self.open(os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            file, anew = (status.st_dev, status.st_ino), False
            # A file that was deleted leaves its inode to the next one; one that is written over keeps it.
            last = os.pread(descriptor, len(self._last), self._offset - len(self._last))
            if file != self._file or last != self._last:
                self._offset, self._last, anew = 0, b"", True
            content = read_part(descriptor, self._offset, status.st_size)
        finally:
            os.close(descriptor)
        whole = content[: content.rfind(b"\n") + 1]
        self._file, self._offset = file, self._offset + len(whole)
        if whole:
            self._last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        return [line for line in whole.split(b"\n") if line], anew

    def _tidy(self, descriptor: int, size: int, line: bytes) -> bool:
        """Write the file anew without what is over; False where that is not worth while. Called with its lock."""
        if size <= TIDY:
            return False
        lines = [one for one in read_part(descriptor, 0, size).split(b"\n") if one]
        now = time.time()
        if len(live(lines, now)) >= MOST:
            raise ListFullError
        # Also what was lifted: a process that has not read that yet would tell the new file what it knows.
        held = list(last_words(map(read, lines), now).values())
        if len(held) > len(lines) // 2:
            return False
        beside = self._path.with_name(f"{self._path.name}.new")
        with beside.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(b"".join([one + b"\n" for one in (*map(written, held), line)]))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        return True


def live(lines: Sequence[bytes], now: float) -> list[Revocation]:
    """Return what holds of a list. Raises ValueError where a line can't be read."""
    return [one for one in last_words(map(read, lines), now).values() if not one.lifted]


def last_words(entries: Iterable[Revocation], now: float) -> dict[str, Revocation]:
    """Return what a list says in the end, by mark, and is not over: what is revoked, or that it was lifted."""
    found: dict[str, Revocation] = {}
    for one in entries:
        known = found.get(one.mark)
        if one.lifted or (one.until > now and (known is None or known.lifted)):
            found[one.mark] = one
        elif one.until > now and known is not None:
            found[one.mark] = both(known, one)
    return {mark: one for mark, one in found.items() if one.until > now}


def missing(lines: Iterable[bytes], known: Iterable[Revocation]) -> list[Revocation]:
    """Return what is known to hold and a list does not say, nor that it was lifted."""
    entries: list[Revocation] = []
    for line in lines:
        with suppress(ValueError):
            entries.append(read(line))
    there = last_words(entries, time.time())
    return [
        one
        for one in known
        if (found := there.get(one.mark)) is None or not (found.lifted or both(found, one) == found)
    ]
