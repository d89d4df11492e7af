"""Ends that the gateway decides: shutting down, and cutting what lasts."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h2.events
import pytest

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.pipeline.exchange import Exchange, exchange_of
from mitmgate.proxy.listener import SecuredConnection
from tests.live.harness_http import status_of, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream, Reply
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.test_http2 import GET as H2_GET
from tests.protocol.test_http2 import Client
from tests.protocol.test_streaming import Serving, read_head
from tests.protocol.test_tls import client_context, listen
from tests.protocol.test_upgrade import HANDSHAKE, echo

GET = b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n"


def on_loop(gate: Gate, action: object, *arguments: object) -> None:
    gate.loop.call_soon_threadsafe(action, *arguments)  # type: ignore[arg-type]


def test_retiring_ends_idle_connections_now_and_busy_ones_with_their_response(
    gate: Gate, upstream: RecordingUpstream
) -> None:
    release = threading.Event()
    with connect(gate.port) as idle, connect(gate.port) as busy, connect(gate.port) as fresh:
        idle.sendall(GET)
        receive(idle, complete=True)
        upstream.reply = Reply(until=release)
        busy.sendall(GET)
        wait_for(lambda: len(upstream.requests) == 2, "the request")
        assert gate.layer.connected == 3
        on_loop(gate, gate.layer.retire)
        assert receive(idle) == b""
        assert receive(fresh) == b""
        release.set()
        got = receive(busy)
        assert status_of(got) == 200
        assert b"Connection: close" in got
        with connect(gate.port) as late:
            assert receive(late) == b""
    wait_for(lambda: gate.layer.connected == 0, "all clients to be gone")
    assert gate.layer.clients == set()


def test_retiring_http_2(tmp_path_factory: pytest.TempPathFactory, upstream: RecordingUpstream) -> None:
    authority = Authority(tmp_path_factory.mktemp("retire"))
    release = threading.Event()
    with Gate(route(upstream.url), tls=listen(authority)) as gate:
        with Client(gate, authority) as idle, Client(gate, authority) as busy:
            assert idle.answer(idle.request(H2_GET))[0] == 200
            upstream.reply = Reply(until=release)
            stream_id = busy.request(H2_GET)
            wait_for(lambda: len(upstream.requests) == 2, "the request")
            on_loop(gate, gate.layer.retire)
            idle.read(idle.terminated)
            release.set()
            assert busy.answer(stream_id)[0] == 200
            busy.read(busy.terminated)
            assert not busy.of(stream_id, h2.events.StreamReset)
        wait_for(lambda: gate.layer.connected == 0, "all clients to be gone")


def streaming(link: socket.socket) -> None:
    read_head(link)
    link.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    while link.recv(4096):
        pass


@pytest.fixture
def events() -> Iterator[Serving]:
    with Serving(streaming) as serving:
        yield serving


def lasting(gate: Gate) -> Exchange:
    wait_for(lambda: len(gate.layer.lasting) == 1, "the exchange to last")
    return gate.layer.lasting[0]


def swallow(link: socket.socket) -> None:
    while link.recv(4096):
        pass


SERVICES = {"events": streaming, "events over h2": streaming, "websocket": echo, "upload": swallow}


def test_stream_is_cut(events: Serving) -> None:
    with Gate(route(events.url)) as gate, connect(gate.port) as link:
        link.sendall(GET)
        read_head(link)
        on_loop(gate, gate.layer.cut, lasting(gate), Reason.TOKEN_EXPIRED)
        assert not receive(link).endswith(b"0\r\n\r\n")
        assert gate.hooks.wait_ends(1) == [("error", Reason.TOKEN_EXPIRED)]
        assert gate.layer.lasting == []


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize("ends", ["expires", "is withdrawn"])
def test_an_upload_ends_with_its_token(upstream: RecordingUpstream, stream: str, ends: str) -> None:
    with Gate(route(upstream.url, stream=stream)) as gate, connect(gate.port) as link:
        until = time.time() + (0.3 if ends == "expires" else 3600)
        gate.decide.principal = Principal("alice", "dev", (), frozenset(), {}, until)
        link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        reason = Reason.TOKEN_EXPIRED
        if ends == "is withdrawn":
            reason = Reason.TOKEN_REVOKED
            wait_for(lambda: bool(gate.hooks.seen), "the head")
            gate.withdrawn = reason
            on_loop(gate, gate.layer.cut_withdrawn)
        if stream == "never":
            wait_for(lambda: time.time() > until or gate.withdrawn is not None, "the end of the token")
            link.sendall(b"4\r\nrest\r\n0\r\n\r\n")
        got = receive(link, complete=True)
        assert status_of(got) == 401
        assert b'WWW-Authenticate: Bearer error="invalid_token"' in got
        assert gate.hooks.wait_ends(1)[0][1] is reason
        upstream.settle()
        assert upstream.requests == []
        assert b"rest" not in upstream.raw


@pytest.mark.parametrize("ends", ["expires", "another authority", "one more authority"])
@pytest.mark.parametrize("kind", ["events", "events over h2", "websocket", "upload"])
def test_what_lasts_ends_with_the_certificate_of_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ends: str
) -> None:
    """Before: requests on the connection ended with it, what had been opened before went on."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(Path(authority.ca).read_bytes())
    context = client_context(authority, "h2" if kind.endswith("h2") else "http/1.1")
    context.load_cert_chain(*authority.issue("alice", client=True))
    monkeypatch.setattr("tests.protocol.test_http2.client_context", lambda *given: context)
    tls = listen(authority, client_ca=str(trusted))
    reason, stays = Reason.CERTIFICATE_WITHDRAWN, ends == "one more authority"
    with ExitStack() as stack:
        service = stack.enter_context(Serving(SERVICES[kind]))
        gate = stack.enter_context(Gate(route(service.url, websocket=kind == "websocket", stream="always"), tls=tls))
        if kind.endswith("h2"):
            client = Client(gate, authority)
            stack.callback(client.link.close)
            client.request(H2_GET)
            link = client.link
        else:
            link = stack.enter_context(context.wrap_socket(connect(gate.port), server_hostname="gateway.test"))
            upload = b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
            link.sendall({"websocket": HANDSHAKE, "upload": upload}.get(kind, GET))
        if kind == "upload":
            wait_for(lambda: bool(gate.hooks.seen), "the head")
        else:
            lasting(gate)
        (transport,) = [client.transport for client in gate.layer.clients]
        if ends == "expires":
            assert isinstance(transport, SecuredConnection)
            expiry: Any = transport._expiry  # what it does when the time has come
            on_loop(gate, expiry._callback, *expiry._args)
        else:
            former = trusted.read_bytes() if stays else b""
            trusted.write_bytes(Path(other.ca).read_bytes() + former)
            gate.source.reload()
            on_loop(gate, gate.layer.reloaded)
        if stays:
            done = threading.Event()
            on_loop(gate, done.set)
            assert done.wait(PATIENCE)
            assert kind == "upload" or len(gate.layer.lasting) == 1
            assert gate.hooks.ends == ([("response", Reason.OK)] if kind == "websocket" else [])
        else:
            exchange = exchange_of(gate.hooks.seen[0][1])
            assert exchange is not None
            wait_for(lambda: exchange.failure is reason, "the record")
            assert gate.layer.lasting == []
            got = b"" if kind.endswith("h2") else receive(link)
            assert kind != "websocket" or got.endswith(b"\x88\x02\x03\xf0")  # 1008
            assert kind != "upload" or status_of(got) == 403
            if kind.startswith("events"):
                assert not got.endswith(b"0\r\n\r\n")
                wait_for(lambda: gate.layer.connected == 0, "the connection to end")


def test_websocket_is_cut() -> None:
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        link.sendall(HANDSHAKE)
        read_head(link)
        on_loop(gate, gate.layer.cut, lasting(gate), Reason.TOKEN_EXPIRED)
        exchange = exchange_of(gate.hooks.seen[0][1])
        assert receive(link) == b"\x88\x02\x03\xf0"  # 1008
        assert exchange is not None
        wait_for(lambda: exchange.failure is Reason.TOKEN_EXPIRED, "the record")


def test_no_seat_is_left_when_clients_have_gone(gate: Gate, upstream: RecordingUpstream) -> None:
    for _ in range(5):
        with connect(gate.port) as link:
            link.sendall(GET)
            receive(link, complete=True)
    wait_for(lambda: not gate.layer.clients and gate.layer.connected == 0, "the seats to be free", 3)


@pytest.mark.parametrize("reset", [True, False])
def test_client_that_leaves_inside_a_head_is_on_record(gate: Gate, reset: bool) -> None:
    with connect(gate.port) as link:
        link.sendall(b"GET /p HTTP/1.1\r\nHos")
        wait_for(lambda: gate.layer.connected == 1, "the connection")
        read = threading.Event()
        on_loop(gate, gate.loop.call_later, 0.1, read.set)
        assert read.wait(5)
        if reset:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert gate.hooks.wait_ends(1) == [("response", Reason.HEAD_MALFORMED)]
    wait_for(lambda: gate.layer.connected == 0, "the connection to end")
