"""Hostile HTTP/2 frames against a connection alone: it ends or answers, and never fails."""

import asyncio
from collections.abc import Iterator
from typing import Any

import hpack
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode

from mitmgate.core.http1 import Bounds
from mitmgate.proxy.http1 import Http1Connection
from mitmgate.proxy.http2 import Http2Connection
from mitmgate.proxy.listener import Front
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.harness import Gate, route

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
REQUEST = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/deny")]

names = st.sampled_from(
    [b":method", b":path", b":scheme", b":authority", b":status", b"x", b"X", b"te", b"content-length"]
)
values = st.one_of(st.sampled_from([b"GET", b"/deny", b"https", b"x", b"1", b"trailers"]), st.binary(max_size=5))
blocks = st.one_of(
    st.just(hpack.Encoder().encode(REQUEST)),
    st.lists(st.tuples(names, values), max_size=5).map(lambda fields: hpack.Encoder().encode(REQUEST + fields)),
    st.lists(st.tuples(names, values), max_size=5).map(lambda fields: hpack.Encoder().encode(fields)),
    st.binary(max_size=12),
)
ids = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7])
flags = st.sampled_from([["END_HEADERS"], ["END_HEADERS", "END_STREAM"], ["END_STREAM"], []])


def _serialized(kind: type, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[bytes]:
    def make(values: tuple[object, ...]) -> bytes:
        try:
            return bytes(kind(*values[:-1], flags=values[-1]).serialize())
        except Exception:  # a frame that can't be written, such as HEADERS on stream 0
            return b""

    return st.tuples(*arguments).map(make)


frames = st.one_of(
    _serialized(HeadersFrame, ids, blocks, flags),
    _serialized(HeadersFrame, ids, blocks, flags),
    _serialized(ContinuationFrame, ids, blocks, st.sampled_from([["END_HEADERS"], []])),
    _serialized(DataFrame, ids, st.binary(max_size=30), st.sampled_from([["END_STREAM"], []])),
    _serialized(RstStreamFrame, ids, st.integers(0, 20), st.just([])),
    _serialized(PingFrame, st.just(0), st.binary(min_size=8, max_size=8), st.just([])),
    _serialized(WindowUpdateFrame, ids, st.integers(1, 2**31 - 1), st.just([])),
    _serialized(PriorityFrame, ids, ids, st.just([])),
    st.dictionaries(st.integers(1, 8), st.integers(0, 2**31), max_size=3).map(
        lambda found: SettingsFrame(0, settings=found).serialize()
    ),
    st.binary(max_size=20),
)


class Link(asyncio.Transport):
    """A transport without a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2)}.get(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def write_eof(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


@pytest.fixture(scope="module")
def listener() -> Iterator[Gate]:
    """Run a gateway whose connections are driven by hand; every request is denied."""
    with RecordingUpstream() as upstream, Gate(route(upstream.url)) as gate:
        yield gate
        upstream.assert_saw_nothing()


def drive(gate: Gate, protocol: bytes, parts: list[bytes]) -> None:
    """Give bytes to a connection, in the gateway's own loop; it must end without a defect, and hold nothing."""

    async def run() -> None:
        front = Front(gate.layer, mode())
        secured = protocol == b"h2"
        connection = (
            Http2Connection(front, Bounds(), b"https") if secured else Http1Connection(front, Bounds(), b"https")
        )
        link = Link()
        connection.connection_made(link)
        for part in parts:
            if part and not link.closed:
                connection.get_buffer(-1)[: len(part)] = part
                connection.buffer_updated(len(part))
            await asyncio.sleep(0)
        connection.connection_lost(None)
        await asyncio.sleep(0)
        assert connection.transactions == []
        assert connection not in gate.layer.clients

    asyncio.run_coroutine_threadsafe(run(), gate.loop).result(PATIENCE)


def mode() -> ReverseMode:
    made = ProxyMode.parse("reverse:http://upstream.invalid@127.0.0.1:0")
    assert isinstance(made, ReverseMode)
    return made


FIXTURE = [HealthCheck.function_scoped_fixture]


@settings(max_examples=300, deadline=None, suppress_health_check=FIXTURE)
@given(sent=st.lists(frames, max_size=8), together=st.booleans())
def test_hostile_frames(listener: Gate, caplog: pytest.LogCaptureFixture, sent: list[bytes], together: bool) -> None:
    data = [PREFACE, *sent]
    drive(listener, b"h2", [b"".join(data)] if together else data)
    assert "defect" not in caplog.text


@pytest.mark.parametrize("protocol", [b"h2", b"http/1.1"])
@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE)
@given(parts=st.lists(st.binary(max_size=30), max_size=6))
def test_hostile_bytes(listener: Gate, caplog: pytest.LogCaptureFixture, protocol: bytes, parts: list[bytes]) -> None:
    drive(listener, protocol, parts)
    assert "defect" not in caplog.text
