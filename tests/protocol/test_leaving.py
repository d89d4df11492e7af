"""What a connection leaves behind: nothing that waits for the garbage collector."""

import asyncio
import gc
import socket
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hpack import Encoder
from hyperframe.frame import HeadersFrame, SettingsFrame
from mitmproxy.connection import Connection as ProxyConnection
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection

from mitmgate.core.reason import Reason
from mitmgate.engine.layer_timers import Timer, Timers
from mitmgate.engine.layer_wire import Wire
from tests.live.harness_http import raw_request, status_of, wait_for
from tests.live.harness_upstream import HANG, HANG_UP, PATIENCE, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.test_http2 import GET as H2_GET
from tests.protocol.test_http2 import Client
from tests.protocol.test_streaming import Serving, read_head
from tests.protocol.test_tls import client_context, listen
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
    # mitmproxy cancels the dial, and says nothing of it: the exchange never ended, and had no audit event
    authority, dialling = Authority(tmp_path), Dialling()
    with Gate(route(upstream.url, stream=stream), tls=listen(authority)) as gate:
        gate.master.addons.add(dialling)
        with requesting(gate, authority, protocol):
            assert dialling.begun.wait(PATIENCE)
        assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
    upstream.assert_saw_nothing()


def in_loop(gate: Gate, coroutine: Coroutine[None, None, object]) -> None:
    asyncio.run_coroutine_threadsafe(coroutine, gate.loop).result(PATIENCE)


async def cancel_what_waits(handler: ConnectionHandler, *ended: ProxyConnection) -> None:
    """Cancel connections' tasks, as mitmproxy does where it can't write, and release the lock that they wait for."""
    tasks = [handler.transports[connection].handler for connection in ended if connection in handler.transports]
    for task in tasks:
        assert task is not None
        task.cancel()
    await asyncio.sleep(0)
    handler._server_event_lock.release()


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
@pytest.mark.parametrize("client_too", [False, True])
def test_end_of_a_connection_that_mitmproxy_does_not_tell_ends_the_exchange(
    tmp_path: Path, upstream: RecordingUpstream, protocol: str, client_too: bool
) -> None:
    # a task that is cancelled while it waits for mitmproxy's lock loses what it was to tell; `serve` has no such lock
    upstream.reply = HANG
    authority = Authority(tmp_path)
    with Gate(route(upstream.url), tls=listen(authority)) as gate:
        with requesting(gate, authority, protocol):
            wait_for(lambda: len(upstream.requests) == 1, "the request")
            (handler,) = gate.master.addons.get("proxyserver").connections.values()
            (server,) = [connection for connection in handler.transports if connection is not handler.client]
            in_loop(gate, handler._server_event_lock.acquire())
            upstream.hang_up()
            wait_for(lambda: server.state is not ConnectionState.OPEN, "the upstream's end")
            if not client_too:
                in_loop(gate, cancel_what_waits(handler, server))
                assert gate.hooks.wait_ends(1) == [("response", Reason.UPSTREAM_CLOSED)]
        if client_too:
            wait_for(lambda: handler.client.state is not ConnectionState.OPEN, "the client's end")
            in_loop(gate, cancel_what_waits(handler, server, handler.client))
            assert len(gate.hooks.wait_ends(1)) == 1  # whichever of the two is told first
