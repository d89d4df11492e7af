"""The route table: longest segment-prefix, then host, then method."""

import pytest

from mitmgate.core.address import CidrSet
from mitmgate.core.path import CanonicalPath, Oddity, canonical_path
from mitmgate.core.routing import NoRoute, RouteTable, covers, host_matches
from mitmgate.core.rules import Circuit, Endpoint, Networks, Requirement, Route, Upstream

ORDINARY: frozenset[Oddity] = frozenset()
EVERY = frozenset(Oddity)
UPSTREAM = Upstream("u", (Endpoint("http", "127.0.0.1", 9001),), 1.0, 1.0, 0, "preserve", Circuit())


def route(
    name: str,
    path: str,
    *methods: str,
    exact: bool = False,
    hosts: tuple[str, ...] = (),
    odd: frozenset[Oddity] = ORDINARY,
) -> Route:
    return Route(
        name=name,
        path=path,
        exact=exact,
        hosts=hosts,
        methods=frozenset(methods),
        upstream=UPSTREAM,
        issuers=("dev",),
        require=Requirement(),
        limits=(),
        networks=Networks(CidrSet(), CidrSet()),
        max_body=1024,
        odd=odd,
    )


def found(table: RouteTable, path: str, method: str = "GET", host: str = "api.example") -> str | tuple[str, ...]:
    result = table.match(method, host, path)
    return result.allow if isinstance(result, NoRoute) else result.name


def test_prefixes_end_at_segments() -> None:
    assert covers("/api/v1/users", "/api/v1/users")
    assert covers("/api/v1/users", "/api/v1/users/7")
    assert not covers("/api/v1/users", "/api/v1/usersX")
    table = RouteTable([route("users", "/api/v1/users")])
    assert found(table, "/api/v1/users") == "users"
    assert found(table, "/api/v1/users/") == "users"
    assert found(table, "/api/v1/users/7/x") == "users"
    for path in ("/api/v1/usersX", "/api/v1/user", "/api/v1", "/"):
        assert found(table, path) == ()


def test_longest_prefix_wins_whatever_the_order() -> None:
    routes = [route("root", "/"), route("deep", "/a/b/c"), route("a", "/a"), route("ab", "/a/b/")]
    for table in (RouteTable(routes), RouteTable(reversed(routes))):
        assert found(table, "/") == "root"
        assert found(table, "/zz/y") == "root"
        assert found(table, "/a/x") == "a"
        assert found(table, "/a/b") == "ab"
        assert found(table, "/a/b/c/d") == "deep"


def test_exact_is_exact_and_comes_first() -> None:
    table = RouteTable([route("prefix", "/status"), route("exact", "/status", exact=True)])
    assert found(table, "/status") == "exact"
    assert found(table, "/status/x") == "prefix"


def test_hosts() -> None:
    assert host_matches("*.example", "a.b.example")
    assert not host_matches("*.example", "example")
    assert not host_matches("*.example", "xexample")
    table = RouteTable(
        [route("any", "/a"), route("wild", "/a", hosts=("*.example",)), route("api", "/a", hosts=("api.example",))]
    )
    assert found(table, "/a") == "api"
    assert found(table, "/a", host="www.example") == "wild"
    assert found(table, "/a", host="other.test") == "any"


def test_a_less_specific_route_is_no_way_around_the_methods_of_a_longer_one() -> None:
    table = RouteTable([route("root", "/"), route("ro", "/admin", "GET"), route("w", "/admin", "PUT")])
    assert found(table, "/admin", "GET") == "ro"
    assert found(table, "/admin", "PUT") == "w"
    assert found(table, "/admin", "DELETE") == ("GET", "HEAD", "PUT")


def test_head_is_taken_where_get_is() -> None:
    """RFC 9110, section 9.1; by the route that takes GET, unless another one of the path names HEAD."""
    table = RouteTable(
        [
            route("all", "/"),
            route("read", "/a", "GET", hosts=("api.example",)),
            route("write", "/a", "POST"),
            route("get", "/b", "GET"),
            route("head", "/b", "HEAD"),
            route("post", "/c", "POST"),
        ]
    )
    assert found(table, "/a", "HEAD") == "read"
    assert found(table, "/b", "HEAD") == "head"
    assert found(table, "/c", "HEAD") == ("POST",)
    assert found(table, "/a", "HEAD", host="other.example") == ("POST",)
    assert found(table, "/d", "HEAD") == "all"


def test_an_empty_table_admits_nothing() -> None:
    assert RouteTable([]).match("GET", "h", "/") == NoRoute()


LAX = RouteTable(
    [
        route("all", "/", odd=EVERY),
        route("admin", "/admin", odd=EVERY),
        route("files", "/files", odd=frozenset({Oddity.ENCODED_SLASH})),
        route("named", "/a%2Fb", exact=True, odd=EVERY),
        route("strict", "/files/strict"),
    ]
)


@pytest.mark.parametrize(
    ("raw", "taken"),
    [
        ("/x//y", "all"),
        ("/x;v=1/y", "all"),
        ("/x%2Fy", "all"),
        ("/x;a//y%2Fz", "all"),
        ("/admin//x", "admin"),
        ("/admin;x", ""),  # the route for all would take it, and a server could read /admin
        ("/;x/admin", ""),
        ("//admin", ""),
        ("//admin/x", ""),
        ("/;a//admin", ""),
        ("/x%2F..%3b", None),
        ("/files/a%2Fb", "files"),
        ("/files%2Fa", ""),
        ("/files/strict%2Fa", ""),
        ("/files//a", "an empty segment"),
        ("/files/a;b", "a parameter (;)"),
        ("/files/strict/a%2Fb", "an encoded slash"),
        ("/a%2Fb", "named"),  # an exact route has named it
    ],
)
def test_an_odd_path_is_taken_only_where_every_reading_of_it_is(raw: str, taken: str | None) -> None:
    path = canonical_path(raw)
    if taken is None:
        assert not isinstance(path, CanonicalPath)
        return
    assert isinstance(path, CanonicalPath) and path.odd
    result = LAX.match_odd("GET", "api.example", path)
    if isinstance(result, NoRoute):
        assert result.allow == () and not result.public
        expected = f"The path holds {taken}." if taken else "The path could be read as that of another route."
        assert result.ambiguous == expected
    else:
        assert result.name == taken


def test_an_odd_path_that_no_route_takes_is_none() -> None:
    assert RouteTable([route("a", "/a")]).match_odd("GET", "h", CanonicalPath("/b//c", EVERY)) == NoRoute()
