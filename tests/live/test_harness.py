"""The harness itself: a recorder that misses something would make every "saw nothing" true."""

import socket
import threading
from pathlib import Path

import pytest

from tests.live.harness import mint, policy
from tests.live.harness_http import raw_request, request, status_of
from tests.live.harness_upstream import HANG_UP, Raw, RecordingUpstream, Reply


def test_records_every_byte_and_parses_requests(upstream: RecordingUpstream) -> None:
    first = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    second = b"GET /d HTTP/1.1\r\nHost: x\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n"
    got = raw_request(upstream.port, first)
    assert status_of(got) == 200
    raw_request(upstream.port, second)
    assert upstream.raw == first + second
    assert [(r.method, r.target, r.body) for r in upstream.requests] == [("POST", "/a?b=c", b"abc"), ("GET", "/d", b"")]
    assert upstream.last().all("x-twice") == ["1", "2"]
    assert upstream.connections == 2
    upstream.assert_saw_only(2)


def test_sees_a_connection_without_bytes_and_bytes_without_a_request(upstream: RecordingUpstream) -> None:
    upstream.assert_saw_nothing()
    with socket.create_connection(("127.0.0.1", upstream.port)) as link:
        with pytest.raises(AssertionError, match="1 connections"):
            upstream.assert_saw_nothing()
        upstream.forget()
        upstream.assert_saw_nothing()
        link.sendall(b"GET / HT")
        with pytest.raises(AssertionError, match="8 bytes beyond"):
            upstream.assert_saw_only(0)


def test_answers_by_script(upstream: RecordingUpstream) -> None:
    release = threading.Event()
    upstream.script.extend(
        [
            Reply(503, chunked=True),
            HANG_UP,
            Raw(b"garbage"),
            lambda r: Reply(body=r.target.encode()),
            Reply(until=release),
        ]
    )
    assert request(upstream.port, "GET", "/").status == 503
    get = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
    assert raw_request(upstream.port, get) == b""
    assert raw_request(upstream.port, get) == b"garbage"
    assert request(upstream.port, "GET", "/echo").body == b"/echo"
    threading.Timer(0.05, release.set).start()
    assert request(upstream.port, "GET", "/echo").body == b"upstream says hello"


def test_policy_is_fresh_each_time(tmp_path: Path) -> None:
    one = policy(tmp_path, "http://127.0.0.1:1")
    one["routes"].clear()
    assert policy(tmp_path, "http://127.0.0.1:1", mode="report")["routes"]
    assert mint().count(".") == 2
