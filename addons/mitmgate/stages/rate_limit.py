"""RateLimit: the limits of the route, counted for who is known by now."""

from collections.abc import Awaitable
from typing import ClassVar

from mitmgate.core.verdict import Step
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.quota import Quota


class RateLimit(Quota):
    """Take the route's limits: exact sliding windows, all or none.

    Reads: principal, client, claims, headers, route, as each limit's key says. Writes: exchange.grants,
    exchange.answer (Retry-After). Denies: 429 quota-exceeded; 503 store-unavailable where the store is away and a
    limit says deny. On failure: stage-error.
    """

    name: ClassVar[str] = "rate-limit"

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Take them all in one call."""
        route = exchange.route
        return self.skipped if route is None else self.take(exchange, route.limits)
