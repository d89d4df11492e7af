"""Bounds of size, time and number."""

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.proxy.limits import Connections, PolicyBounds
from mitmgate.proxy.pool import IDLE_SECONDS
from tests.live.harness_http import raw_request, request, status_of, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream, Reply
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, Source, connect, crowd, receive, route
from tests.protocol.test_tls import listen

HEAD = b"POST /p HTTP/1.1\r\nHost: x\r\n"


def test_head_that_comes_byte_by_byte_is_a_408_on_time(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), limits={"head_timeout": 0.6}) as gate, connect(gate.port) as link:
        started = time.monotonic()
        got = b""
        link.settimeout(0.05)
        for octet in HEAD + b"X: " + b"a" * 1000:
            link.send(bytes([octet]))
            try:
                got = link.recv(4096)
                break
            except TimeoutError:
                pass
        assert status_of(got) == 408
        assert b"Connection: close" in got
        assert 0.5 < time.monotonic() - started < 8  # its 1,000 octets take 50 s
        assert gate.hooks.wait_ends(1) == [("response", Reason.HEAD_TIMEOUT)]
    upstream.assert_saw_nothing()


def test_second_head_has_its_own_deadline(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), limits={"head_timeout": 0.4}) as gate, connect(gate.port) as link:
        link.sendall(HEAD + b"\r\n" + HEAD[:10])
        got = receive(link)
        assert status_of(got) == 200
        assert got.count(b"408 Request Timeout") == 1


def test_idle_connections_are_closed_silently(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), limits={"idle_timeout": 0.3}) as gate:
        with connect(gate.port) as link:
            assert receive(link) == b""
        with connect(gate.port) as link:
            started = time.monotonic()
            link.sendall(HEAD + b"\r\n")
            assert status_of(receive(link)) == 200
            assert 0.25 < time.monotonic() - started < 5
        assert len(gate.hooks.wait_ends(1)) == 1


def test_head_too_large(gate: Gate, upstream: RecordingUpstream) -> None:
    for data, status in [
        (HEAD + b"X: " + b"a" * 40000 + b"\r\n\r\n", 431),
        (HEAD + b"X: a\r\n" * 200 + b"\r\n", 431),
        (HEAD + b"X: " + b"a" * 70000, 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"a" * 70000, 414),
    ]:
        with connect(gate.port) as link:
            link.sendall(data)
            assert status_of(receive(link)) == status
    upstream.assert_saw_nothing()


@pytest.mark.parametrize("stream", ["auto", "always", "never"])
def test_body_limit_holds_for_declared_and_chunked_bodies(upstream: RecordingUpstream, stream: str) -> None:
    with Gate(route(upstream.url, max_body=1000, stream=stream)) as gate:
        assert request(gate.port, "POST", "/p", body=b"x" * 1000).status == 200
        assert request(gate.port, "POST", "/p", body=[b"x" * 500] * 2).status == 200
        count = len(upstream.requests)
        assert request(gate.port, "POST", "/p", body=b"x" * 1001).status == 413
        answered = request(gate.port, "POST", "/p", body=[b"x" * 500, b"x" * 501])
        assert (answered.status, answered.reason) == (413, "body-too-large")
        upstream.settle()
        assert len(upstream.requests) == count
        wait_for(lambda: not upstream._transports, "upstream connections to be closed", 3 + IDLE_SECONDS)


def test_endless_chunked_body_is_cut_at_the_limit(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url, max_body=100_000)) as gate, connect(gate.port) as link:
        link.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        got = b""
        link.settimeout(5)
        sent = 0
        try:
            for _ in range(1000):
                link.sendall(b"4000\r\n" + b"x" * 16384 + b"\r\n")
                sent += 1
        except OSError:
            pass
        got = receive(link)
        assert status_of(got) == 413


def test_body_that_stops_coming_is_a_408(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), limits={"body_timeout": 0.4}) as gate:
        for fields in (b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"):
            started = time.monotonic()
            assert status_of(raw_request(gate.port, HEAD + fields)) == 408
            assert 0.3 < time.monotonic() - started < 5
        assert gate.hooks.wait_ends(2) == [("response", Reason.BODY_TIMEOUT)] * 2


def test_body_that_drips_is_a_408(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), limits={"body_timeout": 0.5}) as gate, connect(gate.port) as link:
        started = time.monotonic()
        link.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        link.settimeout(0.02)
        got = b""
        while not got and time.monotonic() - started < 20:
            link.send(b"x")
            with contextlib.suppress(TimeoutError):
                got = link.recv(4096)
        assert status_of(got) == 408
        assert time.monotonic() - started < 10


# Connections.


def test_connections_beyond_the_limit_are_told_so(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), limits={"connections": 8}) as gate:
        with crowd(gate.port, 2) as held:  # one address may hold a quarter
            for link in held:
                link.sendall(HEAD + b"\r\n")
                assert status_of(receive(link, complete=True)) == 200
            with connect(gate.port) as link:
                got = receive(link)
                assert status_of(got) == 503
                assert b'"connections-exhausted"' in got
        wait_for(lambda: gate.layer._connections.total == 0, "connections to be gone")
        assert request(gate.port, "GET", "/p").status == 200


def test_counting_of_connections() -> None:
    counts = Connections()
    assert counts.enter("192.0.2.1") == (1, 1)
    assert counts.enter("::ffff:192.0.2.1") == (2, 2)
    assert counts.enter("2001:db8::1") == (3, 1)
    assert counts.enter("2001:db8::ffff") == (4, 2)
    assert counts.enter("2001:db8:0:1::1") == (5, 1)
    for peer in ("192.0.2.1", "192.0.2.1", "2001:db8::1", "2001:db8::1", "2001:db8:0:1::1"):
        counts.leave(peer)
    assert counts.total == 0
    assert counts._by_address == {}


def test_bounds_follow_the_policy() -> None:
    source = Source({"head": 2048, "connections": 2})
    bounds = PolicyBounds(source)
    assert bounds().head == 2048
    assert bounds() is bounds()
    assert bounds().per_address == 1
    source.snapshot = Source().snapshot
    assert bounds().head == 32768


def test_slow_and_idle_clients_do_not_hold_up_others(upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(body=b"x")
    with Gate(route(upstream.url), limits={"head_timeout": 1.0}) as gate, crowd(gate.port, 100) as slow:
        stop = threading.Event()
        answered = []

        def drip() -> None:
            for link in slow:
                link.setblocking(False)
            position = 0
            while not stop.wait(0.1) and position < 40:
                for link in slow:
                    with contextlib.suppress(OSError):
                        link.send((HEAD + b"X: " + b"a" * 100)[position : position + 1])
                position += 1

        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        for _ in range(20):
            assert request(gate.port, "GET", "/p").status == 200
        time.sleep(max(0.0, started + 2.0 - time.monotonic()))
        stop.set()
        thread.join()
        for link in slow:
            link.setblocking(True)
            link.settimeout(20)
            answered.append(status_of(_rest(link)))
        assert answered == [408] * 100


def _rest(link: socket.socket) -> bytes:
    try:
        return link.recv(65536)
    except OSError:
        return b""


def test_burst_of_connections_is_queued(gate: Gate) -> None:
    accepting = threading.Event()
    gate.loop.call_soon_threadsafe(accepting.wait, PATIENCE)  # the gateway is busy, and accepts nothing
    with contextlib.ExitStack() as links:
        try:
            # The kernel makes a client beyond the queue wait a second and more.
            crowded = [links.enter_context(connect(gate.port, 2)) for _ in range(400)]
        finally:
            accepting.set()
        for link in crowded:
            link.settimeout(PATIENCE)
            link.sendall(b"GET /deny HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert {status_of(receive(link)) for link in crowded} == {401}


@pytest.mark.parametrize("secure", [False, True])
def test_clients_that_reset_before_they_are_accepted_are_nothing(
    tmp_path: Path, upstream: RecordingUpstream, caplog: pytest.LogCaptureFixture, secure: bool
) -> None:
    # each of them made three tracebacks of mitmproxy's layers: a cheap way to fill a disk
    with Gate(route(upstream.url), tls=listen(Authority(tmp_path)) if secure else None) as gate:
        with caplog.at_level("WARNING"):
            for _ in range(20):
                link = connect(gate.port)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.close()
            assert status_of(raw_request(gate.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) == (0 if secure else 200)
            wait_for(lambda: gate.layer.connected == 0, "all to be gone")
        assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
