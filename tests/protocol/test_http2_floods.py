"""HTTP/2 frames that are no request: bounded for a connection and in time, on record, and nobody else's business."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from mitmgate.core.reason import Reason
from tests.live.harness import Gateway, Host
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import HANG, Raw, Reply
from tests.protocol.raw_http2 import INITIAL_WINDOW, RawHttp2, request_fields
from tests.protocol.tls_gateway import TlsGateway

ENHANCE_YOUR_CALM = 11
HEAD_SECONDS = 1.0
IDLE_SECONDS = 1.5
GROWTH = {"serve": 8, "web": 32}
"""MiB; mitmweb keeps ten thousand lines of its log, and what has ended for five seconds."""
MOST = 20_000
"""Frames that a flood sends at most; the bound is a twentieth of it, and what the bytes of a response earn."""


@pytest.fixture(params=["serve", "web"], scope="module", autouse=True)
def host(request: pytest.FixtureRequest) -> Host:
    """Run in both hosts, as processes: with TLS in one of them, by prior knowledge in the other."""
    name: Host = request.param
    return name


@pytest.fixture(scope="module")
def front(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsGateway]:
    """Run a gateway with short deadlines."""
    limits = {"head_timeout": f"{HEAD_SECONDS * 1000:.0f}ms", "idle_timeout": f"{IDLE_SECONDS * 1000:.0f}ms"}
    with TlsGateway(tmp_path_factory.mktemp(f"floods-{host}"), host, tls=host == "serve", limits=limits) as running:
        yield running


def unknown(size: int) -> bytes:
    """Make a frame of a type that nobody knows (RFC 9113, section 4.1: it is ignored)."""
    return size.to_bytes(3, "big") + b"\x21\0" + bytes(4) + b"x" * size


def settings(codes: Iterable[int]) -> bytes:
    """Make a SETTINGS frame; hyperframe writes one octet of an identifier that has two."""
    body = b"".join(code.to_bytes(2, "big") + (1).to_bytes(4, "big") for code in codes)
    return len(body).to_bytes(3, "big") + b"\4\0" + bytes(4) + body


def upload(client: RawHttp2) -> int:
    number = client.stream()
    client.send(client.head(number, request_fields("POST", "/streamed/flood")))
    return number


def answered(client: RawHttp2) -> int:
    number = client.request(request_fields("GET", "/held/flood"))
    assert client.response(number).status == 200
    return number


Make = Callable[[RawHttp2], Frame | bytes]
FLOODS: dict[str, Make] = {
    "ping": lambda client: PingFrame(0, b"12345678"),
    "ping-ack": lambda client: PingFrame(0, b"12345678", flags=["ACK"]),
    "settings": lambda client: SettingsFrame(0),
    "settings-ack": lambda client: SettingsFrame(0, flags=["ACK"]),
    "settings-windows": lambda client: SettingsFrame(0, settings={INITIAL_WINDOW: 65535}),
    "settings-tables": lambda client: SettingsFrame(0, settings={1: 2**31}),
    "priority": lambda client: PriorityFrame(3, depends_on=0, stream_weight=1),
    "window": lambda client: WindowUpdateFrame(0, 1),
    "window-of-a-stream": lambda client: WindowUpdateFrame(upload(client), 1),
    "window-of-a-stream-that-ended": lambda client: WindowUpdateFrame(answered(client), 1),
    "empty-data": lambda client: client.data(upload(client), b""),
    "padded-data": lambda client: client.data(upload(client), b"", padding=200),
    "data-byte-by-byte": lambda client: client.data(upload(client), b"x"),
    "unknown": lambda client: unknown(0),
    "unknown-and-large": lambda client: unknown(16384),
    "altsvc": lambda client: b"\0\0\3\x0a\0" + bytes(4) + b"\0\0x",
    "resets-of-streams-that-ended": lambda client: RstStreamFrame(answered(client), 0),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_connection_on_record(front: TlsGateway, name: str) -> None:
    before = front.mark()
    with front.connect() as client:
        frame = FLOODS[name](client)
        data = frame if isinstance(frame, bytes) else frame.serialize()
        with contextlib.suppress(OSError):
            client.send(data * min(3000, 600_000 // len(data)))
        assert client.end() == ENHANCE_YOUR_CALM
    event = front.event(lambda event: event["reason"] == Reason.FRAMES_EXCESSIVE.code, after=before)
    assert (event["status"], event["outcome"]) == (429, "denied")


def test_heads_in_many_pieces_end_the_connection(front: TlsGateway) -> None:
    before = front.mark()
    with front.connect() as client:
        parts: list[Frame] = []
        for _ in range(100):
            number = client.stream()
            block = client.encoder.encode(request_fields("GET", "/held/pieces"))
            parts += [HeadersFrame(number, b"", flags=["END_STREAM"])]
            parts += [ContinuationFrame(number, b"") for _ in range(50)]
            parts += [ContinuationFrame(number, block, flags=["END_HEADERS"])]
        with contextlib.suppress(OSError):
            client.send(*parts)
        assert client.end() == ENHANCE_YOUR_CALM
    front.event(lambda event: event["reason"] == Reason.FRAMES_EXCESSIVE.code, after=before)


def test_streams_without_end_beyond_the_bound_end_the_connection(front: TlsGateway) -> None:
    before = front.mark()
    front.upstream.reply = HANG
    with front.connect() as client:
        heads = [client.head(client.stream(), request_fields("GET", "/held/many"), end=True) for _ in range(1000)]
        with contextlib.suppress(OSError):
            client.send(*heads)
        assert client.end() == ENHANCE_YOUR_CALM
    front.event(lambda event: event["reason"] == Reason.FRAMES_EXCESSIVE.code, after=before)
    front.upstream.settle()
    assert len(front.upstream.requests) <= 64
    front.upstream.hang_up()


def test_resets_end_the_connection_on_record(front: TlsGateway) -> None:
    before = front.mark()
    front.upstream.reply = HANG
    with front.connect() as client:
        with contextlib.suppress(OSError):
            for _ in range(300):
                number = client.request(request_fields("GET", "/held/reset"))
                client.send(RstStreamFrame(number, 8))
        assert client.end() == ENHANCE_YOUR_CALM
    front.event(lambda event: event["reason"] == Reason.FRAMES_EXCESSIVE.code, after=before)
    front.upstream.hang_up()


def test_a_response_given_leave_for_byte_by_byte_ends_the_connection(front: TlsGateway) -> None:
    before = front.mark()
    front.upstream.reply = Reply(body=b"x" * 100_000)
    with front.connect(settings={INITIAL_WINDOW: 0}) as client:
        number = client.request(request_fields("GET", "/held/dribble"))
        client.until(lambda: client.streams[number].status == 200, "the head")
        grant = WindowUpdateFrame(number, 1).serialize()
        with contextlib.suppress(OSError):
            client.send(grant * MOST)
        assert client.end() == ENHANCE_YOUR_CALM
        assert len(client.streams[number].body) < MOST / 10
    front.event(lambda event: event["reason"] == Reason.FRAMES_EXCESSIVE.code, after=before)


def cpu_seconds(gateway: Gateway) -> float:
    """Return the CPU time of the process so far."""
    fields = Path(f"/proc/{gateway.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident(gateway: Gateway) -> float:
    """Return the resident memory of the process, in MiB."""
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def test_floods_cost_little_and_delay_nobody(front: TlsGateway, host: Host) -> None:
    front.mark()
    gateway = front.gateway
    stop = threading.Event()
    ended = []

    def attack(data: bytes) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), front.connect() as client:
                client.ping()  # or without TLS nothing waits for the gateway, and a thousand connections wait before it
                for _ in range(100):
                    client.send(data)
            ended.append(1)

    with front.connect() as client:  # everything is warm
        assert client.response(client.request(request_fields("GET", "/held/beside"))).status == 200
    cpu, memory = cpu_seconds(gateway), resident(gateway)
    floods = [PingFrame(0, b"12345678").serialize(), SettingsFrame(0).serialize(), unknown(0)]
    threads = [threading.Thread(target=attack, args=(flood * 2000,)) for flood in floods]
    for thread in threads:
        thread.start()
    slowest = 0.0
    with contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        for number in range(10):
            wait_for(lambda: len(ended) > 3 * number, "floods to end")  # noqa: B023 - called at once
            started = time.monotonic()
            with front.connect() as client:
                assert client.response(client.request(request_fields("GET", "/held/beside"))).status == 200
            slowest = max(slowest, time.monotonic() - started)
    for thread in threads:
        thread.join()
    assert len(ended) >= 30
    assert slowest < 5
    assert (cpu_seconds(gateway) - cpu) / len(ended) < 0.2  # of which the handshake is a tenth
    wait_for(lambda: resident(gateway) - memory < GROWTH[host], "memory to be given back")


def test_settings_that_mean_nothing_are_not_kept(front: TlsGateway) -> None:
    front.mark()
    memory = resident(front.gateway)
    with contextlib.ExitStack() as stack:
        for at in range(0, 40):  # what one connection may send, on many
            client = stack.enter_context(front.connect())
            codes = range(100 + at * 900, 100 + at * 900 + 900)
            for part in range(9):
                client.send(settings(codes[part * 100 : part * 100 + 100]))
            assert answered(client)
        assert resident(front.gateway) - memory < 20  # h2 would keep 600 bytes for each: 22 MiB beside the connections
    with front.connect(settings={1: 2**32 - 1}) as client:
        for _ in range(3):
            assert answered(client)


def test_an_ordinary_client_is_not_taken_for_a_flood(front: TlsGateway) -> None:
    front.mark()
    front.upstream.reply = Reply(body=b"x" * 3_000_000)
    with front.connect() as client:
        number = client.request(request_fields("GET", "/streamed/download"))
        given = 0
        while not client.streams[number].over:  # leave for 4 KiB at a time, as Go gives it
            stream = client.streams[number]
            client.until(lambda: len(stream.body) >= given + 4096 or stream.over, "bytes")  # noqa: B023
            while len(stream.body) >= given + 4096:
                given += 4096
                client.send(WindowUpdateFrame(0, 4096), WindowUpdateFrame(number, 4096))
        assert len(client.streams[number].body) == 3_000_000
    front.upstream.reply = Reply()
    with front.connect() as client:
        for _ in range(150):
            number = client.stream()
            client.send(
                PriorityFrame(number, depends_on=0, stream_weight=1),
                client.head(number, request_fields("POST", "/held/ordinary")),
                *[client.data(number, b"x" * 50) for _ in range(5)],
                client.data(number, b"", end=True),
                PingFrame(0, b"12345678"),
                unknown(10),
            )
            assert client.response(number).status == 200
    assert len(front.upstream.last().body) == 250


# Deadlines.


def dripped(client: RawHttp2, drip: Callable[[], None], seconds: float) -> float:
    """Send something a few times in each deadline until the connection ends; returns the seconds that it took."""
    started = time.monotonic()
    with contextlib.suppress(OSError):
        while not client.closed:
            assert time.monotonic() - started < 20 * seconds, "the connection lives on"
            drip()
            until = time.monotonic() + seconds / 8
            with contextlib.suppress(AssertionError):
                client.until(lambda: time.monotonic() >= until, "the next drip", until - time.monotonic())  # noqa: B023
    client.end()
    return time.monotonic() - started


@pytest.mark.parametrize("way", ["continuation", "frame", "frame-beside-a-request"])
def test_the_deadline_of_a_head_holds_whatever_comes_of_it(front: TlsGateway, way: str) -> None:
    before = front.mark()
    with front.connect() as client:
        if way.endswith("request"):
            front.upstream.reply = HANG
            client.request(request_fields("GET", "/held/beside"))
            wait_for(lambda: bool(front.upstream.requests), "the other request")
        client.ping()  # SETTINGS are exchanged
        number, block = client.stream(), client.encoder.encode(request_fields("GET", "/held/slow"))
        if way == "continuation":
            client.send(HeadersFrame(number, block[:1], flags=["END_STREAM"]))
            rest = iter([ContinuationFrame(number, block[at : at + 1]).serialize() for at in range(1, len(block))])
        else:
            data = HeadersFrame(number, block, flags=["END_STREAM", "END_HEADERS"]).serialize()
            rest = iter([data[at : at + 1] for at in range(len(data) - 1)])
        seconds = dripped(client, lambda: client.send(next(rest)), HEAD_SECONDS)
        assert client.goaway == ENHANCE_YOUR_CALM
        assert HEAD_SECONDS * 0.8 < seconds < HEAD_SECONDS * 10
    front.event(lambda event: event["reason"] == Reason.HEAD_TIMEOUT.code, after=before)
    front.upstream.hang_up()


IDLE: dict[str, Callable[[RawHttp2], Frame | bytes]] = {
    "nothing": lambda client: b"",
    "ping": lambda client: PingFrame(0, b"12345678"),
    "settings": lambda client: SettingsFrame(0),
    "window": lambda client: WindowUpdateFrame(0, 1),
    "priority": lambda client: PriorityFrame(99, depends_on=0, stream_weight=1),
    "unknown": lambda client: unknown(1),
    "reset": lambda client: RstStreamFrame(answered(client), 0),
}


def test_the_deadline_of_an_idle_connection_holds_whatever_frames_come(front: TlsGateway) -> None:
    front.mark()

    def idle(name: str) -> tuple[str, int | None, bool]:
        with front.connect() as client:
            frame = IDLE[name](client)
            seconds = dripped(client, lambda: client.send(frame), IDLE_SECONDS)
            return name, client.goaway, IDLE_SECONDS * 0.8 < seconds < IDLE_SECONDS * 10

    with ThreadPoolExecutor(len(IDLE)) as pool:
        assert list(pool.map(idle, IDLE)) == [(name, 0, True) for name in IDLE]


def test_an_answer_that_is_not_taken_does_not_keep_a_connection(front: TlsGateway) -> None:
    before = front.mark()
    front.upstream.reply = Reply(body=b"x" * 50_000)
    with front.connect(settings={INITIAL_WINDOW: 0}) as client:
        client.request(request_fields("GET", "/held/left"))
        denied = client.stream()
        client.send(client.head(denied, request_fields("POST", "/nowhere")))
        client.until(lambda: client.streams[denied].status == 404, "the denial")
        seconds = dripped(client, lambda: client.send(PingFrame(0, b"12345678")), IDLE_SECONDS)
        assert client.goaway == 0
        assert seconds < IDLE_SECONDS * 10
    assert front.event(lambda event: event.get("path") == "/held/left", after=before)["reason"] == "ok"


def test_a_download_that_is_not_taken_ends_and_is_the_clients_fault(front: TlsGateway) -> None:
    before = front.mark()
    front.upstream.reply = Reply(body=b"x" * 5_000_000)
    with front.connect() as client:
        number = client.request(request_fields("GET", "/streamed/left"))
        client.until(lambda: client.streams[number].over, "the end of the stream", 10 * IDLE_SECONDS)
        assert client.streams[number].reset is not None
        assert client.closed or len(client.streams[number].body) < 70_000
    event = front.event(lambda event: event.get("path") == "/streamed/left", after=before)
    assert event["reason"] == Reason.CLIENT_CLOSED.code


def test_a_request_that_takes_long_is_not_idle(front: TlsGateway) -> None:
    front.mark()
    front.upstream.reply = Reply(delay=2 * IDLE_SECONDS)
    with front.connect() as client:
        assert client.response(client.request(request_fields("GET", "/held/long"))).status == 200
    front.upstream.reply = Raw()
