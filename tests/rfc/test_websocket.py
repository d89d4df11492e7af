"""How a WebSocket ends (RFC 6455, section 7): each side is told of the other's, and the record says whose it was."""

import base64
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Self

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, TextMessage
from wsproto.utilities import generate_accept_token

from tests.live.harness_http import wait_for
from tests.live.harness_upstream import Raw, Recorded
from tests.rfc.fronts import Front, bearer, parse

KEY = base64.b64encode(b"0123456789abcdef")
LINES = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY.decode()}")
GREETING = b"\x81\x05hello"
NO_CODE = 1005
GONE = 1006


def _switching(after: bytes = b"", *, close: bool = False) -> Callable[[Recorded], Raw]:
    """Answer a handshake, send what comes after it, and leave or stay."""

    def answer(request: Recorded) -> Raw:
        accept = generate_accept_token((request.one("sec-websocket-key") or "").encode())
        head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        return Raw(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + after, close=close)

    return answer


class Client:
    """A client of a WebSocket through a front."""

    def __init__(self, front: Front) -> None:
        self.link = front.connect()
        self.ws = Connection(ConnectionType.CLIENT)
        lines = "\r\n".join(("GET /ws HTTP/1.1", "Host: localhost", bearer(), *LINES))
        self.link.sendall(lines.encode() + b"\r\n\r\n")
        got = b""
        while b"\r\n\r\n" not in got:
            got += self.link.recv(1)
        self.answered = parse(got)
        assert self.answered.status == 101

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()

    def send(self, event: Event) -> None:
        self.link.sendall(self.ws.send(event))

    def until(self, kind: type[Event]) -> Event:
        """Read up to an event of a kind."""
        while True:
            for event in self.ws.events():
                if isinstance(event, kind):
                    return event
            data = self.link.recv(65536)
            assert data, f"the end came before {kind.__name__}"
            self.ws.receive_data(data)

    def leave(self) -> None:
        """End the connection, without a word of WebSocket's nor of TLS'."""
        if isinstance(self.link, ssl.SSLSocket):
            socket.socket(fileno=self.link.detach()).close()
        self.link.close()

    def reset(self) -> None:
        self.link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()


def _read_of(upstream_bytes: bytes) -> list[Event]:
    """Read what the service got behind the handshake."""
    ws = Connection(ConnectionType.SERVER)
    ws.receive_data(upstream_bytes.partition(b"\r\n\r\n")[2])
    return list(ws.events())


def _close_of(front: Front) -> CloseConnection:
    def found() -> list[CloseConnection]:
        return [event for event in _read_of(front.upstream.raw) if isinstance(event, CloseConnection)]

    wait_for(lambda: bool(found()), "the service to be told of the end")
    return found()[0]


def _end_on_record(front: Front, client: Client) -> tuple[object, ...]:
    event = front.event(client.answered)
    assert event["upgraded"] is True
    end = event["websocket"]
    told = (end["code"], end["closed_by"], end["messages_in"], end["messages_out"])
    return (*told, event["bytes_in"], event["bytes_out"])


@pytest.mark.parametrize("leaves", ["leave", "reset"])
def test_a_client_that_goes_without_a_word(front: Front, leaves: str) -> None:
    """It is 1006 for who is asked, and never on the wire (section 7.4.1): the service is told that it went away."""
    front.upstream.forget()
    front.upstream.reply = _switching(GREETING)
    with Client(front) as client:
        assert isinstance(client.until(TextMessage), TextMessage)
        client.send(TextMessage("hi"))
        wait_for(lambda: any(isinstance(event, TextMessage) for event in _read_of(front.upstream.raw)), "the message")
        getattr(client, leaves)()
        assert _close_of(front).code == 1001
        assert _end_on_record(front, client) == (GONE, "client", 1, 1, 2, 5)


def test_a_service_that_goes_without_a_word(front: Front) -> None:
    front.upstream.forget()
    front.upstream.reply = _switching(GREETING, close=True)
    with Client(front) as client:
        closed = client.until(CloseConnection)
        assert isinstance(closed, CloseConnection) and closed.code == 1011
        assert _end_on_record(front, client) == (GONE, "upstream", 0, 1, 0, 5)


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (b"\x88\x02\x03\xe8", 1000, None),
        (b"\x88\x06\x03\xf4busy", 1012, "busy"),
        (b"\x88\x02\x0f\xa1", 4001, None),
        (b"\x88\x00", NO_CODE, None),
    ],
)
def test_what_a_service_says_at_the_end_is_passed_on(front: Front, frame: bytes, code: int, reason: str | None) -> None:
    front.upstream.forget()
    front.upstream.reply = _switching(frame)
    with Client(front) as client:
        closed = client.until(CloseConnection)
        assert isinstance(closed, CloseConnection)
        assert (closed.code, closed.reason or None) == (code, reason)
        client.send(closed.response())
        assert _end_on_record(front, client) == (code, "upstream", 0, 0, 0, 0)


@pytest.mark.parametrize(("code", "reason"), [(1000, None), (1001, "bye"), (3000, None), (4999, "so \u20ac")])
def test_what_a_client_says_at_the_end_is_passed_on(front: Front, code: int, reason: str | None) -> None:
    front.upstream.forget()
    front.upstream.reply = _switching()
    with Client(front) as client:
        client.send(CloseConnection(code, reason))
        closed = _close_of(front)
        assert (closed.code, closed.reason or None) == (code, reason)
        assert _end_on_record(front, client) == (code, "client", 0, 0, 0, 0)


def test_a_client_that_breaks_the_protocol(front: Front) -> None:
    """A frame without a mask: 1002 to the client; the service, whose fault it is not, gets another code."""
    front.upstream.forget()
    front.upstream.reply = _switching()
    with Client(front) as client:
        client.link.sendall(GREETING)
        closed = client.until(CloseConnection)
        assert isinstance(closed, CloseConnection) and closed.code == 1002
        code = _close_of(front).code
        assert code not in {1000, NO_CODE, GONE}
        assert _end_on_record(front, client)[:2] == (1002, "client")


def test_a_service_that_breaks_the_protocol(front: Front) -> None:
    front.upstream.forget()
    front.upstream.reply = _switching(b"\x83\x00")  # a reserved opcode
    with Client(front) as client:
        closed = client.until(CloseConnection)
        assert isinstance(closed, CloseConnection) and closed.code == 1011
        assert _close_of(front).code == 1002
        assert _end_on_record(front, client)[:2] == (1002, "upstream")
