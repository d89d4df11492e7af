"""The client's side of HTTP/2: every stream a request that is validated again, and an error of its own.

What is wrong with one message becomes a request that the chain refuses, or a body that is refused, and a reset of that
stream alone (RFC 9113, sections 5.4.2 and 8.1.1). What is wrong with the frames ends the connection, on record.
"""

from dataclasses import dataclass
from typing import Final

import h2.events
from h2.errors import ErrorCodes
from h2.exceptions import DenialOfServiceError, ProtocolError
from mitmproxy.http import Headers, Request
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

from mitmgate.core.http1 import Bounds, Refusal
from mitmgate.core.http1.framing import BODILESS
from mitmgate.core.http1.writer import end_to_end
from mitmgate.core.http2 import read_request, trailers_flaw
from mitmgate.core.reason import Reason
from mitmgate.engine.layer_events import BodyRefused, RequestBegun, RequestRefused, ResponseBegun
from mitmgate.engine.layer_http2_frames import ExcessiveFramesError, FrontConnection
from mitmgate.engine.layer_request import new_request
from mitmgate.engine.layer_timers import Expired, Timer, Timers

RESETS: Final = 200
"""Streams that a client may give up before it is taken for an attack."""
_CLOSED: Final = "The client closed the connection."


@dataclass(slots=True)
class _Open:
    """A request whose stream is not over."""

    declared: int | None = 0  # bytes of the body; None: not declared
    received: int = 0
    last: bytes = b""  # the bytes that make the declared length whole, until END_STREAM says that they do
    complete: bool = False  # END_STREAM came
    answered: bool = False  # the response is complete, whether or not the client has taken it
    bodiless: bool = False  # the response has no body
    malformed: bool = False


class GatewayHttp2Server(HttpConnection):
    """HTTP/2 towards a client."""

    def __init__(self, context: Context, bounds: Bounds, timers: Timers, exhausted: bool) -> None:
        """exhausted: the client is one too many, and is sent away at once."""
        super().__init__(context, context.client)
        self._exhausted = exhausted
        self._h2 = FrontConnection(bounds.head + 16384, timers.clock)
        self._bounds = bounds
        self._idle = Timer(timers, self)
        self._head = Timer(timers, self)  # of a header section that has begun
        self._heads = 0  # how many were complete when that deadline was set
        self._taken = 0  # bytes that the client had taken when the idle deadline was set
        self._open: dict[int, _Open] = {}
        self._unanswered = 0
        self._opened = 0
        self._resets = 0
        self._gone = False
        self._retired = False

    @property
    def pending(self) -> int:
        """Bytes that wait for a response to be done: HTTP/2 has none."""
        return 0

    @property
    def held(self) -> int:
        """Bytes of responses that the client has not yet given leave to send."""
        return self._h2.held

    def buffered(self, stream_id: int) -> int:
        """Bytes of a response that the client has not yet given leave to send."""
        return self._h2.buffered(stream_id)

    def room(self, stream_id: int) -> int:
        """Bytes of a response that the client would take now."""
        return self._h2.room(stream_id)

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self._gone:
            return
        if isinstance(event, HttpEvent):
            self._send(event)
            yield from self._write()
        elif isinstance(event, events.DataReceived):
            yield from self._receive(event.data)
        elif isinstance(event, Expired):
            yield from self._expired(event.timer)
        elif isinstance(event, events.ConnectionClosed):
            yield from self._close()
        elif isinstance(event, events.Start):
            self._h2.initiate_connection()
            if self._exhausted:
                refusal = Refusal(Reason.CONNECTIONS_EXHAUSTED, "Too many clients are connected.")
                yield from self._break_off(ErrorCodes.ENHANCE_YOUR_CALM, refusal)
            else:
                yield from self._write()
        if not self._gone:
            yield from self._wait()

    def _write(self) -> CommandGenerator[None]:
        data = self._h2.data_to_send()
        if data:
            yield commands.SendData(self.conn, data)

    # Deadlines.

    def _wait(self) -> CommandGenerator[None]:
        """Set the deadlines: of a head from its first frame on, and of a connection from its last answer on.

        Frames that are no request put neither of them off.
        """
        frames = self._h2.frames
        if not frames.in_head:
            self._head.clear()
        elif self._head.idle or frames.heads != self._heads:
            self._heads = frames.heads
            self._head.set(self._bounds.head_timeout)
        if self._unanswered:
            self._idle.clear()
        elif self._retired and not self._open:
            yield from self._goodbye()
        elif self._idle.idle:
            self._taken = self._h2.sent
            self._idle.set(self._bounds.idle_timeout)

    def _expired(self, timer: Timer) -> CommandGenerator[None]:
        if timer is self._head:
            seconds = self._bounds.head_timeout
            refusal = Refusal(Reason.HEAD_TIMEOUT, f"The head did not arrive within {seconds:g} s.")
            yield from self._break_off(ErrorCodes.ENHANCE_YOUR_CALM, refusal)
        elif not self._unanswered and not self._still_taking:
            yield from self._goodbye()

    @property
    def _still_taking(self) -> bool:
        """Whether the client has not yet taken all that it was answered, and is not too slow at it."""
        enough = self._bounds.idle_timeout * self._bounds.body_rate
        return self._h2.held > 0 and self._h2.sent - self._taken >= enough

    def _goodbye(self) -> CommandGenerator[None]:
        """End a connection that has no request."""
        self._h2.close_connection()
        yield from self._write()
        yield from self._close()

    def retire(self) -> CommandGenerator[None]:
        """End the connection: now where it has no request, else when the last of them is done."""
        self._retired = True
        if not self._open and not self._gone:
            yield from self._goodbye()

    # Reading.

    def _receive(self, data: bytes) -> CommandGenerator[None]:
        read, error = self._h2.read(data)
        for event in read:
            if isinstance(event, h2.events.RequestReceived):
                yield from self._begin(event)
            elif isinstance(event, h2.events.DataReceived):
                yield from self._take_data(event)
            elif isinstance(event, h2.events.TrailersReceived):
                yield from self._take_trailers(event)
            elif isinstance(event, h2.events.StreamEnded):
                yield from self._take_end(event.stream_id or 0)
            elif isinstance(event, h2.events.StreamReset):
                yield from self._take_reset(event)
            elif isinstance(event, h2.events.ConnectionTerminated):
                yield from self._close()
            if self._gone:
                return
        if error is not None:
            yield from self._break_off(error.error_code, _refusal_of(error))
            return
        if self._h2.held or self._open:
            self._h2.flush()
            for stream_id in list(self._open):
                self._settle(stream_id)
        yield from self._write()

    def _begin(self, event: h2.events.RequestReceived) -> CommandGenerator[None]:
        stream_id, ended = event.stream_id or 0, event.stream_ended is not None
        scheme = b"https" if self.conn.tls else b"http"
        self._opened += 1
        read = read_request(event.headers or (), scheme, ended, self._bounds)
        if stream_id in self._h2.refused:
            self._h2.refused.discard(stream_id)
            read = Refusal(Reason.CONNECTIONS_EXHAUSTED, "Too many requests are open on this connection.")
        request = self._open[stream_id] = _Open()
        self._unanswered += 1
        if isinstance(read, Refusal):
            request.malformed = read.reason.status == 400
            yield ReceiveHttp(RequestRefused(stream_id, _placeholder(read, scheme), read))
            return
        request.declared = read.length
        request.bodiless = read.method == b"HEAD"
        fields = read.fields
        if read.length is None:  # Arrival reads from the fields that there is a body of unknown length
            fields += ((b"transfer-encoding", b"chunked"),)
        made = new_request(read.method, read.path, b"HTTP/2.0", Headers(fields), scheme, read.authority)
        yield ReceiveHttp(RequestBegun(stream_id, made, read.length, read.expects_continue))

    def _take_data(self, event: h2.events.DataReceived) -> CommandGenerator[None]:
        """Take a part of a body.

        One that has its declared length, and may still turn out longer, is not passed on as whole: the upstream would
        take the request for complete.
        """
        stream_id, data = event.stream_id or 0, event.data or b""
        request = self._open.get(stream_id)
        if request is not None and not request.malformed and data:
            request.received += len(data)
            if request.declared is None or request.received < request.declared:
                yield ReceiveHttp(RequestData(stream_id, data))
            elif request.received > request.declared:
                yield from self._refuse(stream_id, request, _mismatch(request))
            else:
                request.last = data
        self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)

    def _take_trailers(self, event: h2.events.TrailersReceived) -> CommandGenerator[None]:
        """Look at trailers, and drop them (RFC 9110, section 6.5.1)."""
        stream_id = event.stream_id or 0
        request = self._open.get(stream_id)
        if request is not None and not request.malformed:
            flaw = trailers_flaw(event.headers or (), self._bounds)
            if flaw is None and event.stream_ended is None:
                flaw = "The trailers do not end the request."
            if flaw is not None:
                yield from self._refuse(stream_id, request, Refusal(Reason.BODY_MALFORMED, flaw))

    def _take_end(self, stream_id: int) -> CommandGenerator[None]:
        request = self._open.get(stream_id)
        if request is None:
            return
        request.complete = True
        if request.malformed:
            return
        if request.declared is not None and request.received != request.declared:
            yield from self._refuse(stream_id, request, _mismatch(request))
            return
        last, request.last = request.last, b""
        if last:
            yield ReceiveHttp(RequestData(stream_id, last))
        yield ReceiveHttp(RequestEndOfMessage(stream_id))

    def _refuse(self, stream_id: int, request: _Open, refusal: Refusal) -> CommandGenerator[None]:
        """Refuse the body of a request that has begun."""
        request.malformed = True
        request.last = b""
        yield ReceiveHttp(BodyRefused(stream_id, refusal))

    def _take_reset(self, event: h2.events.StreamReset) -> CommandGenerator[None]:
        """Take a client's reset, or h2's of a stream that went on after its end.

        A client that resets most of what it begins is sent away (CVE-2023-44487).
        """
        stream_id = event.stream_id or 0
        request = self._forget(stream_id)
        self._resets += 1
        if request is not None and event.remote_reset:
            detail = "The client gave the request up."
            yield ReceiveHttp(RequestProtocolError(stream_id, detail, ErrorCode.CLIENT_DISCONNECTED))
        elif request is not None:
            detail = "A frame came that the request's stream can't have."
            yield ReceiveHttp(BodyRefused(stream_id, Refusal(Reason.BODY_MALFORMED, detail)))
        if self._resets > RESETS and self._resets * 2 > self._opened:
            refusal = Refusal(Reason.FRAMES_EXCESSIVE, "Most requests were given up.")
            yield from self._break_off(ErrorCodes.ENHANCE_YOUR_CALM, refusal)

    def _break_off(self, code: int, refusal: Refusal) -> CommandGenerator[None]:
        """End a connection that can't or may not go on; the chain sees it as a request that never became one."""
        self._h2.close_connection(code)
        yield from self._write()
        yield from self._close()
        scheme = b"https" if self.conn.tls else b"http"
        yield ReceiveHttp(RequestRefused(-1, _placeholder(refusal, scheme), refusal))

    def _close(self) -> CommandGenerator[None]:
        """End the connection, and every request on it."""
        self._gone = True
        self._idle.clear()
        self._head.clear()
        streams = list(self._open)
        self._open.clear()
        self._h2.clear()
        yield commands.CloseConnection(self.conn)
        for stream_id in streams:
            yield ReceiveHttp(RequestProtocolError(stream_id, _CLOSED, ErrorCode.CLIENT_DISCONNECTED))

    # Writing.

    def _send(self, event: HttpEvent) -> None:
        stream_id = event.stream_id
        request = self._open.get(stream_id)
        if request is None:
            return
        if isinstance(event, ResponseHeaders):
            self._send_head(event, request)
        elif isinstance(event, ResponseData):
            if not request.bodiless and self._h2.writable(stream_id):
                self._h2.put(stream_id, event.data)
        elif isinstance(event, ResponseEndOfMessage):
            self._answered(request)
            if self._h2.writable(stream_id):
                self._h2.put(stream_id, b"", end=True)
            self._settle(stream_id)
        elif isinstance(event, ResponseProtocolError):
            self._abort(stream_id, request, event.code)

    def _abort(self, stream_id: int, request: _Open, code: ErrorCode) -> None:
        """End a stream so that what came of its response can't be taken for all of it."""
        if request.malformed:
            error = ErrorCodes.PROTOCOL_ERROR
        elif code is ErrorCode.CLIENT_DISCONNECTED:
            error = ErrorCodes.CANCEL
        else:
            error = ErrorCodes.INTERNAL_ERROR
        self._h2.abort(stream_id, error)
        self._forget(stream_id)

    def _send_head(self, event: ResponseHeaders, request: _Open) -> None:
        stream_id, response = event.stream_id, event.response
        status = response.status_code
        if not self._h2.writable(stream_id) or status == 101:
            return
        fields = [(b":status", b"%d" % status)]
        if status == 100:
            self._h2.send_headers(stream_id, fields)
            return
        request.bodiless |= status in BODILESS
        fields += [(name.lower(), value) for name, value in end_to_end(response.headers.fields)]
        length = event.length if isinstance(event, ResponseBegun) else len(response.raw_content or b"")
        if request.bodiless:
            stated = [value for name, value in response.headers.fields if name.lower() == b"content-length"]
            fields += [(b"content-length", value) for value in stated if status != 204]
        elif length is not None:
            fields.append((b"content-length", b"%d" % length))
        self._h2.send_headers(stream_id, fields)

    # Streams that end.

    def _answered(self, request: _Open) -> None:
        if not request.answered:
            request.answered = True
            self._unanswered -= 1

    def _settle(self, stream_id: int) -> None:
        """Forget a stream whose response the client has; what it still has to send of the request is not wanted."""
        request = self._open.get(stream_id)
        if request is None or not request.answered or self._h2.waits(stream_id):
            return
        if not request.complete:  # RFC 9113, section 8.1
            self._h2.abort(stream_id, ErrorCodes.PROTOCOL_ERROR if request.malformed else ErrorCodes.NO_ERROR)
        self._forget(stream_id)

    def _forget(self, stream_id: int) -> _Open | None:
        """Forget a stream; returns what was known of it."""
        self._h2.drop(stream_id)
        request = self._open.pop(stream_id, None)
        if request is not None:
            self._answered(request)
        return request


def _mismatch(request: _Open) -> Refusal:
    """Refuse a body whose length is not the declared one (RFC 9113, section 8.1.1)."""
    kind = "longer" if request.received > (request.declared or 0) else "shorter"
    return Refusal(Reason.LENGTH_MISMATCH, f"The body is {kind} than the {request.declared} bytes that were declared.")


def _refusal_of(error: ProtocolError) -> Refusal:
    """Say what the frames of a connection were refused for, without telling the client how we read them."""
    if isinstance(error, ExcessiveFramesError):
        return Refusal(Reason.FRAMES_EXCESSIVE, "The client sent too many frames that are no requests.")
    if isinstance(error, DenialOfServiceError):
        return Refusal(Reason.HEAD_TOO_LARGE, "The head is larger than can be read.")
    return Refusal(Reason.HEAD_MALFORMED, "The HTTP/2 frames are malformed.")


def _placeholder(refusal: Refusal, scheme: bytes) -> Request:
    return new_request(refusal.method or b"-", refusal.target or b"-", b"HTTP/2.0", Headers(refusal.fields), scheme)
