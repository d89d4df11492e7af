"""Exact sliding windows: in any window of `window` seconds at most `limit` units of one key are admitted.

Theory of operation. A unit admitted at time t counts in [t, t + window) and no longer: the window is half-open, so a
unit may be followed by another exactly `window` seconds later. A request of `cost` units is admitted where the units
that count, with its own, are at most `limit`; the time of one unit admitted earlier decides that, found by its index.
Only admitted requests spend, so a client that keeps knocking is let in as soon as one that waits.

Times are ticks, whole microseconds: on that grid all arithmetic is exact, and Redis' clock has the same grid. A clock
that runs backwards is held at the newest unit of the key, which admits less, never more; a unit that was dropped stays
so, hence a store whose callers' times are not in order holds them (see stores/memory.py). A unit can be given back.

A limit of up to EXACT_LIMIT units keeps one time a unit (`SlidingLog`). A larger one keeps about BUCKETS counts
(`BucketedWindow`): a unit counts as if it had come at the end of its bucket, that is up to window / BUCKETS longer
than it should. So it never admits more; under steady load it admits at most 1/BUCKETS (0.1 %) fewer.
"""

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final, Protocol

NEVER: Final = -1
"""The wait of a cost that is larger than the limit."""

_SPARE: Final = 32  # dead entries that a log may carry beyond a quarter of its living ones, before they are cut off


@dataclass(slots=True)
class Elsewhere:
    """What a store that is shared with others said of a key, in a window that counts here while that can't be asked.

    seen: the tick at which it was asked. units: those that others had spent; they count until `seen` and a window's
    length. mine, theirs: how the units were divided when there were some. owed: units that were spent here, and that
    the store does not have.
    """

    seen: int = 0
    units: int = 0
    mine: int = 0
    theirs: int = 0
    owed: int = 0


class Window(Protocol):
    """The units of one key. `now` and `window` are ticks. The limit may change between calls."""

    live: int
    """The units that count, as of the last look or spend."""
    until: int
    """The tick from which on nothing counts any more."""
    elsewhere: Elsewhere | None
    """None: the key is counted here alone."""

    @property
    def width(self) -> int:
        """The ticks of a bucket; 1: an exact log."""
        ...

    def look(self, now: int, window: int, room: int) -> int:
        """Drop what counts no more; return the ticks until at most `room` units count, 0 where it is so now.

        A negative room is never reached.
        """
        ...

    def spend(self, now: int, window: int, cost: int) -> int:
        """Add units; return the tick that they have. Call `look` with the same time before."""
        ...

    def give_back(self, at: int, units: int) -> None:
        """Take off units that have this tick, as `spend` has said; what has ended is gone."""
        ...

    def pass_one(self, now: int, window: int, spare: int) -> int:
        """Spend one unit where at most `spare` count; return the ticks until the oldest ends, 0: not spent.

        What `look`, `spend` and `oldest` say and do one after the other, in one call.
        """
        ...

    def oldest(self) -> int:
        """Return the tick of the oldest unit that counts; only where `live` is above 0."""
        ...


class SlidingLog:
    """The exact window: the times of the units that count, 8 bytes a unit."""

    __slots__ = ("_head", "_times", "elsewhere", "live", "until")

    width = 1

    def __init__(self) -> None:
        """Start with nothing spent."""
        self._times = array("q")
        self._head = 0
        self.elsewhere: Elsewhere | None = None
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

    def spend(self, now: int, window: int, cost: int) -> int:
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
        return now

    def give_back(self, at: int, units: int) -> None:
        """Take the units out."""
        times = self._times
        first = bisect_left(times, at, self._head)
        count = min(units, bisect_right(times, at, first) - first)
        del times[first : first + count]
        self.live -= count
        if self._head == len(times):
            del times[:]
            self._head = 0

    def pass_one(self, now: int, window: int, spare: int) -> int:
        """Append one time, where there is room."""
        times = self._times
        if not times or times[self._head] <= now - window:
            self.look(now, window, spare)
        if self.live > spare:
            return 0
        at = times[-1] if times and times[-1] > now else now
        times.append(at)
        self.live += 1
        self.until = at + window
        return times[self._head] + window - now

    def oldest(self) -> int:
        """Return the first time that counts."""
        return self._times[self._head]


class BucketedWindow:
    """The window of a large limit: counts of about BUCKETS buckets, 16 bytes each, erring to the strict side."""

    __slots__ = ("_base", "_ends", "_head", "_sums", "elsewhere", "live", "until", "width")

    def __init__(self, width: int) -> None:
        """width: ticks of a bucket. With a width of 1 this is as exact as SlidingLog."""
        self._ends = array("q")  # the last tick of each bucket that has units
        self._sums = array("q")  # all units spent up to and with that bucket, dropped ones included
        self._base = 0  # all units dropped
        self._head = 0
        self.elsewhere: Elsewhere | None = None
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

    def spend(self, now: int, window: int, cost: int) -> int:
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
        return ends[-1]

    def give_back(self, at: int, units: int) -> None:
        """Take units out of the bucket of that time."""
        ends, sums, head = self._ends, self._sums, self._head
        first = bisect_left(ends, at, head)
        if first == len(ends) or ends[first] - at >= self.width:
            return
        before = sums[first - 1] if first > head else self._base
        count = min(units, sums[first] - before)
        for index in range(first, len(sums)):
            sums[index] -= count
        self.live -= count
        if sums[first] == before:
            del ends[first], sums[first]
            if head == len(ends):
                del ends[:], sums[:]
                self._head = 0

    def pass_one(self, now: int, window: int, spare: int) -> int:
        """Add one to the bucket of this time, where there is room."""
        ends = self._ends
        if not ends or ends[self._head] <= now - window:
            self.look(now, window, spare)
        if self.live > spare:
            return 0
        if ends and ends[-1] >= now:  # then it is this time's bucket, or a later one
            self.live += 1
            self._sums[-1] += 1
            self.until = ends[-1] + window
        else:
            self.spend(now, window, 1)
        return ends[self._head] + window - now

    def oldest(self) -> int:
        """Return the last tick of the first bucket that counts."""
        return self._ends[self._head]
