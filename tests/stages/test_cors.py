"""Cors: preflights are answered, foreign origins refused, the fields of the response prepared."""

from dataclasses import replace
from pathlib import Path

import pytest

from mitmgate.core.headers import Headers
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.enforcer import BLACK_HOLE
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.authentication import Authentication
from mitmgate.stages.cors import Cors
from mitmgate.stages.response_headers import ResponseHeaders
from tests.stages.exchanges import (
    Fields,
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    enforced,
    routed,
    said,
    snapshot_of,
)

OURS, FOREIGN = (b"Origin", b"https://app.example"), (b"Origin", b"https://evil.example")
ASKS = (b"Access-Control-Request-Method", b"GET")
HEADER = b"Access-Control-Request-Headers"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("method", "path", "fields", "outcome"),
    [
        ("GET", "/users/7", [], Outcome.SKIP),
        ("GET", "/users/7", [OURS], Outcome.ADMIT),
        ("GET", "/users/7", [(b"Origin", b"http://api.example")], Outcome.SKIP),  # the gateway's own
        ("GET", "/near", [FOREIGN], Outcome.SKIP),  # the route has no CORS policy
        ("GET", "/nowhere", [FOREIGN], Outcome.SKIP),
        ("OPTIONS", "/near", [OURS, ASKS], Outcome.SKIP),  # a public route: its service answers
    ],
)
def test_admits_or_skips(snapshot: Snapshot, method: str, path: str, fields: Fields, outcome: Outcome) -> None:
    made = routed(snapshot, method, path, fields)
    assert said(Cors(), made)[0] is outcome
    granted = () if made.cors is None else made.cors.fields
    assert (b"Access-Control-Allow-Origin" in dict(granted)) is (outcome is Outcome.ADMIT)
    assert (made.cors is not None and made.cors.vary) is path.startswith("/users")


@pytest.mark.parametrize(
    ("public_host", "public_port", "origin", "outcome"),
    [
        (None, None, b"http://api.example", Outcome.SKIP),
        (None, None, b"http://pub.example", Outcome.DENY),
        ("pub.example", None, b"https://pub.example", Outcome.SKIP),
        ("pub.example", None, b"http://api.example", Outcome.DENY),
        ("pub.example", None, b"https://pub.example:8443", Outcome.DENY),
        ("pub.example", "8443", b"https://pub.example:8443", Outcome.SKIP),
        ("pub.example", "8443", b"https://pub.example", Outcome.SKIP),
        ("pub.example", "8443", b"https://pub.example:9443", Outcome.DENY),
    ],
)
def test_the_gateways_own_origin_is_the_one_that_was_asked_for(
    snapshot: Snapshot, public_host: str | None, public_port: str | None, origin: bytes, outcome: Outcome
) -> None:
    made = routed(snapshot, fields=[(b"Origin", origin)])
    made.public_host, made.public_port = public_host, public_port
    assert said(Cors(), made)[0] is outcome


def test_without_host_the_authority_says_what_was_asked_for(snapshot: Snapshot) -> None:
    made = routed(snapshot, fields=[(b"Origin", b"https://api.example")])
    assert made.head is not None
    made.head = replace(made.head, headers=Headers(((b"Origin", b"https://api.example"),)))
    made.request = replace(made.request, authority="api.example")  # HTTP/2
    assert said(Cors(), made)[0] is Outcome.SKIP


DENIALS = [
    ("GET", [FOREIGN], Reason.ORIGIN_NOT_ALLOWED),
    ("GET", [(b"Origin", b"null")], Reason.ORIGIN_NOT_ALLOWED),
    ("GET", [(b"Origin", b"https://app.example.evil.example")], Reason.ORIGIN_NOT_ALLOWED),
    ("GET", [(b"Origin", b"https://APP.example")], Reason.ORIGIN_NOT_ALLOWED),
    ("OPTIONS", [FOREIGN, ASKS], Reason.ORIGIN_NOT_ALLOWED),
    ("OPTIONS", [OURS, (ASKS[0], b"POST")], Reason.PREFLIGHT_REFUSED),
    ("OPTIONS", [OURS, ASKS, (HEADER, b"authorization, x-other")], Reason.PREFLIGHT_REFUSED),
]


@pytest.mark.parametrize(("method", "fields", "reason"), DENIALS)
def test_denies(snapshot: Snapshot, method: str, fields: Fields, reason: Reason) -> None:
    made = routed(snapshot, method, fields=fields)
    assert said(Cors(), made) == (Outcome.DENY, reason)
    flow = assert_refused(snapshot, made, reason)
    ResponseHeaders().responseheaders(flow)
    assert flow.response is not None and flow.response.headers["Vary"] == "Origin"
    readable = reason is Reason.PREFLIGHT_REFUSED  # then the origin is one of ours
    assert ("Access-Control-Allow-Origin" in flow.response.headers) is readable


@pytest.mark.parametrize(("method", "fields", "reason"), DENIALS)
def test_report_mode_observes(tmp_path: Path, method: str, fields: Fields, reason: Reason) -> None:
    made = routed(snapshot_of(tmp_path, "report"), method, fields=fields)
    assert said(Cors(), made) == (Outcome.OBSERVE, reason)
    assert made.verdict.final is None


def test_answers_a_preflight_and_sends_nothing(snapshot: Snapshot) -> None:
    made = routed(snapshot, "OPTIONS", fields=[OURS, ASKS, (HEADER, b"AUTHORIZATION")])
    assert said(Cors(), made) == (Outcome.ANSWER, Reason.PREFLIGHT)
    flow = enforced(snapshot, made)
    ResponseHeaders().responseheaders(flow)
    assert flow.response is not None
    headers = flow.response.headers
    assert (flow.response.status_code, headers.get_all("Access-Control-Allow-Origin")) == (204, ["https://app.example"])
    assert (headers["Access-Control-Allow-Methods"], headers["Access-Control-Max-Age"]) == ("GET", "3600")
    assert headers["Access-Control-Allow-Headers"] == "Authorization"
    vary = {name.strip() for name in headers["Vary"].split(",")}
    assert vary == {"Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"}
    assert (flow.request.host, made.admitted) == (BLACK_HOLE, False)


def test_already_denied(snapshot: Snapshot) -> None:
    made = routed(snapshot, "OPTIONS", fields=[OURS, ASKS])
    assert_leaves_decided_alone(Cors(), made)
    assert made.answer is None


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(Cors, snapshot, routed(snapshot), monkeypatch)


CLOSED = """
version: 1
identity:
  issuers: {dev: {issuer: https://dev.example, algorithms: [HS256], keys: {secret_env: DEV}}}
upstreams: {one: {endpoints: ["http://127.0.0.1:9001"]}}
cors:
  web: {origins: ["https://app.example"], methods: [GET], headers: [Authorization], credentials: true, max_age: 1h}
  tool: {origins: ["https://tool.example", "https://app.example"], methods: [PUT], headers: [X-Tool], expose: [ETag]}
routes:
  - {name: web, match: {prefix: /web}, upstream: one, cors: web}
  - {name: tool, match: {prefix: /tool}, upstream: one, cors: tool}
  - {name: bare, match: {prefix: /bare}, upstream: one}
  - {name: open, match: {prefix: /open}, upstream: one, auth: none, cors: tool}
"""


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    path = tmp_path_factory.mktemp("closed") / "policy.yaml"
    path.write_text(CLOSED)
    return load_snapshot(path, {"DEV": "a development secret of 32 bytes or more"})


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("origin", [b"https://app.example", b"https://tool.example", b"https://evil.example"])
def test_a_preflight_is_answered_alike_for_every_path_that_is_not_public(
    closed: Snapshot, origin: bytes, method: str
) -> None:
    """With what all rules together allow the origin: none of these says which route there is, or whether."""
    fields = [(b"Origin", origin), (b"Access-Control-Request-Method", method.encode()), (HEADER, b"x-tool")]
    answers = []
    for path in ("/web", "/tool/7", "/bare", "/nowhere"):
        made = routed(closed, "OPTIONS", path, fields)
        assert made.preflight
        assert said(Authentication(KeyRing()), made) == (Outcome.SKIP, Reason.NOT_APPLICABLE)
        answers.append((said(Cors(), made), made.cors, made.answer))
    assert answers == answers[:1] * 4
    if origin == b"https://evil.example":
        assert answers[0][0] == (Outcome.DENY, Reason.ORIGIN_NOT_ALLOWED)
    elif method == "PUT" or (method == "GET" and origin == b"https://app.example"):
        assert answers[0][0] == (Outcome.ANSWER, Reason.PREFLIGHT)
    else:
        assert answers[0][0] == (Outcome.DENY, Reason.PREFLIGHT_REFUSED)


def test_a_public_routes_own_rule_answers_its_preflights(closed: Snapshot) -> None:
    made = routed(closed, "OPTIONS", "/open", [OURS, ASKS])
    assert said(Cors(), made) == (Outcome.DENY, Reason.PREFLIGHT_REFUSED)
    made = routed(closed, "OPTIONS", "/open", [OURS, (ASKS[0], b"PUT")])
    assert said(Cors(), made) == (Outcome.ANSWER, Reason.PREFLIGHT)


def test_the_routes_own_rule_decides_on_the_request_itself(closed: Snapshot) -> None:
    tool = (b"Origin", b"https://tool.example")
    for path, outcome in (("/web", Outcome.DENY), ("/tool", Outcome.ADMIT), ("/bare", Outcome.SKIP)):
        made = routed(closed, "GET", path, [tool])
        assert said(Cors(), made)[0] is outcome


@pytest.mark.parametrize("path", ["/web", "/tool", "/bare", "/nowhere"])
@pytest.mark.parametrize("origin", [None, b"https://app.example", b"https://tool.example", b"https://evil.example"])
def test_a_denial_can_be_read_by_an_allowed_origin_and_says_nothing_of_the_path(
    closed: Snapshot, origin: bytes | None, path: str
) -> None:
    made = routed(closed, "GET", path, [] if origin is None else [(b"Origin", origin)])
    assert said(Authentication(KeyRing()), made) == (Outcome.DENY, Reason.CREDENTIAL_MISSING)
    flow = assert_refused(closed, made, Reason.CREDENTIAL_MISSING, upstream="one")
    ResponseHeaders().responseheaders(flow)
    assert flow.response is not None
    headers = flow.response.headers
    assert headers.get_all("Vary") == ["Origin"]
    known = origin is not None and b"evil" not in origin
    assert headers.get("Access-Control-Allow-Origin") == (origin.decode() if origin is not None and known else None)
    assert ("Access-Control-Allow-Credentials" in headers) is (origin == b"https://app.example")
    assert ("Access-Control-Expose-Headers" in headers) is known
