"""What ClientQuota and RateLimit share: the key of a limit, and the step that grants make."""

from collections.abc import Awaitable, Iterator, Sequence
from hashlib import blake2b
from typing import ClassVar

from mitmgate.core import pointer
from mitmgate.core.limit import Limit
from mitmgate.core.ratelimit_fields import retry_after
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.core.window import Grant, Take
from mitmgate.pipeline.coverage import GRANTED, LIMITED, MATCHED, Branch
from mitmgate.pipeline.exchange import Answer, Exchange
from mitmgate.pipeline.stage import Denial, Stage
from mitmgate.policy.problem import Location
from mitmgate.stores.protocol import CounterStore

ABSENT = "-"
"""What a claim, a header or a principal that is not there counts under: all such requests share one quota."""

LONGEST_KEY = 128
"""Characters; what a client makes longer is counted by its digest, so that it can't fill the store."""

_BY_PRINCIPAL = ("principal",)


class Quota(Stage):
    """Take from the store, and say what it said."""

    reasons: ClassVar[tuple[Reason, ...]] = (Reason.QUOTA_EXCEEDED, Reason.STORE_UNAVAILABLE)

    def __init__(self, store: CounterStore) -> None:
        """store: where the counters are."""
        self._store = store

    def held(self, exchange: Exchange) -> Sequence[Grant]:
        """Return what an earlier stage took, to be given back where this one denies."""
        return ()

    def take(self, exchange: Exchange, limits: Sequence[Limit]) -> Step | Awaitable[Step]:
        """Decide on all limits in one call."""
        if not limits:
            return self.skipped
        if len(limits) == 1:
            limit = limits[0]
            if limit.tiers is not None:
                limit = _tier(limit, exchange)
            key = key_of(limit, exchange)
            grant = self._store.take_one(limit, key, exchange.started)
            if grant is not None:
                exchange.grants.append(grant)
                return self.admitted
            takes = [Take(limit, key)]
        else:
            takes = [Take(_tier(limit, exchange), key_of(limit, exchange)) for limit in limits]
        grants = self._store.take(takes, exchange.started, self.held(exchange))
        if isinstance(grants, list | tuple):  # a tenth of what the abstract Sequence takes to be asked for
            return self._step(exchange, grants)
        return self._step_later(exchange, grants)

    async def _step_later(self, exchange: Exchange, pending: Awaitable[Sequence[Grant]]) -> Step:
        return self._step(exchange, await pending)

    def _step(self, exchange: Exchange, grants: Sequence[Grant]) -> Step:
        exchange.grants += grants
        refused = [grant for grant in grants if not grant.admitted]
        if not refused:
            return self.admitted
        enforced = [grant for grant in refused if grant.limit.mode == "enforce"]
        names = ", ".join(grant.limit.name for grant in enforced or refused)
        if not enforced:
            return Step(self.name, Outcome.OBSERVE, Reason.QUOTA_EXCEEDED, f"The limit {names} is used up.")
        exchange.answer = Answer(429, ((b"Retry-After", b"%d" % retry_after(enforced)),))
        if all(grant.degraded and grant.limit.on_store_failure == "deny" for grant in enforced):
            exchange.answer.status = 503
            return self.deny(Reason.STORE_UNAVAILABLE, "The counters of a limit can't be reached.")
        return self.deny(Reason.QUOTA_EXCEEDED, f"The limit {names} is used up.")


def _tier(limit: Limit, exchange: Exchange) -> Limit:
    """Return the limit that holds for who asks: of the tier that a claim names, where the limit has tiers."""
    principal = exchange.principal
    return limit if limit.tiers is None or principal is None else limit.of(principal.claims)


def told(grants: Sequence[Grant]) -> dict[str, object]:
    """Return what limits have said, by their names, for `explain`."""
    return {
        grant.limit.name: {
            "limit": grant.limit.limit,
            **({} if grant.limit.tier is None else {"tier": grant.limit.tier}),
            "window": grant.limit.window,
            "key": list(grant.limit.key),
            "remaining": grant.remaining,
            "retry_after": round(grant.retry_after, 3),
        }
        for grant in grants
    }


def key_of(limit: Limit, exchange: Exchange) -> str:
    """Make the key that a limit counts a request under. Each part carries its length, so that no two run together."""
    parts, principal = limit.key, exchange.principal
    if parts == _BY_PRINCIPAL and principal is not None:  # what most limits count by
        key = f"{limit.prefix}{principal.issuer}\0{principal.subject}"
    elif len(parts) == 1:
        key = limit.prefix + _part(parts[0], limit, exchange)
    else:
        values = [_part(part, limit, exchange) for part in parts]
        key = limit.prefix + "".join([f"{len(value)}:{value}" for value in values])
    if len(key) > LONGEST_KEY:
        return f"{limit.name}\0\0{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=20).hexdigest()}"
    return key


def _part(part: str, limit: Limit, exchange: Exchange) -> str:
    principal = exchange.principal
    if part == "principal":
        return ABSENT if principal is None else f"{principal.issuer}\0{principal.subject}"
    if part == "client_ip":
        client = exchange.client  # int() takes half the time of str(), and a tenth for IPv6
        if client is None:
            return ABSENT
        if client.version == 4:
            return f"4.{int(client):x}"
        return f"6.{int(client) >> (128 - limit.ipv6_prefix):x}/{limit.ipv6_prefix}"
    if part == "route":
        route = exchange.route
        # What remains of a client limit is told to everybody: it must not tell apart routes that are not public.
        told = route is not None and (route.issuers is None or principal is not None)
        return route.name if route is not None and told else ABSENT
    if part == "issuer":
        return ABSENT if principal is None else principal.issuer
    kind, _, name = part.partition(":")
    if kind == "claim":
        value = None if principal is None else pointer.find(principal.claims, name)
        return ABSENT if value is None else f"={value!r}"
    if kind == "header":
        text = None if exchange.head is None else exchange.head.headers.text(name)
        return ABSENT if text is None else f"={text}"
    if kind == "stage":
        text = exchange.own_keys.get(name)
        return ABSENT if text is None else f"={text}"
    raise ValueError(f"unknown key {part}")


def taken(grants: Sequence[Grant], location: Location) -> Iterator[Branch]:
    """Yield what requests to the store have exercised, for `--coverage`. location: of the list of limits."""
    for index, grant in enumerate(grants):
        if grant.limit.tier is not None:
            tier = ("default",) if grant.limit.tiers is not None else ("values", grant.limit.tier)
            yield ("rate_limits", grant.limit.name, "tiers", *tier), MATCHED
        yield (*location, index), GRANTED if grant.admitted else LIMITED


def waiting(denial: Denial) -> list[str]:
    """Say how long to wait, or which limits to raise, for `explain`."""
    lines = []
    for grant in denial.exchange.grants:
        if not grant.admitted:
            place = denial.place("rate_limits", grant.limit.name)
            lines.append(
                f"wait {grant.retry_after:.3f} s, or raise {grant.limit.name} ({grant.limit.limit} in any "
                f"{grant.limit.window:g} s): {place}"
            )
    return lines
