"""ResponseHeaders: what every response gains and loses, whoever made it."""

from dataclasses import replace

import pytest
from mitmproxy.http import Headers, HTTPFlow, Response
from mitmproxy.test import taddons

from mitmgate.core.reason import Reason
from mitmgate.core.rules import ResponseHeaders as Rule
from mitmgate.core.verdict import Outcome, Step
from mitmgate.core.window import Grant
from mitmgate.pipeline.exchange import Exchange, begin
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.cors import Cors
from mitmgate.stages.response_headers import ResponseHeaders
from tests.stages.exchanges import Fields, assert_refused, flow_of, routed, snapshot_of

ORIGIN = (b"Origin", b"https://app.example")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def passed(made: Exchange, *upstream: tuple[bytes, bytes]) -> Headers:
    """Pass an upstream's response to an admitted request, and return the fields that the client gets."""
    made.admitted = True
    flow = flow_of()
    begin(flow, made)
    flow.response = Response.make(200, b"", Headers(upstream))
    return finished(flow)


def finished(flow: HTTPFlow) -> Headers:
    addon = ResponseHeaders()
    with taddons.context(addon):
        addon.responseheaders(flow)
    assert flow.response is not None
    return flow.response.headers


def exchange(snapshot: Snapshot, path: str = "/near", fields: Fields = ()) -> Exchange:
    made = routed(snapshot, path=path, fields=fields)
    Cors().run(made)
    return made


def test_own_fields_replace_those_of_the_upstream(snapshot: Snapshot) -> None:
    made = exchange(snapshot)
    made.grants.append(Grant(made.snapshot.client_limits[0], True, 1, 30.0, 0.0, False))
    own = ["X-Request-ID", "X-Response-Time", "Server-Timing", "X-RateLimit-Limit", "X-RateLimit-Remaining"]
    own += ["X-RateLimit-Reset", "RateLimit", "RateLimit-Policy"]
    headers = passed(made, *[(name.swapcase().encode(), b"upstream's") for name in own])
    for name in own:
        (value,) = headers.get_all(name)
        assert value != "upstream's", name
    assert headers["X-Request-ID"] == made.request_id
    assert (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"]) == ("2", "1")


def test_without_a_limit_no_claim_of_the_upstream_about_limits_passes(snapshot: Snapshot) -> None:
    headers = passed(exchange(snapshot), (b"X-RateLimit-Limit", b"9"), (b"RateLimit", b"9"))
    assert not {"x-ratelimit-limit", "ratelimit"} & {name.lower() for name in headers}


def test_the_policy_sets_and_removes(snapshot: Snapshot) -> None:
    sent = [(b"Server", b"x"), (b"X-Content-Type-Options", b"off"), (b"Set-Cookie", b"a"), (b"Set-Cookie", b"b")]
    headers = passed(exchange(snapshot), *sent)
    assert "Server" not in headers
    assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
    assert headers.get_all("Set-Cookie") == ["a", "b"], "what nobody speaks of stays as it is"


@pytest.mark.parametrize("origin", [None, b"https://app.example"])
def test_cors_of_the_upstream_is_replaced(snapshot: Snapshot, origin: bytes | None) -> None:
    made = exchange(snapshot, "/users/7", [] if origin is None else [(b"Origin", origin)])
    upstream = [
        (b"Access-Control-Allow-Origin", b"*"),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"access-control-allow-methods", b"DELETE"),
        (b"Access-Control-Expose-Headers", b"Secret"),
    ]
    headers = passed(made, *upstream)
    expected = {} if origin is None else {"access-control-allow-origin": [origin.decode()]}
    if origin is not None:
        expected["access-control-expose-headers"] = ["X-Request-ID"]
    got = {name.lower() for name in headers if name.lower().startswith("access-control")}
    assert {name: headers.get_all(name) for name in got} == expected
    assert headers["Vary"] == "Origin"


def test_without_a_cors_policy_the_upstream_speaks_for_itself(snapshot: Snapshot) -> None:
    headers = passed(exchange(snapshot, "/near", [ORIGIN]), (b"Access-Control-Allow-Origin", b"*"))
    assert headers.get_all("Access-Control-Allow-Origin") == ["*"]
    assert "Vary" not in headers


@pytest.mark.parametrize(
    ("upstream", "rule", "vary"),
    [
        ([b"Accept-Encoding"], Rule(), {"Accept-Encoding", "Origin"}),
        ([b"Accept-Encoding", b"Cookie"], Rule(), {"Accept-Encoding", "Cookie", "Origin"}),
        ([b"Origin"], Rule(), {"Origin"}),
        ([b"Cookie"], Rule(set=((b"vary", b"Accept"),)), {"Accept", "Origin"}),
        ([b"Cookie"], Rule(remove=frozenset({b"vary"})), {"Origin"}),
    ],
)
def test_vary_is_merged(snapshot: Snapshot, upstream: list[bytes], rule: Rule, vary: set[str]) -> None:
    made = exchange(replace(snapshot, response_headers=rule), "/users/7", [ORIGIN])
    headers = passed(made, *[(b"Vary", value) for value in upstream])
    assert {name.strip() for name in headers["Vary"].split(",")} == vary


def test_a_denial_has_the_fields_too(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "/users/7", [ORIGIN])
    made.verdict.record(Step("authorization", Outcome.DENY, Reason.SCOPE_MISSING))
    headers = finished(assert_refused(snapshot, made, Reason.SCOPE_MISSING))
    assert headers["X-Request-ID"] == made.request_id
    assert headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_flow_that_never_arrived_or_has_no_response_is_left_alone(snapshot: Snapshot) -> None:
    flow = flow_of()
    ResponseHeaders().responseheaders(flow)
    flow.response = Response.make(503, b"", Headers([(b"Server", b"x")]))
    before = flow.response.headers.fields
    ResponseHeaders().responseheaders(flow)
    assert flow.response.headers.fields == before


def test_what_the_policy_says_of_the_gateways_own_fields_holds(snapshot: Snapshot) -> None:
    rule = Rule(((b"x-request-id", b"hidden"),), frozenset({b"server-timing"}))
    headers = passed(exchange(replace(snapshot, response_headers=rule)), (b"X-Request-ID", b"upstream's"))
    assert headers.get_all("X-Request-ID") == ["hidden"]
    assert "Server-Timing" not in headers


@pytest.mark.parametrize(
    ("upstream", "rule", "dates"),
    [
        ([], Rule(), 1),
        ([(b"Date", b"then")], Rule(), 1),
        ([(b"date", b"then")], Rule(), 1),
        ([], Rule(remove=frozenset({b"date"})), 0),
        ([(b"DATE", b"then")], Rule(remove=frozenset({b"date"})), 0),
        ([], Rule(set=((b"date", b"ours"),)), 1),
        ([(b"Date", b"then")], Rule(set=((b"date", b"ours"),)), 1),
    ],
)
def test_a_response_has_one_date_unless_the_policy_says_otherwise(
    snapshot: Snapshot, upstream: list[tuple[bytes, bytes]], rule: Rule, dates: int
) -> None:
    found = passed(exchange(replace(snapshot, response_headers=rule)), *upstream).get_all("Date")
    assert len(found) == dates
    if rule.set:
        assert found == ["ours"]
    elif upstream and dates:
        assert found == ["then"]


def test_one_policys_rule_is_not_anothers(snapshot: Snapshot) -> None:
    addon = ResponseHeaders()
    silent = Rule(((b"x-own", b"1"),), frozenset({b"x-request-id", b"x-kept"}))
    for rule, path in [(silent, "/near"), (Rule(), "/near"), (silent, "/users/7"), (Rule(), "/users/7")] * 2:
        made = exchange(replace(snapshot, response_headers=rule), path, [ORIGIN])
        made.admitted = True
        flow = flow_of()
        begin(flow, made)
        flow.response = Response.make(200, b"", Headers([(b"X-Kept", b"1"), (b"Access-Control-Max-Age", b"9")]))
        addon.responseheaders(flow)
        headers = flow.response.headers
        assert ("X-Own" in headers, "X-Kept" in headers) == ((True, False) if rule is silent else (False, True))
        assert headers.get_all("X-Request-ID") == ([] if rule is silent else [made.request_id])
        assert ("Access-Control-Max-Age" in headers) is (path == "/near"), "where Cors speaks, the upstream does not"
