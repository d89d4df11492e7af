"""What limits do while their store can't be asked: each as its `on_store_failure` says.

Theory of operation. A limit that says `local` is counted in this process then. Its window does not begin empty: with
each answer of the store it learns which units this process has spent there, and how many others have (`learn`). So one
process counts through an outage exactly; of several, each leaves to the others what they had spent when the store was
heard last, until that has ended. Then each admits up to the limit: K processes K times the limit, in any window.

What is spent here while the store can't be asked is owed to it: the next question for that key brings it along
(`debts`), and the store counts it, beyond the limit where it has to. So an outage that ends, or an answer that came too
late, is not followed by a window in which the same units are spent twice. What the store has spent for a request that
was denied here meanwhile goes back to it with the next question (`returns`). Where the store is only ever slow, its
answers come too late for every decision and are learnt all the same: then each process keeps to the share that it has
of what is spent (`shared`), since all of them decide on the same room at once.
"""

from collections import deque
from collections.abc import Sequence

from mitmgate.core.limit import Limit, length_of, ticks
from mitmgate.core.sliding import Elsewhere, Window
from mitmgate.core.window import Grant, Take, denies, given_back
from mitmgate.stores.memory import MemoryStore

RETURNS = 1000


class Fallback(MemoryStore):
    """Decide without the shared store; every grant says `degraded`.

    local: as above. allow: let through, uncounted. deny: refuse; the stage answers 503 store-unavailable.
    """

    __slots__ = ("_owing", "returns")

    returns: deque[Grant]
    """What the store has granted, and is to take back; the oldest are forgotten where there are too many."""

    def __init__(self) -> None:
        """Start with nothing spent."""
        super().__init__()
        self.returns = deque(maxlen=RETURNS)
        self._owing = False  # whether anything may be owed

    def decide(
        self,
        takes: Sequence[Take],
        now: float,
        retry_after: float,
        held: Sequence[Grant] = (),
        *,
        asked: bool = False,
        shared: bool = False,
    ) -> list[Grant]:
        """Decide all limits of a request, all or none. retry_after: seconds until the store is asked again.

        asked: the store was, and may carry it out: what is spent here is not owed to it before that is known.
        """
        local = [take for take in takes if take.limit.on_store_failure == "local"]
        refused = any(take.limit.on_store_failure == "deny" and take.limit.mode == "enforce" for take in takes)
        counted = iter(self._take(local, now, spend=not refused, shared=shared))
        grants = []
        for take in takes:
            limit = take.limit
            if limit.on_store_failure == "local":
                grant = next(counted)
                grant.degraded = True
                if grant.spent and not asked:
                    self.owe(limit, take.key, limit.cost)
            elif limit.on_store_failure == "allow":
                grant = Grant(limit, True, limit.limit, 0.0, 0.0, True, take.key)
            else:
                grant = Grant(limit, False, 0, retry_after, retry_after, True, take.key)
            grants.append(grant)
        if held and denies(grants):
            for grant in held:
                if grant.degraded:
                    self.give_back(grant, now)
        return grants

    def debts(self, takes: Sequence[Take], now: float) -> list[int]:
        """Return the units of each take that the store does not have; they are taken for known to it from now on."""
        if not self._owing:
            return [0] * len(takes)
        debts = []
        for take in takes:
            window, _ = self._find(take.limit, take.key)
            known, debt = window.elsewhere, 0
            if known is not None and known.owed:
                window.look(ticks(now), length_of(take.limit), 0)
                debt, known.owed = min(known.owed, window.live), 0
            debts.append(debt)
        return debts

    def learn(self, take: Take, now: float, live: int, spent: int) -> None:
        """Take the store's answer: so many units count. spent: those that it has spent for this question.

        now: when it was asked.
        """
        window, shelf = self._find(take.limit, take.key)
        at, length = ticks(now), length_of(take.limit)
        window.look(at, length, 0)
        if spent:
            window.spend(at, length, spent)
        known = _known(window)
        if at >= known.seen:
            known.seen = at
            known.units = max(0, live - window.live + known.owed)
            if known.units + window.live:
                known.mine, known.theirs = window.live, known.units
            window.until = max(window.until, at + length)
        remaining = take.limit.limit - window.live - known.units
        self._place(take, window, shelf, Grant(take.limit, True, remaining, 0.0), at, spent=True)

    def give_back(self, grant: Grant, now: float) -> None:
        """Take back what was granted to a request that arrived at `now`, where the store has taken it back, or here."""
        if grant.degraded:
            self.owe(grant.limit, grant.key, -grant.limit.cost if grant.spent else 0)
            self._give_back(grant)
        elif grant.spent:
            window, shelf = self._find(grant.limit, grant.key)
            if shelf is not None:
                window.give_back(ticks(now), grant.limit.cost)
            given_back(grant)

    def owe(self, limit: Limit, key: str, units: int) -> None:
        """Note that the store does not have so many units of a limit that is counted here."""
        if not units or limit.on_store_failure != "local":
            return
        window, shelf = self._find(limit, key)
        if shelf is not None:
            known = _known(window)
            known.owed = max(0, known.owed + units)
            self._owing = True


def _known(window: Window) -> Elsewhere:
    if window.elsewhere is None:
        window.elsewhere = Elsewhere()
    return window.elsewhere
