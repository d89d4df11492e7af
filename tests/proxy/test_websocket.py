"""What of a WebSocket's messages stays with its flow: counted as they come, equal to counting all of them anew."""

from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import hooks
from mitmproxy.http import Response
from mitmproxy.proxy.layers.websocket import WebsocketMessageHook
from mitmproxy.test.tflow import tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage
from wsproto.frame_protocol import Opcode

from mitmgate.proxy.websocket import KEPT_BYTES, KEPT_MESSAGES, Relay

CHUNK = 4096
Change = Callable[[list[WebSocketMessage]], None]


class Side:
    """A socket that takes everything."""

    def __init__(self, kind: ConnectionType) -> None:
        self.congested = False
        self.end = Connection(kind)
        self.got: list[str | bytes] = []

    def send_frames(self, data: bytes) -> None:
        self.end.receive_data(data)
        for event in self.end.events():
            assert isinstance(event, TextMessage | BytesMessage)
            self.got.append(event.data if isinstance(event.data, str) else bytes(event.data))

    def hold_frames(self, held: bool) -> None:
        """Nothing is read here."""

    def end_frames(self) -> None:
        """Nothing was opened."""


class Hooks:
    """An addon that does something to the flow's messages at each of them."""

    change: Change

    def run(self, kind: type[hooks.Hook], data: Any) -> Coroutine[Any, Any, None] | None:
        if kind is WebsocketMessageHook:
            self.change(data.websocket.messages)
        return None


def nothing(messages: list[WebSocketMessage]) -> None:
    """Look only."""


def shorten(messages: list[WebSocketMessage]) -> None:
    messages[-1].content = messages[-1].content[:3]


def lengthen(messages: list[WebSocketMessage]) -> None:
    messages[-1].content += b"x" * 50_000


def take_out(messages: list[WebSocketMessage]) -> None:
    messages.pop(0)


def put_in(messages: list[WebSocketMessage]) -> None:
    messages.insert(0, WebSocketMessage(Opcode.BINARY, True, b"y" * 70_000))


def clear(messages: list[WebSocketMessage]) -> None:
    messages.clear()


steps = st.tuples(
    st.sampled_from([nothing, nothing, nothing, shorten, lengthen, take_out, put_in, clear]),
    st.booleans(),
    st.one_of(st.integers(0, 64), st.sampled_from([1024, 65_536, 100_000, KEPT_BYTES, KEPT_BYTES + 1])),
    st.sampled_from([1, 3, 45]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, max_size=8))
def test_what_is_kept_is_what_is_counted(run: list[tuple[Change, bool, int, int]]) -> None:
    flow = tflow(resp=Response.make(101))
    client, upstream = Side(ConnectionType.CLIENT), Side(ConnectionType.SERVER)
    table = Hooks()
    relay = Relay(flow, table, client, upstream, lambda *_: None, lambda _: None, lambda: None)
    data = flow.websocket
    assert data is not None
    expected: dict[bool, list[str | bytes]] = {True: [], False: []}
    for change, from_client, size, times in run:
        table.change = change
        for number in range(times if size <= 1024 else min(times, 3)):
            text = f"{number:08}"[:size].ljust(size, "ä") if number % 2 else b"z" * size
            event = TextMessage(text) if isinstance(text, str) else BytesMessage(text)
            frames = (client if from_client else upstream).end.send(event)
            for at in range(0, len(frames), CHUNK):
                (relay.client_data if from_client else relay.upstream_data)(frames[at : at + CHUNK])
            if change in {shorten, lengthen}:
                octets = text.encode() if isinstance(text, str) else text
                octets = octets[:3] if change is shorten else octets + b"x" * 50_000
                text = octets.decode(errors="replace") if isinstance(text, str) else octets
            expected[from_client].append(text)
            # One more message settles what an addon has put in behind the relay's back.
            assert len(data.messages) <= KEPT_MESSAGES + 1
    table.change = nothing
    relay.client_data(client.end.send(TextMessage("last")))
    expected[True].append("last")
    assert relay.held == sum(len(message.content) for message in data.messages)
    assert len(data.messages) <= KEPT_MESSAGES
    assert relay.held <= KEPT_BYTES
    assert joined(upstream.got) == joined(expected[True])
    assert joined(client.got) == joined(expected[False])


def joined(messages: list[str | bytes]) -> bytes:
    """Put messages together: what came in parts is one all the same."""
    return b"".join(one.encode() if isinstance(one, str) else one for one in messages)
