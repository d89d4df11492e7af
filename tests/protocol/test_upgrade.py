"""Upgrades: WebSocket where the route allows it, and nothing else."""

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import threading
import time
import tracemalloc

import pytest
from mitmproxy.http import HTTPFlow
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.extensions import PerMessageDeflate

from mitmgate.core.cause import Cause
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.pipeline.exchange import exchange_of
from mitmgate.proxy import websocket
from tests.live.harness_http import raw_request, status_of, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.test_streaming import Serving, read_head

KEY = base64.b64encode(b"0123456789abcdef")
ACCEPT = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    + ACCEPT
    + b"\r\n\r\n"
)


def echo(link: socket.socket) -> None:
    head = read_head(link)
    assert b"Upgrade: websocket" in head
    assert b"Connection: Upgrade" in head
    link.sendall(SWITCHING)
    ws = Connection(ConnectionType.SERVER)
    while True:
        data = link.recv(65536)
        if not data:
            return
        ws.receive_data(data)
        for event in ws.events():
            if isinstance(event, TextMessage | BytesMessage):
                link.sendall(ws.send(event))
            elif isinstance(event, CloseConnection):
                link.sendall(ws.send(event.response()))
                return


def exchange(link: socket.socket, ws: Connection, text: str) -> str:
    link.sendall(ws.send(TextMessage(text)))
    got = ""
    while True:
        data = link.recv(65536)
        assert data, "the connection ended"
        ws.receive_data(data)
        for event in ws.events():
            if isinstance(event, TextMessage):
                got += event.data
                if event.message_finished:
                    return got


def test_websocket_messages_pass_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "KEPT_MESSAGES", 10)
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        link.sendall(HANDSHAKE)
        assert read_head(link) == SWITCHING
        ws = Connection(ConnectionType.CLIENT)
        for number in range(50):
            assert exchange(link, ws, f"message {number}") == f"message {number}"
        assert exchange(link, ws, "x" * 300_000) == "x" * 300_000
        flow = gate.hooks.seen[-1][1]
        assert flow.websocket is not None
        assert len(flow.websocket.messages) <= 10
        link.sendall(ws.send(CloseConnection(1000)))
        wait_for(lambda: flow.live is False, "the end of the WebSocket")


def test_message_beyond_the_bound_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_MESSAGE", 100_000)
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        link.sendall(HANDSHAKE)
        read_head(link)
        ws = Connection(ConnectionType.CLIENT)
        link.sendall(ws.send(TextMessage("x" * 200_000, message_finished=False)))
        assert link.recv(4096) == b"\x88\x02\x03\xf1"  # 1009
        assert link.recv(4096) == b""


def test_frames_that_are_none_end_the_connection() -> None:
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        link.sendall(HANDSHAKE)
        read_head(link)
        link.sendall(b"\xff" * 50)
        got = link.recv(4096)
        assert (got[:1], got[2:4]) == (b"\x88", b"\x03\xea")  # 1002
        assert link.recv(4096) == b""


@pytest.mark.parametrize(
    ("issuer", "reason"),
    [
        ("dev", Reason.TOKEN_EXPIRED),
        ("api-key", Reason.API_KEY_EXPIRED),
        ("certificate", Reason.CERTIFICATE_EXPIRED),
    ],
)
def test_connections_end_with_what_opened_them(issuer: str, reason: Reason) -> None:
    def principal(seconds: float) -> Principal:
        return Principal("alice", issuer, (), frozenset(), {}, time.time() + seconds)

    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        gate.decide.principal = principal(0.5)
        link.sendall(HANDSHAKE)
        read_head(link)
        started = time.monotonic()
        assert exchange(link, Connection(ConnectionType.CLIENT), "hello") == "hello"
        assert link.recv(4096) == b"\x88\x02\x03\xf0"  # 1008
        assert link.recv(4096) == b""
        assert time.monotonic() - started < 10

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while link.recv(4096):
            pass

    with Serving(serve) as serving, Gate(route(serving.url)) as gate:
        gate.decide.principal = principal(0.5)
        got = raw_request(gate.port, b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n", until_close=True)
        assert status_of(got) == 200
        assert not got.endswith(b"0\r\n\r\n")
        assert gate.hooks.wait_ends(1) == [("error", reason)]


def test_upgrade_on_another_route_is_refused(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url, websocket=False)) as gate:
        got = raw_request(gate.port, HANDSHAKE)
        assert status_of(got) in {400, 502}
        assert b"101" not in got.split(b"\r\n")[0]


WRONG = {
    "other-protocol": b"HTTP/1.1 101 X\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\n",
    "wrong-accept": SWITCHING.replace(ACCEPT, base64.b64encode(os.urandom(20))),
    "no-accept": b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "no-connection": b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", WRONG)
def test_switch_that_is_not_the_one_asked_for_is_a_502(name: str) -> None:
    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(WRONG[name])
        while link.recv(4096):
            pass

    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate:
        assert status_of(raw_request(gate.port, HANDSHAKE)) == 502
        assert gate.hooks.wait_ends(1) == [("response", Reason.UPSTREAM_MALFORMED)]


def test_refusal_of_an_upgrade_by_the_upstream_is_passed_on() -> None:
    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno")

    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate:
        assert status_of(raw_request(gate.port, HANDSHAKE)) == 426


DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover\r\n"
BOMB_BYTES = 60_000_000


def bomb(kind: ConnectionType) -> bytes:
    """Make a frame of some 60 KB that inflates to BOMB_BYTES."""
    deflate = PerMessageDeflate(True, None, True, None)
    deflate.finalize("permessage-deflate; client_no_context_takeover; server_no_context_takeover")
    frame = Connection(kind, [deflate]).send(BytesMessage(bytes(BOMB_BYTES)))
    assert len(frame) < 100_000
    return frame


@pytest.mark.parametrize("hostile", ["client", "upstream"])
def test_a_message_is_bounded_while_it_is_inflated(hostile: str) -> None:
    seen: list[bytes] = []

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(SWITCHING[:-2] + DEFLATE + b"\r\n")
        if hostile == "upstream":
            link.sendall(bomb(ConnectionType.SERVER))
        while data := link.recv(65536):
            seen.append(data)

    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        link.sendall(HANDSHAKE[:-2] + DEFLATE + b"\r\n")
        read_head(link)
        tracemalloc.start()
        try:
            if hostile == "client":
                link.sendall(bomb(ConnectionType.CLIENT))
                tracemalloc.reset_peak()
            assert receive(link) == b"\x88\x02\x03\xf1"  # 1009
            if hostile == "client":
                assert tracemalloc.get_traced_memory()[1] < 2.5 * websocket.MAX_MESSAGE
        finally:
            tracemalloc.stop()
        wait_for(lambda: bool(gate.hooks.seen[-1:]), "the end")
        found = exchange_of(gate.hooks.seen[0][1])
        assert found is not None
        wait_for(lambda: found.websocket is not None, "the record")
        assert found.websocket == (1009, hostile, 0, 0)
    assert len(b"".join(seen)) < 100  # a close frame, and nothing of the message


def framed(opcode: int, payload: bytes, final: bool = True) -> bytes:
    """Make a client's frame; a mask of zeros leaves the payload as it is."""
    size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2)
    return bytes([final << 7 | opcode]) + size + bytes(4) + payload


SMALL = {
    "messages": framed(1, b"a"),
    "pings": framed(9, b""),
    "fragments": framed(0, b"", final=False),
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_client_that_sends_too_many_small_frames_is_closed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs some 20 us, so that one client could keep a core busy; of a slow machine, with fewer of them."""
    monkeypatch.setattr("mitmgate.proxy.websocket.RATE", 100)
    seen = 0

    def serve(link: socket.socket) -> None:
        nonlocal seen
        read_head(link)
        link.sendall(SWITCHING)
        while data := link.recv(65536):
            seen += len(data)

    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        link.sendall(HANDSHAKE)
        read_head(link)
        done = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):  # it is closed meanwhile
                link.sendall(framed(1, b"", final=False) if kind == "fragments" else b"")
                for _ in range(400):
                    link.sendall(SMALL[kind] * 2_000)
            done.set()

        threading.Thread(target=flood, daemon=True).start()
        assert receive(link) == b"\x88\x02\x03\xf0"  # 1008
        assert done.wait(PATIENCE)
        found = exchange_of(gate.hooks.seen[0][1])
        assert found is not None
        wait_for(lambda: found.failure is Reason.FRAMES_EXCESSIVE, "the record")
        assert found.websocket is not None
        assert found.websocket[:2] == (1008, "gateway")
    assert seen < 400 * 2_000 * 6


def test_a_client_that_sends_much_is_not_taken_for_a_flood() -> None:
    """Neither large frames in any number, nor some thousand small ones at once."""
    large, count = framed(2, bytes(1100)), 11_000
    sizes: list[int] = []

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(SWITCHING)
        ws = Connection(ConnectionType.SERVER)
        while data := link.recv(65536):
            ws.receive_data(data)
            for event in ws.events():
                if isinstance(event, TextMessage | BytesMessage) and event.message_finished:
                    sizes.append(len(event.data))
                elif isinstance(event, CloseConnection):
                    link.sendall(ws.send(event.response()))
                    return

    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        link.sendall(HANDSHAKE)
        read_head(link)
        link.sendall(framed(1, b"a") * 2_000)
        for _ in range(count // 50):
            link.sendall(large * 50)
        link.sendall(framed(8, b"\x03\xe8"))
        assert receive(link) == b"\x88\x02\x03\xe8"  # 1000
    assert len(sizes) == 2_000 + count


@pytest.mark.parametrize(
    ("leaves", "told", "record"),
    [("client", b"\x03\xe9", (1006, "client", 1, 1)), ("upstream", b"\x03\xf3", (1006, "upstream", 1, 1))],
)
def test_an_end_without_a_close_frame_is_said_and_recorded(
    leaves: str, told: bytes, record: tuple[int, str, int, int]
) -> None:
    seen: list[bytes] = []

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(SWITCHING)
        ws = Connection(ConnectionType.SERVER)
        ws.receive_data(link.recv(65536))
        link.sendall(ws.send(next(event for event in ws.events() if isinstance(event, TextMessage))))
        if leaves == "client":
            while data := link.recv(65536):
                seen.append(data)

    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate:
        with connect(gate.port) as link:
            link.sendall(HANDSHAKE)
            read_head(link)
            ws = Connection(ConnectionType.CLIENT)
            if leaves == "upstream":
                link.sendall(ws.send(TextMessage("hello")))
                assert receive(link).endswith(b"hello\x88\x02" + told)
            else:
                assert exchange(link, ws, "hello") == "hello"
        found = exchange_of(gate.hooks.seen[0][1])
        assert found is not None
        wait_for(lambda: found.websocket is not None, "the record")
        assert found.cause is (Cause.CLOSED if leaves == "upstream" else None)
        assert found.websocket == record
        assert (found.body_in, found.body_out) == (5, 5)
        if leaves == "client":
            wait_for(lambda: bool(seen), "the close frame")
            head, mask, code = seen[0][:2], seen[0][2:6], seen[0][6:8]
            assert head == b"\x88\x82"
            assert bytes(a ^ b for a, b in zip(code, mask, strict=False)) == told


class Slow:
    """Holds up the head of a response until it is told to go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    async def responseheaders(self, flow: HTTPFlow) -> None:
        if flow.response is not None and flow.response.status_code == 101:
            self.begun.set()
            await asyncio.to_thread(self.go_on.wait, PATIENCE)


def test_client_that_leaves_while_a_hook_looks_at_the_101_ends_an_ordinary_exchange() -> None:
    close = threading.Event()

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(SWITCHING)
        assert close.wait(PATIENCE)

    slow = Slow()
    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate:
        gate.master.addons.add(slow)
        with connect(gate.port) as link:
            link.sendall(HANDSHAKE)
            assert slow.begun.wait(PATIENCE)

        def gone() -> list[bool]:
            return [transaction._gone for one in gate.layer.clients for transaction in one.transactions]

        wait_for(lambda: gone() == [True], "the client's end to be noticed")
        slow.go_on.set()
        wait_for(lambda: ("error", Reason.CLIENT_CLOSED) in gate.hooks.ends, "the end")
        assert gate.hooks.seen[0][1].websocket is None  # else no event would be made of it
        close.set()


def test_service_that_leaves_while_a_hook_looks_at_the_101_is_told_of_afterwards() -> None:
    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(SWITCHING)

    slow = Slow()
    with Serving(serve) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        gate.master.addons.add(slow)
        link.sendall(HANDSHAKE)
        assert slow.begun.wait(PATIENCE)
        slow.go_on.set()
        got = receive(link)
        assert got.startswith(b"HTTP/1.1 101 ")
        assert got.endswith(b"\r\n\r\n\x88\x02\x03\xf3")  # 1011
        found = exchange_of(gate.hooks.seen[0][1])
        assert found is not None
        wait_for(lambda: found.websocket is not None, "the record")
        assert found.websocket == (1006, "upstream", 0, 0)


class Pondering:
    """Looks at each message for a while, as a script that asks somebody does."""

    async def websocket_message(self, flow: HTTPFlow) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_messages_behind_one_that_a_hook_looks_at_arrive_in_order() -> None:
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate, connect(gate.port) as link:
        gate.master.addons.add(Pondering())
        link.sendall(HANDSHAKE)
        read_head(link)
        ws = Connection(ConnectionType.CLIENT)
        words = [f"message {number}" for number in range(30)]
        link.sendall(b"".join(ws.send(TextMessage(word)) for word in words[:20]))
        for word in words[20:]:
            link.sendall(ws.send(TextMessage(word)))
        got: list[str] = []
        while len(got) < len(words):
            ws.receive_data(link.recv(65536))
            got += [event.data for event in ws.events() if isinstance(event, TextMessage)]
        assert got == words
        link.sendall(ws.send(CloseConnection(1000)))
        assert receive(link) == b"\x88\x02\x03\xe8"
        found = exchange_of(gate.hooks.seen[0][1])
        assert found is not None
        wait_for(lambda: found.websocket is not None, "the record")
        assert found.websocket == (1000, "client", 30, 30)


def test_client_that_leaves_behind_messages_that_hooks_look_at_has_its_end_on_record() -> None:
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate:
        gate.master.addons.add(Pondering())
        with connect(gate.port) as link:
            link.sendall(HANDSHAKE)
            read_head(link)
            ws = Connection(ConnectionType.CLIENT)
            link.sendall(ws.send(TextMessage("a")) + ws.send(TextMessage("b")))
        found = exchange_of(gate.hooks.seen[0][1])
        assert found is not None
        wait_for(lambda: found.websocket is not None and gate.layer.connected == 0, "the end")
