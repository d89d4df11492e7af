"""Exact sliding windows: in any window of `window` seconds at most `limit` units of one key are admitted.

Theory of operation. A unit admitted at time t counts in [t, t + window) and no longer: the window is half-open, so a
unit may be followed by another exactly `window` seconds later. A request of `cost` units is admitted where the units
that count, with its own, are at most `limit`; the time of one unit admitted earlier decides that, found by its index.
Only admitted requests spend, so a client that keeps knocking is let in as soon as one that waits.

Times are ticks, whole microseconds: on that grid all arithmetic is exact, and Redis' clock has the same grid. A clock
that runs backwards is held at the newest unit of the key, which admits less, never more; a unit that was dropped stays
so, hence a store whose callers' times are not in order holds them (see stores/memory.py).

A limit of up to EXACT_LIMIT units keeps one time a unit (`SlidingLog`). A larger one keeps about BUCKETS counts
(`BucketedWindow`): a unit counts as if it had come at the end of its bucket, that is up to window / BUCKETS longer
than it should. So it never admits more; under steady load it admits at most 1/BUCKETS (0.1 %) fewer.
"""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mitmgate.core.rules import Limit

EXACT_LIMIT = 10_000
BUCKETS = 1_000
NEVER = -1
"""The wait of a cost that is larger than the limit."""

_SPARE = 32  # dead entries that a log may carry beyond a quarter of its living ones, before they are cut off


@dataclass(frozen=True, slots=True)
class Take:
    """A request's wish: `limit.cost` units of the limit, counted under key. key names the limit, too."""

    limit: Limit
    key: str


@dataclass(slots=True)
class Grant:
    """What one limit said of a request.

    admitted: the limit had room; units were spent only if every enforced limit of the same call had. remaining:
    units left after this request. reset: seconds until `remaining` next grows, 0 where nothing is spent.
    retry_after: seconds after which the request fits if nobody else takes, 0 where it was admitted, infinity where
    it never will. degraded: the store could not be asked, the limit's `on_store_failure` speaks.
    """

    limit: Limit
    admitted: bool
    remaining: int
    reset: float
    retry_after: float
    degraded: bool


def ticks(seconds: float) -> int:
    """Round seconds to whole microseconds."""
    return round(seconds * 1e6)


def length_of(limit: Limit) -> int:
    """Return the ticks of a limit's window. Raises ValueError where window or cost would limit nothing."""
    length = ticks(limit.window)
    if length < 1 or limit.cost < 1:
        raise ValueError(f"limit {limit.name}: a cost of {limit.cost} in {limit.window} s")
    return length


def bucket_width(limit: Limit) -> int:
    """Return the ticks of one bucket; 1: the limit is small enough for an exact log."""
    return 1 if limit.limit <= EXACT_LIMIT else max(1, -(-ticks(limit.window) // BUCKETS))


class Window(Protocol):
    """The units of one key. `now` and `window` are ticks. The limit may change between calls."""

    live: int
    """The units that count, as of the last look or spend."""
    until: int
    """The tick from which on nothing counts any more."""

    @property
    def width(self) -> int:
        """The ticks of a bucket; 1: an exact log."""
        ...

    def look(self, now: int, window: int, room: int) -> int:
        """Drop what counts no more; return the ticks until at most `room` units count, 0 where it is so now.

        A negative room is never reached.
        """
        ...

    def spend(self, now: int, window: int, cost: int) -> None:
        """Add units. Call `look` with the same time before."""
        ...

    def oldest(self) -> int:
        """Return the tick of the oldest unit that counts; only where `live` is above 0."""
        ...


class SlidingLog:
    """The exact window: the times of the units that count, 8 bytes a unit."""

    __slots__ = ("_head", "_times", "live", "until")

    width = 1

    def __init__(self) -> None:
        """Start with nothing spent."""
        self._times = array("q")
        self._head = 0
        self.live = 0
        self.until = 0

    def look(self, now: int, window: int, room: int) -> int:
        """Find the unit whose end decides. O(1), and O(log n) where units have just ended."""
        times, head = self._times, self._head
        if times:
            end = now - window
            if times[head] <= end:
                head = bisect_right(times, end, head)
                if head - _SPARE > (len(times) - head) >> 2 or head == len(times):
                    del times[:head]
                    head = 0
                self._head = head
                self.live = len(times) - head
        if self.live <= room:
            return 0
        return NEVER if room < 0 else times[head + self.live - room - 1] + window - now

    def spend(self, now: int, window: int, cost: int) -> None:
        """Append the units' time."""
        times = self._times
        if times and times[-1] > now:
            now = times[-1]
        if cost == 1:
            times.append(now)
        else:
            times.extend([now] * cost)
        self.live += cost
        self.until = now + window

    def oldest(self) -> int:
        """Return the first time that counts."""
        return self._times[self._head]


class BucketedWindow:
    """The window of a large limit: counts of about BUCKETS buckets, 16 bytes each, erring to the strict side."""

    __slots__ = ("_base", "_ends", "_head", "_sums", "live", "until", "width")

    def __init__(self, width: int) -> None:
        """width: ticks of a bucket. With a width of 1 this is as exact as SlidingLog."""
        self._ends = array("q")  # the last tick of each bucket that has units
        self._sums = array("q")  # all units spent up to and with that bucket, dropped ones included
        self._base = 0  # all units dropped
        self._head = 0
        self.width = width
        self.live = 0
        self.until = 0

    def look(self, now: int, window: int, room: int) -> int:
        """Find the bucket whose end decides. O(1), and O(log n) where buckets have just ended."""
        ends, sums, head = self._ends, self._sums, self._head
        if ends:
            end = now - window
            if ends[head] <= end:
                head = bisect_right(ends, end, head)
                self._base = sums[head - 1]
                self.live = sums[-1] - self._base
                if head - _SPARE > (len(ends) - head) >> 2 or head == len(ends):
                    del ends[:head], sums[:head]
                    head = 0
                self._head = head
        if self.live <= room:
            return 0
        if room < 0:
            return NEVER
        return ends[bisect_left(sums, self._base + self.live - room, head)] + window - now

    def spend(self, now: int, window: int, cost: int) -> None:
        """Add to the bucket of this time, or to the newest where that is later."""
        ends = self._ends
        end = now - now % self.width + self.width - 1
        self.live += cost
        if ends and ends[-1] >= end:
            self._sums[-1] += cost
        else:
            ends.append(end)
            self._sums.append(self._base + self.live)
        self.until = ends[-1] + window

    def oldest(self) -> int:
        """Return the last tick of the first bucket that counts."""
        return self._ends[self._head]


def new_window(limit: Limit) -> Window:
    """Make the window that a limit of this size is counted in."""
    width = bucket_width(limit)
    return SlidingLog() if width == 1 else BucketedWindow(width)


def settle(takes: Sequence[Take], windows: Sequence[Window], now: float, *, spend: bool = True) -> list[Grant]:
    """Decide one request over all its limits, and spend from all or none.

    windows: those of the takes, each another one. now: Unix seconds. Where an enforced limit has no room, nothing is
    spent anywhere; a limit in report mode without room spends nothing itself. spend=False only looks.
    Raises ValueError for a cost or a window that is not positive: it would limit nothing.
    """
    at = ticks(now)
    looks: list[tuple[int, int]] = []
    for take, window in zip(takes, windows, strict=True):
        limit = take.limit
        length = length_of(limit)
        wait = window.look(at, length, limit.limit - limit.cost)
        if wait and limit.mode == "enforce":
            spend = False
        looks.append((wait, length))
    grants: list[Grant] = []
    for take, window, (wait, length) in zip(takes, windows, looks, strict=True):
        limit = take.limit
        if spend and not wait:
            window.spend(at, length, limit.cost)
        live = window.live
        reset = (window.oldest() + length - at) / 1e6 if live else 0.0
        retry = 0.0 if not wait else math.inf if wait == NEVER else _honest(now, wait)
        grants.append(Grant(limit, not wait, max(0, limit.limit - live), reset, retry, False))
    return grants


def denies(grants: Sequence[Grant]) -> bool:
    """Tell whether an enforced limit had no room."""
    for grant in grants:  # noqa: SIM110 - any() of a generator costs three times as much, on every request
        if not grant.admitted and grant.limit.mode == "enforce":
            return True
    return False


def _honest(now: float, wait: int) -> float:
    """Make seconds of ticks such that `now` plus them is late enough, whatever rounding does to the sum."""
    seconds = wait / 1e6
    return seconds if ticks(now + seconds) >= ticks(now) + wait else seconds + 1e-6
