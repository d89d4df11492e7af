"""Windows of limits: one request decided over all its limits, spending from all or none.

How the units of one key are counted, exactly, is in core/sliding.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mitmgate.core.limit import Limit, length_of, ticks
from mitmgate.core.sliding import NEVER, BucketedWindow, Elsewhere, SlidingLog, Window


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
    it never will. degraded: the store could not be asked, the limit's `on_store_failure` speaks. key: of the take.
    spent: the tick, by the clock of whoever counted, with which the units can be given back; 0: none were spent.
    """

    limit: Limit
    admitted: bool
    remaining: int
    reset: float
    retry_after: float = 0.0
    degraded: bool = False
    key: str = ""
    spent: int = 0


def new_window(limit: Limit) -> Window:
    """Make the window that a limit of this size is counted in."""
    return SlidingLog() if limit.width == 1 else BucketedWindow(limit.width)


def settle(
    takes: Sequence[Take], windows: Sequence[Window], now: float, *, spend: bool = True, shared: bool = False
) -> list[Grant]:
    """Decide one request over all its limits, and spend from all or none.

    windows: those of the takes, each another one. now: seconds. Where an enforced limit has no room, nothing is
    spent anywhere; a limit in report mode without room spends nothing itself. spend=False only looks. shared: of what
    others count as well, take the share that was taken so far (see `_reserve`).
    Raises ValueError for a cost or a window that is not positive: it would limit nothing.
    """
    at = ticks(now)
    looks: list[tuple[int, int, int]] = []
    for take, window in zip(takes, windows, strict=True):
        limit = take.limit
        length, room = length_of(limit), limit.limit - limit.cost
        others = 0
        if window.elsewhere is None:
            wait = window.look(at, length, room)
        else:
            alone = window.look(at, length, room)
            others = _reserve(window.elsewhere, limit, at, shared=shared)
            wait = window.look(at, length, room - others) if others else alone
            if wait and alone != NEVER:  # when the others' units end, or enough of those that were spent here
                end = max(alone, window.elsewhere.seen + length - at)
                wait = end if wait == NEVER else min(wait, end)
        if wait and limit.mode == "enforce":
            spend = False
        looks.append((wait, length, others))
    grants: list[Grant] = []
    for take, window, (wait, length, others) in zip(takes, windows, looks, strict=True):
        limit = take.limit
        spent = 0
        if spend and not wait:
            spent = window.spend(at, length, limit.cost)
        live = window.live
        reset = (window.oldest() + length - at) / 1e6 if live else 0.0
        retry = 0.0 if not wait else math.inf if wait == NEVER else _honest(now, wait)
        remaining = max(0, limit.limit - live - others)
        grants.append(Grant(limit, not wait, remaining, reset, retry, False, take.key, spent))
    return grants


def _reserve(elsewhere: Elsewhere, limit: Limit, at: int, *, shared: bool) -> int:
    """Return the units that are others': those that they had spent when the shared store was asked last.

    shared: and of the limit the part that they had of what was spent, so that all who count so keep to it together; a
    request's cost is left over.
    """
    units = elsewhere.units if at < elsewhere.seen + limit.length else 0
    if shared and elsewhere.theirs:
        part = -(-limit.limit * elsewhere.theirs // (elsewhere.mine + elsewhere.theirs))
        units = max(units, min(part, limit.limit - limit.cost))
    return units


def check(takes: Sequence[Take]) -> None:
    """Raise ValueError where two takes of one request have one key, or a limit would limit nothing."""
    for take in takes:
        length_of(take.limit)
    if len(takes) > 1 and len({take.key for take in takes}) < len(takes):
        raise ValueError("one request takes twice of one key")


def given_back(grant: Grant) -> None:
    """Tell a grant that its units were given back."""
    if grant.spent:
        grant.spent = 0
        grant.remaining = min(grant.limit.limit, grant.remaining + grant.limit.cost)
        if grant.remaining == grant.limit.limit:
            grant.reset = 0.0


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
