"""Arrival: who is at the other end, under which policy, with which ids; and a place for the record."""

from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.certs import Cert
from mitmproxy.test import taddons

from mitmgate.audit.writer import DENIAL, Denial
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.exchange import exchange_of, received, reject, taken
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.arrival import Arrival, subject_of
from tests.protocol.certificates import Authority
from tests.stages.exchanges import NOW, Source, arrival, arrived, assert_refused, finish, flow_of, snapshot_of

TRACE = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def test_a_request_arrives(snapshot: Snapshot) -> None:
    flow = flow_of("POST", "/users/7?a=b", [(b"Content-Length", b"3")])
    made = arrived(snapshot, flow)
    assert [(step.stage, step.outcome) for step in made.verdict.steps] == [("arrival", Outcome.ADMIT)]
    assert (made.snapshot, made.verdict.policy_digest, made.now) == (snapshot, snapshot.digest, NOW)
    request = made.request
    assert (request.method, request.target, request.version) == ("POST", "/users/7?a=b", "HTTP/1.1")
    assert (request.scheme, request.peer, request.declared_body) == ("http", "192.0.2.7", 3)
    assert request.headers.fields == flow.request.headers.fields
    assert made.request_id != arrived(snapshot, flow_of()).request_id
    assert flow.response is None


@pytest.mark.parametrize(
    ("fields", "declared"),
    [
        ([], 0),
        ([(b"Content-Length", b"0")], 0),
        ([(b"content-length", b"12")], 12),
        ([(b"Transfer-Encoding", b"chunked")], None),
        ([(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"12")], None),
        ([(b"Content-Length", b"-1")], 0),
        ([(b"Content-Length", b"9" * 19)], 0),  # the protocol layer refuses these three
        ([(b"Content-Length", b"1"), (b"Content-Length", b"2")], 0),
    ],
)
def test_the_declared_body(snapshot: Snapshot, fields: list[tuple[bytes, bytes]], declared: int | None) -> None:
    assert arrived(snapshot, flow_of(fields=fields)).request.declared_body == declared


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.7", b"198.51.100.1", "192.0.2.7"),
        ("10.0.0.1", b"198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"203.0.113.9, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("::ffff:10.0.0.1", b"::ffff:198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", b"unknown", "None"),
        ("", b"198.51.100.1", "None"),
    ],
)
def test_the_client(snapshot: Snapshot, peer: str, forwarded: bytes, client: str) -> None:
    assert str(arrived(snapshot, flow_of(fields=[(b"X-Forwarded-For", forwarded)], peer=peer)).client) == client


@pytest.mark.parametrize(
    ("peer", "request_id", "scheme", "kept"),
    [
        ("10.0.0.1", b"abcdefgh-1", b"https", True),
        ("192.0.2.7", b"abcdefgh-1", b"https", False),
        ("10.0.0.1", b"short", b"gopher", False),
        ("10.0.0.1", b'quote"-and-more', b"https, http", False),
    ],
)
def test_what_is_believed_of_a_proxy(
    snapshot: Snapshot, peer: str, request_id: bytes, scheme: bytes, kept: bool
) -> None:
    fields = [(b"X-Request-ID", request_id), (b"X-Forwarded-Proto", scheme)]
    made = arrived(snapshot, flow_of(fields=fields, peer=peer))
    assert (made.request_id == request_id.decode()) is kept
    assert made.scheme == ("https" if kept else "http")


@pytest.mark.parametrize(("tls", "scheme"), [(True, "https"), (False, "http")])
def test_the_scheme_is_that_of_the_connection(snapshot: Snapshot, tls: bool, scheme: str) -> None:
    flow = flow_of()
    flow.client_conn.tls = tls
    made = arrived(snapshot, flow)
    assert (made.scheme, made.request.scheme) == (scheme, scheme)


def test_a_client_without_address_is_nobody(snapshot: Snapshot) -> None:
    flow = flow_of()
    flow.client_conn.peername = None  # type: ignore[assignment]  # as that of a connection that is gone
    made = arrived(snapshot, flow)
    assert (made.client, made.request.peer) == (None, "")


def test_the_subject_of_a_client_certificate(tmp_path: Path) -> None:
    client = flow_of().client_conn
    assert subject_of(client) is None
    client.certificate_list = [Cert.from_pem(Path(Authority(tmp_path).issue("robot.example")[0]).read_bytes())]
    assert subject_of(client) == "CN=robot.example"


def test_what_the_protocol_layer_has_read_is_taken_as_it_is(snapshot: Snapshot) -> None:
    flow = flow_of()
    read = replace(arrived(snapshot, flow_of()).request, target="/as/it/arrived")
    received(flow, read)
    assert arrived(snapshot, flow).request is read
    assert taken(flow) is None


@pytest.mark.parametrize(("sent", "kept"), [(TRACE, True), (b"00-" + b"0" * 32 + TRACE[35:], False), (b"x", False)])
def test_trace_context(snapshot: Snapshot, sent: bytes, kept: bool) -> None:
    made = arrived(snapshot, flow_of(fields=[(b"traceparent", sent)]))
    assert (made.traceparent == sent.decode()) is kept
    assert len(made.traceparent) == len(TRACE)


async def _later(denial: Denial | None) -> Denial | None:
    return denial


@pytest.mark.parametrize("mode", ["enforce", "report"])
@pytest.mark.parametrize("later", [False, True])
def test_without_room_for_the_record_it_denies(snapshot: Snapshot, mode: Any, later: bool) -> None:
    def pressure() -> Denial | Awaitable[Denial | None]:
        return _later(DENIAL) if later else DENIAL

    flow = flow_of()
    finish(Arrival(Source(replace(snapshot, mode=mode)), pressure, lambda: NOW).requestheaders(flow))
    made = exchange_of(flow)
    assert made is not None and made.verdict.final is not None
    assert made.verdict.final.reason is Reason.AUDIT_UNAVAILABLE
    assert_refused(snapshot, made, Reason.AUDIT_UNAVAILABLE)


def test_what_the_trail_raises_is_a_denial(snapshot: Snapshot) -> None:
    flow = flow_of()
    finish(Arrival(Source(snapshot), lambda: 1 / 0, lambda: NOW).requestheaders(flow))  # type: ignore[arg-type,return-value]  # it raises
    made = exchange_of(flow)
    assert made is not None
    assert_refused(snapshot, made, Reason.STAGE_ERROR)


def test_a_flow_that_the_protocol_layer_refused_is_denied_without_further_steps(snapshot: Snapshot) -> None:
    flow = flow_of()
    reject(flow, Reason.HEAD_MALFORMED, "A line has no colon.")
    made = arrived(snapshot, flow)
    (step,) = made.verdict.steps
    assert step[:4] == ("protocol", Outcome.DENY, Reason.HEAD_MALFORMED, "A line has no colon.")
    assert_refused(snapshot, made, Reason.HEAD_MALFORMED)


def test_flows_that_are_not_live_or_decided_already_are_left_alone(snapshot: Snapshot) -> None:
    loaded = flow_of()
    loaded.live = False
    stage = arrival(snapshot)
    with taddons.context(stage):
        assert stage.requestheaders(loaded) is None
    assert exchange_of(loaded) is None
    flow = flow_of()
    made = arrived(snapshot, flow)
    assert arrived(snapshot, flow) is made
    assert len(made.verdict.steps) == 1
    flow.is_replay = "request"
    assert arrived(snapshot, flow) is not made
