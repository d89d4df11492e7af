"""The upstream's side: a connection to one endpoint, opened within its deadline, and HTTP/1.1 on it."""

import time
from collections.abc import Iterator
from enum import Enum, auto

from mitmproxy.http import Headers, Response
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import RegisterHttpConnection
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestEndOfMessage,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
)

from mitmgate.core.http1 import END, Bounds, Refusal, ResponseHead, ResponseReader
from mitmgate.core.http1.outgoing import OutgoingRequest
from mitmgate.core.http1.reader import ResponseEvent
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint, UpstreamTls
from mitmgate.engine.layer_events import RequestForwarded, ResponseBegun, UpstreamFailed
from mitmgate.engine.layer_timers import Timer, Timers
from mitmgate.engine.layer_wire import Wire
from mitmgate.stages.message import make_response


class _Phase(Enum):
    IDLE = auto()
    BUSY = auto()
    TUNNEL = auto()
    CLOSED = auto()


class Http1Client(HttpConnection):
    """HTTP/1.1 towards an endpoint: one request, then its response, then perhaps the next."""

    def __init__(self, context: Context, bounds: Bounds, wire: Wire) -> None:
        """bounds: the head's size is looked at. wire: the sockets."""
        super().__init__(context, context.server)
        self._bounds = bounds
        self._wire = wire
        self._phase = _Phase.IDLE
        self._stream_id = 0
        self._reader = ResponseReader(b"GET", bounds)
        self._served = 0
        self._outgoing = OutgoingRequest()
        self._keep_alive = True
        self._tunnelling = False
        self.idle_since = time.monotonic()

    def __repr__(self) -> str:
        """Show the phase, for mitmproxy's debug output."""
        return f"Http1Client({self._phase.name})"

    @property
    def idle(self) -> bool:
        """Whether another request can be sent."""
        return self._phase is _Phase.IDLE and self.conn.connected

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, HttpEvent):
            yield from self._send(event)
        elif isinstance(event, events.DataReceived):
            yield from self._receive(event.data)
        elif isinstance(event, events.ConnectionClosed):
            yield from self._closed()

    def _send(self, event: HttpEvent) -> CommandGenerator[None]:
        if isinstance(event, RequestForwarded):
            yield from self._send_request(event)
        elif self._phase not in {_Phase.BUSY, _Phase.TUNNEL} or event.stream_id != self._stream_id:
            return
        elif isinstance(event, RequestData):
            yield from self._write(event.data if self._phase is _Phase.TUNNEL else self._outgoing.body(event.data))
        elif isinstance(event, RequestEndOfMessage):
            yield from self._write(b"" if self._phase is _Phase.TUNNEL else self._outgoing.end())
        elif isinstance(event, RequestProtocolError):
            yield from self._end()

    def _write(self, data: bytes | None) -> CommandGenerator[None]:
        if data is None:  # not the body that the head declares: whatever comes next would be read as a part of it
            yield from self._fail(Refusal(Reason.BODY_MALFORMED, "The body is not what the head declares."))
        elif data:
            yield commands.SendData(self.conn, data)

    def _send_request(self, event: RequestForwarded) -> CommandGenerator[None]:
        forward, content, outgoing = event.forward, event.content, self._outgoing
        method = forward.method.encode("latin-1")
        self._phase = _Phase.BUSY
        self._stream_id = event.stream_id
        self._reader = ResponseReader(method, self._bounds)
        self._served += 1
        fields = forward.fields
        self._tunnelling = b"upgrade" in {name.lower() for name, _ in fields}
        length = event.length if content is None else len(content)
        raw = outgoing.begin(method, forward.target.encode("latin-1"), fields, length, upgrade=self._tunnelling)
        if raw is None:
            yield from self._fail(Refusal(Reason.REWRITE_REFUSED, "The request can't be written safely."))
            return
        if content is not None:
            raw += outgoing.body(content) or b""
            outgoing.end()
        yield commands.SendData(self.conn, raw)

    def _receive(self, data: bytes) -> CommandGenerator[None]:
        if self._phase is _Phase.BUSY:
            yield from self._take(self._reader.feed(data))
        elif self._phase is _Phase.TUNNEL:
            yield ReceiveHttp(ResponseData(self._stream_id, data))
        elif self._phase is _Phase.IDLE:
            yield from self._end()  # bytes that answer nothing: nobody can say what comes next

    def _take(self, taken: list[ResponseEvent]) -> CommandGenerator[None]:
        for event in taken:
            if self._phase is not _Phase.BUSY:
                return
            if isinstance(event, bytes):
                yield ReceiveHttp(ResponseData(self._stream_id, event))
            elif isinstance(event, ResponseHead):
                self._keep_alive = event.keep_alive
                if event.status == 101:
                    if not self._tunnelling:
                        yield from self._fail(Refusal(Reason.UPSTREAM_MALFORMED, "A 101 that nobody asked for."))
                        return
                    yield ReceiveHttp(ResponseBegun(self._stream_id, _response_of(event), 0))
                    yield from self._tunnel()
                    return
                length = None if event.body in {None, -1} else event.body
                yield ReceiveHttp(ResponseBegun(self._stream_id, _response_of(event), length))
            elif event is END:
                yield from self._finish()
            elif isinstance(event, Refusal):
                yield from self._fail(event)

    def _tunnel(self) -> CommandGenerator[None]:
        """Become a pipe. The stream decides whether the 101 is one to be followed."""
        if self._phase is not _Phase.BUSY:
            return
        self._phase = _Phase.TUNNEL
        yield ReceiveHttp(ResponseEndOfMessage(self._stream_id))
        if leftover := self._reader.leftover:
            yield ReceiveHttp(ResponseData(self._stream_id, leftover))

    def _finish(self) -> CommandGenerator[None]:
        """Keep the connection only where both messages are complete, and gone out, and nothing follows them.

        One that was asked to become something else is not kept either.
        """
        stream_id = self._stream_id
        if (
            self._keep_alive
            and self._outgoing.complete
            and not self._tunnelling
            and not self._reader.pending
            and self.conn.connected
            and not self._wire.congested(self.conn)
        ):
            self._phase = _Phase.IDLE
            self.idle_since = time.monotonic()
        else:
            yield from self._end()
        yield ReceiveHttp(ResponseEndOfMessage(stream_id))

    def _closed(self) -> CommandGenerator[None]:
        if self._phase is _Phase.TUNNEL:
            self._phase = _Phase.CLOSED
            yield ReceiveHttp(ResponseEndOfMessage(self._stream_id))
        elif self._phase is _Phase.BUSY:
            yield from self._take(self._reader.eof(orderly=self.conn.error is None))
        yield from self._end()

    def _fail(self, refusal: Refusal) -> CommandGenerator[None]:
        untouched = not self._reader.started
        yield from self._end()
        yield ReceiveHttp(UpstreamFailed(self._stream_id, refusal, untouched=untouched, stale=self._served > 1))

    def _end(self) -> CommandGenerator[None]:
        self._phase = _Phase.CLOSED
        if self.conn.state:
            yield commands.CloseConnection(self.conn)


class UpstreamConnection(Layer):
    """Opens the connection, and becomes Http1Client."""

    def __init__(
        self, context: Context, endpoint: Endpoint, tls: UpstreamTls | None, bounds: Bounds, timers: Timers, wire: Wire
    ) -> None:
        """endpoint, tls: what the connection can be used for again."""
        super().__init__(context)
        self.endpoint = endpoint
        self.tls = tls
        self.timed_out = False
        self.opened = False
        self.client = Http1Client(context, bounds, wire)
        self._timer = Timer(timers, self, _give_up)
        self._connect_timeout = 0.0

    @property
    def idle(self) -> bool:
        """Whether a request can be sent. Between connecting and the word of it a connection is its opener's."""
        return self.opened and self.client.idle

    def within(self, seconds: float) -> None:
        """Give up opening after so many seconds."""
        self._timer.set(seconds)

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Start):
            error = yield commands.OpenConnection(self.context.server)
            self._timer.clear()
            self.opened = error is None
            self._handle_event = self.client.handle_event  # type: ignore[method-assign]  # as mitmproxy's HttpClient
            yield RegisterHttpConnection(self.context.server, error)


def _give_up(layer: Layer) -> Iterator[commands.Command]:
    if isinstance(layer, UpstreamConnection):
        layer.timed_out = True
        yield commands.CloseConnection(layer.context.server)
        yield RegisterHttpConnection(layer.context.server, "timed out")  # a dial that mitmproxy cancels may say nothing


def _response_of(head: ResponseHead) -> Response:
    return make_response(head.status, Headers(head.headers.fields), None, complete=False)
