"""The route table: longest segment-prefix, then host, then method."""

import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.path import CanonicalPath, Oddity, canonical_path
from mitmgate.core.routing import NoRoute, RouteTable, allow_field, covers, host_matches
from mitmgate.core.rules import Circuit, Endpoint, Route, Upstream

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
        limits=(),
        odd=odd,
    )


def found(table: RouteTable, path: str, method: str = "GET", host: str = "api.example") -> str | tuple[str, ...]:
    result = table.match(method, host, path)
    return result.allow if isinstance(result, NoRoute) else result.name


def test_prefixes_end_at_segments() -> None:
    assert covers("/api/v1/users", "/api/v1/users")
    assert covers("/api/v1/users", "/api/v1/users/7")
    assert not covers("/api/v1/users", "/api/v1/usersX")
    assert covers("/api/", "/api")
    assert covers("/api/", "/api/x")
    assert not covers("/api/", "/apix")
    assert not covers("/api/", "/")
    assert allow_field(["GET"]) == ((b"Allow", b"GET, HEAD"),)
    assert allow_field([]) == ()
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
    assert not host_matches("*.example", ".example")
    assert host_matches("api.example", "api.example")
    assert not host_matches("api.example", "API.example")
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
        ("/x%3By/z", "all"),
        ("/x%3Fy%23/z", "all"),
        ("/admin%3Bx", ""),  # a server that parses what it has decoded reads /admin
        ("/admin%3bx/y", ""),
        ("/admin%3Fx", ""),
        ("/admin%23", ""),
        ("/%3Bx/admin", ""),
        ("/files/a%3Bx", "an encoded ; ? or #"),  # no route of a policy is without it
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


HOSTS = ["a.example", "b.example", "x.a.example", "example", "other.test", "::1", "192.0.2.1"]
PATTERNS = [*HOSTS, "*.example", "*.a.example", "*.test", "*.0.2.1"]
ROUTES = st.lists(
    st.builds(
        lambda path, methods, exact, hosts: (path, tuple(methods), exact, tuple(hosts)),
        st.sampled_from(["/", "/a", "/a/b"]),
        st.lists(st.sampled_from(["GET", "POST", "HEAD"]), max_size=2, unique=True),
        st.booleans(),
        st.lists(st.sampled_from(PATTERNS), max_size=3, unique=True),
    ),
    max_size=9,
)


def looked_for(table: RouteTable, method: str, host: str, path: str) -> str | tuple[str, ...]:
    """Find a route by looking at each: what `match` does, without its index."""
    paths = {(route.exact, route.path): None for route in table.routes}  # most specific first
    for exact, prefix in paths:
        if path != prefix if exact else not covers(prefix, path):
            continue
        here = [
            route
            for route in table.routes
            if (route.exact, route.path) == (exact, prefix)
            and (not route.hosts or any(host_matches(pattern, host) for pattern in route.hosts))
        ]
        for wanted in [method, *(["GET"] if method == "HEAD" else [])]:
            for one in here:
                if not one.methods or wanted in one.methods:
                    return one.name
        if here:
            named = {allowed for one in here for allowed in one.methods}
            return tuple(sorted(named | {"HEAD"} if "GET" in named else named))
    return ()


@given(ROUTES, st.sampled_from(["GET", "HEAD", "PUT"]), st.sampled_from(HOSTS), st.sampled_from(["/", "/a", "/a/b/c"]))
def test_the_index_finds_what_a_look_at_each_route_finds(
    given_routes: list[tuple[str, tuple[str, ...], bool, tuple[str, ...]]], method: str, host: str, path: str
) -> None:
    table = RouteTable(
        route(f"r{number}", where, *methods, exact=exact, hosts=hosts)
        for number, (where, methods, exact, hosts) in enumerate(given_routes)
    )
    assert found(table, path, method, host) == looked_for(table, method, host, path)


@pytest.mark.parametrize("pattern", ["h{}.example", "*.h{}.example"])
def test_a_thousand_hosts_at_one_path_cost_what_a_few_do(pattern: str) -> None:
    """They cost a hundred times as much where each was compared; the room here is ten times what is needed."""

    def seconds(count: int) -> float:
        table = RouteTable(route(f"r{n}", "/a", hosts=(pattern.format(n),)) for n in range(count))
        host = f"www.h{count - 1}.example" if pattern.startswith("*") else f"h{count - 1}.example"
        assert found(table, "/a/b", host=host) == f"r{count - 1}"
        return min(timeit.repeat(lambda: table.match("GET", host, "/a/b"), number=50, repeat=20))

    assert seconds(1000) < 20 * seconds(3)
