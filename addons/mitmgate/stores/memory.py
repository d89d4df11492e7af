"""Counters in this process: exact, synchronous, bounded.

What happens when there are too many keys. An attacker who may choose keys (addresses, header values) could flood the
store to make it forget a key that is used up, and start anew. So keys live on three shelves: `full` (no room for
another request when last seen), `used` (more than one request), `fresh` (one request). The first of `fresh` is
forgotten first, then of `used`; a key at its limit is forgotten only where every key is. A forgotten key may spend up
to its limit again; to make one be forgotten that had more than one request takes `keys` other keys with more than one
request each, in one window.

Time never runs back here: a request that is decided after one that arrived later is decided at that one's time, since
units may have been dropped by then that would still count at its own.

What is spent expires by itself: a key that comes onto a shelf makes two others of it be looked at, and dropped where
nothing of them counts. So a shelf does not grow beyond the keys of one window.
"""

from collections import OrderedDict
from collections.abc import Sequence

from mitmgate.core.limit import Limit, ticks
from mitmgate.core.sliding import Window
from mitmgate.core.window import Grant, Take, check, denies, given_back, new_window, settle

Shelf = OrderedDict[str, Window]

DEFAULT_KEYS = 100_000


class MemoryStore:
    """A CounterStore without I/O; its `take` never waits."""

    __slots__ = ("_fresh", "_full", "_now", "_used", "forgotten", "keys")

    available = True

    forgotten: int
    """How many keys were forgotten while something of them still counted."""

    def __init__(self, keys: int = DEFAULT_KEYS) -> None:
        """keys: how many keys are kept at most."""
        if keys < 1:
            raise ValueError("a store needs room for one key")
        self.keys = keys
        self.forgotten = 0
        self._now = 0.0
        self._fresh: Shelf = OrderedDict()
        self._used: Shelf = OrderedDict()
        self._full: Shelf = OrderedDict()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._used) + len(self._full)

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    def clear(self) -> int:
        """Forget what every key has spent; returns how many keys there were."""
        count = len(self)
        for shelf in (self._fresh, self._used, self._full):
            shelf.clear()
        return count

    def take(self, takes: Sequence[Take], now: float, held: Sequence[Grant] = ()) -> list[Grant]:
        """Decide and spend. See `CounterStore.take`."""
        grants = self._take(takes, now, spend=True)
        if held and denies(grants):
            for grant in held:
                self._give_back(grant)
        return grants

    def take_one(self, limit: Limit, key: str, now: float) -> Grant | None:
        """Decide at once where the key is known, stays on its shelf, and has room. See `CounterStore.take_one`."""
        window = self._used.get(key)
        if window is None or window.width != limit.width or now < self._now:
            return None
        at = round(now * 1e6)
        left = window.pass_one(at, limit.length, limit.spare)
        self._now = now
        return Grant(limit, True, limit.limit - window.live, left / 1e6, 0.0, False, key, at) if left else None

    def _take(self, takes: Sequence[Take], now: float, *, spend: bool, shared: bool = False) -> list[Grant]:
        check(takes)
        behind = self._now - now
        if behind > 0:
            now = self._now
        else:
            self._now = now
        found = [self._find(take.limit, take.key) for take in takes]
        grants = settle(takes, [window for window, _ in found], now, spend=spend, shared=shared)
        spend = spend and not denies(grants)
        at = ticks(now)
        for take, (window, shelf), grant in zip(takes, found, grants, strict=True):
            self._place(take, window, shelf, grant, at, spent=spend and grant.admitted)
            if behind > 0 and grant.reset:
                grant.reset += behind
                grant.retry_after += behind if not grant.admitted else 0.0
        return grants

    def _give_back(self, grant: Grant) -> None:
        """Take back what a request had spent that another limit has denied since."""
        limit = grant.limit
        window, shelf = self._find(limit, grant.key)
        if grant.spent and shelf is not None:
            window.give_back(grant.spent, limit.cost)
            if shelf is self._full and limit.limit - window.live >= limit.cost:
                self._used[grant.key] = shelf.pop(grant.key)
        given_back(grant)

    def _find(self, limit: Limit, key: str) -> tuple[Window, Shelf | None]:
        for shelf in (self._used, self._full, self._fresh):
            window = shelf.get(key)
            if window is not None:
                if window.width == limit.width:
                    return window, shelf
                del shelf[key]
                break
        return new_window(limit), None

    def _place(self, take: Take, window: Window, shelf: Shelf | None, grant: Grant, at: int, *, spent: bool) -> None:
        """Put a window on the shelf where it belongs now. Windows with nothing spent are not kept."""
        if shelf is None and not spent:
            return
        if grant.remaining < take.limit.cost:
            target = self._full
        elif shelf is None:
            target = self._fresh
        elif spent:
            target = self._used
        else:
            return
        if target is shelf:
            return
        _sweep(target, at)
        if shelf is not None:
            shelf.pop(take.key, None)
        elif len(self) >= self.keys:
            self._forget(at)
        target[take.key] = window

    def _forget(self, at: int) -> None:
        shelf = self._fresh or self._used or self._full
        _, window = shelf.popitem(last=False)
        if window.until > at:
            self.forgotten += 1


def _sweep(shelf: Shelf, at: int) -> None:
    """Look at the first two keys of a shelf: drop one of which nothing counts, send the other to the end."""
    for _ in range(min(2, len(shelf))):
        key = next(iter(shelf))
        if shelf[key].until <= at:
            del shelf[key]
        else:
            shelf.move_to_end(key)
