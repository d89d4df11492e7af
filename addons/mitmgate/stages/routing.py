"""Routing: which route a request takes. Recorded here; the 404 is given after authentication."""

from collections.abc import Callable, Iterator
from typing import ClassVar

from mitmgate.core.cors import is_preflight
from mitmgate.core.path import CanonicalPath
from mitmgate.core.reason import Reason
from mitmgate.core.request import Head
from mitmgate.core.routing import NoRoute, RouteTable, host_matches
from mitmgate.core.rules import Route
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.pipeline import warnings
from mitmgate.pipeline.coverage import MATCHED, REACHED, Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage, route_at
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.snapshot import Snapshot


class Routing(Stage):
    """Match path, host and method against the route table.

    Reads: exchange.head. Writes: exchange.route, or exchange.no_route, which Authorization turns into 400, 404 or 405,
    so that the table can't be enumerated without a credential; exchange.preflight. A true preflight takes the route of
    the method that it asks for. A path that servers may read differently has a route only where that takes it, in every
    reading. Denies nothing. On failure: stage-error.
    """

    name: ClassVar[str] = "routing"
    reportable: ClassVar[bool] = False
    reasons: ClassVar[tuple[Reason, ...]] = ()

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        head, missing = exchange.head, exchange.no_route
        read: dict[str, object] = {}
        if head is not None:
            read = {"method": head.method, "host": head.host, "path": head.path}
        if exchange.route is not None:
            read["route"] = exchange.route.name
        if missing is not None:
            read["allowed_methods"] = list(missing.allow)
        return read

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at = route_at(exchange)
        return [(*at, "match")] if at else []

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count routes, and the methods and hosts that they name."""
        for index, route in enumerate(loaded.policy.routes):
            at: Location = ("routes", index)
            yield Rule(at, f"route {route.name}", (REACHED,))
            for number, method in enumerate(route.match.methods):
                yield Rule((*at, "match", "methods", number), f"method {method}", (MATCHED,))
            for number, host in enumerate(route.match.hosts):
                yield Rule((*at, "match", "hosts", number), f"host {host}", (MATCHED,))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        at, head = route_at(exchange), exchange.head
        if not at or head is None:
            return
        yield at, REACHED
        match = exchange.snapshot.policy.routes[int(at[1])].match
        if head.method in match.methods:
            yield (*at, "match", "methods", match.methods.index(head.method)), MATCHED
        for number, pattern in enumerate(match.hosts):
            if host_matches(pattern, head.host):
                yield (*at, "match", "hosts", number), MATCHED
                break

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find routes that never decide, and patterns and methods that no request has."""
        document = loaded.document
        for index, route in enumerate(loaded.policy.routes):
            at: Location = ("routes", index, "match")
            for member in ("prefix", "exact"):
                yield from warnings.like_a_pattern(document, (*at, member), getattr(route.match, member))
            yield from warnings.unregistered(document, document.items((*at, "methods"), route.match.methods))
            if route.websocket and route.match.methods and "GET" not in route.match.methods:
                message = "a WebSocket is opened by GET (RFC 6455, section 4.1), which this route does not take"
                yield document.warning(
                    ("routes", index, "websocket"), Code.NEVER_MATCHES, message, "add GET to methods"
                )
        yield from _unreachable(loaded, snapshot.routes)

    def decide(self, exchange: Exchange) -> Step:
        """Find the route."""
        head = exchange.head
        if head is None:
            raise ValueError("no head")
        match = self._odd(exchange, head) if head.odd else exchange.snapshot.routes.match
        tickets = exchange.snapshot.tickets
        if tickets is not None and head.path == tickets.path:
            match = _nothing  # Authentication answers there, whatever routes there are
        found: Route | NoRoute | None = None
        if head.method == "OPTIONS" and is_preflight(head.method, head.headers):
            asked = head.headers.text("access-control-request-method") or ""
            candidate = match(asked, head.host, head.path)
            # By what is public alone: where a route is not, and where there is none, Cors says the same.
            public = isinstance(candidate, Route) and candidate.issuers is None
            rule = candidate.cors if isinstance(candidate, Route) and public else exchange.snapshot.cors
            if rule:
                exchange.preflight, found = True, candidate
        if found is None:
            found = match(head.method, head.host, head.path)
        if isinstance(found, NoRoute):
            exchange.no_route = found
            return self.skipped
        exchange.route = found
        return self.admitted

    @staticmethod
    def _odd(exchange: Exchange, head: Head) -> Callable[[str, str, str], Route | NoRoute]:
        table, odd = exchange.snapshot.routes, head.odd
        return lambda method, host, path: table.match_odd(method, host, CanonicalPath(path, odd))


def _unreachable(loaded: Loaded, table: RouteTable) -> Iterator[Problem]:
    """Find routes that never decide: others take all of their requests."""
    places = {route.name: ("routes", index, "match") for index, route in enumerate(loaded.policy.routes)}
    for index, route in enumerate(table.routes):
        earlier = [other for other in table.routes[:index] if _path(other) == _path(route)]
        pairs = [(host, method) for host in route.hosts or ("",) for method in route.methods or ("",)]
        takers = [next((o for o in earlier if _takes(o, host, method)), None) for host, method in pairs]
        names = list(dict.fromkeys(taker.name for taker in takers if taker is not None))
        if None not in takers:
            message = f"never reached: {' and '.join(names)} takes all its requests"
            yield loaded.document.warning(places[route.name], Code.NEVER_REACHED, message)


def _path(route: Route) -> tuple[bool, str]:
    return route.exact, route.path if route.exact else route.path.rstrip("/")


def _takes(route: Route, host: str, method: str) -> bool:
    """Tell whether a route takes every request of a host pattern and a method; "" is every host, every method."""
    hosts = not route.hosts or any(
        pattern == host or (bool(host) and host_matches(pattern, host.removeprefix("*"))) for pattern in route.hosts
    )
    return hosts and (not route.methods or method in route.methods)


def _nothing(method: str, host: str, path: str) -> NoRoute:
    return NoRoute()
