"""Windows of limits: one request decided over all its limits, spending from all or none.

How the units of one key are counted, exactly, is in core/sliding.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mitmgate.core.limit import Limit, length_of, ticks
from mitmgate.core.sliding import NEVER, BucketedWindow, SlidingLog, Window


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
    retry_after: float = 0.0
    degraded: bool = False


def new_window(limit: Limit) -> Window:
    """Make the window that a limit of this size is counted in."""
    return SlidingLog() if limit.width == 1 else BucketedWindow(limit.width)


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
