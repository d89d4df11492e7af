"""What a connection leaves behind: nothing that waits for the garbage collector."""

import asyncio
import gc
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hpack import Encoder
from hyperframe.frame import HeadersFrame, SettingsFrame
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection

from mitmgate.core.reason import Reason
from mitmgate.proxy.http1 import Http1Connection
from mitmgate.proxy.http2 import Http2Connection, Http2Stream
from mitmgate.proxy.listener import SecuredConnection
from mitmgate.proxy.transaction import Transaction
from mitmgate.proxy.websocket import Relay
from tests.live.harness_http import raw_request, status_of, wait_for
from tests.live.harness_upstream import HANG_UP, PATIENCE, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.test_http2 import GET as H2_GET
from tests.protocol.test_http2 import Client
from tests.protocol.test_streaming import Serving, read_head
from tests.protocol.test_tls import client_context, listen
from tests.protocol.test_upgrade import HANDSHAKE, echo, exchange

KINDS = (Http1Connection, Http2Connection, Http2Stream, SecuredConnection, Transaction, Relay)


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, KINDS))


def assert_nothing_is_left(gate: Gate, before: Counter[str]) -> None:
    wait_for(lambda: gate.layer.connected == 0 and not gate.layer.clients, "all connections to be gone")
    wait_for(lambda: not left() - before, f"no {left() - before} to be left", 3)


def test_after_denials_and_admissions(gate: Gate, upstream: RecordingUpstream) -> None:
    before = left()
    for _ in range(5):
        with connect(gate.port) as link:
            link.sendall(b"POST /deny HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 100_000)
            assert status_of(receive(link, complete=True)) == 401
        with connect(gate.port) as link:
            for _ in range(3):
                link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
                assert status_of(receive(link, complete=True)) == 200
        with connect(gate.port) as link:
            link.sendall(b"GET /half")
        assert status_of(raw_request(gate.port, b"nonsense\r\n\r\n")) == 400
    upstream.reply = HANG_UP
    assert status_of(raw_request(gate.port, b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")) == 502
    assert_nothing_is_left(gate, before)


def test_of_requests_on_a_connection_that_stays(gate: Gate) -> None:
    with connect(gate.port) as link:

        def ask() -> None:
            for path in (b"/p", b"/deny"):
                link.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
                receive(link, complete=True)

        ask()
        before = left()
        for _ in range(10):
            ask()
        assert_settled(before)


def assert_settled(before: Counter[str]) -> None:
    wait_for(lambda: not left() - before, f"no {left() - before} to be left", 3)


def test_after_a_client_that_left_in_the_middle(gate: Gate, upstream: RecordingUpstream) -> None:
    before = left()
    for _ in range(5):
        with connect(gate.port) as link:
            link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")
            link.shutdown(socket.SHUT_RDWR)
    assert_nothing_is_left(gate, before)


def test_after_a_websocket() -> None:
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate:
        before = left()
        with connect(gate.port) as link:
            link.sendall(HANDSHAKE)
            read_head(link)
            ws = Connection(ConnectionType.CLIENT)
            assert exchange(link, ws, "hello") == "hello"
            link.sendall(ws.send(CloseConnection(1000)))
            receive(link)
        assert_nothing_is_left(gate, before)


def test_after_http_2(tmp_path_factory: pytest.TempPathFactory, upstream: RecordingUpstream) -> None:
    authority = Authority(tmp_path_factory.mktemp("leaving"))
    with Gate(route(upstream.url), tls=listen(authority)) as gate:
        before = left()
        for _ in range(3):
            with Client(gate, authority) as client:
                assert client.answer(client.request(H2_GET))[0] == 200
        assert_nothing_is_left(gate, before)


@contextmanager
def requesting(gate: Gate, authority: Authority, protocol: str) -> Iterator[None]:
    """Be a client that has sent a GET over TLS, and then leaves."""
    context = client_context(authority, protocol)
    with context.wrap_socket(connect(gate.port), server_hostname="gateway.test") as link:
        if protocol == "h2":
            head = HeadersFrame(1, Encoder().encode(H2_GET), flags=["END_HEADERS", "END_STREAM"])
            link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize() + head.serialize())
        else:
            link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        yield


class Dialling:
    """Holds up each connection to an upstream before it is opened."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    async def server_connect(self, data: ServerConnectionHookData) -> None:
        self.begun.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
@pytest.mark.parametrize("stream", ["always", "never"])
def test_client_that_leaves_while_its_upstream_is_dialled_is_on_record(
    tmp_path: Path, upstream: RecordingUpstream, protocol: str, stream: str
) -> None:
    authority, dialling = Authority(tmp_path), Dialling()
    with Gate(route(upstream.url, stream=stream), tls=listen(authority)) as gate:
        gate.master.addons.add(dialling)
        with requesting(gate, authority, protocol):
            assert dialling.begun.wait(PATIENCE)
        assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
    upstream.assert_saw_nothing()
