"""Hostile HTTP/2 frames against the layer alone: it ends the connection or answers, and never fails."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import options
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.http import Response
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook

from mitmgate.core.http1 import Bounds
from mitmgate.engine.layer_connection import GatewayLayer
from mitmgate.engine.layer_wire import Wire

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
REQUEST = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/")]
OPTIONS = options.Options()
OPTIONS.add_option("validate_inbound_headers", bool, True, "")

names = st.sampled_from(
    [b":method", b":path", b":scheme", b":authority", b":status", b"x", b"X", b"te", b"content-length"]
)
values = st.one_of(st.sampled_from([b"GET", b"/", b"https", b"x", b"1", b"trailers"]), st.binary(max_size=5))
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


class Drive:
    """The layer of one client connection, whose hooks are answered at once: every request is denied."""

    def __init__(self, alpn: bytes) -> None:
        client = Client(peername=("192.0.2.1", 1), sockname=("192.0.2.2", 2), state=ConnectionState.OPEN, alpn=alpn)
        client.tls = True
        self.client = client
        self.layer = GatewayLayer(Context(client, OPTIONS), Bounds(), Wire(None, client), lambda exchange, reason: None)
        self.sent = b""
        self.closed = False
        self.give(events.Start())

    def give(self, event: events.Event) -> None:
        queue = [event]
        while queue:
            for command in self.layer.handle_event(queue.pop(0)):
                if isinstance(command, commands.StartHook):
                    if isinstance(command, HttpRequestHeadersHook):
                        command.flow.response = Response.make(401, b"no")
                    queue.append(events.HookCompleted(command))
                elif isinstance(command, commands.SendData):
                    self.sent += command.data
                elif isinstance(command, commands.CloseConnection):
                    self.closed = True
                else:
                    assert isinstance(command, commands.RequestWakeup | commands.Log), command


@settings(max_examples=300)
@given(st.lists(frames, max_size=8), st.booleans())
def test_hostile_frames(sent: list[bytes], together: bool) -> None:
    drive = Drive(b"h2")
    data = [PREFACE, *sent]
    for part in [b"".join(data)] if together else data:
        if part and not drive.closed:
            drive.give(events.DataReceived(drive.client, part))
    drive.client.state = ConnectionState.CAN_WRITE
    drive.give(events.ConnectionClosed(drive.client))
    assert drive.closed
    assert not drive.layer._broken
    assert drive.layer.streams == {}


@pytest.mark.parametrize("alpn", [b"h2", b"http/1.1"])
@settings(max_examples=150)
@given(parts=st.lists(st.binary(max_size=30), max_size=6))
def test_hostile_bytes(alpn: bytes, parts: list[bytes]) -> None:
    drive = Drive(alpn)
    for part in parts:
        if part and not drive.closed:
            drive.give(events.DataReceived(drive.client, part))
    drive.client.state = ConnectionState.CAN_WRITE
    drive.give(events.ConnectionClosed(drive.client))
    assert drive.closed
    assert not drive.layer._broken
