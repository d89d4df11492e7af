"""The route table: longest segment-prefix wins, then host, then method."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mitmgate.core.rules import Route


@dataclass(frozen=True, slots=True)
class NoRoute:
    """No route takes the request.

    allow: the methods that routes of this path and host take; empty: there is no such path (404 rather than 405).
    public: every route that the path and host match is public, so saying 405 needs no credential.
    """

    allow: tuple[str, ...] = ()
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


class RouteTable:
    """All routes, most specific first; equally specific ones keep the policy's order."""

    __slots__ = ("_exact", "_prefixes", "routes")

    routes: tuple[Route, ...]

    def __init__(self, routes: Iterable[Route]) -> None:
        """Sort once; prefixes are kept apart by length, so that a match is a few dictionary look-ups."""
        self.routes = tuple(sorted(routes, key=_rank))
        self._exact: dict[str, list[Route]] = {}
        self._prefixes: dict[str, list[Route]] = {}
        for route in self.routes:
            if route.exact:
                self._exact.setdefault(route.path, []).append(route)
            else:
                self._prefixes.setdefault(route.path.rstrip("/"), []).append(route)

    def candidates(self, path: str) -> Iterator[Route]:
        """Yield the routes whose path takes this canonical path, most specific first."""
        yield from self._exact.get(path, ())
        end = len(path)
        if path.endswith("/") and path != "/":
            end -= 1
        while end >= 0:
            yield from self._prefixes.get(path[:end], ())
            end = path.rfind("/", 0, end)

    def match(self, method: str, host: str, path: str) -> Route | NoRoute:
        """Find the route of a request, or why there is none.

        The most specific path with a matching host decides; a less specific path is never a way around its methods.
        """
        here: list[Route] = []
        for route in self.candidates(path):
            if here and (route.exact, route.path.rstrip("/")) != (here[0].exact, here[0].path.rstrip("/")):
                break
            if route.hosts and not any(host_matches(pattern, host) for pattern in route.hosts):
                continue
            if not route.methods or method in route.methods:
                return route
            here.append(route)
        if not here:
            return NoRoute()
        allow = sorted({allowed for route in here for allowed in route.methods})
        return NoRoute(tuple(allow), all(route.issuers is None for route in here))
