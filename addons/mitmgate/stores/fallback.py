"""What limits do while their store can't be asked: each as its `on_store_failure` says."""

from collections.abc import Sequence

from mitmgate.core.window import Grant, Take
from mitmgate.stores.memory import MemoryStore


class Fallback:
    """Decide without the shared store; every grant says `degraded`.

    local: this process counts for itself, so K processes let through up to K times the limit. Its counters outlive
    the outage: a store that comes and goes opens no fresh quota each time. allow: let through, uncounted. deny: refuse;
    the stage answers 503 store-unavailable.
    """

    __slots__ = ("_local",)

    def __init__(self) -> None:
        """Start with nothing spent."""
        self._local = MemoryStore()

    def take(self, takes: Sequence[Take], now: float, retry_after: float) -> list[Grant]:
        """Decide all limits of a request, all or none. retry_after: seconds until the store is asked again."""
        local = [take for take in takes if take.limit.on_store_failure == "local"]
        refused = any(take.limit.on_store_failure == "deny" and take.limit.mode == "enforce" for take in takes)
        counted = iter(self._local.look(local, now) if refused else self._local.take(local, now))
        grants = []
        for take in takes:
            limit = take.limit
            if limit.on_store_failure == "local":
                grant = next(counted)
                grant.degraded = True
            elif limit.on_store_failure == "allow":
                grant = Grant(limit, True, limit.limit, 0.0, 0.0, True)
            else:
                grant = Grant(limit, False, 0, retry_after, retry_after, True)
            grants.append(grant)
        return grants
