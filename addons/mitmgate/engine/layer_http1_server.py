"""The client's side of HTTP/1: reads requests strictly, writes responses, and ends connections so that answers arrive.

    READING → (answered, and both sides want to go on) → READING
    READING → (answered before the request was read, or after a refusal) → LINGERING → closed
    READING → (101) → TUNNEL

Lingering: a connection that is closed while bytes are still unread is reset by the kernel, and the client may lose the
answer. So our half is closed first, and what still comes is thrown away, within bounds (RFC 9112, section 9.6).
"""

from enum import Enum, auto
from typing import Final

from mitmproxy.connection import ConnectionState
from mitmproxy.http import Headers
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)

from mitmgate.core.headers import Headers as CoreHeaders
from mitmgate.core.http1 import END, Bounds, Refusal, RequestHead, RequestReader, chunk, response_head
from mitmgate.core.http1.framing import CLOSE, UNSENDABLE, frame_response
from mitmgate.core.http1.reader import RequestEvent
from mitmgate.core.http1.target import split_target
from mitmgate.core.reason import Reason
from mitmgate.engine.layer_events import BodyRefused, RequestBegun, RequestRefused, ResponseBegun
from mitmgate.engine.layer_request import new_request
from mitmgate.engine.layer_timers import Expired, Timer, Timers
from mitmgate.engine.layer_wire import Wire

LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 64 * 1024 * 1024
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PLACEHOLDER: Final = b"-"
_NO_HEADERS: Final = CoreHeaders(())


class _Phase(Enum):
    READING = auto()
    LINGERING = auto()
    TUNNEL = auto()
    CLOSED = auto()


class Http1Server(HttpConnection):
    """HTTP/1 towards a client. One request at a time; what is pipelined waits in the reader."""

    def __init__(self, context: Context, bounds: Bounds, timers: Timers, wire: Wire, exhausted: bool) -> None:
        """exhausted: the client is one too many, and is told so at once."""
        super().__init__(context, context.client)
        self.stream_id = 1
        self._bounds = bounds
        self._wire = wire
        self._exhausted = exhausted
        self._reader = RequestReader(bounds)
        self._timer = Timer(timers, self)
        self._phase = _Phase.READING
        self._head: RequestHead | None = None
        self._responding = False  # a final head was sent for the current request
        self._close = False  # the connection ends with the current response
        self._chunked = False
        self._until_close = False
        self._bodiless = False
        self._corked = b""
        self._client_gone = False
        self._discarded = 0

    def __repr__(self) -> str:
        """Show the phase, for mitmproxy's debug output."""
        return f"Http1Server({self._phase.name})"

    @property
    def pending(self) -> int:
        """Bytes that wait for the current response to be done."""
        return self._reader.pending

    def buffered(self, stream_id: int) -> int:
        """Bytes of a response that the protocol holds back: HTTP/1 has none."""
        return 0

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, HttpEvent):
            yield from self._send(event)
        elif isinstance(event, events.DataReceived):
            yield from self._receive(event.data)
        elif isinstance(event, events.ConnectionClosed):
            yield from self._closed()
        elif isinstance(event, Expired):
            yield from self._expired()
        elif isinstance(event, events.Start):
            if self._exhausted:
                yield from self._refuse(Refusal(Reason.CONNECTIONS_EXHAUSTED, "Too many clients are connected."))
            else:
                self._timer.set(self._bounds.idle_timeout)

    def retire(self) -> CommandGenerator[None]:
        """End the connection: now where it waits for a request, else with the response."""
        self._close = True
        if self._phase is _Phase.READING and self._head is None and self._reader.idle:
            yield from self._end()

    # Reading.

    def _receive(self, data: bytes) -> CommandGenerator[None]:
        if self._phase is _Phase.READING:
            idle = self._reader.idle
            yield from self._take(self._reader.feed(data))
            if idle and self._head is None and not self._reader.idle:
                self._timer.set(self._bounds.head_timeout)
        elif self._phase is _Phase.TUNNEL:
            yield ReceiveHttp(RequestData(self.stream_id, data))
        elif self._phase is _Phase.LINGERING:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                yield from self._end()

    def _take(self, taken: list[RequestEvent]) -> CommandGenerator[None]:
        for event in taken:
            if self._phase is not _Phase.READING:
                return
            if isinstance(event, bytes):
                yield ReceiveHttp(RequestData(self.stream_id, event))
            elif event is END:
                yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
            elif isinstance(event, RequestHead):
                yield from self._begin(event)
            elif isinstance(event, Refusal):
                if self._head is None:
                    yield from self._refuse(event)
                else:
                    self._close = True
                    yield ReceiveHttp(BodyRefused(self.stream_id, event))

    def _begin(self, head: RequestHead) -> CommandGenerator[None]:
        self._timer.clear()
        target = split_target(head.target)
        scheme = b"https" if self.conn.tls else b"http"
        if target.scheme and target.scheme != scheme:
            detail = "The request target names another scheme than the connection has."
            yield from self._refuse(Refusal(Reason.TARGET_INVALID, detail, head.method, head.target))
            return
        self._head = head
        request = new_request(
            head.method, target.path, head.version.encode("ascii"), Headers(head.headers.fields), scheme
        )
        request.data.authority = target.authority
        yield ReceiveHttp(RequestBegun(self.stream_id, request, head.body, head.expects_continue))

    def _refuse(self, refusal: Refusal) -> CommandGenerator[None]:
        """Let the chain answer bytes that are no request, and end the connection with that answer."""
        self._timer.clear()
        self._close = True
        scheme = b"https" if self.conn.tls else b"http"
        method, target = refusal.method or _PLACEHOLDER, refusal.target or _PLACEHOLDER
        self._head = RequestHead(method, target, "HTTP/1.1", _NO_HEADERS, 0, False, False)
        request = new_request(method, target, b"HTTP/1.1", Headers(refusal.fields), scheme)
        yield ReceiveHttp(RequestRefused(self.stream_id, request, refusal))

    def _closed(self) -> CommandGenerator[None]:
        """Take the end of what the client sends. It may still read: an answer that is owed is sent."""
        self._client_gone = True
        if self._phase is _Phase.TUNNEL:
            yield ReceiveHttp(RequestEndOfMessage(self.stream_id))
            return
        missing = self._reader.eof() if self._phase is _Phase.READING else None
        if self._head is None and missing is not None:
            yield from self._refuse(missing)
        elif self._head is None or self._phase is not _Phase.READING:
            yield from self._end()
        else:
            yield ReceiveHttp(
                RequestProtocolError(self.stream_id, "The client closed the connection.", ErrorCode.CLIENT_DISCONNECTED)
            )

    def _expired(self) -> CommandGenerator[None]:
        if self._phase is _Phase.LINGERING or self._reader.idle:
            yield from self._end()
        elif self._head is None:
            seconds = self._bounds.head_timeout
            yield from self._refuse(Refusal(Reason.HEAD_TIMEOUT, f"The head did not arrive within {seconds:g} s."))

    # Writing.

    def _send(self, event: HttpEvent) -> CommandGenerator[None]:
        if self._phase is _Phase.CLOSED or event.stream_id != self.stream_id:
            return
        if isinstance(event, ResponseHeaders):
            yield from self._send_head(event)
        elif isinstance(event, ResponseData):
            yield from self._send_body(event.data)
        elif isinstance(event, ResponseEndOfMessage):
            if self._phase is _Phase.TUNNEL:
                if early := self._reader.take_pending():
                    yield ReceiveHttp(RequestData(self.stream_id, early))
                return
            tail = chunk(b"") if self._chunked and not self._bodiless else b""
            if self._corked or tail:
                yield commands.SendData(self.conn, self._corked + tail)
                self._corked = b""
            yield from self._answered()
        elif isinstance(event, ResponseProtocolError):
            if self._responding and self._until_close and self._phase is _Phase.READING:
                self._wire.reset(self.conn)
            yield from self._end()

    def _send_head(self, event: ResponseHeaders) -> CommandGenerator[None]:
        response, head = event.response, self._head
        status = response.status_code
        if status == 100:
            yield commands.SendData(self.conn, CONTINUE)
            return
        if head is None:
            return
        if status == 101:
            raw = response_head(status, response.headers.fields)
            self._phase = _Phase.TUNNEL
            yield commands.SendData(self.conn, raw or b"")
            return
        self._responding = True
        length: int | None = len(response.raw_content or b"")
        if isinstance(event, ResponseBegun):
            length = event.length
            self._close |= event.close
        fields, self._chunked, self._until_close, self._bodiless = frame_response(
            status, response.headers.fields, length, head.method, head.version
        )
        self._close |= not (head.keep_alive and self._reader.complete) or self._until_close or self._client_gone
        if self._close:
            fields += CLOSE
        raw = response_head(status, fields)
        if raw is None:  # an addon put a line end into a field: nothing of it leaves
            self._close = True
            raw, self._bodiless, self._chunked = UNSENDABLE, True, False
        if response.stream:
            yield commands.SendData(self.conn, raw)
        else:
            self._corked = raw

    def _send_body(self, data: bytes) -> CommandGenerator[None]:
        if self._phase is _Phase.TUNNEL:
            yield commands.SendData(self.conn, data)
            return
        if self._bodiless or not data:
            return
        if self._chunked:
            data = chunk(data)
        yield commands.SendData(self.conn, self._corked + data)
        self._corked = b""

    def _answered(self) -> CommandGenerator[None]:
        """Go on with the next request, or end the connection so that the client can read the answer."""
        if not self._close and self._reader.complete:
            self.stream_id += 2
            self._head = None
            self._responding = False
            self._timer.set(self._bounds.idle_timeout)
            yield from self._take(self._reader.next())
            if self._head is None and not self._reader.idle:
                self._timer.set(self._bounds.head_timeout)
            return
        unread = not self._reader.complete or self._reader.pending
        if self._client_gone or not unread or not self.conn.state & ConnectionState.CAN_WRITE:
            yield from self._end()
            return
        self._phase = _Phase.LINGERING
        self._timer.set(LINGER_SECONDS)
        yield commands.CloseTcpConnection(self.conn, half_close=True)

    def _end(self) -> CommandGenerator[None]:
        if self._phase is not _Phase.CLOSED:
            self._phase = _Phase.CLOSED
            self._timer.clear()
            yield commands.CloseConnection(self.conn)
