"""The counter store: what every place that counts can do."""

from collections.abc import Awaitable, Sequence
from typing import Protocol

from mitmgate.core.window import Grant, Take

Grants = Sequence[Grant]


class CounterStore(Protocol):
    """Decides takes, exactly, however many ask at once.

    All or none: where an enforced limit has no room, nothing of the call is spent. `now` is Unix seconds; a store
    that is shared by processes has a clock of its own and ignores it. Nothing here raises because a server is away:
    each limit's `on_store_failure` is the answer, and its grant is `degraded`.
    """

    def take(self, takes: Sequence[Take], now: float) -> Grants | Awaitable[Grants]:
        """Decide; grants are in the order of the takes. Awaitable only where a server has to be asked."""
        ...

    async def start(self) -> None:
        """Open connections and load scripts; a server that is away is no error."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...
