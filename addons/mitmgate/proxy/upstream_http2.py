"""HTTP/2 towards an endpoint: many requests at once on one connection, each a stream of its own (RFC 9113).

    Transaction → UpstreamStream → libnghttp2 → bytes, as fast as the service takes them
    bytes → libnghttp2 (frames, HPACK, windows, the rules of messages) → read_response (core/http2.py) → Transaction

A request can't spill into the next one here: frames name their stream, and a body that is not of its declared length
ends its stream alone, by libnghttp2's judgment on the way in and by ours on the way out. A service that goes (GOAWAY,
or REFUSED_STREAM) says which requests it has not looked at, so that these may be sent again whatever their method.
"""

import asyncio
import contextlib
import logging
import time
from math import inf
from typing import Final, Protocol

import ngh2
from mitmproxy.connection import Server

from mitmgate.core.cause import Cause, Failure
from mitmgate.core.headers import Fields
from mitmgate.core.http1 import Bounds
from mitmgate.core.http2 import read_response, trailers_flaw, write_request
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Forward
from mitmgate.proxy.http2_output import Http2Output
from mitmgate.proxy.timers import FLUSH_SECONDS
from mitmgate.proxy.upstream import Key, Phase, Recipient

logger = logging.getLogger(__name__)

STREAMS: Final = 100
"""Requests at once on one connection, unless the service wants fewer."""
WINDOW: Final = 64 * 1024
"""Bytes of a response that a service may send ahead of its client."""
FRAME: Final = 16 * 1024
"""Bytes of a frame's payload that are taken."""
QUEUED: Final = 64 * 1024
"""Bytes of a request's body that wait for the service; then its client is not read."""
RESUMED: Final = 16 * 1024
"""And when it is read again."""
ALIVE: Final = 2.0
"""Seconds in which a service has to answer a PING."""
RESETS: Final = 100
"""Requests that are given up on one connection, which then takes no more: services end one on which many are, with all
that runs on it (nghttp2 and Node after 1,000, Envoy after 500)."""
FRAMES: Final = 20_000
"""Frames that a service may send at once beside what its bytes are worth; beyond them it is read more slowly."""
FRAMES_A_SECOND: Final = 20_000
"""And further ones."""
WORTH: Final = 256
"""Bytes of a service that a frame is free with."""
INFORMATIONAL: Final = 32
"""Interim responses (1xx) to one request."""

_SETTINGS: Final = {
    ngh2.Setting.ENABLE_PUSH: 0,
    ngh2.Setting.INITIAL_WINDOW_SIZE: WINDOW,
    ngh2.Setting.MAX_FRAME_SIZE: FRAME,
    ngh2.Setting.NO_RFC7540_PRIORITIES: 1,
}


class NotHttp2Error(Exception):
    """The endpoint does not speak HTTP/2."""


class Keeper(Protocol):
    """The pool that has the connection."""

    def forget(self, connection: "Http2UpstreamConnection") -> None:
        """Give it no more requests."""
        ...


class UpstreamStream:
    """One request and its response: the upstream's side of a Transaction."""

    __slots__ = (
        "_connection",
        "_ended",
        "_held",
        "_informational",
        "_left",
        "_method",
        "_recipient",
        "_responded",
        "_unacknowledged",
        "begun",
        "congested",
        "phase",
        "server",
        "stream_id",
    )

    def __init__(self, connection: "Http2UpstreamConnection") -> None:
        """Begin without a request."""
        self._connection = connection
        self._recipient: Recipient | None = None
        self._method = b""
        self._left: int | None = 0  # bytes of the body that are to come; None: not known
        self._ended = False  # the request was written to its end
        self._responded = False  # the head of the response has come
        self._held = False
        self._informational = 0
        self._unacknowledged = 0
        self.begun = 0.0
        self.congested = False
        self.phase = Phase.OPENED
        self.server = connection.server
        self.stream_id = 0

    # What the transaction does.

    def send(
        self,
        recipient: Recipient,
        forward: Forward,
        length: int | None,
        content: bytes | None,
        *,
        upgrade: bool = False,
        once: bool = False,
        takes_trailers: bool = False,
        announced: bytes = b"",
    ) -> bool:
        """Send a request; see UpstreamSide. HTTP/2 has no upgrade (RFC 9113, section 8.6)."""
        if content is not None:
            length = len(content)
        scheme = self._connection.scheme
        fields = write_request(forward, scheme, length, takes_trailers=takes_trailers, announced=announced)
        if fields is None or upgrade or (length is not None and length < 0):
            self.abandon()
            return False
        self.phase = Phase.BUSY
        self._recipient = recipient
        self._method = fields[0][1]
        self._left = length
        self._ended = content == b""
        self.begun = time.monotonic()
        if not self._connection.begin(self, fields, ended=self._ended):
            self._fail(Failure(Reason.UPSTREAM_CLOSED, Cause.CLOSED), undelivered=True)
        elif content:
            self.send_body(content)
            self.end_body()
        return True

    def send_body(self, data: bytes) -> None:
        """Send a part of the body."""
        if self.phase is not Phase.BUSY or not data:
            return
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self._fail(Failure(Reason.BODY_MALFORMED, None))
                return
        self._connection.say(lambda h2: h2.send_data(self.stream_id, data))
        if not self.congested and self.unsent > QUEUED:
            self._congest(True)

    def end_body(self, trailers: Fields = ()) -> None:
        """Send the end of the body."""
        if self.phase is not Phase.BUSY or self._ended:
            return
        if self._left:
            self._fail(Failure(Reason.BODY_MALFORMED, None))
            return
        self._ended = True
        self._connection.end_stream(self.stream_id, trailers)

    @property
    def unsent(self) -> int:
        """Bytes that the service has not taken yet."""
        return self._connection.queued(self.stream_id)

    def hold(self, held: bool) -> None:
        """Stop, or go on, letting the service send more of the response."""
        self._held = held
        if not held:
            self._acknowledge()

    def abandon(self) -> None:
        """Give an unfinished exchange up; the connection's others go on."""
        self._recipient = None
        phase, self.phase = self.phase, Phase.CLOSED
        if phase is Phase.OPENED:
            self._connection.release()
        elif phase is Phase.BUSY:
            self._acknowledge()
            self._connection.give_up(self, heard=self._responded)

    # What the connection does.

    def drained(self) -> None:
        """Go on with the body where the service has taken enough of it."""
        if self.congested and self.unsent <= RESUMED:
            self._congest(False)

    def interim(self) -> None:
        """Take an interim response, which goes no further."""
        self._informational += 1
        if self._informational > INFORMATIONAL:
            detail = "Too many interim responses."
            self._fail(Failure(Reason.UPSTREAM_MALFORMED, Cause.HEAD_MALFORMED, detail))

    def head(self, headers: Fields, bounds: Bounds, *, ended: bool) -> None:
        """Take the head of the response."""
        if self.phase is not Phase.BUSY or self._recipient is None:
            return
        head = read_response(headers, ended, self._method, bounds)
        if isinstance(head, Refusal):
            self._fail(Failure(head.reason, head.cause, head.detail))
            return
        self._responded = True
        self._recipient.response_head(head)
        if ended:
            self.finish(())

    def data(self, data: bytes, *, ended: bool) -> None:
        """Take a part of the response's body."""
        self._unacknowledged += len(data)
        if self.phase is Phase.BUSY and self._recipient is not None and data:
            self._recipient.response_body(data)
        if not self._held:
            self._acknowledge()
        if ended:
            self.finish(())

    def trailers(self, fields: Fields, bounds: Bounds) -> None:
        """Take the trailers, which end the response."""
        flaw = trailers_flaw(fields, bounds)
        if flaw is None:
            self.finish(fields)
        else:
            self._fail(Failure(Reason.UPSTREAM_MALFORMED, Cause.BODY_MALFORMED, flaw))

    def finish(self, trailers: Fields) -> None:
        """Take the end of the response. What is still to come of the request nobody waits for."""
        if self.phase is not Phase.BUSY:
            return
        recipient, self._recipient = self._recipient, None
        self.phase = Phase.IDLE
        self._acknowledge()  # also where it is held: the connection's window is the others', too
        if not self._ended:
            self._connection.give_up(self, heard=True)
        if recipient is not None:
            recipient.response_end(trailers)

    def lost(self, reason: Reason, *, reset: bool = False, undelivered: bool = False) -> None:
        """Take the end of the stream before that of the response: UPSTREAM_CLOSED, or UPSTREAM_MALFORMED."""
        if self.phase is not Phase.BUSY:
            return
        self.phase = Phase.CLOSED
        self._acknowledge()
        if reason is Reason.UPSTREAM_MALFORMED:
            cause = Cause.BODY_MALFORMED if self._responded else Cause.HEAD_MALFORMED
        elif reset:
            cause = Cause.RESET
        else:
            cause = Cause.BODY_CUT if self._responded else Cause.CLOSED
        self._tell(Failure(reason, cause), undelivered=undelivered)

    def broken(self) -> None:
        """End because of a defect."""
        recipient = self._recipient
        self.abandon()
        if recipient is not None:
            recipient.broken()

    def _fail(self, failure: Failure, *, undelivered: bool = False) -> None:
        self.phase = Phase.CLOSED
        self._acknowledge()
        self._connection.give_up(self, heard=True)
        self._tell(failure, undelivered=undelivered)

    def _tell(self, failure: Failure, *, undelivered: bool) -> None:
        recipient, self._recipient = self._recipient, None
        if recipient is not None:
            stale = self._connection.served > 1
            # An interim response is one: whoever sends it has looked at the request, whatever it says afterwards.
            untouched = not self._responded and not self._informational
            recipient.upstream_failed(failure, untouched=untouched, stale=stale, undelivered=undelivered)

    def _congest(self, congested: bool) -> None:
        self.congested = congested
        if self._recipient is not None:
            self._recipient.upstream_congested(congested)

    def _acknowledge(self) -> None:
        amount, self._unacknowledged = self._unacknowledged, 0
        if amount:
            self._connection.say(lambda h2: h2.acknowledge_received_data(amount, self.stream_id))


class Http2UpstreamConnection(Http2Output):
    """A connection to an endpoint."""

    def __init__(self, pool: Keeper, key: Key, bounds: Bounds, buffer: memoryview, server: Server) -> None:
        """buffer: shared by all connections; what is read into it is taken out at once."""
        super().__init__(asyncio.get_running_loop(), bounds)
        self.key = key
        self.server = server
        self.scheme = key[0].scheme.encode("ascii")
        self.opened = time.monotonic()
        self.peer = ""  # the address that it is connected to
        self.idle_since = self.opened  # inf: requests run
        self.served = 0
        self._pool = pool
        self._buffer = buffer
        self._streams: dict[int, UpstreamStream] = {}
        self._settings: asyncio.Future[None] = self.loop.create_future()
        self._settings.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # it may be nobody's by then
        self._heard = self.opened  # when the service has said something last
        self._reserved = 0  # requests that are about to be sent
        self._resets = 0  # requests that were given up
        self._asked = 0.0  # when it was asked whether it lives
        self._credit = float(FRAMES)
        self._credited = self.opened  # when it was looked at last
        self._leaving = False  # no more requests; it ends with the last that runs

    @property
    def room(self) -> int:
        """How many requests more it would take now."""
        h2 = self._h2
        if h2 is None or self._leaving or self._closing or self._heard < self._asked:
            return 0
        return max(0, min(self._limit(h2), STREAMS) - len(self._streams) - self._reserved) if h2.can_send_request else 0

    @staticmethod
    def _limit(h2: ngh2.Connection) -> int:
        """Return how many requests the service takes at once."""
        return h2.remote_settings.get(ngh2.Setting.MAX_CONCURRENT_STREAMS, STREAMS)

    @property
    def retired(self) -> bool:
        """Whether it takes no more requests, ever."""
        return self._leaving

    @property
    def idle(self) -> bool:
        """Whether no request runs."""
        return not self._streams and not self._reserved

    def stream(self) -> UpstreamStream:
        """Make room for a request: it is sent, or abandoned."""
        self._reserved += 1
        return UpstreamStream(self)

    def release(self) -> None:
        """Take back the room of a request that is not sent."""
        self._reserved -= 1
        self._settle()

    async def established(self) -> None:
        """Wait for the service's SETTINGS, which say that it speaks HTTP/2, and how much it takes at once.

        Raises NotHttp2Error where it does not; cancelled, it closes the connection.
        """
        try:
            await self._settings
        except BaseException:
            if self._transport is not None:
                self._transport.abort()
            raise

    # What streams do.

    def begin(self, stream: UpstreamStream, fields: Fields, *, ended: bool) -> bool:
        """Send the head of a request; False where the connection takes none any more."""
        self._reserved -= 1
        h2 = self._h2
        if h2 is None or self._leaving or self._closing:
            self._settle()
            return False
        try:
            stream.stream_id = h2.send_request(fields, end_stream=ended)
        except ngh2.NGH2Error:
            self.retire()
            return False
        self.served += 1
        self.idle_since = inf
        self._streams[stream.stream_id] = stream
        self._flush_soon()
        return True

    def give_up(self, stream: UpstreamStream, *, heard: bool) -> None:
        """Reset a stream that has not ended. heard: a response has begun, or the end is ours.

        A service that was silent all the time is asked whether it lives, and gets no more requests here until it has
        said so: a connection whose other end is gone without a word would take one after the other to its timeout.
        """
        if self._streams.pop(stream.stream_id, None) is None:
            return
        stream_id = stream.stream_id
        self.say(lambda h2: h2.reset_stream(stream_id, ngh2.ErrorCode.CANCEL))
        if not heard and self._heard < stream.begun and self._asked <= self._heard:
            self._asked = asked = time.monotonic()
            self.say(lambda h2: h2.ping())
            self.loop.call_later(ALIVE, self._still_silent, asked)
        self._resets += 1
        if self._resets >= RESETS:
            self.retire()
        self._settle()

    def _still_silent(self, asked: float) -> None:
        if self._heard < asked:
            self.retire()

    # What the transport does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is wanted")
        self._transport = transport
        self._h2 = h2 = ngh2.Connection(
            ngh2.Role.CLIENT,
            ngh2.Configuration(
                auto_window_update=False,
                max_inbound_header_list_size=2 * self._bounds.response_head + FRAME,
                max_inbound_header_count=self._bounds.response_fields + 1,
                max_outbound_ack=100,
                max_settings=1000,
                # As libnghttp2 estimates it, with the gateway's own fields.
                max_send_header_block_length=4 * self._bounds.head + 64 * 1024,
            ),
        )
        h2.initiate_connection({**_SETTINGS, ngh2.Setting.MAX_HEADER_LIST_SIZE: 2 * self._bounds.response_head})
        h2.set_local_window_size(STREAMS * WINDOW)  # so that clients that are slow don't hold up the others
        self._flush_soon()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes of frames."""
        h2 = self._h2
        if h2 is None or self._closing:
            return
        self._heard = time.monotonic()
        try:
            try:
                h2.receive_data(self._buffer[:nbytes])
            except ngh2.NGH2Error:
                self._handle(h2.events())
                self._end(Reason.UPSTREAM_MALFORMED)
                return
            taken = h2.events()
            self._handle(taken)
            self._slow_down(len(taken) - nbytes // WORTH)
            self._flush_soon()
        except Exception:
            self._crash()

    def _slow_down(self, frames: int) -> None:
        """Read no faster than so many frames a second, which may be of no use: of one octet, PING, SETTINGS.

        Nothing is refused: small messages in large numbers are what some services are for.
        """
        self._credit = min(FRAMES, self._credit + (self._heard - self._credited) * FRAMES_A_SECOND - max(0, frames))
        self._credited = self._heard
        transport = self._transport
        if self._credit < 0 and transport is not None and not transport.is_closing():
            transport.pause_reading()
            self.loop.call_later(-self._credit / FRAMES_A_SECOND, self._read_on)

    def _read_on(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Take the end of what the service sends."""
        self._end(Reason.UPSTREAM_CLOSED)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection, and let go of everything that it held."""
        self._end(Reason.UPSTREAM_CLOSED)
        if self._flushing is not None:
            self._flushing.cancel()
        self._flushing = self._transport = self._h2 = None

    # Reading.

    def _handle(self, taken: list[ngh2.Event]) -> None:
        for event in taken:
            if isinstance(event, ngh2.GoAwayReceived):
                self.retire()
                continue
            if isinstance(event, ngh2.SettingsReceived) and not self._settings.done():
                self._settings.set_result(None)
            stream_id = getattr(event, "stream_id", 0)
            stream = self._streams.get(stream_id)
            if stream is None:
                if isinstance(event, ngh2.DataReceived):
                    size = len(event.data)
                    self.say(lambda h2, one=stream_id, size=size: h2.acknowledge_received_data(size, one))  # type: ignore[misc]
                continue
            try:
                self._pass_on(stream, event)
            except Exception:
                logger.exception("an upstream stream is broken off because of a defect")
                stream.broken()
        self._settle()

    def _pass_on(self, stream: UpstreamStream, event: ngh2.Event) -> None:
        match event:
            case ngh2.ResponseReceived(headers=headers, end_stream=ended):
                stream.head(headers, self._bounds, ended=ended)
            case ngh2.DataReceived(data=data, end_stream=ended):
                stream.data(data, ended=ended)
            case ngh2.TrailersReceived(headers=headers):
                stream.trailers(headers, self._bounds)
            case ngh2.InformationalResponseReceived():
                stream.interim()
            case ngh2.StreamReset(error_code=code):
                self._streams.pop(stream.stream_id, None)
                refused = code == ngh2.ErrorCode.REFUSED_STREAM
                stream.lost(Reason.UPSTREAM_CLOSED, reset=True, undelivered=refused)
            case ngh2.StreamClosed(error_code=code):
                self._streams.pop(stream.stream_id, None)
                refused = code == ngh2.ErrorCode.REFUSED_STREAM  # beyond what a GOAWAY says was looked at
                ours = code in {ngh2.ErrorCode.PROTOCOL_ERROR, ngh2.ErrorCode.FLOW_CONTROL_ERROR}
                stream.lost(Reason.UPSTREAM_MALFORMED if ours else Reason.UPSTREAM_CLOSED, undelivered=refused)

    # Writing.

    def _flush(self) -> None:
        self._flushing = None
        h2 = self._h2
        if h2 is None or self._closing:
            return
        try:
            self._write(h2)
            self._handle(h2.events())
            for stream in list(self._streams.values()):
                stream.drained()
            if not h2.want_read and not h2.want_write:
                self._end(Reason.UPSTREAM_MALFORMED)
        except Exception:
            self._crash()

    # The end.

    def retire(self) -> None:
        """Take no more requests; close when the last of them is done."""
        if not self._leaving:
            self._leaving = True
            self._pool.forget(self)
        self._settle()

    def _settle(self) -> None:
        if not self.idle or self._closing:
            return
        if self.idle_since == inf:
            self.idle_since = time.monotonic()
        if self._leaving or (self._h2 is not None and not self._limit(self._h2)):  # it takes none, and would be kept
            self.close()

    def close(self) -> None:
        """Close the connection, which runs no request, or whose requests end with it."""
        h2, transport = self._h2, self._transport
        if h2 is not None and transport is not None and not self._closing:
            with contextlib.suppress(ngh2.NGH2Error):
                self._write(h2)  # a goodbye would take the place of what is yet to be said
                h2.terminate_connection(ngh2.ErrorCode.NO_ERROR)
                self._write(h2)
        self._end(Reason.UPSTREAM_CLOSED)

    def _end(self, reason: Reason) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._settings.done():
            self._settings.set_exception(NotHttp2Error)
        if not self._leaving:
            self._leaving = True
            self._pool.forget(self)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()
            self.loop.call_later(FLUSH_SECONDS, transport.abort)
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            try:
                stream.lost(reason)
            except Exception:
                logger.exception("an upstream stream is broken off because of a defect")
                stream.broken()

    def _crash(self) -> None:
        logger.exception("an upstream connection is closed because of a defect")
        self._end(Reason.UPSTREAM_CLOSED)
