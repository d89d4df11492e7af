"""An HTTP/2 client of raw frames, which keeps to no rule by itself, and what it gets back."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.live.harness_upstream import PATIENCE

Fields = Iterable[tuple[bytes, bytes]]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INITIAL_WINDOW: Final = 4


def request_fields(
    method: str, path: str, *more: tuple[bytes, bytes], token: str | None = None, authority: str = "gateway.test"
) -> list[tuple[bytes, bytes]]:
    """Make a well-formed header section; more: fields behind it, well-formed or not."""
    pseudo = [(b":method", method), (b":scheme", "https"), (b":authority", authority), (b":path", path)]
    fields = [(name, value.encode("latin-1")) for name, value in pseudo]
    if token is not None:
        fields.append((b"authorization", b"Bearer " + token.encode("ascii")))
    return [*fields, *more]


@dataclass
class Stream:
    """What has come on a stream."""

    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more can come."""
        return self.ended or self.reset is not None

    @property
    def status(self) -> int:
        """The response's status; 0 where none came."""
        return int(dict(self.fields).get(b":status", b"0"))


class RawHttp2:
    """The client. Every method that writes does so at once; `until` reads. Use it as a context manager."""

    def __init__(
        self, port: int, ca: str | None, *, settings: dict[int, int] | None = None, greet: bool = True
    ) -> None:
        """ca: None: without TLS. settings: what the client announces. greet: send preface and SETTINGS."""
        self.link: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._plain = ca is None
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
            context.set_alpn_protocols(["h2"])
            self.link = secured = context.wrap_socket(self.link, server_hostname="gateway.test")
            assert secured.selected_alpn_protocol() == "h2"
        self.encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        self._next = 1
        self._head: HeadersFrame | None = None
        self.streams: dict[int, Stream] = {}
        self.goaway: int | None = None
        self.closed = False
        self.pongs = 0
        if greet:
            self.link.sendall(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())

    # Writing.

    def stream(self) -> int:
        """Return the next stream's number."""
        number, self._next = self._next, self._next + 2
        self.streams[number] = Stream()
        return number

    def send(self, *frames: Frame | bytes) -> None:
        """Write frames in one piece."""
        self.link.sendall(b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames))

    def head(self, number: int, fields: Fields, *, end: bool = False, whole: bool = True) -> HeadersFrame:
        """Make a HEADERS frame, of a head or of trailers. whole: with END_HEADERS. https is http where it should be."""
        if self._plain:
            fields = [(b":scheme", b"http") if one == (b":scheme", b"https") else one for one in fields]
        flags = [*(["END_STREAM"] if end else []), *(["END_HEADERS"] if whole else [])]
        return HeadersFrame(number, self.encoder.encode(list(fields)), flags=flags)

    def data(self, number: int, payload: bytes, *, end: bool = False, padding: int | None = None) -> DataFrame:
        """Make a DATA frame. padding: its bytes; None: the frame is not padded."""
        flags = [*(["END_STREAM"] if end else []), *([] if padding is None else ["PADDED"])]
        return DataFrame(number, payload, pad_length=padding or 0, flags=flags)

    def request(self, fields: Fields, *payloads: bytes, end: bool = True) -> int:
        """Send a request; its DATA frames are those given, and the last of all frames ends the stream."""
        number = self.stream()
        last = len(payloads) - 1
        frames: list[Frame] = [self.head(number, fields, end=end and not payloads)]
        frames += [self.data(number, part, end=end and i == last) for i, part in enumerate(payloads)]
        self.send(*frames)
        return number

    def grant(self, number: int, size: int) -> None:
        """Give the gateway leave to send more; number 0: on the connection."""
        self.send(WindowUpdateFrame(number, size))

    # Reading.

    def until(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        """Read until the condition holds or the connection ends, which `closed` tells."""
        deadline = time.monotonic() + patience
        while not condition() and not self.closed:
            left = deadline - time.monotonic()
            assert left > 0, f"waited {patience:.0f} s for {what}; {self.streams}"
            self.link.settimeout(max(0.01, left))
            try:
                data = self.link.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return
            self._received += data
            self._parse()

    def _parse(self) -> None:
        while len(self._received) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._received[:9]))
            if len(self._received) < 9 + length:
                return
            frame.parse_body(memoryview(self._received[9 : 9 + length]))
            self._received = self._received[9 + length :]
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            with contextlib.suppress(OSError):
                self.send(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame):
            self.pongs += "ACK" in frame.flags
        elif isinstance(frame, GoAwayFrame):
            self.goaway = frame.error_code
        elif isinstance(frame, RstStreamFrame):
            self._of(frame).reset = frame.error_code
        elif isinstance(frame, DataFrame):
            stream = self._of(frame)
            stream.body += bytes(frame.data)
            stream.ended |= "END_STREAM" in frame.flags
        elif isinstance(frame, HeadersFrame | ContinuationFrame):
            if isinstance(frame, HeadersFrame):
                self._head = frame
            elif self._head is not None:
                self._head.data += frame.data
            if "END_HEADERS" in frame.flags and self._head is not None:
                stream = self._of(frame)
                stream.fields = [(bytes(n), bytes(v)) for n, v in self._decoder.decode(self._head.data, raw=True)]
                stream.ended |= "END_STREAM" in self._head.flags

    def _of(self, frame: Frame) -> Stream:
        return self.streams.setdefault(frame.stream_id, Stream())

    def response(self, number: int) -> Stream:
        """Read until a stream is over, and return what came on it."""
        stream = self.streams[number]
        self.until(lambda: stream.over, f"the end of stream {number}")
        return stream

    def end(self) -> int | None:
        """Read until the gateway closes the connection, and return the code of its GOAWAY."""
        self.until(lambda: self.closed, "the end of the connection")
        return self.goaway

    def ping(self) -> None:
        """Return when everything that was sent before has been looked at."""
        before = self.pongs
        self.send(PingFrame(0, b"fence---"))
        self.until(lambda: self.pongs > before, "the answer to a PING")

    def close(self) -> None:
        """Leave without a word."""
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def outcome(stream: Stream) -> Any:
    """Say in a few words what became of a request: its status, or how it was reset."""
    return stream.status or f"reset {stream.reset}"
