"""HTTP/2 with a client of raw frames."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes
from h2.events import StreamEnded, StreamReset
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from mitmgate.core.reason import Reason
from mitmgate.proxy import http2
from mitmgate.proxy.http2 import Http2Connection
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import HANG, RecordingUpstream, Reply
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, route
from tests.protocol.test_tls import client_context, listen

Fields = Sequence[tuple[bytes, bytes]]
GET: Fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/p")]
POST: Fields = [(b":method", b"POST"), *GET[1:]]
DENY: Fields = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/deny")]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("h2"))


@pytest.fixture
def h2_gate(authority: Authority, upstream: RecordingUpstream) -> Iterator[Gate]:
    with Gate(route(upstream.url, max_body=1 << 30), tls=listen(authority)) as gate:
        yield gate


class Client:
    """An HTTP/2 client that sends what it is told, well-formed or not."""

    def __init__(self, gate: Gate, authority: Authority, *, window: int | None = None) -> None:
        context = client_context(authority, "h2")
        self.link: ssl.SSLSocket = context.wrap_socket(connect(gate.port), server_hostname="gateway.test")
        assert self.link.selected_alpn_protocol() == "h2"
        config = h2.config.H2Configuration(
            client_side=True,
            header_encoding=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=True,
        )
        self.h2 = h2.connection.H2Connection(config)
        if window is not None:
            self.h2.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            )
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.consume = window is None
        self.flush()

    def flush(self) -> None:
        if data := self.h2.data_to_send():
            self.link.sendall(data)

    def request(self, fields: Fields, body: bytes | None = None, *, end: bool = True) -> int:
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, list(fields), end_stream=end and body is None)
        if body is not None:
            self.h2.send_data(stream_id, body, end_stream=end)
        self.flush()
        return stream_id

    def read(self, until: Callable[[], bool], patience: float = 10.0) -> None:
        deadline = time.monotonic() + patience
        while not until():
            assert time.monotonic() < deadline, self.events
            self.link.settimeout(max(0.01, deadline - time.monotonic()))
            data = self.link.recv(65536)
            if not data:
                self.events.append(h2.events.ConnectionTerminated())
                return
            for event in self.h2.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived) and self.consume:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.flush()

    def of(self, stream_id: int, kind: type[h2.events.Event]) -> list[h2.events.Event]:
        return [e for e in self.events if isinstance(e, kind) and getattr(e, "stream_id", None) == stream_id]

    def answer(self, stream_id: int) -> tuple[int, dict[bytes, bytes], bytes]:
        self.read(lambda: bool(self.of(stream_id, h2.events.StreamEnded) + self.of(stream_id, h2.events.StreamReset)))
        heads = [e for e in self.events if isinstance(e, h2.events.ResponseReceived) and e.stream_id == stream_id]
        assert heads, self.events
        headers = dict(heads[0].headers)
        body = b"".join(
            e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream_id
        )
        return int(headers[b":status"]), headers, body

    def send_frames(self, *frames: Frame) -> None:
        self.link.sendall(b"".join(frame.serialize() for frame in frames))

    def terminated(self) -> bool:
        return any(isinstance(e, h2.events.ConnectionTerminated) for e in self.events)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.link.close()


def test_request_becomes_http_1_1(h2_gate: Gate, authority: Authority, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(headers=[("X-Answer", "1"), ("Connection", "X-Hop"), ("X-Hop", "1")])
    cookies = [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")]
    with Client(h2_gate, authority) as client:
        status, headers, body = client.answer(client.request([*GET, *cookies, (b"x-a", b"b")]))
    assert (status, body) == (200, b"upstream says hello")
    assert headers == {b":status": b"200", b"x-answer": b"1", b"content-length": b"19"}
    upstream.assert_saw_only(1)
    seen = upstream.last()
    assert (seen.version, seen.target, seen.one("host"), seen.one("cookie")) == ("HTTP/1.1", "/p", "x", "a=1; b=2")
    assert seen.one("te") == "trailers"
    assert h2_gate.hooks.wait_ends(1) == [("response", Reason.OK)]


@pytest.mark.parametrize("declared", [True, False])
def test_bodies_are_framed_explicitly(
    h2_gate: Gate, authority: Authority, upstream: RecordingUpstream, declared: bool
) -> None:
    fields = [*POST, (b"content-length", b"10")] if declared else POST
    with Client(h2_gate, authority) as client:
        assert client.answer(client.request(fields, b"0123456789"))[0] == 200
        assert client.answer(client.request(POST))[0] == 200
    first, second = upstream.requests
    assert first.body == b"0123456789"
    assert first.one("content-length") == ("10" if declared else None)
    assert first.one("transfer-encoding") == (None if declared else "chunked")
    assert second.one("content-length") == "0"


def test_trailers_are_dropped(h2_gate: Gate, authority: Authority, upstream: RecordingUpstream) -> None:
    with Client(h2_gate, authority) as client:
        stream_id = client.request(POST, b"abc", end=False)
        client.h2.send_headers(stream_id, [(b"x-trailer", b"y")], end_stream=True)
        client.flush()
        assert client.answer(stream_id)[0] == 200
    assert upstream.last().raw.endswith(b"0\r\n\r\n")


MALFORMED = {
    "path-with-crlf": [(b":method", b"GET"), *GET[1:3], (b":path", b"/ HTTP/1.1\r\nX: y")],
    "method-with-space": [(b":method", b"GET /x"), *GET[1:]],
    "value-with-crlf": [*GET, (b"x", b"y\r\nContent-Length: 5")],
    "value-with-nul": [*GET, (b"x", b"\0")],
    "name-with-space": [*GET, (b"x y", b"z")],
    "name-upper-case": [*GET, (b"X-A", b"z")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "connection": [*GET, (b"connection", b"upgrade"), (b"upgrade", b"websocket")],
    "pseudo-twice": [*GET, (b":path", b"/q")],
    "pseudo-unknown": [*GET, (b":x", b"/q")],
    "no-path": GET[:3],
    "no-authority": [*GET[:2], GET[3]],
    "other-host": [*GET, (b"host", b"y")],
    "connect": [(b":method", b"CONNECT"), (b":authority", b"x:443")],
    "http-scheme": [GET[0], (b":scheme", b"http"), *GET[2:]],
    "expectation": [*GET, (b"expect", b"x")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_head_is_refused_on_its_stream(
    h2_gate: Gate, authority: Authority, upstream: RecordingUpstream, name: str
) -> None:
    with Client(h2_gate, authority) as client:
        stream_id = client.request(MALFORMED[name])
        client.read(lambda: bool(client.of(stream_id, StreamEnded) + client.of(stream_id, StreamReset)))
        resets = [event for event in client.events if isinstance(event, StreamReset)]
        if resets:  # RFC 9113, section 8.1.1
            assert [event.error_code for event in resets] == [ErrorCodes.PROTOCOL_ERROR]
            assert h2_gate.hooks.wait_ends(1) == [("response", Reason.HEAD_MALFORMED)]
        else:
            status, headers, body = client.answer(stream_id)
            assert status in {400, 417}
            assert headers[b"content-type"] == b"application/problem+json"
            assert b"request_id" in body
        upstream.assert_saw_nothing()
        assert len(h2_gate.hooks.wait_ends(1)) == 1
        assert client.answer(client.request(GET))[0] == 200  # the connection stays


def test_denial_comes_before_the_body_and_the_rest_is_not_wanted(h2_gate: Gate, authority: Authority) -> None:
    with Client(h2_gate, authority) as client:
        stream_id = client.request(DENY, b"x" * 1000, end=False)
        assert client.answer(stream_id)[0] == 401
        client.read(lambda: bool(client.of(stream_id, h2.events.StreamReset)))
        reset = client.of(stream_id, h2.events.StreamReset)[0]
        assert isinstance(reset, h2.events.StreamReset)
        assert reset.error_code == 0
        assert client.answer(client.request(GET))[0] == 200


def test_many_streams_at_once(h2_gate: Gate, authority: Authority, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(delay=0.05)
    with Client(h2_gate, authority) as client:
        streams = [client.request(GET) for _ in range(40)]
        assert [client.answer(stream_id)[0] for stream_id in streams] == [200] * 40
        before = upstream.connections
        assert [client.answer(client.request(GET))[0] for _ in range(5)] == [200] * 5
        assert upstream.connections == before  # idle connections are used again
    assert len(upstream.requests) == 45


def test_body_limit_counts_frames(authority: Authority, upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url, max_body=1000), tls=listen(authority)) as gate, Client(gate, authority) as client:
        stream_id = client.request(POST, b"x" * 600, end=False)
        client.h2.send_data(stream_id, b"x" * 600)
        client.flush()
        assert client.answer(stream_id)[0] == 413
        upstream.settle()
        assert upstream.requests == []


def test_large_transfers(h2_gate: Gate, authority: Authority, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(body=b"y" * 5_000_000)
    with Client(h2_gate, authority) as client:
        stream_id = client.request(POST, b"", end=False)
        sent = 0
        while sent < 3_000_000:
            size = min(client.h2.local_flow_control_window(stream_id), 16384, 3_000_000 - sent)
            if size <= 0:
                client.read(lambda: client.h2.local_flow_control_window(stream_id) > 0)
                continue
            client.h2.send_data(stream_id, b"x" * size)
            client.flush()
            sent += size
        client.h2.end_stream(stream_id)
        client.flush()
        status, _, body = client.answer(stream_id)
    assert (status, len(body)) == (200, 5_000_000)
    assert len(upstream.last().body) == 3_000_000


def test_client_that_gives_no_window_holds_up_its_own_stream_alone(
    authority: Authority, upstream: RecordingUpstream
) -> None:
    upstream.script.append(Reply(body=b"y" * 50_000_000, chunked=True))
    with Gate(route(upstream.url), tls=listen(authority)) as gate, Client(gate, authority, window=1000) as client:
        stalled = client.request(GET)
        client.read(lambda: bool(client.of(stalled, h2.events.DataReceived)))
        upstream.reply = Reply(body=b"z")
        assert client.answer(client.request(GET))[2] == b"z"
        (connection,) = gate.layer.clients
        assert isinstance(connection, Http2Connection)
        assert 0 < connection._queued() < 400_000


def test_reset_by_the_client_ends_the_exchange(
    h2_gate: Gate, authority: Authority, upstream: RecordingUpstream
) -> None:
    upstream.reply = HANG
    with Client(h2_gate, authority) as client:
        stream_id = client.request(GET)
        wait_for(lambda: bool(upstream.requests), "the request")
        client.h2.reset_stream(stream_id)
        client.flush()
        assert h2_gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
        wait_for(lambda: not upstream._transports, "the upstream connection to be closed", 3)


def test_rapid_resets_end_the_connection(h2_gate: Gate, authority: Authority) -> None:
    with Client(h2_gate, authority) as client:
        for _ in range(400):
            stream_id = client.h2.get_next_available_stream_id()
            client.h2.send_headers(stream_id, list(GET), end_stream=True)
            client.h2.reset_stream(stream_id)
        client.flush()
        client.read(client.terminated)
        found = [e for e in client.events if isinstance(e, h2.events.ConnectionTerminated)]
        assert found


FRAMES: dict[str, list[Frame]] = {
    "data-on-idle": [DataFrame(1, b"x")],
    "continuation-alone": [ContinuationFrame(1, b"x", flags=["END_HEADERS"])],
    "headers-on-even": [HeadersFrame(2, b"\x82", flags=["END_HEADERS", "END_STREAM"])],
    "hpack-garbage": [HeadersFrame(1, b"\xff\xff\xff\xff\xff", flags=["END_HEADERS"])],
    "reset-on-idle": [RstStreamFrame(7, 0)],
    "settings-value": [SettingsFrame(0, settings={4: 2**32 - 1})],
    "continuation-flood": [HeadersFrame(1, b""), *[ContinuationFrame(1, b"\x00" * 1000) for _ in range(200)]],
}


@pytest.mark.parametrize("name", FRAMES)
def test_broken_frames_end_the_connection_and_are_on_record(
    h2_gate: Gate, authority: Authority, upstream: RecordingUpstream, name: str
) -> None:
    with Client(h2_gate, authority) as client:
        try:
            client.send_frames(*FRAMES[name])
            client.read(client.terminated)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            pass
    upstream.assert_saw_nothing()
    assert h2_gate.hooks.wait_ends(1) == [("response", Reason.HEAD_MALFORMED)]


@pytest.mark.parametrize("name", ["headers-on-even", "reset-on-idle", "settings-value", "hpack-garbage"])
def test_broken_frames_beside_a_request_are_on_record_too(
    h2_gate: Gate, authority: Authority, upstream: RecordingUpstream, name: str
) -> None:
    """Before: nothing said why the connection, and the request, had ended."""
    release = threading.Event()
    upstream.reply = Reply(until=release)
    frames = [HeadersFrame(3, b"\xff" * 5, flags=["END_HEADERS"])] if name == "hpack-garbage" else FRAMES[name]
    with Client(h2_gate, authority) as client:
        client.request(GET)
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        with suppress(ConnectionResetError, BrokenPipeError, ssl.SSLError):
            client.send_frames(*frames)
            client.read(client.terminated)
        ends = h2_gate.hooks.wait_ends(2)
    release.set()
    assert sorted(ends) == [("error", Reason.CLIENT_CLOSED), ("response", Reason.HEAD_MALFORMED)]
    assert len(upstream.requests) == 1


def test_idle_connection_is_closed_with_a_goodbye(authority: Authority, upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), tls=listen(authority), limits={"idle_timeout": 0.4}) as gate:
        with Client(gate, authority) as client:
            assert client.answer(client.request(GET))[0] == 200
            started = time.monotonic()
            client.read(client.terminated)
            assert 0.2 < time.monotonic() - started < 10
        upstream.reply = Reply(delay=0.8)
        with Client(gate, authority) as client:
            assert client.answer(client.request(GET))[0] == 200  # a connection with a request is not idle


def test_no_preface_is_no_request(h2_gate: Gate, authority: Authority) -> None:
    context = client_context(authority, "h2")
    with context.wrap_socket(connect(h2_gate.port), server_hostname="gateway.test") as link:
        link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        got = b""
        while part := link.recv(65536):
            got += part
        assert b"HTTP/1.1" not in got


def test_client_that_goes_on_after_its_goodbye_is_no_defect(
    h2_gate: Gate, authority: Authority, upstream: RecordingUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(h2_gate, authority) as client:
        stream_id = client.request(GET)
        client.send_frames(RstStreamFrame(stream_id, 8))
        client.send_frames(GoAwayFrame(0))
        with suppress(OSError):
            for _ in range(20):  # each in a record of its own
                client.send_frames(PingFrame(0, b"12345678"))
            client.read(client.terminated)
    wait_for(lambda: h2_gate.layer.connected == 0, "the end of the connection")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("how", ["fin", "close_notify"])
def test_client_that_ends_its_side_and_takes_nothing_is_not_kept(
    authority: Authority, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(http2, "FLUSH_SECONDS", 0.3)
    upstream.reply = Reply(body=b"y" * 12_000_000)
    with Gate(route(upstream.url), tls=listen(authority)) as gate, Client(gate, authority, window=2**31 - 1) as client:
        client.h2.increment_flow_control_window(2**31 - 1 - 65535)
        client.request(GET)
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        if how == "fin":
            client.link.shutdown(socket.SHUT_WR)
        else:
            client.link.setblocking(False)
            with contextlib.suppress(ssl.SSLError, OSError):
                client.link.unwrap()
        wait_for(lambda: gate.layer.connected == 0, "the connection to be given up")
