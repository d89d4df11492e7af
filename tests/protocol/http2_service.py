"""A service that speaks HTTP/2, with or without TLS, and does on each request what its path says."""

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Final, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, WindowUpdateFrame

from tests.live.harness_upstream import PATIENCE

LARGE: Final = 1 << 20
CRUMBS: Final = 20_000
"""Frames that are worth nothing."""
BURST: Final = 60_000
"""Bytes that a stream's first window lets through."""


@dataclass
class Seen:
    """A request as the service read it."""

    fields: list[tuple[bytes, bytes]]
    connection: int
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def one(self, name: bytes) -> bytes | None:
        """Return the only value of a field."""
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2, self.fields
        return values[0] if values else None


@dataclass
class _Connection:
    number: int
    link: socket.socket
    h2: h2.connection.H2Connection
    streams: dict[int, Seen] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    last: float = inf  # the stream beyond which nothing is looked at: a GOAWAY has said so


class Http2Service:
    """Use it as a context manager. streams: what it takes at once on a connection; requests: all that it read.

    leaving: it says goodbye with its first words.
    """

    def __init__(self, context: ssl.SSLContext | None = None, *, streams: int = 100, leaving: bool = False) -> None:
        self._context = context
        self._leaving = leaving
        self._streams = streams
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        self.url = f"{'h2s' if context else 'h2'}://127.0.0.1:{self.port}"
        self.requests: list[Seen] = []
        self.connections = 0
        self.unwilling = 1  # connections on which /refused and /goaway are not looked at
        self.closed = 0
        self._links: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._accepting.join(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listening.accept()
                self.connections += 1
                self._links.append(link)
                thread = threading.Thread(target=self._serve, args=(link, self.connections), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, link: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(self._ended_one)
            stack.callback(link.close)
            if self._context is not None:
                link = self._context.wrap_socket(link, server_side=True)
                stack.callback(link.close)
            config = h2.config.H2Configuration(
                client_side=False,
                header_encoding=False,
                validate_inbound_headers=True,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
            connection = _Connection(number, link, h2.connection.H2Connection(config))
            connection.h2.local_settings = h2.settings.Settings(
                client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._streams}
            )
            connection.h2.initiate_connection()
            if self._leaving:
                link.sendall(connection.h2.data_to_send() + GoAwayFrame(0, last_stream_id=0).serialize())
            self._flush(connection)
            while data := link.recv(65536):
                with connection.lock:
                    for event in connection.h2.receive_data(data):
                        self._take(connection, event)
                    self._flush(connection)

    def _ended_one(self) -> None:
        self.closed += 1

    @staticmethod
    def _flush(connection: _Connection) -> None:
        if data := connection.h2.data_to_send():
            connection.link.sendall(data)

    def _take(self, connection: _Connection, event: h2.events.Event) -> None:
        if (getattr(event, "stream_id", None) or 0) > connection.last:
            if isinstance(event, h2.events.DataReceived):
                connection.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return
        if isinstance(event, h2.events.RequestReceived):
            connection.streams[event.stream_id] = seen = Seen(list(event.headers), connection.number)
            self.requests.append(seen)
            self._begun(connection, event.stream_id, seen)
        elif isinstance(event, h2.events.DataReceived):
            seen = connection.streams[event.stream_id]
            seen.body += event.data
            if seen.one(b":path") != b"/window":
                connection.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if seen.one(b":path") == b"/chat":
                connection.h2.send_data(event.stream_id, b"echo:" + event.data)
        elif isinstance(event, h2.events.TrailersReceived):
            connection.streams[event.stream_id].trailers = list(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            connection.streams[event.stream_id].ended = True
            self._answer(connection, event.stream_id, connection.streams[event.stream_id])
        elif isinstance(event, h2.events.StreamReset):
            connection.streams[event.stream_id].reset = event.error_code

    def _begun(self, connection: _Connection, stream_id: int, seen: Seen) -> None:  # noqa: PLR0912 - a row a path
        """Do what does not wait for the body."""
        raw, send = connection.link.sendall, connection.h2
        match seen.one(b":path"):
            case b"/refused" if connection.number <= self.unwilling:
                raw(RstStreamFrame(stream_id, error_code=int(ErrorCodes.REFUSED_STREAM)).serialize())
            case b"/goaway" if connection.number <= self.unwilling:
                raw(GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())
            case b"/103-refused" | b"/100-refused" | b"/102-goaway":
                status, end = (seen.one(b":path") or b"")[1:].split(b"-")
                send.send_headers(stream_id, [(b":status", status), (b"link", b"</s>; rel=preload")])
                self._flush(connection)
                refusal = RstStreamFrame(stream_id, error_code=int(ErrorCodes.REFUSED_STREAM))
                raw((refusal if end == b"refused" else GoAwayFrame(0, last_stream_id=0, error_code=0)).serialize())
            case b"/goaway-busy":
                connection.last = stream_id
                raw(GoAwayFrame(0, last_stream_id=stream_id, error_code=0).serialize())
            case b"/closed":
                connection.link.shutdown(socket.SHUT_RDWR)
            case b"/reset":
                raw(RstStreamFrame(stream_id, error_code=int(ErrorCodes.INTERNAL_ERROR)).serialize())
            case b"/early":
                send.send_headers(stream_id, [(b":status", b"413"), (b"content-length", b"5")])
                send.send_data(stream_id, b"early", end_stream=True)
            case b"/chat":
                send.send_headers(stream_id, [(b":status", b"200")])
            case b"/crumbs":
                send.send_headers(stream_id, [(b":status", b"200")])
                self._flush(connection)
                crumb = DataFrame(stream_id, b"x").serialize()
                raw(crumb * CRUMBS + DataFrame(stream_id, b"", flags=["END_STREAM"]).serialize())
            case b"/pings":
                raw(PingFrame(0, b"12345678").serialize() * CRUMBS)
            case b"/windows":
                raw(WindowUpdateFrame(0, 1).serialize() * CRUMBS)
            case b"/mute":  # reads and says nothing more
                self._ended.wait(PATIENCE)
            case _:
                return
        self._flush(connection)

    def _answer(self, connection: _Connection, stream_id: int, seen: Seen) -> None:
        send = connection.h2
        path = seen.one(b":path") or b""
        if (
            path in {b"/hang", b"/early", b"/closed", b"/reset", b"/crumbs"}
            or path[4:] in {b"-refused", b"-goaway"}
            or (path in {b"/refused", b"/goaway"} and connection.number <= self.unwilling)
        ):
            return
        if path.startswith(b"/bad-"):
            fields = BAD[path.decode()]
            connection.link.sendall(
                HeadersFrame(stream_id, send.encoder.encode(fields), flags=["END_HEADERS"]).serialize()
                + DataFrame(stream_id, b"secret", flags=["END_STREAM"]).serialize()
            )
            return
        if path == b"/chat":
            send.send_data(stream_id, b"bye")
            send.send_headers(stream_id, [(b"grpc-status", b"0"), (b"x-user-id", b"eve")], end_stream=True)
            return
        if path == b"/half":
            send.send_headers(stream_id, [(b":status", b"200"), (b"content-length", b"10")])
            send.send_data(stream_id, b"half")
            self._flush(connection)
            connection.link.sendall(RstStreamFrame(stream_id, error_code=int(ErrorCodes.INTERNAL_ERROR)).serialize())
            return
        sizes = {b"/large": LARGE, b"/burst": BURST}
        body = b"x" * sizes[path] if path in sizes else b"http2 says " + seen.body
        fields = [(b":status", b"200"), (b"x-answer", b"1")]
        trailers = [(b"x-checksum", b"abc"), (b"content-type", b"no"), (b"x-request-id", b"forged")]
        if path == b"/interim":
            for _ in range(2):
                send.send_headers(stream_id, [(b":status", b"103"), (b"link", b"</x>")])
        send.send_headers(stream_id, fields, end_stream=seen.one(b":method") == b"HEAD")
        if seen.one(b":method") == b"HEAD":
            return
        if len(body) > 30000:
            threading.Thread(target=self._body, args=(connection, stream_id, body), daemon=True).start()
        else:
            send.send_data(stream_id, body, end_stream=path != b"/trailers")
        if path == b"/trailers":
            send.send_headers(stream_id, trailers, end_stream=True)

    def _body(self, connection: _Connection, stream_id: int, body: bytes) -> None:
        """Send a large body as fast as the window lets it through."""
        until = time.monotonic() + PATIENCE
        while body and time.monotonic() < until and not self._ended.is_set():
            with contextlib.suppress(h2.exceptions.ProtocolError, OSError), connection.lock:
                room = min(connection.h2.local_flow_control_window(stream_id), 16384, len(body))
                if room > 0:
                    connection.h2.send_data(stream_id, body[:room], end_stream=room == len(body))
                    body = body[room:]
                    self._flush(connection)
                    continue
            time.sleep(0.002)


BAD: Final = {
    "/bad-name": [(b":status", b"200"), (b"X-Upper", b"1")],
    "/bad-value": [(b":status", b"200"), (b"x-a", b"1\r\nx-b: 2")],
    "/bad-connection": [(b":status", b"200"), (b"connection", b"close")],
    "/bad-status": [(b":status", b"abc")],
    "/bad-none": [(b"x-a", b"1")],
    "/bad-101": [(b":status", b"101")],
    "/bad-length": [(b":status", b"200"), (b"content-length", b"3")],
    "/bad-lengths": [(b":status", b"200"), (b"content-length", b"6"), (b"content-length", b"6")],
    "/bad-pseudo": [(b":status", b"200"), (b":path", b"/")],
    "/bad-large": [(b":status", b"200"), (b"x-a", b"a" * 70000)],
}
"""Heads that are malformed; six bytes follow each."""
