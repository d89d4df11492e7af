"""Raw clients: HTTP/1.1 by the byte and HTTP/2 by the frame, over sockets with and without TLS.

They send what they are told, well-formed or not, and read what comes back until it is complete or the connection ends.
"""

import contextlib
import select
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import hpack

from tests.live.harness_http import Answered
from tests.live.harness_upstream import PATIENCE

Field = tuple[bytes, bytes]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20
_BODILESS = frozenset({204, 304})


class Link:
    """A connection that is read while it is written, so that neither side waits for the other for ever."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        """tls: the client's context; None: plain."""
        self.received = bytearray()
        self.ended = False
        """Whether the other side has closed, or reset, the connection."""
        link = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = link if tls is None else tls.wrap_socket(link, server_hostname="gateway.test")
        self._socket.setblocking(False)

    def send(self, data: bytes) -> None:
        """Send bytes, or as many as the other side takes before it ends the connection."""
        rest, deadline = memoryview(data), time.monotonic() + PATIENCE
        while rest and not self.ended:
            assert time.monotonic() < deadline, f"the gateway took no bytes for {PATIENCE:.0f} s"
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                select.select([self._socket], [self._socket], [], 1)
                self._read()
            except OSError:  # closed, or reset: what had come before can still be read
                self._read()
                self.ended = True

    def _read(self) -> bool:
        """Read what is there; tells whether anything was."""
        before = len(self.received)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            try:
                while not self.ended:
                    data = self._socket.recv(262144)
                    self.received += data
                    self.ended = not data
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except OSError:
                self.ended = True
        return len(self.received) > before

    def read(self, seconds: float) -> bool:
        """Wait for bytes, or the end, for so many seconds at most; tells whether there were any."""
        if self._read() or self.ended:
            return True
        select.select([self._socket], [], [], seconds)
        return self._read() or self.ended

    def half_close(self) -> None:
        """Say that nothing more will be sent: close_notify over TLS, and the end of the TCP stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Close; reset: with a TCP reset."""
        if reset:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


@dataclass
class Partial:
    """A response as far as it came. complete: to its end. reset: HTTP/2's error code, where the stream was reset."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    reset: int | None = None

    @property
    def answered(self) -> Answered:
        """The response as the live tests know it."""
        return Answered(self.status, tuple(self.headers), self.body)

    def one(self, name: str) -> str | None:
        """Return the first value of a header field; None where absent."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def reason(self) -> str | None:
        """The reason of a problem body; None where it is none."""
        return self.answered.reason if self.complete and self.body else None


class Http1:
    """HTTP/1.1: bytes out, responses in."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        """tls: the client's context; None: plain."""
        self.link = Link(port, tls)

    def responses(self, methods: Sequence[str] = ()) -> list[Partial]:
        """Parse what has come. methods: of the requests, in order; where they are not known, GET."""
        found: list[Partial] = []
        data = bytes(self.link.received)
        while data:
            method = methods[len(found)] if len(found) < len(methods) else "GET"
            response, data = _take_response(data, method, self.link.ended)
            if response.status >= 200 or not response.status:
                found.append(response)
        return found

    def wait(self, count: int, methods: Sequence[str] = (), seconds: float = PATIENCE) -> list[Partial]:
        """Return the responses when `count` are complete, the connection has ended, or the time is over."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.responses(methods)
            if sum(response.complete for response in found) >= count or self.link.ended:
                return found
            if time.monotonic() > deadline:
                return found
            self.link.read(max(0.001, deadline - time.monotonic()))


def _take_response(data: bytes, method: str, ended: bool) -> tuple[Partial, bytes]:
    """Take a response off the front; where it is not complete nothing is left."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return Partial(body=data), b""
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if not first.startswith("HTTP/1.1 ") or not parts[1].isdigit():
        return Partial(body=data), b""
    response = Partial(int(parts[1]))
    response.headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if response.status < 200:
        return response, rest if response.status != 101 else b""
    if method == "HEAD" or response.status in _BODILESS:
        response.complete = True
        return response, rest
    if "chunked" in (response.one("transfer-encoding") or ""):
        return response, _take_chunks(response, rest)
    length = response.one("content-length")
    if length is None:
        response.body, response.complete = rest, ended
        return response, b""
    response.body, rest = rest[: int(length)], rest[int(length) :]
    response.complete = len(response.body) == int(length)
    return response, rest


def _take_chunks(response: Partial, data: bytes) -> bytes:
    while True:
        size, separator, rest = data.partition(b"\r\n")
        if not separator:
            return b""
        length = int(size.split(b";")[0], 16)
        if length == 0:
            _, end, after = data[len(size) :].partition(b"\r\n\r\n")
            response.complete = bool(end)
            return after
        if len(rest) < length + 2:
            response.body += rest[:length]
            return b""
        response.body += rest[:length]
        data = rest[length + 2 :]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Write a frame (RFC 9113, section 4.1), whatever its members say together."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(fields: Iterable[Field]) -> bytes:
    """Write a field section that depends on no other: literals without indexing (RFC 7541, section 6.2.2)."""
    made = b""
    for name, value in fields:
        made += b"\x00" + _string(name) + _string(value)
    return made


def _string(octets: bytes) -> bytes:
    size = len(octets)
    if size < 127:
        return bytes([size]) + octets
    size -= 127
    coded = b"\x7f"
    while size >= 128:
        coded += bytes([size % 128 + 128])
        size //= 128
    return coded + bytes([size]) + octets


def settings(values: dict[int, int] | None = None) -> bytes:
    """Write a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *one) for one in (values or {}).items()))


class Http2:
    """HTTP/2: frames out, responses by stream in. The window is given back as it is used, unless `consume` is false."""

    def __init__(
        self, port: int, tls: ssl.SSLContext | None, first: bytes = b"", *, initial: dict[int, int] | None = None
    ) -> None:
        """first: what goes out together with the preface. initial: settings."""
        self.link = Link(port, tls)
        self.streams: dict[int, Partial] = {}
        self.goaway: int | None = None
        self.pongs: list[bytes] = []
        self.consume = True
        self._decoder = hpack.Decoder()
        self._decoder.max_header_list_size = 1 << 20
        self._at = 0
        self._block: tuple[int, int, bytes] = (0, 0, b"")
        self.link.send(PREFACE + settings({4: 1 << 20, **(initial or {})}) + first)

    def send(self, *frames: bytes) -> None:
        """Send frames."""
        self.link.send(b"".join(frames))

    def _take(self) -> None:
        received = self.link.received
        reply = b""
        while len(received) - self._at >= 9:
            size = int.from_bytes(received[self._at : self._at + 3])
            if len(received) - self._at < 9 + size:
                break
            kind, flags, stream = struct.unpack(">BBI", received[self._at + 3 : self._at + 9])
            payload = bytes(received[self._at + 9 : self._at + 9 + size])
            self._at += 9 + size
            reply += self._frame(kind, flags, stream & 0x7FFFFFFF, payload)
        if reply:
            self.link.send(reply)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        response = self.streams.setdefault(stream, Partial()) if stream else Partial()
        if kind == HEADERS:
            self._block = (stream, flags, payload)
        elif kind == CONTINUATION:
            self._block = (stream, self._block[1], self._block[2] + payload)
        if kind in {HEADERS, CONTINUATION} and flags & END_HEADERS:
            fields = [(bytes(n).decode("latin-1"), bytes(v).decode("latin-1")) for n, v in self._decode()]
            status = next((int(value) for name, value in fields if name == ":status"), 0)
            if status >= 200:
                response.status, response.headers = status, fields[1:]
            response.complete = bool(self._block[1] & END_STREAM)
        elif kind == DATA:
            response.body += payload
            response.complete = bool(flags & END_STREAM)
            if self.consume and payload:
                window = struct.pack(">I", len(payload))
                return frame(WINDOW_UPDATE, 0, 0, window) + (
                    b"" if response.complete else frame(WINDOW_UPDATE, 0, stream, window)
                )
        elif kind == RST_STREAM:
            response.reset = int.from_bytes(payload)
        elif kind == SETTINGS and not flags & ACK:
            return frame(SETTINGS, ACK, 0)
        elif kind == PING and flags & ACK:
            self.pongs.append(payload)
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[4:8])
        return b""

    def _decode(self) -> Iterable[tuple[bytes, bytes]]:
        found: Iterable[tuple[bytes, bytes]] = self._decoder.decode(self._block[2], raw=True)
        return found

    def wait(self, streams: Iterable[int], seconds: float = PATIENCE) -> bool:
        """Read until each stream has ended, or the connection; tells whether that came within so many seconds."""
        wanted, deadline = list(streams), time.monotonic() + seconds
        while True:
            self._take()
            done = [self.streams.get(one, Partial()) for one in wanted]
            if self.link.ended or all(one.complete or one.reset is not None for one in done):
                return True
            if time.monotonic() > deadline:
                return False
            self.link.read(max(0.001, deadline - time.monotonic()))

    def ping(self, seconds: float = PATIENCE) -> bool:
        """Return when every frame before has been taken, or the connection has ended; tells whether it lives."""
        mine = struct.pack(">Q", time.monotonic_ns())
        self.send(frame(PING, 0, 0, mine))
        deadline = time.monotonic() + seconds
        while mine not in self.pongs and not self.link.ended and time.monotonic() < deadline:
            self.link.read(max(0.001, deadline - time.monotonic()))
            self._take()
        return mine in self.pongs
