"""Rewrite: what the upstream gets, and that nothing unsafe is made of it."""

from dataclasses import replace

import pytest

from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Assertion
from mitmgate.core.template import parse
from mitmgate.core.verdict import Outcome, Verdict
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
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


ALICE = Principal(
    "al ice", "dev", ("user",), frozenset(), {"tenant": "acme, inc", "age": 7, "admin": True, "list": ["a"]}, NOW + 60
)


@pytest.mark.parametrize(
    ("key", "value", "encoded"),
    [
        ("subject", "al ice", "al%20ice"),
        ("issuer", "dev", "dev"),
        ("claim:tenant", "acme, inc", "acme%2C%20inc"),
        ("claim:age", "7", "7"),
        ("claim:admin", None, None),  # of no type that has one form in a field
        ("claim:list", None, None),
        ("claim:absent", None, None),
        ("header:x-asked", "why, not", "why, not"),
        ("header:x-absent", None, None),
        ("client_ip", "192.0.2.7", "192.0.2.7"),
        ("route", "files", "files"),
        ("host", "api.example", "api.example"),
        ("method", "GET", "GET"),
    ],
)
def test_what_a_placeholder_stands_for(snapshot: Snapshot, key: str, value: str | None, encoded: str | None) -> None:
    for percent, expected in ((False, value), (True, encoded)):
        telling = replace(snapshot, forward=replace(snapshot.forward, percent=percent))
        made = placed(telling, "/files/a", [(b"X-Asked", b"why, not")])
        rule = replace(made.route.rewrite, set=((b"x-told", parse(f"={{{key}}}")),))  # type: ignore[union-attr]
        made.route = replace(made.route, rewrite=rule)  # type: ignore[type-var]
        made.principal = ALICE
        assert sent(made).get(b"x-told") == (None if expected is None else [f"={expected}".encode()])
        made.principal = None
        if key in {"subject", "issuer"} or key.startswith("claim"):
            assert b"x-told" not in sent(again(made)), "nobody is not told as somebody"


def again(made: Exchange) -> Exchange:
    """Let an exchange be rewritten once more."""
    made.verdict, made.forward = Verdict(""), None
    return made


def test_identity_is_told_as_the_policy_says(snapshot: Snapshot) -> None:
    telling = replace(snapshot, forward=replace(snapshot.forward, issuer=b"x-issuer", percent=True))
    made = placed(telling)
    assert not {b"x-user-id", b"x-user-role", b"x-issuer"} & set(sent(made))
    made.principal = replace(ALICE, subject="al ice,é", roles=("a,b", "c"))
    fields = sent(again(made))
    assert (fields[b"x-user-id"], fields[b"x-issuer"]) == ([b"al%20ice%2C%C3%A9"], [b"dev"])
    assert fields[b"x-user-role"] == [b"a%2Cb,c"], "a role with a comma is one role"
    made.principal = replace(ALICE, roles=())
    assert b"x-user-role" not in sent(again(made))
    made = placed(snapshot)
    made.principal = replace(ALICE, subject="alice")
    assert b"x-issuer" not in sent(made)


def test_only_a_principal_is_vouched_for(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    class Signs:
        def assertion(self, principal: Principal, audience: str, method: str, path: str, now: float) -> bytes:
            return f"{principal.subject} {audience} {method} {path}".encode()

    rule = Assertion(b"x-assertion", b"no key", 60.0, "https://gateway.example")
    monkeypatch.setattr("mitmgate.stages.rewrite.signer_of", lambda asked: Signs() if asked is rule else None)
    vouching = replace(snapshot, forward=replace(snapshot.forward, assertion=rule))
    made = placed(vouching, "/moved/x?q")
    assert b"x-assertion" not in sent(made)
    made.principal = replace(ALICE, subject="alice")
    assert sent(again(made))[b"x-assertion"] == [b"alice pair GET /svc/x"]
    made.snapshot = snapshot
    assert b"x-assertion" not in sent(again(made))


@pytest.mark.parametrize(("hops", "passes"), [(b"0", None), (b"1", b"0"), (b"7", b"6"), (b"x", b"x"), (b"", b"")])
@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_an_options_goes_no_further_than_it_may(
    snapshot: Snapshot, hops: bytes, passes: bytes | None, mode: str
) -> None:
    """RFC 9110, section 7.6.2; the field says nothing with another method."""
    other = placed(snapshot, "/moved/x", [(b"Max-Forwards", hops)])
    assert sent(other)[b"max-forwards"] == [hops]
    made = placed(replace(snapshot, mode=mode), "/moved/x", [(b"Max-Forwards", hops)])  # type: ignore[arg-type]
    assert made.head is not None
    made.head = replace(made.head, method="OPTIONS")
    if passes is not None:
        assert sent(made)[b"max-forwards"] == [passes]
        return
    assert said(Rewrite(), made) == (Outcome.ANSWER, Reason.MAX_FORWARDS)
    assert made.forward is None and made.verdict.final is not None
    assert made.answer is not None and made.answer.status == 204


def test_what_a_trusted_proxy_was_asked_for_is_told(snapshot: Snapshot) -> None:
    made = placed(snapshot)
    made.public_host, made.public_port, made.scheme = "pub.example", "8443", "https"
    fields = sent(made)
    assert fields[b"x-forwarded-host"] == [b"pub.example"]
    assert (fields[b"x-forwarded-port"], fields[b"x-forwarded-proto"]) == ([b"8443"], [b"https"])
    assert fields[b"host"] == [b"api.example"]
    assert b"x-forwarded-port" not in sent(placed(snapshot))


@pytest.mark.parametrize(
    ("rule", "host"),
    [("preserve", b"api.example"), ("upstream", b"127.0.0.1:9001"), ("other.example", b"other.example")],
)
def test_the_host_is_the_upstreams_rule(snapshot: Snapshot, rule: str, host: bytes) -> None:
    made = placed(snapshot)
    assert made.route is not None
    made.route = replace(made.route, upstream=replace(made.route.upstream, host=rule))
    assert sent(made)[b"host"] == [host]


def test_without_host_the_authority_is_the_host_and_without_either_it_denies(snapshot: Snapshot) -> None:
    made = placed(snapshot)
    assert made.head is not None
    made.head = replace(made.head, headers=Headers(()))
    made.request = replace(made.request, authority="h2.example")
    assert sent(made)[b"host"] == [b"h2.example"]
    made.request = replace(made.request, authority="")
    assert said(Rewrite(), again(made)) == (Outcome.DENY, Reason.STAGE_ERROR)


def test_without_a_name_there_is_no_via(snapshot: Snapshot) -> None:
    assert sent(placed(snapshot))[b"via"] == [b"1.1 mitmgate"]
    assert b"via" not in sent(placed(replace(snapshot, via=None)))


def test_a_request_that_is_no_handshake_upgrades_nothing(snapshot: Snapshot) -> None:
    assert not {b"upgrade", b"connection"} & set(sent(placed(snapshot, "/moved/x")))


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
