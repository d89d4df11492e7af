"""RateLimit: the limits of the route, counted for who is known by now."""

from collections.abc import Awaitable, Iterator, Sequence
from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.core.window import Grant
from mitmgate.pipeline import warnings
from mitmgate.pipeline.coverage import GRANTED, LIMITED, MATCHED, Branch, Rule
from mitmgate.pipeline.exchange import Exchange, reports
from mitmgate.pipeline.stage import Denial, route_at
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.snapshot import Snapshot
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

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find limits that limit nobody, or not whom they seem to."""
        policy, document = loaded.policy, loaded.document
        used = {*policy.client_limits, *(name for route in policy.routes for name in route.rate_limits)}
        yield from warnings.unused(document, ("rate_limits",), policy.rate_limits, used)
        for index, route in enumerate(policy.routes):
            if not route.rate_limits and not policy.client_limits:
                message, hint = f"{route.name} has no rate limit", "add rate_limits, or client_limits"
                yield document.warning(("routes", index), Code.NO_RATE_LIMIT, message, hint)
        for name, limit in policy.rate_limits.items():
            at: Location = ("rate_limits", name)
            if limit.mode == "report":
                yield document.warning((*at, "mode"), Code.REPORT_MODE, "report counts and denies nobody")
            if any(key.startswith("header:") for key in limit.key) and not set(limit.key) & {"principal", "client_ip"}:
                message = "a client chooses its headers, and with them what it is counted by"
                yield document.warning((*at, "key"), Code.CLIENT_CHOOSES, message)
            if limit.on_store_failure == "allow":
                message = "without the store there is no limit at all"
                yield document.warning((*at, "on_store_failure"), Code.UNLIMITED_WITHOUT_STORE, message)
            if limit.tiers is not None:
                yield from warnings.like_a_path(document, [((*at, "tiers", "claim"), limit.tiers.claim)])
            keys = [(place, *key.partition(":")[::2]) for place, key in document.items((*at, "key"), limit.key)]
            yield from warnings.like_a_path(document, [(place, name) for place, kind, name in keys if kind == "claim"])
            fields = [(place, name) for place, kind, name in keys if kind == "header"]
            yield from warnings.removed(document, snapshot, fields)

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Take them all in one call."""
        route = exchange.route
        return self.skipped if route is None else self.take(exchange, route.limits)

    def held(self, exchange: Exchange) -> Sequence[Grant]:
        """Return what ClientQuota took, unless the request goes on whatever is said here."""
        grants = exchange.grants
        return [grant for grant in grants if grant.spent] if grants and not reports(exchange) else ()
