"""What of a policy can be exercised: every rule with its place in the file and the branches that it has."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from mitmgate.core.openapi import Api
from mitmgate.pipeline.stage import Rule
from mitmgate.policy.document import Document
from mitmgate.policy.model import Policy
from mitmgate.policy.model_routes import Route
from mitmgate.policy.own_stages import Own
from mitmgate.policy.problem import Location

REACHED: Final = "reached"
MATCHED: Final = "matched"
HELD: Final = "held"
FAILED: Final = "failed"
GRANTED: Final = "granted"
LIMITED: Final = "limited"
ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
WENT_ON: Final = "went-on"


def _operations(route: Route, index: int, apis: Mapping[int, Api]) -> Iterator[Rule]:
    for name in apis[index].operations if index in apis else ():
        yield Rule(operation_at(index, name), f"operation {name} of {route.name}", (REACHED,))


def operation_at(route: int, name: str) -> Location:
    """Return the place of an operation: that of the route's document, in which it is another line."""
    return ("routes", route, "openapi", "document", name)


def item(document: Document, location: Location, index: int) -> Location:
    """Return the place of a list's item; of the member itself where the list is written as its only item."""
    return (*location, index) if isinstance(document.at(location), list) else location


def rules(
    policy: Policy, document: Document, stages: Mapping[str, Own], apis: Mapping[int, Api] = MappingProxyType({})
) -> Iterator[Rule]:
    """Yield every rule of a policy that a corpus can exercise.

    stages: of the operator's own; a reason is a branch. apis: the documents of routes; an operation is a rule.
    """
    for name in policy.identity.issuers:
        yield Rule(("identity", "issuers", name), f"issuer {name}", (ACCEPTED, REFUSED))
    yield from _networks(policy.networks.allow, policy.networks.deny, ("networks",), document)
    for index, limit in enumerate(policy.client_limits):
        location = item(document, ("client_limits",), index)
        yield Rule(location, f"client limit {limit}", (GRANTED, LIMITED))
    for name, limited in policy.rate_limits.items():
        if limited.tiers is not None:
            for value in limited.tiers.values:
                yield Rule(("rate_limits", name, "tiers", "values", value), f"tier {value} of {name}", (MATCHED,))
            yield Rule(("rate_limits", name, "tiers", "default"), f"other tiers of {name}", (MATCHED,))
    for name, cors in policy.cors.items():
        for index, origin in enumerate(cors.origins):
            yield Rule(item(document, ("cors", name, "origins"), index), f"origin {origin}", (MATCHED,))
    for name, upstream in policy.upstreams.items():
        if document.at(("upstreams", name, "circuit")) is not None:
            yield Rule(("upstreams", name, "circuit"), f"circuit of {name}", ("closed", "open"))
        for index, endpoint in enumerate(upstream.endpoints):
            yield Rule(item(document, ("upstreams", name, "endpoints"), index), f"endpoint {endpoint}", (REACHED,))
    for name, own in stages.items():
        yield Rule(("stages", name), f"stage {name}", (WENT_ON, *own.reasons))
    for index, route in enumerate(policy.routes):
        yield from _route(route, ("routes", index), document)
        yield from _operations(route, index, apis)


def _networks(allow: tuple[str, ...], deny: tuple[str, ...], location: Location, document: Document) -> Iterator[Rule]:
    for index, network in enumerate(allow):
        yield Rule(item(document, (*location, "allow"), index), f"network {network}", (MATCHED,))
    if allow:
        yield Rule((*location, "allow"), "an address outside of the allowed networks", (REFUSED,))
    for index, network in enumerate(deny):
        yield Rule(item(document, (*location, "deny"), index), f"network {network}", (MATCHED,))


def _route(route: Route, location: Location, document: Document) -> Iterator[Rule]:
    yield Rule(location, f"route {route.name}", (REACHED,))
    for index, method in enumerate(route.match.methods):
        yield Rule(item(document, (*location, "match", "methods"), index), f"method {method}", (MATCHED,))
    for index, host in enumerate(route.match.hosts):
        yield Rule(item(document, (*location, "match", "hosts"), index), f"host {host}", (MATCHED,))
    yield from _networks(route.networks.allow, route.networks.deny, (*location, "networks"), document)
    if route.max_body is not None:
        yield Rule((*location, "max_body"), "the body's bound", (HELD, FAILED))
    if route.cors is not None:
        yield Rule((*location, "cors"), f"CORS of {route.name}", (ACCEPTED, REFUSED))
    yield from _require(route, (*location, "require"), document)
    for index, limit in enumerate(route.rate_limits):
        place = item(document, (*location, "rate_limits"), index)
        yield Rule(place, f"limit {limit} on {route.name}", (GRANTED, LIMITED))
    for name in route.rewrite.set:
        yield Rule((*location, "rewrite", "set", name), f"header {name}", (REACHED,))


def _require(route: Route, location: Location, document: Document) -> Iterator[Rule]:
    require = route.require
    for index, scope in enumerate(require.scopes_all):
        yield Rule(item(document, (*location, "scopes_all"), index), f"scope {scope}", (HELD, FAILED))
    if require.roles_any:
        yield Rule((*location, "roles_any"), "the roles", (HELD, FAILED))
        for index, role in enumerate(require.roles_any):
            place = item(document, (*location, "roles_any"), index)
            if place != (*location, "roles_any"):
                yield Rule(place, f"role {role}", (MATCHED,))
    for name, values in require.claims.items():
        claim = (*location, "claims", name)
        yield Rule(claim, f"claim {name}", (HELD, FAILED))
        for index, value in enumerate(values):
            place = item(document, claim, index)
            if place != claim:
                yield Rule(place, f"claim {name} = {value}", (MATCHED,))
    if require.acr_values:
        yield Rule((*location, "acr_values"), "the authentication's class", (HELD, FAILED))
    if require.max_age is not None:
        yield Rule((*location, "max_age"), "the authentication's age", (HELD, FAILED))
    if require.when is not None:
        yield Rule((*location, "when"), "the condition", (HELD, FAILED))
