"""A WebSocket between a client and a service: messages are relayed whole, each end is told why the other one ended.

    client ⇄ wsproto ⇄ websocket_message hook ⇄ wsproto ⇄ upstream

Frames are read and made anew by wsproto, so that neither side's mistakes reach the other, and a close frame of ours can
be put in. A message is bounded while it is put together, inflating included. Close codes are RFC 6455, section 7.4.1.
"""

import base64
import hashlib
import logging
import time
import zlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from mitmproxy import hooks
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.proxy.layers.websocket import WebsocketMessageHook, WebsocketStartHook
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import CloseReason, Opcode
from wsproto.utilities import LocalProtocolError, RemoteProtocolError, split_comma_header

from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward

logger = logging.getLogger(__name__)

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of one message, inflated."""
KEPT_MESSAGES: Final = 100
KEPT_BYTES: Final = 256 * 1024
"""How many messages, and bytes of them, stay with the flow."""
BURST: Final = 10_000.0
"""Small frames of a client at once. Each costs some 20 us: so many hold others up for a fifth of a second."""
RATE: Final = 5_000.0
"""Small frames of a client a second: a tenth of a core."""
CONTENT: Final = 1024
"""Bytes of a frame that is worth its cost; smaller ones are paid for in part."""
_CODES: Final = {
    Reason.GATEWAY_STOPPING: CloseReason.GOING_AWAY,
    Reason.MEMORY_EXHAUSTED: CloseReason.TRY_AGAIN_LATER,
}
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accepts(forward: Forward, response: Response) -> bool:
    """Tell whether a 101 is the answer to this very handshake (RFC 6455, section 4.1)."""
    key = next((value for name, value in forward.fields if name.lower() == b"sec-websocket-key"), b"")
    expected = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode("ascii")
    connection = {token.strip().lower() for token in response.headers.get("connection", "").split(",")}
    offered = {
        protocol.strip()
        for name, value in forward.fields
        if name.lower() == b"sec-websocket-protocol"
        for protocol in value.decode("latin-1").split(",")
    }
    return (
        {*response.headers.get_all("sec-websocket-protocol")} <= offered  # which none that was taken out is of
        and response.headers.get("upgrade", "").lower() == "websocket"
        and "upgrade" in connection
        and response.headers.get("sec-websocket-accept", "") == expected
    )


class Pipe(Protocol):
    """The socket of one side."""

    @property
    def congested(self) -> bool:
        """Whether the peer does not take what it is sent."""
        ...

    def send_frames(self, data: bytes) -> None:
        """Send bytes of frames."""
        ...

    def hold_frames(self, held: bool) -> None:
        """Stop, or go on, reading."""
        ...

    def end_frames(self) -> None:
        """Close the connection, when what was sent is gone."""
        ...


class RunHook(Protocol):
    """What runs mitmproxy's hooks."""

    def run(self, kind: type[hooks.Hook], data: Any) -> Coroutine[Any, Any, None] | None:
        """Run one. Returns what is left to await."""
        ...


class BoundedDeflate(PerMessageDeflate):
    """permessage-deflate (RFC 7692) that inflates no more of a message than a bound."""

    def __init__(self, bound: int) -> None:
        """bound: bytes of one message."""
        super().__init__()
        self._bound = bound
        self._inflated = 0

    def frame_inbound_payload_data(self, proto: Any, data: bytes) -> bytes | CloseReason:
        """Inflate a part of a message."""
        if not self._inbound_compressed or not self._inbound_is_compressible:
            return data
        return self._inflate(bytes(data))

    def frame_inbound_complete(self, proto: Any, fin: bool) -> bytes | CloseReason | None:
        """Inflate the end of a message."""
        if not fin or not self._inbound_is_compressible:
            return super().frame_inbound_complete(proto, fin)
        if not self._inbound_compressed:
            self._inbound_compressed = None
            return None
        data = self._inflate(b"\x00\x00\xff\xff")
        self._inflated = 0
        self._inbound_compressed = None
        if self.server_no_context_takeover if proto.client else self.client_no_context_takeover:
            self._decompressor = None
        return data

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        decompressor = self._decompressor
        if decompressor is None:
            return CloseReason.PROTOCOL_ERROR
        try:
            inflated = decompressor.decompress(data, self._bound - self._inflated + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._inflated += len(inflated)
        if self._inflated > self._bound or decompressor.unconsumed_tail:
            return CloseReason.MESSAGE_TOO_BIG
        return inflated


class _Side:
    """One of the two connections."""

    __slots__ = ("bytes", "frame", "from_client", "messages", "parts", "pipe", "size", "ws")

    def __init__(self, kind: ConnectionType, extensions: list[Extension], pipe: Pipe) -> None:
        self.ws = Connection(kind, extensions)
        self.from_client = kind is ConnectionType.SERVER  # towards a client, the gateway is the server
        self.pipe = pipe
        self.parts = bytearray()  # of a message that is not complete
        self.size = 0
        self.frame = 0  # bytes of a frame that is not complete
        self.messages = 0
        self.bytes = 0


class Relay:
    """The life of one WebSocket, from the 101 on."""

    def __init__(
        self,
        flow: HTTPFlow,
        table: RunHook,
        client: Pipe,
        upstream: Pipe,
        wait: Callable[[Coroutine[Any, Any, None], Callable[[], None]], None],
        ended: Callable[[Reason | None], None],
        changed: Callable[[], None],
    ) -> None:
        """wait: calls its second argument when the first is done. ended: told once: why, None for an orderly end.

        changed: called when more, or less, is held than before.
        """
        self.flow = flow
        self._table = table
        self._wait = wait
        self._ended = ended
        self._changed = changed
        self._kept = 0  # bytes of messages that stay with the flow
        self._sizes: deque[int] = deque()  # of each of them
        self._counted = 0
        self._client = _Side(ConnectionType.SERVER, _extensions(flow.response), client)
        self._upstream = _Side(ConnectionType.CLIENT, _extensions(flow.response), upstream)
        self._queue: deque[tuple[_Side, bytes | Event | None]] | None = None  # what came while a hook waits
        self._over = False
        self._closed_by = "gateway"
        self._credit = BURST  # small frames that the client may still send
        self._earned_at = time.monotonic()
        flow.websocket = flow.websocket or WebSocketData()

    def start(self) -> None:
        """Tell the addons that a WebSocket has begun."""
        self._hook(WebsocketStartHook, lambda: None)

    def client_data(self, data: bytes) -> None:
        """Take bytes of the client's."""
        self._take(self._client, data)

    def upstream_data(self, data: bytes) -> None:
        """Take bytes of the service's."""
        self._take(self._upstream, data)

    def client_ended(self) -> None:
        """Take the end of the client's connection."""
        self._take(self._client, None)

    def upstream_ended(self) -> None:
        """Take the end of the service's connection."""
        self._take(self._upstream, None)

    def congested(self, client: bool, congested: bool) -> None:
        """Read one side only as fast as the other takes it. client: it is the client that does not."""
        self._other(self._client if client else self._upstream).pipe.hold_frames(congested)

    def cut(self, reason: Reason) -> None:
        """End both sides, because what admitted the connection no longer holds, or the gateway ends."""
        code = _CODES.get(reason, CloseReason.POLICY_VIOLATION)
        self._end(code, code, reason)

    @property
    def held(self) -> int:
        """Bytes of messages that are still coming, that wait for a hook, or that are kept to be looked at."""
        queued = sum(_size(item) for _, item in self._queue) if self._queue else 0
        return self._client.size + self._upstream.size + self._kept + queued

    @property
    def counted(self) -> tuple[int, int, int, int]:
        """Messages and bytes from the client, messages and bytes from the service."""
        return self._client.messages, self._client.bytes, self._upstream.messages, self._upstream.bytes

    @property
    def closed_by(self) -> str:
        """Who has ended it: "client", "upstream" or "gateway"."""
        return self._closed_by

    def _other(self, side: _Side) -> _Side:
        return self._upstream if side is self._client else self._client

    def _take(self, side: _Side, item: bytes | Event | None) -> None:
        """Take bytes, a frame's event, or (None) the end of a connection; while a hook waits, in order behind it."""
        if self._over:
            return
        if self._queue is not None:
            self._queue.append((side, item))
            if item is not None:
                side.pipe.hold_frames(True)
                self._count()
            return
        if isinstance(item, bytes):
            self._take_bytes(side, item)
        elif item is not None:
            self._relay(side, item)
        elif side.ws.state is ConnectionState.OPEN:  # no close frame came: 1006 for the record
            towards = CloseReason.GOING_AWAY if side is self._client else CloseReason.INTERNAL_ERROR
            self._close_record(side, CloseReason.ABNORMAL_CLOSURE, "")
            self._end(towards, None, None)

    def _take_bytes(self, side: _Side, data: bytes) -> None:
        try:
            side.ws.receive_data(data)
            for event in side.ws.events():
                if self._queue is None:
                    self._relay(side, event)
                else:
                    self._take(side, event)
                if self._over:
                    return
            self._count()
        except RemoteProtocolError as error:
            hint = error.event_hint
            code = hint.code if isinstance(hint, CloseConnection) else CloseReason.PROTOCOL_ERROR
            self._violated(side, code)

    def _count(self) -> None:
        held = self.held
        if held != self._counted:
            self._counted = held
            self._changed()

    def _violated(self, side: _Side, code: int) -> None:
        """End what breaks the protocol or a bound: that side is told the code, the other that it is over."""
        towards = CloseReason.GOING_AWAY if side is self._client else CloseReason.INTERNAL_ERROR
        self._close_record(side, code, "")
        other = self._other(side)
        self._say(side, code)
        self._say(other, code if code == CloseReason.MESSAGE_TOO_BIG else towards)
        self._finish(None)

    def _affords(self, size: int) -> bool:
        """Take a frame of so many bytes off what the client may send; False: it sends too many small ones."""
        price = 1.0 - size / CONTENT
        if price > 0.0:
            if self._credit < price:
                now = time.monotonic()
                self._credit = min(BURST, self._credit + (now - self._earned_at) * RATE)
                self._earned_at = now
            self._credit -= price
        return self._credit >= 0.0

    def _relay(self, side: _Side, event: Event) -> None:
        # Of wsproto's classes, which are abstract ones, asking for the class that an event has is the cheap question.
        if isinstance(event, TextMessage):
            self._part(side, event, Opcode.TEXT, event.data.encode())
        elif isinstance(event, BytesMessage):
            self._part(side, event, Opcode.BINARY, bytes(event.data))
        elif isinstance(event, Ping | Pong):
            if side.from_client and not self._affords(0):
                self.cut(Reason.FRAMES_EXCESSIVE)
                return
            self._send(self._other(side), event)
        elif isinstance(event, CloseConnection) and side.ws.state is ConnectionState.OPEN:
            self._violated(side, event.code)  # wsproto's own word on what it can't read: no close frame came
        elif isinstance(event, CloseConnection):
            self._close_record(side, event.code, event.reason or "")
            self._send(self._other(side), event)
            self._send(side, event.response())
            self._finish(None)

    def _part(self, side: _Side, event: TextMessage | BytesMessage, opcode: Opcode, data: bytes) -> None:
        """Take a part of a message, or all of it."""
        if side.from_client:
            side.frame += len(data)
            if event.frame_finished:
                frame, side.frame = side.frame, 0
                if not self._affords(frame):
                    self.cut(Reason.FRAMES_EXCESSIVE)
                    return
        side.size += len(data)
        if side.size > MAX_MESSAGE:
            self._violated(side, CloseReason.MESSAGE_TOO_BIG)
        elif not event.message_finished:
            side.parts += data
        elif side.parts:
            content = bytes(side.parts + data)
            side.parts.clear()
            side.size = 0
            self._message(side, opcode, content, None)
        else:
            side.size = 0
            self._message(side, opcode, data, event)

    def _message(self, side: _Side, opcode: Opcode, content: bytes, whole: Event | None) -> None:
        """Show a message to the addons, and pass it on. whole: the event that has all of it, and can go on as it is."""
        side.messages += 1
        side.bytes += len(content)
        data = self.flow.websocket
        if data is None:
            raise ValueError("no WebSocket")
        message = WebSocketMessage(opcode, side.from_client, content)
        self._keep(data, message)

        def send() -> None:
            event = whole
            if message.content is not content:
                self._measure(data)
                event = None
            if message.dropped or self._over:
                return
            if event is None or message.type is not opcode:
                text = message.content.decode(errors="replace") if message.type is Opcode.TEXT else message.content
                event = TextMessage(text) if isinstance(text, str) else BytesMessage(text)
            self._send(self._other(side), event)

        self._hook(WebsocketMessageHook, send)

    def _keep(self, data: WebSocketData, message: WebSocketMessage) -> None:
        """Keep a message with the flow, and forget the oldest."""
        messages, size = data.messages, len(message.content)
        messages.append(message)
        self._sizes.append(size)
        self._kept += size
        if len(messages) != len(self._sizes):  # an addon has put some in, or taken some out
            self._measure(data)
        while len(messages) > 1 and (len(messages) > KEPT_MESSAGES or self._kept > KEPT_BYTES):
            del messages[0]
            self._kept -= self._sizes.popleft()

    def _measure(self, data: WebSocketData) -> None:
        self._sizes = deque([len(message.content) for message in data.messages])
        self._kept = sum(self._sizes)

    def _hook(self, kind: type[hooks.Hook], then: Callable[[], None]) -> None:
        """Run a hook, then go on; what comes meanwhile waits."""
        pending = self._table.run(kind, self.flow)
        if pending is None:
            then()
            return
        self._queue = deque()

        def go_on() -> None:
            queue, self._queue = self._queue or deque(), None
            then()
            while queue and self._waiting() is None and not self._over:
                self._take(*queue.popleft())
            waiting = self._waiting()
            if waiting is not None:  # another hook waits: the rest comes behind what it has made wait
                waiting.extend(queue)
            elif not self._over:
                self._client.pipe.hold_frames(self._upstream.pipe.congested)
                self._upstream.pipe.hold_frames(self._client.pipe.congested)
                self._count()

        self._wait(pending, go_on)

    def _waiting(self) -> deque[tuple[_Side, bytes | Event | None]] | None:
        return self._queue

    def _send(self, side: _Side, event: Event) -> None:
        try:
            frames = side.ws.send(event)
        except LocalProtocolError:  # it has closed already
            return
        side.pipe.send_frames(frames)

    def _say(self, side: _Side, code: int) -> None:
        """Send a close frame where one can still be sent."""
        if side.ws.state in {ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING}:
            self._send(side, CloseConnection(code=code))

    def _close_record(self, side: _Side, code: int, reason: str) -> None:
        data = self.flow.websocket
        if data is not None and data.close_code is None:
            self._closed_by = "client" if side is self._client else "upstream"
            data.closed_by_client = side is self._client
            data.close_code = int(code)
            data.close_reason = reason

    def _end(self, towards_upstream: int, towards_client: int | None, reason: Reason | None) -> None:
        data = self.flow.websocket
        if data is not None and data.close_code is None:
            data.closed_by_client = False
            data.close_code = int(towards_upstream)
        self._say(self._upstream, towards_upstream)
        self._say(self._client, towards_upstream if towards_client is None else towards_client)
        self._finish(reason)

    def _finish(self, reason: Reason | None) -> None:
        self._over = True
        self._queue = None
        data = self.flow.websocket
        if data is not None:
            data.timestamp_end = time.time()
        self._client.pipe.end_frames()
        self._upstream.pipe.end_frames()
        self._ended(reason)


def _size(item: bytes | Event | None) -> int:
    if isinstance(item, TextMessage | BytesMessage):
        return len(item.data)
    return len(item) if isinstance(item, bytes) else 0


def _extensions(response: Response | None) -> list[Extension]:
    """Make what the handshake has agreed on; of extensions wsproto knows one."""
    said = "" if response is None else response.headers.get("Sec-WebSocket-Extensions", "")
    made: list[Extension] = []
    for extension in split_comma_header(said.encode("ascii", "replace")) if said else []:
        if extension.split(";", 1)[0].strip() == PerMessageDeflate.name:
            deflate = BoundedDeflate(MAX_MESSAGE)
            deflate.finalize(extension)
            made.append(deflate)
    return made
