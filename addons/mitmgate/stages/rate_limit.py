"""RateLimit: the limits of the route, counted for who is known by now."""

from collections.abc import Awaitable, Sequence
from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Step
from mitmgate.core.window import Grant
from mitmgate.pipeline.exchange import Exchange, reports
from mitmgate.pipeline.stage import Denial, route_at
from mitmgate.policy.problem import Location
from mitmgate.stages.quota import Quota, told, waiting


class RateLimit(Quota):
    """Take the route's limits: exact sliding windows, all or none, those of the client included.

    Where one of them denies, what ClientQuota took is given back in the same step of the store. It counted until then,
    as it has to: nobody may get more signatures verified than a client's limit says. What another stage denies has
    spent the client's limits.

    Reads: principal, client, claims, headers, route, as each limit's key says. Writes: exchange.grants,
    exchange.answer (Retry-After). Denies: 429 quota-exceeded; 503 store-unavailable where the store is away and a
    limit says deny. On failure: stage-error.
    """

    name: ClassVar[str] = "rate-limit"

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return told(exchange.grants[len(exchange.snapshot.client_limits) :])

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at, route = route_at(exchange), exchange.route
        if route is None:
            return []
        return [(*at, "rate_limits"), *(("rate_limits", limit.name) for limit in route.limits)]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        return waiting(denial) if denial.step.reason is Reason.QUOTA_EXCEEDED else super().change(denial)

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Take them all in one call."""
        route = exchange.route
        return self.skipped if route is None else self.take(exchange, route.limits)

    def held(self, exchange: Exchange) -> Sequence[Grant]:
        """Return what ClientQuota took, unless the request goes on whatever is said here."""
        grants = exchange.grants
        return [grant for grant in grants if grant.spent] if grants and not reports(exchange) else ()
