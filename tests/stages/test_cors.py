"""Cors: preflights are answered, foreign origins refused, the fields of the response prepared."""

from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.cors import Cors
from mitmgate.stages.enforcer import BLACK_HOLE
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
        ("OPTIONS", "/near", [OURS, ASKS], Outcome.SKIP),
    ],
)
def test_admits_or_skips(snapshot: Snapshot, method: str, path: str, fields: Fields, outcome: Outcome) -> None:
    made = routed(snapshot, method, path, fields)
    assert said(Cors(), made)[0] is outcome
    granted = () if made.cors is None else made.cors.fields
    assert (b"Access-Control-Allow-Origin" in dict(granted)) is (outcome is Outcome.ADMIT)
    assert (made.cors is not None and made.cors.vary) is path.startswith("/users")


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
