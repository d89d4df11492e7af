"""What a counter store is: one question a request, answered for all its limits at once."""

from collections.abc import Awaitable, Sequence
from typing import Protocol

from mitmgate.core.limit import Limit
from mitmgate.core.window import Grant, Take


class CounterStore(Protocol):
    """Counters of limits by key. A limit whose numbers change on reload applies to what was already spent.

    Only a change of the bucket width (`Limit.width`) starts a key afresh.
    """

    @property
    def available(self) -> bool:
        """Whether counters are shared and exact now; False: `on_store_failure` of each limit speaks."""
        ...

    def take(
        self, takes: Sequence[Take], now: float, held: Sequence[Grant] = ()
    ) -> list[Grant] | Awaitable[list[Grant]]:
        """Spend from every limit of a request, or from none; return one grant for each take, in their order.

        A limit in enforce mode that has no room keeps all others from spending; one in report mode is counted and
        reported without affecting others. now: seconds of a clock that nobody sets; a shared store uses its own.
        Keys in one call differ; ValueError otherwise. A failing store is no error: the grants say `degraded`.

        held: what an earlier call granted to the same request. Where an enforced limit of this one has no room, its
        units are given back in the same step. Until then they count, so that a limit is never exceeded; who asks in
        between may be denied for them.
        """
        ...

    def take_one(self, limit: Limit, key: str, now: float) -> Grant | None:
        """Do what `take` does where that is one limit of cost 1 with room to spare, and nothing to wait for.

        None: it is not, or can't be told; nothing was spent, and `take` has to be asked.
        """
        ...

    async def start(self) -> None:
        """Connect. A store that can't be reached yet is no error: it is tried again in the background."""
        ...

    async def close(self) -> None:
        """Let go of connections and tasks."""
        ...
