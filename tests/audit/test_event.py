"""The event of a request says who, what, and what came of it; and nothing that is a secret."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.audit import event as events
from mitmgate.audit.event import rfc3339
from mitmgate.audit.record import render
from mitmgate.audit.redact import Redaction
from mitmgate.audit.settings import Redact
from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Head
from mitmgate.core.verdict import Outcome, Step
from tests.audit.facts import JWT, NOW, REDACTION, REQUEST, Facts, admitted, denied, event_of, grant, unread


def written(facts: Facts, status: int | None = 200, redaction: Redaction = REDACTION, **more: Any) -> dict[str, Any]:
    record = render(event_of(facts, 0.0123456, status, redaction, **more))
    assert b"hidden" not in record and b"eyJ" not in record
    event: dict[str, Any] = orjson.loads(record)
    return event


def test_a_proxied_request() -> None:
    event = written(admitted(), upstream_seconds=0.01, bytes_in=3, bytes_out=512)
    assert event == {
        "time": "2026-05-28T20:26:40.250Z",
        "event": "request",
        "request_id": "0123456789abcdef0123456789abcdef",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "client_ip": "192.0.2.7",
        "peer": "192.0.2.7",
        "protocol": "HTTP/1.1",
        "user": "alice",
        "issuer": "corp",
        "roles": ["admin"],
        "method": "GET",
        "host": "api.example",
        "path": "/api/v1/users/7",
        "query": "page=2&token=[redacted]",
        "user_agent": "curl/8.9.1",
        "route": "users",
        "upstream": "users",
        "endpoint": "http://127.0.0.1:9001",
        "status": 200,
        "outcome": "proxied",
        "decision": "admit",
        "reason": "ok",
        "duration_ms": 12.346,
        "upstream_ms": 10.0,
        "bytes_in": 3,
        "bytes_out": 512,
        "limits": [{"name": "per-user", "remaining": 99}, {"name": "per-client", "remaining": 599}],
        "policy": "sha256:" + "ab" * 32,
    }


def test_a_denied_request() -> None:
    event = written(denied(), 401)
    assert (event["outcome"], event["decision"], event["stage"]) == ("denied", "deny", "authentication")
    assert (event["status"], event["reason"], event["detail"]) == (401, "token-expired", "The token has expired.")
    assert "user" not in event and "endpoint" not in event and "limits" not in event


def test_an_answered_request() -> None:
    facts = Facts(principal=None, endpoint=None, route=None)
    facts.verdict.record(Step("endpoints", Outcome.ANSWER, Reason.HEALTH))
    event = written(facts)
    assert (event["outcome"], event["decision"], event["reason"]) == ("answered", "answer", "health")


def test_a_failed_upstream() -> None:
    facts = admitted()
    facts.failure, facts.failure_detail = Reason.UPSTREAM_TIMEOUT, "The upstream did not answer in time."
    event = written(facts, 504)
    assert (event["outcome"], event["decision"], event["stage"]) == ("failed", "admit", "protocol")
    assert (event["reason"], event["detail"]) == ("upstream-timeout", "The upstream did not answer in time.")


@pytest.mark.parametrize(("status", "logged"), [(None, 499), (200, 200)])
def test_a_client_that_left(status: int | None, logged: int) -> None:
    event = written(admitted(), status, aborted=True)
    assert (event["outcome"], event["reason"], event["status"]) == ("aborted", "client-closed", logged)
    facts = admitted()
    facts.failure = Reason.CLIENT_CLOSED
    assert written(facts, status, aborted=True)["outcome"] == "aborted"


def test_a_denied_client_that_left_is_denied() -> None:
    event = written(denied(), None, aborted=True)
    assert (event["outcome"], event["status"]) == ("denied", 401)


def test_cut_before_anything_was_decided() -> None:
    event = written(Facts(), None, aborted=True)
    assert (event["outcome"], event["decision"], event["status"]) == ("aborted", "none", 499)
    assert written(Facts(), None)["reason"] == "stage-error"


def test_report_mode_says_what_would_have_denied() -> None:
    facts = Facts(admitted=True)
    facts.verdict.record(Step("authorization", Outcome.OBSERVE, Reason.SCOPE_MISSING))
    facts.verdict.record(Step("rate-limit", Outcome.OBSERVE, Reason.QUOTA_EXCEEDED))
    event = written(facts)
    assert event["observed"] == ["authorization/scope-missing", "rate-limit/quota-exceeded"]
    assert event["outcome"] == "proxied"


def test_a_degraded_limit_is_told() -> None:
    facts = admitted()
    facts.grants.append(grant("per-tenant", 3, degraded=True))
    assert written(facts)["degraded"] is True


def test_another_endpoint_was_tried() -> None:
    facts = admitted()
    facts.retries = 1
    assert written(facts)["retries"] == 1
    assert "retries" not in written(admitted())


def test_an_upgraded_connection_is_told() -> None:
    assert written(admitted(), 101, upgraded=True)["upgraded"] is True


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("/a?token=hidden", "h", "/a", "token=[redacted]"),
        ("/a#access_token=hidden", "h", "/a", "access_token=[redacted]"),
        ("/a#x?token=hidden", "h", "/a", "x?token=[redacted]"),
        ("http://user:hidden@h.example/a?x=1", "h", "http://h.example/a", "x=1"),
        ("http://user:hidden@h.example", "h", "http://h.example", None),
        ("user:hidden@h.example:443", "h", "h.example:443", None),
        (f"/{JWT}/x?y={JWT}", "h", "/[redacted]/x", "y=[redacted]"),
        ("/a", "user:hidden@h.example", "/a", None),
        ("/caf\xc3\xa9", "h", "/café", None),
        ("/caf\xe9", "h", "/caf\\xe9", None),
        ("*", "h", "*", None),
        ("", "", "", None),
        ("/a\nb\u2028", "h", "/a\nb\u2028", None),
    ],
)
def test_a_target_that_was_refused(target: str, host: str, path: str, query: str | None) -> None:
    event = written(unread(target, (b"Host", host.encode())), 400)
    assert event["path"] == path
    assert event.get("query") == query
    assert event["host"] == host.rpartition("@")[2]


def test_without_any_header() -> None:
    event = written(unread("/x", method=JWT), 400)
    assert event["host"] == ""
    assert event["method"] == "[redacted]"
    assert "user_agent" not in event


def test_a_header_that_the_policy_redacts() -> None:
    event = written(admitted(), redaction=Redaction(Redact(headers=("User-Agent",))))
    assert event["user_agent"] == "[redacted]"


def test_times() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(NOW) == "2026-05-28T20:26:40.250Z"
    assert rfc3339(1_780_000_000.9999) == "2026-05-28T20:26:40.999Z"


def test_events_of_the_gateway() -> None:
    made = [
        events.gateway_started(NOW, "sha256:a", version="0.1.0"),
        events.gateway_stopped(NOW, pid=1),
        events.policy_reloaded(NOW, "sha256:b", "sha256:a"),
        events.policy_rejected(NOW, "sha256:a", ["p.yaml:3:1: no such member"]),
        events.audit_dropped(NOW, 3, 10),
        events.audit_recovered(NOW, "file:audit.jsonl", torn_bytes=12),
        events.sink_failed(NOW, "file:audit.jsonl", "No space left on device", False),
        events.sink_recovered(NOW, "file:audit.jsonl", 1.5, 100),
    ]
    assert [event["event"] for event in made] == [
        "gateway-started",
        "gateway-stopped",
        "policy-reloaded",
        "policy-rejected",
        "audit-dropped",
        "audit-recovered",
        "sink-failed",
        "sink-recovered",
    ]
    assert {event["time"] for event in made} == {"2026-05-28T20:26:40.250Z"}


WIRE = st.text(st.characters(max_codepoint=255))
BYTES = st.tuples(st.sampled_from([b"Host", b"User-Agent", b"user-agent", b"X"]), st.binary())


@given(
    method=WIRE,
    target=WIRE,
    authority=WIRE,
    fields=st.lists(BYTES),
    head=st.none() | st.tuples(WIRE, st.none() | WIRE, WIRE),
    subject=st.text(),
    roles=st.lists(st.text()),
    now=st.floats(0, 4e9),
    detail=st.text(),
    final=st.none() | st.sampled_from(Reason),
    failure=st.none() | st.sampled_from(Reason),
    client=st.none() | st.ip_addresses(),
    request_id=st.text(),
    traceparent=st.text(),
    status=st.none() | st.integers(100, 599),
    aborted=st.booleans(),
    seconds=st.floats(-1, 1e6),
)
def test_any_request_is_one_event(
    method: str,
    target: str,
    authority: str,
    fields: list[tuple[bytes, bytes]],
    head: tuple[str, str | None, str] | None,
    subject: str,
    roles: list[str],
    now: float,
    detail: str,
    final: Reason | None,
    failure: Reason | None,
    client: Any,
    request_id: str,
    traceparent: str,
    status: int | None,
    aborted: bool,
    seconds: float,
) -> None:
    request = replace(REQUEST, method=method, target=target, authority=authority, headers=Headers(fields))
    facts = Facts(
        request=request,
        request_id=request_id,
        traceparent=traceparent,
        now=now,
        head=None if head is None else Head(method, head[0], head[1], head[2], None, request.headers, None),
        principal=Principal(subject, "corp", tuple(roles), frozenset(), {}, now),
        client=client,
        failure=failure,
        failure_detail=detail,
    )
    if final is not None:
        facts.verdict.record(Step("authentication", Outcome.DENY, final, detail))
    record = render(event_of(facts, seconds, status, aborted=aborted))
    assert record.isascii() and len(record.splitlines()) == 1
    assert not any(byte < 0x20 for byte in record)
    event = orjson.loads(record)
    assert event["event"] == "request"
    assert event["reason"] in {reason.code for reason in Reason}
    assert event["outcome"] in {"proxied", "denied", "answered", "failed", "aborted"}
    assert 100 <= event["status"] <= 599
    assert event["client_ip"] is None or ip_address(event["client_ip"]) == client
