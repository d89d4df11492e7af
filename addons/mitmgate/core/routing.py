"""The route table: longest segment-prefix wins, then host, then method."""

from collections.abc import Iterable
from dataclasses import dataclass

from mitmgate.core.headers import Fields
from mitmgate.core.path import CanonicalPath, readings
from mitmgate.core.rules import Route


@dataclass(frozen=True, slots=True)
class NoRoute:
    """No route takes the request.

    allow: the methods that routes of this path and host take; empty: there is no such path (404 rather than 405).
    ambiguous: why the path can't be read as that of one route, in words that the client may read; empty: it can.
    public: that is told without a credential, since a public route would take it otherwise.
    """

    allow: tuple[str, ...] = ()
    ambiguous: str = ""
    public: bool = False


def covers(prefix: str, path: str) -> bool:
    """Tell whether path is prefix or lies under it, on a segment boundary: /users covers /users/7, not /usersX."""
    if prefix.endswith("/"):
        return path.startswith(prefix) or path == prefix[:-1]
    return path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == "/")


def host_matches(pattern: str, host: str) -> bool:
    """Compare a host with a pattern: equal, or "*.example" for one or more labels before ".example"."""
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


def _rank(route: Route) -> tuple[int, int, int, int]:
    """Order routes by what they say most of: exact path, longer path, exact host, methods named."""
    hosts = 2 if route.hosts and not any(h.startswith("*.") for h in route.hosts) else 1 if route.hosts else 0
    return (-int(route.exact), -len(route.path.rstrip("/")), -hosts, -int(bool(route.methods)))


class _Place:
    """The routes of one path, found by the host that is asked for: of a thousand hosts as soon as of one."""

    __slots__ = ("_everywhere", "_named", "_under", "routes")

    def __init__(self, routes: list[Route]) -> None:
        """routes: most specific first."""
        self.routes = routes
        self._everywhere = [number for number, route in enumerate(routes) if not route.hosts]
        self._named: dict[str, list[int]] = {}
        self._under: dict[str, list[int]] = {}  # by what follows the star
        for number, route in enumerate(routes):
            for pattern in route.hosts:
                hosts, name = (self._under, pattern[1:]) if pattern.startswith("*.") else (self._named, pattern)
                hosts.setdefault(name, []).append(number)

    def of(self, host: str) -> list[Route]:
        """Return those for a host (see `host_matches`), in their order."""
        if len(self._everywhere) == len(self.routes):
            return self.routes
        found = {*self._everywhere, *self._named.get(host, ())}
        if self._under:
            dot = host.find(".", 1)
            while dot > 0:
                found.update(self._under.get(host[dot:], ()))
                dot = host.find(".", dot + 1)
        return [self.routes[number] for number in sorted(found)]


class RouteTable:
    """All routes, most specific first; equally specific ones keep the policy's order."""

    __slots__ = ("_exact", "_longest", "_prefixes", "routes")

    routes: tuple[Route, ...]

    def __init__(self, routes: Iterable[Route]) -> None:
        """Sort once; prefixes are kept apart by length, so that a match is a few dictionary look-ups."""
        self.routes = tuple(sorted(routes, key=_rank))
        exact: dict[str, list[Route]] = {}
        prefixes: dict[str, list[Route]] = {}
        for route in self.routes:
            if route.exact:
                exact.setdefault(route.path, []).append(route)
            else:
                prefixes.setdefault(route.path.rstrip("/"), []).append(route)
        self._exact = {path: _Place(routes) for path, routes in exact.items()}
        self._prefixes = {path: _Place(routes) for path, routes in prefixes.items()}
        self._longest = max(map(len, self._prefixes), default=0)

    def match(self, method: str, host: str, path: str) -> Route | NoRoute:
        """Find the route of a request, or why there is none. path: canonical.

        The most specific path with a matching host decides; a less specific path is never a way around its methods.
        """
        here = self._exact.get(path)
        found = None if here is None else _among(here.of(host), method)
        if found is not None:
            return found
        end = len(path)
        if path.endswith("/") and path != "/":
            end -= 1
        if end > self._longest:  # no look-up for each segment of a path that is longer than any prefix
            end = path.rfind("/", 0, self._longest + 1)
        while end >= 0:
            here = self._prefixes.get(path[:end])
            if here is not None:
                found = _among(here.of(host), method)
                if found is not None:
                    return found
            end = path.rfind("/", 0, end)
        return NoRoute()

    def match_odd(self, method: str, host: str, path: CanonicalPath) -> Route | NoRoute:
        """Find the route of a request with an odd path: one that takes it, however servers may read the path.

        Otherwise a path that only looks like that of a lax route could reach what a strict one guards. An exact route
        has named the odd path itself.
        """
        found = self.match(method, host, path.text)
        if isinstance(found, NoRoute):
            return found
        if not path.odd <= found.odd:
            return NoRoute((), f"The path holds {min(path.odd - found.odd)}.", found.issuers is None)
        if not found.exact and any(self.match(method, host, reading) is not found for reading in readings(path)):
            return NoRoute(ambiguous="The path could be read as that of another route.")
        return found


def allowed(methods: Iterable[str]) -> tuple[str, ...]:
    """Return what an Allow field lists for methods that are named: HEAD goes with GET. Empty: every method."""
    named = set(methods)
    return tuple(sorted(named | {"HEAD"} if "GET" in named else named))


def allow_field(methods: Iterable[str]) -> Fields:
    """Make the Allow field (RFC 9110, section 10.2.1); none where every method is taken."""
    listed = allowed(methods)
    return ((b"Allow", ", ".join(listed).encode("ascii")),) if listed else ()


def _among(routes: list[Route], method: str) -> Route | NoRoute | None:
    """Choose among the routes of one path and host; None where there are none."""
    for route in routes:
        if not route.methods or method in route.methods:
            return route
    if method == "HEAD":  # RFC 9110, section 9.1: whoever takes GET takes HEAD, unless another route does
        taken = next((route for route in routes if "GET" in route.methods), None)
        if taken is not None:
            return taken
    if not routes:
        return None
    return NoRoute(allowed(method for route in routes for method in route.methods))
