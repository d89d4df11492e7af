"""A client that sends nothing more and goes on reading: complete requests are answered (RFC 9112, section 9.6)."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import pytest
from OpenSSL import SSL

from mitmgate.core.reason import Reason
from mitmgate.proxy import http1
from tests.live.harness_http import status_of, wait_for
from tests.live.harness_upstream import HANG, PATIENCE, Raw, RecordingUpstream, Reply
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, route
from tests.protocol.test_tls import listen
from tests.protocol.test_upgrade import HANDSHAKE

GET = b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n"


class Client(Protocol):
    def sendall(self, data: bytes) -> None: ...

    def end(self) -> None:
        """Send nothing more."""

    def read(self) -> bytes:
        """Read to the end of the connection."""


class Plain:
    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.sendall = link.sendall

    def end(self) -> None:
        self.link.shutdown(socket.SHUT_WR)

    def read(self) -> bytes:
        got = b""
        while part := self.link.recv(65536):
            got += part
        return got


class Secured:
    """close_notify, then the end of the socket, as RFC 8446, section 6.1, has it."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        link.setblocking(True)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self.tls = SSL.Connection(context, link)
        self.tls.set_connect_state()
        self.tls.do_handshake()

    def sendall(self, data: bytes) -> None:
        self.tls.sendall(data)

    def end(self) -> None:
        self.tls.shutdown()
        self.link.shutdown(socket.SHUT_WR)

    def read(self) -> bytes:
        got = b""
        try:
            while True:
                got += self.tls.recv(65536)
        except SSL.ZeroReturnError:
            return got


@pytest.fixture(params=["plain", "tls"], scope="module")
def front(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def gate(front: str, tmp_path: Path, upstream: RecordingUpstream) -> Iterator[Gate]:
    tls = listen(Authority(tmp_path)) if front == "tls" else None
    with Gate(route(upstream.url, websocket=True), tls=tls) as running:
        yield running


@contextmanager
def client(gate: Gate, front: str) -> Iterator[Client]:
    with connect(gate.port) as link:
        link.settimeout(PATIENCE)
        yield Secured(link) if front == "tls" else Plain(link)


def know(gate: Gate) -> None:
    """Wait until the gateway knows that the client sends nothing more."""
    wait_for(lambda: any(getattr(one, "_gone", False) for one in gate.layer.clients), "the end of the client's input")


LARGE = bytes(range(256)) * 12_000
POST = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"
CHUNKS = b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"


@pytest.mark.parametrize("sent", [GET, POST, CHUNKS], ids=["get", "post", "chunks"])
@pytest.mark.parametrize("body", [b"small", LARGE], ids=["held", "streamed"])
def test_a_complete_request_is_answered(
    gate: Gate, front: str, upstream: RecordingUpstream, sent: bytes, body: bytes
) -> None:
    go = threading.Event()
    upstream.reply = Reply(body=body, until=go)
    with client(gate, front) as one:
        one.sendall(sent)
        one.end()
        know(gate)
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        go.set()
        got = one.read()
    assert status_of(got) == 200
    assert got.endswith(b"\r\n\r\n" + body)
    assert b"\r\nConnection: close\r\n" in got
    assert gate.hooks.wait_ends(1) == [("response", Reason.OK)]
    wait_for(lambda: gate.layer.connected == 0, "the connection to be closed")


def test_an_answer_that_has_begun_is_completed(gate: Gate, front: str, upstream: RecordingUpstream) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n"
    upstream.reply = Raw(head + b"a" * 1_500_000, close=False)
    with client(gate, front) as one:
        one.sendall(GET)
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        one.end()
        know(gate)
        (transport,) = upstream._transports
        upstream._loop.call_soon_threadsafe(transport.write, b"b" * 1_500_000)
        got = one.read()
    assert got.endswith(b"\r\n\r\n" + b"a" * 1_500_000 + b"b" * 1_500_000)
    assert gate.hooks.wait_ends(1) == [("response", Reason.OK)]


def test_every_pipelined_request_is_answered(gate: Gate, front: str, upstream: RecordingUpstream) -> None:
    go = threading.Event()
    upstream.script.append(Reply(body=b"first", until=go))
    with client(gate, front) as one:
        one.sendall(GET + GET.replace(b"/p", b"/deny") + POST)
        one.end()
        know(gate)
        go.set()
        got = one.read()
    assert [status_of(b"HTTP/1.1 " + part) for part in got.split(b"HTTP/1.1 ")[1:]] == [200, 401, 200]
    assert got.count(b"Connection: close") == 1
    assert [request.body for request in upstream.requests] == [b"", b"body"]


def test_a_request_that_breaks_off_behind_a_complete_one(gate: Gate, front: str, upstream: RecordingUpstream) -> None:
    with client(gate, front) as one:
        one.sendall(GET + b"GET /half HT")
        one.end()
        got = one.read()
    assert [status_of(b"HTTP/1.1 " + part) for part in got.split(b"HTTP/1.1 ")[1:]] == [200, 400]
    assert len(upstream.requests) == 1
    assert gate.hooks.wait_ends(2) == [("response", Reason.OK), ("response", Reason.HEAD_MALFORMED)]


def test_a_body_that_breaks_off_is_not_waited_for(gate: Gate, front: str, upstream: RecordingUpstream) -> None:
    with client(gate, front) as one:
        one.sendall(POST[:-1])
        one.end()
        assert one.read() == b""
    assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
    upstream.assert_saw_nothing()


def _events(gate: Gate, upstream: RecordingUpstream) -> bytes:
    upstream.reply = Raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n", close=False)
    return GET


def _websocket(gate: Gate, upstream: RecordingUpstream) -> bytes:
    upstream.reply = Raw(b"", close=False)
    return HANDSHAKE


@pytest.mark.parametrize("begin", [_events, _websocket])
def test_what_has_no_end_of_its_own_ends_with_the_client(
    gate: Gate, front: str, upstream: RecordingUpstream, begin: Callable[[Gate, RecordingUpstream], bytes]
) -> None:
    with client(gate, front) as one:
        one.sendall(begin(gate, upstream))
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        if begin is _events:
            wait_for(lambda: any(name == "responseheaders" for name, _ in gate.hooks.seen), "the events")
        one.end()
        assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
        wait_for(lambda: not upstream._transports, "the upstream connection to be closed")


def test_a_client_that_has_left_is_found_out_by_the_answer(gate: Gate, front: str, upstream: RecordingUpstream) -> None:
    go = threading.Event()
    upstream.reply = Reply(until=go)
    with client(gate, front) as one:
        one.sendall(GET)
        wait_for(lambda: len(upstream.requests) == 1, "the request")
    if front == "plain":  # over TLS the session tickets are unread: that is a reset
        know(gate)
    go.set()
    gate.hooks.wait_ends(1)
    wait_for(lambda: gate.layer.connected == 0 and not gate.layer.clients, "the connection to be closed")


def test_a_client_that_has_left_a_silent_service_is_found_out(
    gate: Gate, front: str, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1, "LISTENS", 0.02)
    upstream.reply = HANG
    with client(gate, front) as one:
        one.sendall(GET)
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        if isinstance(one, Secured):  # what is unread makes the kernel send a reset
            one.link.setblocking(False)
            with suppress(SSL.WantReadError):
                one.tls.recv(1)
        one.end()
        know(gate)
    assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
    wait_for(lambda: gate.layer.connected == 0 and not upstream._transports, "both connections to be closed")


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_one_that_goes_on_reading_is_asked_and_answered(
    gate: Gate, front: str, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch, version: bytes
) -> None:
    monkeypatch.setattr(http1, "LISTENS", 0.02)
    go = threading.Event()
    upstream.reply = Reply(until=go, body=b"late")
    with client(gate, front) as one:
        one.sendall(GET.replace(b"1.1", version))
        one.end()
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        know(gate)
        (connection,) = gate.layer.clients
        asking = connection._asking  # type: ignore[attr-defined]
        for _ in range(3):
            wait_for(lambda before=asking: connection._asking not in {None, before}, "a question")  # type: ignore[misc, attr-defined]
            asking = connection._asking  # type: ignore[attr-defined]
        go.set()
        got = one.read()
    before, _, answer = got.rpartition(b"HTTP/1.1 200")
    assert answer.endswith(b"late")
    assert set(before.split(b"\r\n\r\n")) <= {b"", b"HTTP/1.1 100 Continue"}
    assert (before.count(b"100 Continue") >= 2) is (version == b"1.1")
    assert gate.hooks.wait_ends(1) == [("response", Reason.OK)]
