"""The schema of events: every kind that the gateway makes has its place in it, and no other."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from mitmgate.audit import event as made
from mitmgate.audit.commands import audit
from mitmgate.audit.record import Event
from mitmgate.audit.schema import schema
from mitmgate.audit.settings import AuditSettings, FileSink
from mitmgate.core.cause import Cause
from mitmgate.core.check import Check
from mitmgate.core.check import Kind as ProxyKind
from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.reason import Reason
from mitmgate.core.revocation import Revocation
from mitmgate.core.verdict import Outcome, Step
from tests.audit.conftest import Open
from tests.audit.facts import NOW, admitted, denied, event_of, grant, unread
from tests.live.event_schema import problems, strange_events

REVOCATION = Revocation("sub", "corp", "alice", NOW + 60, NOW, by="admin 127.0.0.1")
OWN: list[Event] = [
    made.gateway_started(NOW, "sha256:1", pid=1, instance="a"),
    made.gateway_stopped(NOW, pid=1, instance="a"),
    made.worker_lost(NOW, 7, "signal 9"),
    made.policy_reloaded(NOW, "sha256:2", "sha256:1"),
    made.policy_rejected(NOW, "sha256:1", ["policy.yaml:1:1: wrong"]),
    made.revocation_learnt(NOW, REVOCATION),
    made.revocation_learnt(NOW, Revocation("iss", "corp", "", NOW + 60, lifted=True)),
    made.revocations_unknown(NOW, "deny", "away"),
    made.revocations_known(NOW, None, 3),
    made.api_key_learnt(NOW, "k1", "robot"),
    made.api_key_ended(NOW, "k1", "robot", listed=True),
    made.api_keys_unknown(NOW, "last-known", "away"),
    made.api_keys_known(NOW, 1.5, 3),
    made.policy_reloaded(NOW, "sha256:2", "sha256:1", "a signal"),
    made.circuit_turned(NOW, "users http://127.0.0.1:1", "open", "status 500", "connect-refused", "x"),
    made.circuit_turned(NOW, "users http://127.0.0.1:1", "closed", "", "", ""),
    made.store_lost(NOW, "counter store a:6379", "refused"),
    made.store_recovered(NOW, "counter store a:6379", 1.5),
    made.stage_failed(NOW, "bots", "ValueError", 1),
    made.stage_slow(NOW, "bots", 1.5, 3),
    made.operator_acted(NOW, "circuits-reset", "mitmweb", "users"),
    made.audit_dropped(NOW, 3, 10),
    made.audit_recovered(NOW, "file:a", torn_bytes=3, unclean=True, missing=2, head_missing=True, rolled_back=True),
    made.refusals_moved(NOW, "file:a", "a.refused"),
    made.anchors_failed(NOW, "file:a", "full"),
    made.anchors_recovered(NOW, "file:a"),
    made.sink_failed(NOW, "file:a", "full", spilling=False),
    made.sink_recovered(NOW, "file:a", 1.5, 3),
    {"time": made.rfc3339(NOW), "event": "stage", "stage": "bots", "request_id": "x", "said": {"score": 0.5}},
]
"""One of each kind but requests and shadow's differences, which live tests make."""


def requests() -> list[Event]:
    whole = admitted()
    whole.check, whole.retries, whole.cause = Check(ProxyKind.NGINX, "192.0.2.1"), 1, Cause.CERTIFICATE_EXPIRED
    whole.service_answer = ServiceAnswer("opa", "deny", ((b"x", b"y"),), "why", 0.01, cached=True)
    whole.grants.append(grant("far", 3, degraded=True))
    whole.verdict.record(Step("mine", Outcome.OBSERVE, Reason.TOKEN_EXPIRED), 0.2)
    socket: dict[str, Any] = {"upgraded": True, "websocket": (1000, "client", 1, 2), "bytes_in": 1, "bytes_out": 2}
    failed = admitted()
    failed.failure, failed.failure_detail = Reason.UPSTREAM_CLOSED, "It broke off."
    return [
        event_of(whole, 0.1, 200, upstream_seconds=0.09, **socket),
        event_of(denied(), 0.1, 401),
        event_of(unread("/a\tb"), 0.1, 400),
        event_of(failed, 0.1, None, aborted=True),
        made.minimal_event("", NOW, Reason.STAGE_ERROR, "No event.", "sha256:1"),
    ]


def test_it_is_a_schema_and_printed() -> None:
    printed = json.loads(CliRunner().invoke(audit, ["schema"]).output)
    Draft202012Validator.check_schema(printed)
    assert printed == schema()
    assert printed["discriminator"]["mapping"].keys() == {event["event"] for event in OWN} | {
        "request",
        "shadow-difference",
    }


def test_every_kind_that_a_trail_writes_has_its_place(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(AuditSettings(sinks=(FileSink(str(path)),)))
    for event in [*OWN, *requests()]:
        trail.emit(dict(event))
    assert trail.close()
    events = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(events) == len(OWN) + len(requests()) + 2
    assert [problem for event in events for problem in problems(event)] == []
    assert strange_events(tmp_path) == []
    (whole,) = [event for event in events if "websocket" in event]
    assert whole["steps_us"] == {"mine": 200_000}
    assert (whole["protocol"], whole["v"]) == ("HTTP/1.1", 1)


@pytest.mark.parametrize(
    ("member", "value"), [("v", 2), ("worker", "x"), ("status", "200"), ("outcome", "lost"), ("strange", 1)]
)
def test_what_is_otherwise_is_found(tmp_path: Path, member: str, value: object) -> None:
    event = event_of(admitted(), 0.1, 200) | {"id": "a-1", "worker": 1, "v": 1}
    assert problems(event) == []
    (tmp_path / "audit.jsonl").write_text(json.dumps(event | {member: value}) + "\n{torn")
    assert len(strange_events(tmp_path)) == 1
