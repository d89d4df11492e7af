"""Routing: which route a request takes, recorded; an encoded slash only where the route opted in."""

from dataclasses import replace

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.routing import RouteTable
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.hygiene import Hygiene
from mitmgate.stages.routing import Routing
from tests.stages.exchanges import (
    Fields,
    arrived,
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    flow_of,
    said,
    snapshot_of,
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def clean(snapshot: Snapshot, method: str = "GET", path: str = "/users/7", fields: Fields = ()) -> Exchange:
    return arrived(snapshot, flow_of(method, path, fields), Hygiene())


PREFLIGHT = [(b"Origin", b"https://app.example"), (b"Access-Control-Request-Method", b"GET")]


@pytest.mark.parametrize(
    ("method", "path", "fields", "route"),
    [
        ("GET", "/users/7", [], "users"),
        ("POST", "/users", [], "users"),
        ("GET", "/%75sers/7", [], "users"),
        ("GET", "/files/a%2Fb", [], "files"),
        ("OPTIONS", "/users/7", PREFLIGHT, "users"),
    ],
)
def test_admits(snapshot: Snapshot, method: str, path: str, fields: Fields, route: str) -> None:
    made = clean(snapshot, method, path, fields)
    assert said(Routing(), made) == (Outcome.ADMIT, Reason.OK)
    assert made.route is not None and made.route.name == route
    assert made.no_route is None


@pytest.mark.parametrize(
    ("method", "path", "fields", "allow"),
    [
        ("GET", "/usersX", [], ()),
        ("GET", "/nowhere", [], ()),
        ("DELETE", "/users/7", [], ("GET", "HEAD", "POST")),
        ("OPTIONS", "/users/7", PREFLIGHT[:1], ("GET", "HEAD", "POST")),
        ("OPTIONS", "/users/7", PREFLIGHT[1:], ("GET", "HEAD", "POST")),
        ("OPTIONS", "/users/7", [PREFLIGHT[0], (b"Access-Control-Request-Method", b"PUT")], ("GET", "HEAD", "POST")),
    ],
)
def test_records_that_there_is_no_route_and_leaves_the_denial_to_authorization(
    snapshot: Snapshot, method: str, path: str, fields: Fields, allow: tuple[str, ...]
) -> None:
    made = clean(snapshot, method, path, fields)
    assert said(Routing(), made) == (Outcome.SKIP, Reason.NOT_APPLICABLE)
    assert made.route is None
    assert made.no_route is not None and made.no_route.allow == allow


@pytest.mark.parametrize("path", ["/users/a%2Fb", "/nowhere/a%2fb"])
def test_an_odd_path_has_a_route_only_where_that_takes_it(snapshot: Snapshot, path: str) -> None:
    """One that no route at all takes is refused by Hygiene; the files route of this policy takes encoded slashes."""
    made = clean(snapshot, path=path)
    assert said(Routing(), made) == (Outcome.SKIP, Reason.NOT_APPLICABLE)
    assert made.route is None and made.no_route is not None
    assert made.no_route.ambiguous == ("The path holds an encoded slash." if "users" in path else "")


@pytest.mark.parametrize(
    ("method", "path", "fields", "issuers", "preflight"),
    [
        ("OPTIONS", "/users/7", PREFLIGHT, None, True),
        ("GET", "/users/7", PREFLIGHT, None, False),
        ("OPTIONS", "/users/7", PREFLIGHT[:1], None, False),
        ("OPTIONS", "/near", PREFLIGHT, None, False),  # public, and without a rule: its service answers
        ("OPTIONS", "/near", PREFLIGHT, ("dev",), True),  # not public: answered as every path is
        ("OPTIONS", "/nowhere", PREFLIGHT, None, True),
    ],
)
def test_only_a_true_preflight_needs_no_credential(
    snapshot: Snapshot, method: str, path: str, fields: Fields, issuers: tuple[str, ...] | None, preflight: bool
) -> None:
    routes = RouteTable([replace(route, issuers=issuers) for route in snapshot.routes.routes])
    made = clean(replace(snapshot, routes=routes), method, path, fields)
    said(Routing(), made)
    assert made.preflight is preflight
    assert (made.route is None) is (path == "/nowhere" or fields == PREFLIGHT[:1])


def test_already_denied(snapshot: Snapshot) -> None:
    made = clean(snapshot)
    assert_leaves_decided_alone(Routing(), made)
    assert made.route is None


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(Routing, snapshot, clean(snapshot), monkeypatch)
