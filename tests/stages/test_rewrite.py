"""Rewrite: what the upstream gets, and that nothing unsafe is made of it."""

from dataclasses import replace

import pytest

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.rewrite import Rewrite
from tests.stages.exchanges import (
    NOW,
    Fields,
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    routed,
    said,
    snapshot_of,
)

HANDSHAKE = [
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", b"AAAAAAAAAAAAAAAAAAAAAA=="),
]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def placed(snapshot: Snapshot, path: str = "/users/7", fields: Fields = ()) -> Exchange:
    """Return the exchange as CircuitBreaker leaves it."""
    made = routed(snapshot, path=path, fields=fields)
    assert made.route is not None
    made.endpoint = made.route.upstream.endpoints[0]
    return made


def sent(made: Exchange) -> dict[bytes, list[bytes]]:
    """Return the fields of an admitted request by lower-case name."""
    assert said(Rewrite(), made) == (Outcome.ADMIT, Reason.OK)
    assert made.forward is not None
    found: dict[bytes, list[bytes]] = {}
    for name, value in made.forward.fields:
        found.setdefault(name.lower(), []).append(value)
    return found


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/users/7", "/users/7"),
        ("/users/7?a=%2F&b", "/users/7?a=%2F&b"),
        ("/users?", "/users?"),
        ("/files/a/b?x", "/a/b?x"),
        ("/files", "/"),
        ("/files/", "/"),
        ("/moved/x", "/svc/x"),
        ("/moved", "/svc"),
    ],
)
def test_the_target(snapshot: Snapshot, path: str, target: str) -> None:
    made = placed(snapshot, path)
    fields = sent(made)
    assert made.forward is not None
    assert (made.forward.method, made.forward.target) == ("GET", target)
    host = b"api.example" if path.startswith("/users") else b"127.0.0.1:9002"
    assert fields[b"host"] == [host] and made.forward.host.encode() == host
    assert made.forward.fields[0][0] == b"Host"


def test_the_fields(snapshot: Snapshot) -> None:
    fields = [
        (b"Authorization", b"Bearer x"),
        (b"X-User-ID", b"root"),
        (b"X-Forwarded-For", b"127.0.0.1"),
        (b"X-Request-ID", b"abcdefgh"),
        (b"X-Debug", b"1"),
        (b"X-Client", b"127.0.0.1"),
        (b"X-Asked", b"why"),
        (b"Cookie", b"a=b"),
        (b"X-Same", b"1"),
        (b"X-Same", b"2"),
    ]
    made = placed(snapshot, "/files/a", fields)
    assert sent(made) == {
        b"host": [b"127.0.0.1:9002"],
        b"x-asked": [b"why"],
        b"cookie": [b"a=b"],
        b"x-same": [b"1", b"2"],
        b"x-request-id": [made.request_id.encode()],
        b"traceparent": [made.traceparent.encode()],
        b"x-client": [b"192.0.2.7"],
        b"x-echo": [b"why"],
        b"x-forwarded-for": [b"192.0.2.7"],
        b"x-forwarded-proto": [b"http"],
        b"x-forwarded-host": [b"api.example"],
        b"via": [b"1.1 mitmgate"],
    }


def test_a_template_without_value_sets_nothing_and_a_client_can_not_stand_in(snapshot: Snapshot) -> None:
    assert b"x-echo" not in sent(placed(snapshot, "/files/a", [(b"X-Echo", b"mine")]))


def test_identity(snapshot: Snapshot) -> None:
    made = placed(snapshot, fields=[(b"X-User-Role", b"admin"), (b"x.user.id", b"root")])
    made.principal = Principal("alice", "dev", ("user", "editor"), frozenset(), {}, NOW + 60)
    fields = sent(made)
    assert (fields[b"x-user-id"], fields[b"x-user-role"]) == ([b"alice"], [b"user,editor"])
    assert b"x.user.id" not in fields


@pytest.mark.parametrize(
    ("subject", "roles", "asked"),
    [
        ("a\r\nX-User-Role: admin", (), b"ok"),
        ("älice", (), b"ok"),
        ("a\0", (), b"ok"),
        (" alice", (), b"ok"),
        ("alice", ("user,admin",), b"ok"),
        ("alice", ("a\nb",), b"ok"),
        ("alice", (), b"\xe4"),
    ],
)
def test_denies_values_that_no_field_can_hold(
    snapshot: Snapshot, subject: str, roles: tuple[str, ...], asked: bytes
) -> None:
    made = placed(snapshot, "/files/a", [(b"X-Asked", asked)])
    made.principal = Principal(subject, "dev", roles, frozenset(), {}, NOW + 60)
    assert said(Rewrite(), made) == (Outcome.DENY, Reason.REWRITE_REFUSED)
    assert made.forward is None
    assert_refused(snapshot, made, Reason.REWRITE_REFUSED)


@pytest.mark.parametrize("path", ["/files/%2Fx", "/files%2F..%2Fx"])
@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_denies_a_path_that_would_be_ambiguous(snapshot: Snapshot, path: str, mode: str) -> None:
    made = placed(replace(snapshot, mode=mode), "/files/x")  # type: ignore[arg-type]  # a Mode
    assert made.head is not None
    made.head = replace(made.head, path=path)  # as no Hygiene would leave it
    assert said(Rewrite(), made) == (Outcome.DENY, Reason.REWRITE_REFUSED)
    assert_refused(snapshot, made, Reason.REWRITE_REFUSED)


def test_upgrades_only_where_the_route_says_so(snapshot: Snapshot) -> None:
    fields = sent(placed(snapshot, "/moved/ws", HANDSHAKE))
    assert (fields[b"connection"], fields[b"upgrade"]) == ([b"Upgrade"], [b"websocket"])
    made = placed(snapshot, "/files/ws", HANDSHAKE)
    assert said(Rewrite(), made) == (Outcome.DENY, Reason.UPGRADE_REFUSED)
    assert_refused(snapshot, made, Reason.UPGRADE_REFUSED)


@pytest.mark.parametrize("lost", ["head", "route", "endpoint", "client"])
def test_without_the_stages_before_it_it_denies(snapshot: Snapshot, lost: str) -> None:
    made = placed(snapshot)
    setattr(made, lost, None)
    assert said(Rewrite(), made) == (Outcome.DENY, Reason.STAGE_ERROR)
    assert made.forward is None


def test_already_denied(snapshot: Snapshot) -> None:
    made = placed(snapshot)
    assert_leaves_decided_alone(Rewrite(), made)
    assert made.forward is None


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(Rewrite, snapshot, placed(snapshot), monkeypatch)
