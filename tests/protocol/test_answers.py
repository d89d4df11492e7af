"""Answers before the body, errors that are ours, and connections that end so that answers arrive."""

import os
import socket
import time

import pytest

from mitmgate.core.reason import Reason
from tests.live.harness_http import raw_request, request, status_of, wait_for
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.protocol.harness import PROBLEM, Gate, connect, receive, route

DENIED = b"POST /deny HTTP/1.1\r\nHost: x\r\n"


def test_denial_is_sent_before_the_body_and_without_a_100(gate: Gate, upstream: RecordingUpstream) -> None:
    with connect(gate.port) as link:
        started = time.monotonic()
        link.sendall(DENIED + b"Content-Length: 50000000\r\nExpect: 100-continue\r\n\r\n")
        answer = receive(link)
        assert time.monotonic() - started < 5  # the body never comes
    assert status_of(answer) == 401
    assert b"Connection: close" in answer
    assert b"100 Continue" not in answer
    upstream.assert_saw_nothing()
    assert gate.hooks.wait_ends(1) == [("response", Reason.CREDENTIAL_MISSING)]


def test_client_that_sends_all_before_it_reads_gets_its_answer(gate: Gate) -> None:
    with connect(gate.port) as link:
        link.sendall(DENIED + b"Content-Length: 20000000\r\n\r\n" + b"x" * 20_000_000)
        assert status_of(receive(link)) == 401


@pytest.mark.parametrize("fields", [b"Content-Length: 1000000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_body_that_never_comes_is_not_waited_for(gate: Gate, fields: bytes) -> None:
    with connect(gate.port) as link:
        link.sendall(DENIED + fields + b"\r\n")
        started = time.monotonic()
        answer = receive(link)  # to the end of our half
        assert status_of(answer) == 401
        assert time.monotonic() - started < 10
        wait_for(lambda: _closed(link), "the connection to be closed", 20)


def _closed(link: socket.socket) -> bool:
    try:
        link.send(b"x")
    except OSError:
        return True
    return False


def test_denied_connection_stays_where_the_request_was_complete(gate: Gate) -> None:
    with connect(gate.port) as link:
        for _ in range(3):
            link.sendall(DENIED + b"Content-Length: 2\r\n\r\nab")
            assert status_of(receive(link, complete=True)) in {401}


def test_lost_stage_and_missing_enforcer_deny(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url)) as gate:
        answered = request(gate.port, "GET", "/lost")
        assert (answered.status, answered.reason) == (503, "stage-error")
    with Gate(route(upstream.url), enforcer=False) as gate:
        answered = request(gate.port, "GET", "/a")
        assert (answered.status, answered.reason) == (503, "stage-error")
    upstream.assert_saw_nothing()


def test_head_request_gets_errors_without_a_body(gate: Gate) -> None:
    got = raw_request(gate.port, b"HEAD /deny HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", until_close=True)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert PROBLEM.encode() in head
    assert body == b""


def test_http_1_0_client_is_answered_and_the_connection_closed(gate: Gate, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(chunked=True, body=b"parts")
    got = raw_request(gate.port, b"GET /a HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", until_close=True)
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"chunked" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body == b"parts"


def test_half_closed_client_gets_its_denial(gate: Gate) -> None:
    for data, status in [(DENIED + b"\r\n", 401), (b"GET / HTTP/1.1\r\nHo", 400), (b"\xff\xfe", 400)]:
        with connect(gate.port) as link:
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            assert status_of(receive(link)) == status


def test_silent_client_that_leaves_makes_no_event(gate: Gate) -> None:
    with connect(gate.port) as link:
        link.shutdown(socket.SHUT_WR)
        assert receive(link) == b""
    assert gate.hooks.seen == []


def test_pipelined_requests_are_answered_in_order(gate: Gate, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(echo=True)
    one = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(gate.port) as link:
        link.sendall(
            b"".join(one % n for n in range(5)) + b"GET /deny HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        got = receive(link)
    assert got.count(b"HTTP/1.1 200 ") == 5
    assert [got.index(b'"/%d"' % n) for n in range(5)] == sorted(got.index(b'"/%d"' % n) for n in range(5))
    assert got.count(b"HTTP/1.1 401 ") == 1
    assert upstream.connections == 1


def test_no_descriptor_leaks_after_denials_with_bodies_in_flight(gate: Gate) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(50):
        link = connect(gate.port)
        link.sendall(DENIED + b"Content-Length: 50000000\r\n\r\n" + b"x" * 100_000)
        assert status_of(receive(link, complete=True)) == 401
        link.close()
    wait_for(lambda: descriptors() <= before + 2, "descriptors to be closed", 5)


def test_nothing_tells_the_engine(gate: Gate, upstream: RecordingUpstream) -> None:
    for data in [b"GET / HTTP/9.9\r\n\r\n", DENIED + b"\r\n", b"\0", b"GET /lost HTTP/1.1\r\nHost: x\r\n\r\n"]:
        got = raw_request(gate.port, data).lower()
        assert b"mitmproxy" not in got
        assert b"<html" not in got
        assert str(upstream.port).encode() not in got
        assert PROBLEM.encode() in got
        assert b'"request_id":"' in got
