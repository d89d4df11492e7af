"""Streams: constant memory, back-pressure, first bytes at once; and small bodies that stay whole."""

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pytest

from mitmgate.core.reason import Reason
from tests.live.harness_http import request, status_of, wait_for
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.protocol.harness import Gate, connect, receive, route

MIB = 1024 * 1024
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


class Serving:
    """An upstream whose one connection is served by a function, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        link, _ = self._listening.accept()
        with link:
            link.settimeout(20)
            with contextlib.suppress(OSError):
                self._serve(link)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._thread.join(20)
            assert not self._thread.is_alive()
        self._listening.close()


def read_head(link: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        part = link.recv(65536)
        assert part or not got, f"the connection ended after {got!r}"
        if not part:
            return b""
        got += part
    return got


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_large_download_arrives_whole(framing: str) -> None:
    block = hashlib.sha256(b"x").digest() * 2048  # 64 KiB

    def serve(link: socket.socket) -> None:
        read_head(link)
        fields = {"length": b"Content-Length: %d\r\n\r\n" % (len(block) * 200), "chunked": CHUNKED, "close": b"\r\n"}
        link.sendall(b"HTTP/1.1 200 OK\r\n" + fields[framing])
        for _ in range(200):
            link.sendall(b"%x\r\n%b\r\n" % (len(block), block) if framing == "chunked" else block)
        if framing == "chunked":
            link.sendall(b"0\r\n\r\n")

    with Serving(serve) as serving, Gate(route(serving.url)) as gate:
        assert request(gate.port, "GET", "/p").body == block * 200
        assert gate.hooks.wait_ends(1) == [("response", Reason.OK)]
        flow = gate.hooks.seen[-1][1]
        assert flow.response is not None
        assert flow.response.stream
        assert not flow.response.raw_content


@pytest.mark.parametrize("chunked", [True, False])
def test_large_upload_arrives_whole(upstream: RecordingUpstream, chunked: bool) -> None:
    block = hashlib.sha256(b"x").digest() * 2048
    with Gate(route(upstream.url, max_body=100 * MIB)) as gate:
        answered = request(gate.port, "POST", "/p", body=(block for _ in range(100)) if chunked else block * 100)
        assert answered.status == 200
        assert upstream.last().body == block * 100
        assert [name for name, _ in gate.hooks.seen] == ["requestheaders", "request", "responseheaders", "response"]


def test_small_bodies_stay_whole_for_inspection(gate: Gate, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(body=b"answer")
    request(gate.port, "POST", "/p", body=b"question")
    gate.hooks.wait_ends(1)
    flow = gate.hooks.seen[-1][1]
    assert flow.request.content == b"question"
    assert flow.response is not None
    assert flow.response.content == b"answer"


@pytest.mark.parametrize(("stream", "kept"), [("always", False), ("never", True)])
def test_route_decides_what_streams(upstream: RecordingUpstream, stream: str, kept: bool) -> None:
    upstream.reply = Reply(body=b"answer", chunked=True)
    with Gate(route(upstream.url, stream=stream)) as gate:
        assert request(gate.port, "POST", "/p", body=[b"ques", b"tion"]).body == b"answer"
        gate.hooks.wait_ends(1)
        flow = gate.hooks.seen[-1][1]
        assert flow.response is not None
        assert (flow.request.raw_content == b"question") is kept
        assert (flow.response.raw_content == b"answer") is kept


def test_events_arrive_one_by_one_and_at_once() -> None:
    turn = threading.Semaphore(0)

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + CHUNKED)
        for number in range(3):
            turn.acquire(timeout=10)
            link.sendall(b"a\r\ndata: %d\n\n\n\r\n" % number)
        link.sendall(b"0\r\n\r\n")

    with Serving(serve) as serving, Gate(route(serving.url)) as gate, connect(gate.port) as link:
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_head(link).endswith(b"\r\n\r\n")  # the head, before there is any event
        got = b""
        for number in range(3):
            started = time.monotonic()
            turn.release()
            got = link.recv(4096)
            assert b"data: %d" % number in got
            assert time.monotonic() - started < 5  # the next one waits for this one
        # The end may have come together with the last event.
        assert (got + receive(link)).endswith(b"0\r\n\r\n")


def test_reader_that_stops_stops_the_upstream() -> None:
    """Only what the sockets' buffers hold is taken from an upstream whose client does not read."""
    sent = [0]
    done = threading.Event()

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\n" + CHUNKED)
        link.settimeout(1.0)
        try:
            while sent[0] < 200 * MIB:
                link.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent[0] += 65536
        except TimeoutError:
            pass
        done.set()

    with Serving(serve) as serving, Gate(route(serving.url)) as gate, connect(gate.port) as link:
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert done.wait(20)
        assert sent[0] < 30 * MIB


def test_upstream_that_stops_reading_stops_the_client() -> None:
    stop = threading.Event()

    def serve(link: socket.socket) -> None:
        read_head(link)
        stop.wait(20)

    with Serving(serve) as serving, Gate(route(serving.url, max_body=1 << 30)) as gate, connect(gate.port) as link:
        link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n")
        link.settimeout(1.0)
        sent = 0
        try:
            while sent < 200 * MIB:
                link.sendall(b"x" * 65536)
                sent += 65536
        except TimeoutError:
            pass
        assert sent < 30 * MIB
        stop.set()


def test_body_is_not_read_while_there_is_no_upstream() -> None:
    """What a client sends while the gateway still connects waits in the client's socket, not in memory."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(listening.getsockname())
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with Gate(route(url, max_body=1 << 30, connect_timeout=3.0, retries=0)) as gate, connect(gate.port) as link:
        link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n")
        link.settimeout(1.0)
        sent = 0
        try:
            while sent < 200 * MIB:
                link.sendall(b"x" * 65536)
                sent += 65536
        except TimeoutError:
            pass
        assert sent < 20 * MIB
        link.settimeout(10)
        assert status_of(receive(link, complete=True)) == 504
    for each in (*fillers, listening):
        each.close()


def test_both_directions_at_once() -> None:
    """An upstream that answers while it still reads, to a client that reads while it still sends."""

    def serve(link: socket.socket) -> None:
        rest = read_head(link).partition(b"\r\n\r\n")[2]
        link.sendall(b"HTTP/1.1 200 OK\r\n" + CHUNKED)
        while not rest.endswith(b"0\r\n\r\n"):
            link.sendall(rest)
            rest = link.recv(65536)
        link.sendall(rest)

    blocks = 400
    with Serving(serve) as serving, Gate(route(serving.url, max_body=1 << 30)) as gate, connect(gate.port) as link:
        link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\n" + CHUNKED)

        def send() -> None:
            for _ in range(blocks):
                link.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            link.sendall(b"0\r\n\r\n")

        sending = threading.Thread(target=send)
        sending.start()
        got = receive(link)
        sending.join(10)
        assert got.endswith(b"0\r\n\r\n")
        assert got.count(b"x") == blocks * 65536


def test_early_answer_of_an_upstream_ends_the_upload() -> None:
    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
        while link.recv(65536):
            pass

    with Serving(serve) as serving, Gate(route(serving.url)) as gate, connect(gate.port) as link:
        link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"1\r\nx\r\n")
        got = receive(link)
        assert status_of(got) == 403
        assert b"Connection: close" in got
        assert got.endswith(b"no")
        assert gate.hooks.wait_ends(1) == [("response", Reason.OK)]


def test_continue_is_sent_only_to_the_admitted(gate: Gate, upstream: RecordingUpstream) -> None:
    with connect(gate.port) as link:
        link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert link.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        link.sendall(b"abc")
        assert status_of(receive(link, complete=True)) == 200
    assert upstream.last().body == b"abc"
    assert upstream.last().one("expect") is None
    wait_for(lambda: len(gate.hooks.ends) == 1, "the end")
