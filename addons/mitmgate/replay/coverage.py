"""Coverage: which rules of a policy a corpus exercises, in which of their branches, and which never."""

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import Final, NamedTuple

from mitmgate.core import pointer
from mitmgate.core.address import CidrSet
from mitmgate.core.api_key import ISSUER as API_KEY
from mitmgate.core.authorize import same
from mitmgate.core.credentials import hide_in_path
from mitmgate.core.principal import Principal
from mitmgate.core.rewrite import upstream_path
from mitmgate.core.routing import host_matches
from mitmgate.core.rules import Route, named
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Rule
from mitmgate.policy.model_routes import Require
from mitmgate.policy.own_stages import Own
from mitmgate.policy.problem import Location
from mitmgate.replay.coverage_rules import (
    ACCEPTED,
    FAILED,
    GRANTED,
    HELD,
    LIMITED,
    MATCHED,
    REACHED,
    REFUSED,
    WENT_ON,
    item,
    operation_at,
    rules,
)
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import Decision
from mitmgate.replay.evidence import VALUE, VALUED
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.traffic import Recorded

Address = IPv4Address | IPv6Address
MOST_OUTSIDE: Final = 500
"""Kinds of requests outside of a document that are told apart; clients choose their paths."""


def _shape(segment: str) -> str:
    """Return a segment of a path, or a mark for one that is a value."""
    return VALUE if VALUED.fullmatch(segment) is not None or len(segment) > 40 else segment


_CONDITION = frozenset({"condition-false", "condition-error"})


class Lists(NamedTuple):
    """The networks of a policy or a route, one by one."""

    allow: tuple[tuple[Location, CidrSet], ...]
    deny: tuple[tuple[Location, CidrSet], ...]
    outside: Location


class Outside(NamedTuple):
    """What a request outside of its route's document was. operation: method and path; "" for what is too much to list.

    detail: what was wrong.
    """

    route: str
    reason: str
    operation: str
    detail: str


class Coverage:
    """Counts what each rule did (run.Observer)."""

    def __init__(self, policy: OfflinePolicy) -> None:
        """Find the rules."""
        self.policy = policy
        self._stages = Decider(policy.snapshot, OfflineRing()).stages
        declared = [stage.rules(policy.loaded.policy, policy.loaded.document) for stage in self._stages.values()]
        loaded = policy.loaded
        listed = rules(loaded.policy, loaded.document, loaded.stages, loaded.apis)
        self.rules = (*listed, *chain.from_iterable(declared))
        self.counts: Counter[tuple[Location, str]] = Counter()
        self.outside: Counter[Outside] = Counter()
        """Requests that are not in their route's OpenAPI document, enforced or observed."""
        model, document = policy.loaded.policy, policy.loaded.document
        self._routes = {route.name: (index, route) for index, route in enumerate(model.routes)}
        self._networks: dict[str | None, Lists] = {
            None: self._lists(model.networks.allow, model.networks.deny, ("networks",))
        }
        for index, route in enumerate(model.routes):
            where = ("routes", index, "networks")
            self._networks[route.name] = self._lists(route.networks.allow, route.networks.deny, where)
        self._issuers = {url: named(issuer.name) for issuer in policy.snapshot.issuers.values() for url in issuer.urls}
        self._document = document

    def _lists(self, allow: tuple[str, ...], deny: tuple[str, ...], location: Location) -> Lists:
        document = self.policy.loaded.document

        def one_by_one(networks: tuple[str, ...], where: Location) -> tuple[tuple[Location, CidrSet], ...]:
            return tuple((item(document, where, at), CidrSet([each])) for at, each in enumerate(networks))

        outside = (*location, "allow")
        return Lists(one_by_one(allow, outside), one_by_one(deny, (*location, "deny")), outside)

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        """Count what the rules did with one request."""
        steps = {step.stage: step for step in exchange.verdict.steps}
        for name in exchange.snapshot.own.keys() & steps.keys():
            self._own(name, steps[name], exchange.snapshot.own[name])
        self._declared(exchange)
        route = exchange.route
        if route is not None:
            self._matched(exchange, route)
        if "network-access" in steps and exchange.client is not None:
            asked = route is not None and "authorization" in steps
            self._addresses(exchange.client, route.name if route is not None and asked else None)
        self._issuer(recorded, exchange, decision)
        self._grants(exchange)
        if route is None:
            return
        at: Location = ("routes", self._routes[route.name][0])
        self._described(exchange, route, steps.get("openapi"))
        if "size-limit" in steps:
            self._add((*at, "max_body"), FAILED if steps["size-limit"].reason.code == "body-too-large" else HELD)
        if "cors" in steps and exchange.cors is not None:
            self._cors(exchange, route, at, refused=steps["cors"].outcome is Outcome.DENY)
        if "authorization" in steps and exchange.principal is not None:
            self._required(route, exchange.principal, steps["authorization"].reason.code, at)
        if "circuit-breaker" in steps:
            closed = exchange.endpoint is not None
            self._add(("upstreams", route.upstream.name, "circuit"), "closed" if closed else "open")
        if exchange.endpoint is not None:
            where = ("upstreams", route.upstream.name, "endpoints")
            self._add(item(self._document, where, route.upstream.endpoints.index(exchange.endpoint)), REACHED)
        if exchange.forward is not None:
            sent = {name.lower() for name, _ in exchange.forward.fields}
            for name in self._routes[route.name][1].rewrite.set:
                if name.lower().encode("latin-1") in sent:
                    self._add((*at, "rewrite", "set", name), REACHED)

    def _declared(self, exchange: Exchange) -> None:
        for step in exchange.verdict.said:
            stage = self._stages.get(step.stage)
            if stage is not None:
                self.counts.update(stage.covered(exchange, step))

    def _own(self, name: str, step: Step, own: Own) -> None:
        """Count a stage of the operator's own: that the request went on, or the reason that it gave; no failure."""
        if step.reason.code in own.reasons:
            self._add(("stages", name), step.reason.code)
        elif step.outcome is not Outcome.DENY:
            self._add(("stages", name), WENT_ON)

    def _described(self, exchange: Exchange, route: Route, step: Step | None) -> None:
        """Count an operation of the route's document, or a request that is outside of it."""
        if step is None or step.outcome is Outcome.SKIP:
            return
        if step.outcome is Outcome.ADMIT and exchange.operation is not None:
            self._add(operation_at(self._routes[route.name][0], exchange.operation.name), REACHED)
        elif step.outcome is not Outcome.ADMIT and exchange.head is not None:
            path = upstream_path(route, exchange.head.path) or exchange.head.path
            shape = hide_in_path("/".join(map(_shape, path.split("/"))), lambda hidden: VALUE)
            asked = f"{exchange.head.method} {shape}" if exchange.operation is None else exchange.operation.name
            found = Outside(route.name, step.reason.code, asked, step.detail)
            if found not in self.outside and len(self.outside) >= MOST_OUTSIDE:
                found = Outside(route.name, step.reason.code, "", "")
            self.outside[found] += 1

    def _add(self, location: Location, branch: str) -> None:
        self.counts[location, branch] += 1

    def _matched(self, exchange: Exchange, route: Route) -> None:
        index, model = self._routes[route.name]
        at: Location = ("routes", index)
        self._add(at, REACHED)
        head = exchange.head
        if head is None:
            return
        if head.method in model.match.methods:
            where = (*at, "match", "methods")
            self._add(item(self._document, where, model.match.methods.index(head.method)), MATCHED)
        for number, pattern in enumerate(model.match.hosts):
            if host_matches(pattern, head.host):
                self._add(item(self._document, (*at, "match", "hosts"), number), MATCHED)
                break

    def _addresses(self, client: Address, route: str | None) -> None:
        """Count networks as NetworkAccess and Authorization ask them: the first refusal ends it."""
        for lists in (self._networks[None], *(() if route is None else (self._networks[route],))):
            for location, networks in lists.deny:
                if client in networks:
                    self._add(location, MATCHED)
                    return
            allowed = [location for location, networks in lists.allow if client in networks]
            for location in allowed:
                self._add(location, MATCHED)
            if lists.allow and not allowed:
                self._add(lists.outside, REFUSED)
                return

    def _issuer(self, recorded: Recorded, exchange: Exchange, decision: Decision) -> None:
        if exchange.principal is not None:
            issuer = named(exchange.principal.issuer)
            self._add(("api_keys",) if issuer == API_KEY else ("identity", "issuers", issuer), ACCEPTED)
        elif decision.stage == "authentication" and recorded.presented is not None:
            token = recorded.presented.token
            name = None if token is None else self._issuers.get(token.issuer)
            if name is not None:
                self._add(("identity", "issuers", name), REFUSED)

    def _grants(self, exchange: Exchange) -> None:
        """Count limits; ClientQuota's grants come first, in the policy's order, then RateLimit's."""
        own = exchange.snapshot.client_limits
        for index, grant in enumerate(exchange.grants):
            branch = GRANTED if grant.admitted else LIMITED
            limit = grant.limit
            if limit.tier is not None:
                tier = ("default",) if limit.tiers is not None else ("values", limit.tier)
                self._add(("rate_limits", limit.name, "tiers", *tier), MATCHED)
            if index < len(own):
                self._add(item(self._document, ("client_limits",), index), branch)
            elif exchange.route is not None:
                where = ("routes", self._routes[exchange.route.name][0], "rate_limits")
                self._add(item(self._document, where, index - len(own)), branch)

    def _cors(self, exchange: Exchange, route: Route, at: Location, *, refused: bool) -> None:
        origin = None if exchange.head is None else exchange.head.headers.text("origin")
        model = self._routes[route.name][1]
        if origin is None or model.cors is None:
            return
        self._add((*at, "cors"), REFUSED if refused else ACCEPTED)
        origins = self.policy.loaded.policy.cors[model.cors].origins
        for index, known in enumerate(origins):
            if known in {origin, "*"}:
                self._add(item(self._document, ("cors", model.cors, "origins"), index), MATCHED)

    def _required(self, route: Route, principal: Principal, reason: str, at: Location) -> None:
        """Count requirements as core.authorize asks them: the first that fails ends it."""
        require = self._routes[route.name][1].require
        where = (*at, "require")
        for index, scope in enumerate(require.scopes_all):
            held = scope in principal.scopes
            self._add(item(self._document, (*where, "scopes_all"), index), HELD if held else FAILED)
        if reason == "scope-missing":
            return
        if require.roles_any:
            self._add((*where, "roles_any"), FAILED if reason == "role-missing" else HELD)
            for index, role in enumerate(require.roles_any):
                if role in principal.roles:
                    self._add(item(self._document, (*where, "roles_any"), index), MATCHED)
            if reason == "role-missing":
                return
        for name, allowed in require.claims.items():
            found = pointer.find(principal.claims, name)
            values = found if isinstance(found, list) else [found]
            met = [index for index, value in enumerate(allowed) if any(same(value, each) for each in values)]
            self._add((*where, "claims", name), HELD if met else FAILED)
            for index in met:
                self._add(item(self._document, (*where, "claims", name), index), MATCHED)
            if not met:
                return
        if self._authenticated(require, principal, reason, where) and require.when is not None:
            self._add((*where, "when"), FAILED if reason in _CONDITION else HELD)

    def _authenticated(self, require: Require, principal: Principal, reason: str, where: Location) -> bool:
        """Count what is required of the authentication itself; False where that was not enough."""
        enough = reason != "authentication-insufficient"
        if require.acr_values:
            weak = principal.claims.get("acr") not in require.acr_values
            self._add((*where, "acr_values"), FAILED if weak else HELD)
            if weak:
                return enough
        if require.max_age is not None:
            self._add((*where, "max_age"), HELD if enough else FAILED)
        return enough

    @property
    def branches(self) -> list[tuple[Rule, str, int]]:
        """Every branch of every rule, and how often it was taken."""
        return [(rule, branch, self.counts[rule.location, branch]) for rule in self.rules for branch in rule.branches]

    @property
    def percent(self) -> float:
        """The part of all branches that was taken, in percent; 100 where there is none."""
        counted = [count for _, _, count in self.branches]
        return 100 * sum(count > 0 for count in counted) / len(counted) if counted else 100.0

    def never(self) -> Iterator[tuple[Rule, str]]:
        """Yield the branches that were never taken."""
        return ((rule, branch) for rule, branch, count in self.branches if not count)

    def members(self) -> dict[str, object]:
        """Return the counts as plain values."""
        document = self.policy.loaded.document
        return {
            "percent": round(self.percent, 1),
            "branches": len(self.branches),
            "never": [
                {"line": document.place(rule.location, key=True)[0], "rule": rule.what, "branch": branch}
                for rule, branch in self.never()
            ],
            "outside": [{**found._asdict(), "requests": count} for found, count in self.outside.most_common()],
        }
