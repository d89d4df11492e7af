"""The client's side of HTTP/2: every stream a request that is validated again, and bounds that mitmproxy has not.

mitmproxy lets the h2 library refuse malformed header sections, which ends the connection without any trace; here they
become requests that the chain refuses, each on its own stream. h2's own checks of frames, of order and of declared
lengths still end the connection.
"""

from enum import Enum, auto
from typing import ClassVar, Final

import h2.config
import h2.errors
import h2.events
import h2.exceptions
from mitmproxy.http import Headers, Request
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http._base import HttpEvent, ReceiveHttp
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
from mitmproxy.proxy.layers.http._http2 import Http2Server, StreamState

from mitmgate.core.http1 import Bounds, Refusal
from mitmgate.core.http1.framing import BODILESS
from mitmgate.core.http1.writer import end_to_end
from mitmgate.core.http2 import read_request
from mitmgate.core.reason import Reason
from mitmgate.engine.layer_events import RequestBegun, RequestRefused, ResponseBegun
from mitmgate.engine.layer_request import new_request
from mitmgate.engine.layer_timers import Expired, Timer, Timers

STREAMS: Final = 64
"""Requests that a client may have open at once on one connection."""
WINDOW: Final = 256 * 1024
"""Bytes that a client may send ahead on a stream; RESETS: streams it may give up before it is taken for an attack."""
RESETS: Final = 200
_CLOSED: Final = "The client closed the connection."


class _Ended(Enum):
    """Which halves of a stream are complete."""

    NONE = auto()
    REQUEST = auto()
    RESPONSE = auto()


class GatewayHttp2Server(Http2Server):
    """HTTP/2 towards a client."""

    h2_conf: ClassVar[h2.config.H2Configuration] = h2.config.H2Configuration(
        client_side=False,
        header_encoding=False,
        validate_inbound_headers=False,
        validate_outbound_headers=False,
        normalize_inbound_headers=False,
        normalize_outbound_headers=False,
    )

    def __init__(self, context: Context, bounds: Bounds, timers: Timers) -> None:
        """bounds: head, fields, target and idle_timeout are looked at."""
        super().__init__(context)
        self.h2_conf.validate_inbound_headers = False  # mitmproxy's option may have set it
        settings = self.h2_conn.local_settings
        settings.max_concurrent_streams = STREAMS
        settings.initial_window_size = WINDOW
        settings.max_frame_size = 16384
        settings.max_header_list_size = bounds.head + 16384
        settings.enable_connect_protocol = 0
        settings.acknowledge()
        self.h2_conn.max_inbound_frame_size = 16384
        self._bounds = bounds
        self._timer = Timer(timers, self)
        self._ended: dict[int, _Ended] = {}
        self._bodiless: set[int] = set()
        self._opened = 0
        self._resets = 0
        self._gone = False
        self._retired = False

    @property
    def pending(self) -> int:
        """Bytes that wait for a response to be done: HTTP/2 has none."""
        return 0

    def buffered(self, stream_id: int) -> int:
        """Bytes of a response that the client has not yet given leave to send."""
        return sum(len(part.data) for part in self.h2_conn.stream_buffers.get(stream_id, ()))

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, Expired):
            yield from self._expired()
            return
        if isinstance(event, HttpEvent):
            yield from self._send(event)
        else:
            yield from super()._handle_event(event)
        if self._gone or self._ended:
            self._timer.clear()
        elif self._retired:
            yield from self._expired()
        elif not isinstance(event, HttpEvent) or self._timer.idle:
            self._timer.set(self._bounds.idle_timeout)

    def _expired(self) -> CommandGenerator[None]:
        """Say goodbye to a connection that has no request."""
        self.h2_conn.close_connection()
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.close_connection(_CLOSED)

    def retire(self) -> CommandGenerator[None]:
        """End the connection: now where it has no request, else when the last of them is done."""
        self._retired = True
        if not self._ended and not self._gone:
            yield from self._expired()

    # Reading.

    def handle_h2_event(self, event: h2.events.Event) -> CommandGenerator[bool]:
        """Take an event of the h2 library; True: nothing of this connection is read any more."""
        if isinstance(event, h2.events.RequestReceived):
            yield from self._begin(event)
            return False
        if isinstance(event, h2.events.TrailersReceived):
            return False  # dropped: RFC 9110, section 6.5.1
        if isinstance(event, h2.events.DataReceived):
            if self.streams.get(event.stream_id) is StreamState.HEADERS_RECEIVED and event.data:
                yield ReceiveHttp(RequestData(event.stream_id, event.data))
            self.h2_conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return False
        if isinstance(event, h2.events.StreamEnded):
            if event.stream_id in self.streams:
                yield ReceiveHttp(RequestEndOfMessage(event.stream_id))
            self._end(event.stream_id, _Ended.REQUEST)
            return False
        if isinstance(event, h2.events.StreamReset):
            return (yield from self._reset(event))
        return (yield from super().handle_h2_event(event))

    def _begin(self, event: h2.events.RequestReceived) -> CommandGenerator[None]:
        stream_id, ended = event.stream_id, event.stream_ended is not None
        self._opened += 1
        self.streams[stream_id] = StreamState.HEADERS_RECEIVED
        self._ended[stream_id] = _Ended.NONE
        scheme = b"https" if self.conn.tls else b"http"
        read = read_request(event.headers or (), scheme, ended, self._bounds)
        if isinstance(read, Refusal):
            yield ReceiveHttp(RequestRefused(stream_id, _placeholder(read, scheme), read))
            return
        if read.method == b"HEAD":
            self._bodiless.add(stream_id)
        fields = read.fields
        if read.length is None:  # Arrival reads from the fields that there is a body of unknown length
            fields += ((b"transfer-encoding", b"chunked"),)
        request = new_request(read.method, read.path, b"HTTP/2.0", Headers(fields), scheme, read.authority)
        yield ReceiveHttp(RequestBegun(stream_id, request, read.length, read.expects_continue))

    def _reset(self, event: h2.events.StreamReset) -> CommandGenerator[bool]:
        """Take a client's reset; a client that does little else is sent away (CVE-2023-44487)."""
        self._resets += 1
        if self._forget(event.stream_id):
            yield ReceiveHttp(
                RequestProtocolError(event.stream_id, "The client gave the request up.", ErrorCode.CLIENT_DISCONNECTED)
            )
        if self._resets > RESETS and self._resets * 2 > self._opened:
            yield from self.protocol_error("too many resets", int(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM))
            return True
        return False

    def close_connection(self, msg: str) -> CommandGenerator[None]:
        """End the connection, and every request on it."""
        streams = list(self.streams)
        self.streams.clear()
        self._ended.clear()
        self._timer.clear()
        self._gone = True
        yield commands.CloseConnection(self.conn)
        for stream_id in streams:
            yield ReceiveHttp(RequestProtocolError(stream_id, msg, ErrorCode.CLIENT_DISCONNECTED))
        self._handle_event = self.done  # type: ignore[method-assign]  # as Http2Connection does

    def protocol_error(
        self, message: str, error_code: int = h2.errors.ErrorCodes.PROTOCOL_ERROR
    ) -> CommandGenerator[None]:
        """End a connection whose frames can't be followed, without telling the client how we read it.

        Where no request is under way, the bytes are put before the chain as a request that never became one.
        """
        idle = not self.streams
        self.h2_conn.close_connection(error_code)
        yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        yield from self.close_connection(_CLOSED)
        if idle:
            refusal = Refusal(Reason.HEAD_MALFORMED, "The HTTP/2 frames are malformed.")
            scheme = b"https" if self.conn.tls else b"http"
            yield ReceiveHttp(RequestRefused(-1, _placeholder(refusal, scheme), refusal))

    # Writing.

    def _send(self, event: HttpEvent) -> CommandGenerator[None]:
        stream_id = event.stream_id
        if isinstance(event, ResponseHeaders):
            self._send_head(event)
        elif isinstance(event, ResponseData):
            if stream_id not in self._bodiless and self.is_open_for_us(stream_id):
                self.h2_conn.send_data(stream_id, event.data)
        elif isinstance(event, ResponseEndOfMessage):
            if self.is_open_for_us(stream_id):
                self.h2_conn.end_stream(stream_id)
            if self._ended.get(stream_id) is _Ended.NONE and not self.buffered(stream_id):
                # RFC 9113, section 8.1: the answer is complete, and the rest of the request is not wanted
                self.h2_conn.reset_stream(stream_id, int(h2.errors.ErrorCodes.NO_ERROR))
                self._forget(stream_id)
            else:
                self._end(stream_id, _Ended.RESPONSE)
        elif isinstance(event, ResponseProtocolError):
            self._abort(stream_id, event.code)
        data = self.h2_conn.data_to_send()
        if data:
            yield commands.SendData(self.conn, data)

    def _abort(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream so that what came of its response can't be taken for all of it."""
        if self._forget(stream_id) and not self.is_closed(stream_id):
            cancelled = code is ErrorCode.CLIENT_DISCONNECTED
            error = h2.errors.ErrorCodes.CANCEL if cancelled else h2.errors.ErrorCodes.INTERNAL_ERROR
            self.h2_conn.reset_stream(stream_id, int(error))

    def _send_head(self, event: ResponseHeaders) -> None:
        stream_id, response = event.stream_id, event.response
        status = response.status_code
        if not self.is_open_for_us(stream_id) or status == 101:
            return
        fields = [(b":status", b"%d" % status)]
        if status == 100:
            self.h2_conn.send_headers(stream_id, fields)
            return
        if status in BODILESS:
            self._bodiless.add(stream_id)
        fields += [(name.lower(), value) for name, value in end_to_end(response.headers.fields)]
        length = event.length if isinstance(event, ResponseBegun) else len(response.raw_content or b"")
        if stream_id in self._bodiless:
            stated = [value for name, value in response.headers.fields if name.lower() == b"content-length"]
            fields += [(b"content-length", value) for value in stated if status != 204]
        elif length is not None:
            fields.append((b"content-length", b"%d" % length))
        self.h2_conn.send_headers(stream_id, fields)

    # Streams that end.

    def _end(self, stream_id: int, half: _Ended) -> None:
        """Note that a half of a stream is complete; with both the stream is forgotten."""
        before = self._ended.get(stream_id)
        if before is _Ended.NONE:
            self._ended[stream_id] = half
        elif before is not None and before is not half:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> bool:
        """Forget a stream; tells whether it was known."""
        self._bodiless.discard(stream_id)
        self._ended.pop(stream_id, None)
        return self.streams.pop(stream_id, None) is not None


def _placeholder(refusal: Refusal, scheme: bytes) -> Request:
    return new_request(refusal.method or b"-", refusal.target or b"-", b"HTTP/2.0", Headers(refusal.fields), scheme)
