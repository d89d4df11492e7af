"""Audit writes exactly one event for each request, whatever became of it."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from mitmproxy.flow import Error
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.test import taddons
from mitmproxy.test.tflow import tflow
from mitmproxy.websocket import WebSocketData

from mitmgate.audit.mirror import mirror
from mitmgate.audit.trail import AuditSettings, FileSink, open_trail
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step, Verdict
from mitmgate.pipeline.exchange import Exchange, begin, exchanges
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.audit import Audit
from tests.audit.facts import ALICE, ENDPOINT, HEAD, JWT, NOW, REQUEST, ROUTE, grant


class Log:
    """Audit as mitmproxy calls it, and the file that it writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trail = open_trail(AuditSettings(sinks=(FileSink(str(path)),)))
        self.trail.start("sha256:test")
        self.audit = Audit(self.trail)
        self.context = taddons.context(self.audit)

    def events(self) -> list[dict[str, Any]]:
        assert self.trail.flush()
        lines = map(orjson.loads, self.path.read_bytes().splitlines())
        return [event for event in lines if event["event"] == "request"]

    def event(self) -> dict[str, Any]:
        (event,) = self.events()
        return event


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "audit.jsonl")
    with log.context:
        yield log
    assert log.trail.close()


def exchange(*steps: Step) -> Exchange:
    made = Exchange(
        snapshot=cast(Snapshot, SimpleNamespace(own={})),  # all that is read of it
        request=REQUEST,
        request_id="0123456789abcdef",
        now=NOW,
        started=perf_counter(),
        verdict=Verdict("sha256:test"),
        head=HEAD,
        route=ROUTE,
        principal=ALICE,
        endpoint=ENDPOINT,
        grants=[grant("per-user", 99)],
        admitted=not steps,
    )
    for step in steps:
        made.verdict.record(step)
    return made


def flow_of(made: Exchange | None, status: int | None = 200, body: bytes | None = b"hello") -> HTTPFlow:
    flow = tflow()
    if status is not None:
        flow.response = Response.make(status, body or b"")
        if body is None:
            flow.response.data.content = None
    if made is not None:
        begin(flow, made)
    return flow


DENIED = Step("authentication", Outcome.DENY, Reason.TOKEN_EXPIRED, "The token has expired.")
ANSWERED = Step("endpoints", Outcome.ANSWER, Reason.HEALTH)


def test_proxied(log: Log) -> None:
    made = exchange()
    made.upstream_seconds = 0.002
    log.audit.response(flow_of(made))
    event = log.event()
    assert (event["outcome"], event["status"], event["reason"], event["user"]) == ("proxied", 200, "ok", "alice")
    assert (event["bytes_in"], event["bytes_out"], event["upstream_ms"]) == (7, 5, 2.0)
    assert 0 < event["duration_ms"] < 10_000
    assert made.audited


def test_no_credential_is_in_the_file(log: Log) -> None:
    log.audit.response(flow_of(exchange()))
    assert log.event()["query"] == "page=2&token=[redacted]"
    text = log.path.read_text()
    assert JWT not in text and "hidden" not in text and "Bearer" not in text


@pytest.mark.parametrize(("step", "status", "outcome"), [(DENIED, 401, "denied"), (ANSWERED, 200, "answered")])
def test_not_forwarded(log: Log, step: Step, status: int, outcome: str) -> None:
    log.audit.response(flow_of(exchange(step), status))
    event = log.event()
    assert (event["outcome"], event["status"], event["stage"]) == (outcome, status, step.stage)


def test_failed_after_admission(log: Log) -> None:
    made = exchange()
    made.failure = Reason.UPSTREAM_UNREACHABLE
    log.audit.response(flow_of(made, 502))
    assert (log.event()["outcome"], log.event()["reason"]) == ("failed", "upstream-unreachable")


@pytest.mark.parametrize("status", [None, 200])
def test_aborted(log: Log, status: int | None) -> None:
    flow = flow_of(exchange(), status)
    flow.error = Error("peer closed connection")
    log.audit.error(flow)
    assert (log.event()["outcome"], log.event()["status"]) == ("aborted", status or 499)


HOOKS = ["response", "error", "websocket_end"]


@pytest.mark.parametrize("hooks", list(itertools.product(HOOKS, repeat=3)))
def test_once_whatever_comes_and_how_often(log: Log, hooks: tuple[str, ...]) -> None:
    flow = flow_of(exchange())
    for hook in hooks:
        getattr(log.audit, hook)(flow)
    assert len(log.events()) == 1


@pytest.mark.parametrize("end", ["websocket_end", "error"])
def test_a_websocket_has_one_event_at_its_end(log: Log, end: str) -> None:
    flow = flow_of(exchange(), 101, b"")
    flow.websocket = WebSocketData()
    log.audit.response(flow)
    assert log.events() == []
    getattr(log.audit, end)(flow)
    log.audit.error(flow)
    event = log.event()
    assert (event["status"], event["upgraded"]) == (101, True)
    assert event["outcome"] == ("proxied" if end == "websocket_end" else "aborted")


def test_a_streamed_body_has_the_size_that_the_protocol_layer_counted(log: Log) -> None:
    made = exchange()
    made.body_in, made.body_out = 10, 1_000_000
    flow = flow_of(made, body=None)
    flow.request.data.content = None
    log.audit.response(flow)
    assert (log.event()["bytes_in"], log.event()["bytes_out"]) == (10, 1_000_000)


@pytest.mark.parametrize(
    ("content", "declared", "aborted", "size"),
    [(b"hello", 9, False, 5), (None, 9, False, 9), (None, 9, True, None), (None, None, False, None)],
)
@pytest.mark.parametrize(("streamed", "body", "out"), [(None, b"abc", 3), (7, b"abc", 7), (7, None, 7)])
def test_sizes(
    log: Log,
    content: bytes | None,
    declared: int | None,
    aborted: bool,
    size: int | None,
    streamed: int | None,
    body: bytes | None,
    out: int,
) -> None:
    made = exchange()
    made.request, made.body_out = replace(made.request, declared_body=declared), streamed
    flow = flow_of(made, body=body)
    flow.request.data.content = content
    (log.audit.error if aborted else log.audit.response)(flow)
    assert (log.event().get("bytes_in"), log.event()["bytes_out"]) == (size, out)


def test_a_size_that_nobody_knows_is_left_out(log: Log) -> None:
    flow = flow_of(exchange(DENIED), 401, None)
    flow.request.data.content = None
    log.audit.response(flow)
    assert not {"bytes_in", "bytes_out"} & set(log.event())


def test_a_flow_without_exchange(log: Log) -> None:
    flow = flow_of(None, 503)
    for _ in range(2):
        log.audit.response(flow)
        log.audit.error(flow)
    event = log.event()
    assert (event["outcome"], event["status"], event["reason"]) == ("failed", 503, "policy-unavailable")


def test_an_event_that_cannot_be_made_is_still_one(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    made = exchange()
    made.head = cast(Any, object())
    log.audit.response(flow_of(made))
    event = log.event()
    assert (event["request_id"], event["reason"]) == ("0123456789abcdef", "stage-error")
    assert "could not be made" in caplog.text


def test_what_is_open_at_the_end_gets_its_event(log: Log) -> None:
    assert all(made.audited for _, made in exchanges()) or log.audit.conclude()  # of other tests
    before = len(log.events())
    done, open_, socket = (flow_of(exchange(), status) for status in (200, None, 101))
    socket.websocket = WebSocketData()
    log.audit.response(done)
    log.audit.response(socket)
    assert log.audit.conclude() == 2
    assert log.audit.conclude() == 0
    log.audit.error(open_)
    assert sorted(event["outcome"] for event in log.events()[before:]) == ["aborted", "aborted", "proxied"]


def test_without_sinks_nothing_is_made() -> None:
    trail = open_trail(AuditSettings())
    trail.start()
    Audit(trail).response(flow_of(exchange()))
    assert trail.close()


def test_an_exchange_can_be_mirrored() -> None:
    found = mirror(exchange(DENIED))
    assert (found["decision"], found["reason"]) == ("deny", "token-expired")
