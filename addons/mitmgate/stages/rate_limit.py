"""RateLimit: the limits of the route, counted for who is known by now."""

from collections.abc import Awaitable, Iterator, Sequence
from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.core.window import Grant
from mitmgate.pipeline.coverage import GRANTED, LIMITED, MATCHED, Branch, Rule
from mitmgate.pipeline.exchange import Exchange, reports
from mitmgate.pipeline.stage import Denial, route_at
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Location
from mitmgate.stages.quota import Quota, taken, told, waiting


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

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count tiers, and what each limit of a route has said."""
        for name, limited in loaded.policy.rate_limits.items():
            if limited.tiers is not None:
                at: Location = ("rate_limits", name, "tiers")
                for value in limited.tiers.values:
                    yield Rule((*at, "values", value), f"tier {value} of {name}", (MATCHED,))
                yield Rule((*at, "default"), f"other tiers of {name}", (MATCHED,))
        for index, route in enumerate(loaded.policy.routes):
            for number, limit in enumerate(route.rate_limits):
                at = ("routes", index, "rate_limits", number)
                yield Rule(at, f"limit {limit} on {route.name}", (GRANTED, LIMITED))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        grants = exchange.grants[len(exchange.snapshot.client_limits) :]
        return taken(grants, (*route_at(exchange), "rate_limits"))

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Take them all in one call."""
        route = exchange.route
        return self.skipped if route is None else self.take(exchange, route.limits)

    def held(self, exchange: Exchange) -> Sequence[Grant]:
        """Return what ClientQuota took, unless the request goes on whatever is said here."""
        grants = exchange.grants
        return [grant for grant in grants if grant.spent] if grants and not reports(exchange) else ()
