"""What a connection leaves behind: nothing that waits for the garbage collector."""

import gc
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection

from mitmgate.engine.layer_timers import Timer, Timers
from mitmgate.engine.layer_wire import Wire
from tests.live.harness_http import raw_request, status_of, wait_for
from tests.live.harness_upstream import HANG_UP, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.test_http2 import GET as H2_GET
from tests.protocol.test_http2 import Client
from tests.protocol.test_streaming import Serving, read_head
from tests.protocol.test_tls import listen
from tests.protocol.test_upgrade import HANDSHAKE, echo, exchange

KINDS = (Layer, Context, Timer, Timers, Wire)
"""Not mitmproxy's handler: where a client has half-closed, mitmproxy's own frame and its CancelledError keep it."""


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
    wait_for(lambda: gate.layer.connected == 0 and not gate.layer._seats, "all connections to be gone")
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
