"""The client's side of HTTP/2: each stream a request of its own, validated again before it may become HTTP/1.1.

    bytes → FrameMeter (counts what is no request) → libnghttp2 (frames, HPACK, windows, RFC 9113's rules of messages)
          → read_request (core/http2.py) → Transaction, one for each stream
    Transaction → Http2Stream → libnghttp2 → bytes, as fast as the client takes them

libnghttp2 (through ngh2) refuses what RFC 9113 calls malformed, lengths that do not fit included, as an error of that
stream alone (section 8.1.1). Such a stream never becomes a request, or its request is broken off, and either way there
is a record of it. What one connection may cost is bounded here: streams, bytes that wait for the client, frames that
belong to no request, the time for a head.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from math import inf
from typing import Final, Protocol

import ngh2
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.http import Headers, Response

from mitmgate.core.headers import Fields
from mitmgate.core.headers import Headers as CoreHeaders
from mitmgate.core.http1 import Bounds, RequestHead
from mitmgate.core.http1.framing import BODILESS
from mitmgate.core.http1.names import LOWER
from mitmgate.core.http1.writer import end_to_end
from mitmgate.core.http2 import read_request, trailers_flaw
from mitmgate.core.http2_frames import REFUSED, FrameMeter
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.pipeline.message import headers_of
from mitmgate.proxy.http2_output import Http2Output
from mitmgate.proxy.memory import PAGE, Account
from mitmgate.proxy.timers import FLUSH_SECONDS, LINGER_SECONDS, SLACK
from mitmgate.proxy.transaction import Engine, Transaction, new_request
from mitmgate.proxy.websocket import Pipe, Relay

logger = logging.getLogger(__name__)

STREAMS: Final = 64
"""Requests that a client may have open at once on one connection."""
WINDOW: Final = 256 * 1024
"""Bytes that a client may send ahead on one stream."""
CONNECTION_WINDOW: Final = 4 * 1024 * 1024
"""Bytes that a client may send ahead on all streams of a connection."""
FRAME: Final = 16 * 1024
"""Bytes of a frame's payload that are taken (RFC 9113, section 4.2: the least that must be)."""
QUEUED: Final = 32 * 1024
"""Bytes of one response that wait for the client; then its upstream is not read."""
RESUMED: Final = 16 * 1024
"""And when it is read again."""
CONNECTION_QUEUED: Final = 1024 * 1024
"""Bytes of all responses of a connection that wait for the client; then its next requests wait, undecided."""
INSIST: Final = 5.0
"""Seconds for which a retired connection may go on with new requests before it is told to stop."""
LINGER_BYTES: Final = 1024 * 1024
"""Bytes that are read and dropped after the end, so that the client can read why."""
_PLACEHOLDER: Final = b"-"
_NO_FIELDS: Final = CoreHeaders(())

_SETTINGS: Final = {
    ngh2.Setting.MAX_CONCURRENT_STREAMS: STREAMS,
    ngh2.Setting.INITIAL_WINDOW_SIZE: WINDOW,
    ngh2.Setting.MAX_FRAME_SIZE: FRAME,
    ngh2.Setting.ENABLE_CONNECT_PROTOCOL: 0,
    ngh2.Setting.NO_RFC7540_PRIORITIES: 1,
}


class Front(Protocol):
    """What a connection asks of its listener."""

    engine: Engine
    buffer: memoryview

    def client(self, transport: asyncio.Transport) -> Client:
        """Make mitmproxy's record of a connection."""
        ...

    def enter(self, client: "Http2Connection", peer: str) -> int | None:
        """Count the connection. Returns by how many there are too many; None: close it."""
        ...

    def leave(self, client: "Http2Connection", peer: str) -> None:
        """Take the connection off the count."""
        ...


class StreamDeadline:
    """The deadline of one stream; all of a connection share one timer."""

    __slots__ = ("_connection", "due")

    def __init__(self, connection: "Http2Connection") -> None:
        """connection: looks when one of its streams is due."""
        self._connection = connection
        self.due = inf

    def set(self, seconds: float) -> None:
        """Expire in so many seconds."""
        self.at(self._connection.loop.time() + seconds)

    def at(self, due: float) -> None:
        """Expire at a time of the loop's clock."""
        self.due = due
        self._connection.look_at(due)

    def clear(self) -> None:
        """Don't expire."""
        self.due = inf


class Http2Stream:
    """A stream: the client's side of one Transaction."""

    __slots__ = (
        "_bodiless",
        "_connection",
        "_head_sent",
        "answered",
        "client",
        "congested",
        "counted",
        "deadline",
        "declared",
        "ended",
        "held",
        "last",
        "method",
        "received",
        "stream_id",
        "takes_trailers",
        "transaction",
        "unacknowledged",
    )

    def __init__(
        self, connection: "Http2Connection", stream_id: int, method: bytes, *, ended: bool, declared: int | None = 0
    ) -> None:
        """ended: the request is complete with its head. declared: bytes of its body; None: it does not say."""
        self._connection = connection
        self.client = connection.client
        self.stream_id = stream_id
        self.method = method
        self.ended = ended
        self.answered = False  # the transaction is done
        self.congested = False
        self.counted = 0  # bytes that the transaction holds
        self.held = False  # the transaction takes no more of the body for now
        self.unacknowledged = 0
        self.declared = declared
        self.received = 0
        self.last = b""  # the bytes that make the declared length whole
        self.deadline = StreamDeadline(connection)
        self.transaction: Transaction | None = None
        self.takes_trailers = False  # whether its TE says so
        self._bodiless = method == b"HEAD"
        self._head_sent = False

    def _say(self, action: Callable[[ngh2.Connection], object]) -> None:
        if self.stream_id > 0:
            self._connection.say(action)

    def hold_request_body(self, held: bool) -> None:
        """Stop, or go on, letting the client send more of the body."""
        self.held = held
        if not held:
            self._connection.acknowledge(self, 0)

    def ask_for_body(self) -> None:
        """Send the 100 that the client waits for."""
        self._say(lambda h2: h2.send_informational_response(self.stream_id, [(b":status", b"100")]))

    def send_head(self, response: Response, length: int | None, body: bytes | None, *, close: bool = False) -> None:
        """Send a response's head. length: of its body; None: not known. body: the whole body; None: it follows."""
        status = response.data.status_code
        if status in BODILESS:
            self._bodiless = True
        fields: list[tuple[bytes, bytes]] = [(b":status", b"%d" % status)]
        stated: list[bytes] = []
        for name, value in end_to_end(response.data.headers.fields):
            fields.append((LOWER[name], value))
        if self._bodiless:
            stated = [value for name, value in response.data.headers.fields if LOWER[name] == b"content-length"][:1]
            if status == 204:
                stated = []
        elif length is not None:
            stated = [b"%d" % length]
        fields += [(b"content-length", value) for value in stated]
        ends = self._bodiless or body == b""
        self._head_sent = True
        self._say(lambda h2: h2.send_response(self.stream_id, fields, end_stream=ends))
        if ends:
            self._connection.stream_ended(self)
        elif body:
            self._say(lambda h2: h2.send_data(self.stream_id, body, end_stream=True))
            self._connection.stream_ended(self)

    def send_body(self, data: bytes) -> None:
        """Send a part of the body."""
        if data and not self._bodiless:
            self._say(lambda h2: h2.send_data(self.stream_id, data))
            self._connection.measure(self)

    def recount(self) -> None:
        """Say anew how much is held for the client."""
        self.counted = 0 if self.transaction is None else self.transaction.held
        self._connection.recount()

    def admits(self, wanted: int) -> bool:
        """Tell whether so many bytes more may be held for the client."""
        return self._connection.account.admits(wanted)

    @property
    def room(self) -> float:
        """Bytes that the client's windows let through now (RFC 9113, section 5.2)."""
        return self._connection.room(self.stream_id)

    @property
    def pipe(self) -> Pipe:
        """HTTP/2 has no upgrade (RFC 9113, section 8.6)."""
        raise ValueError("HTTP/2 has no upgrade")

    def switch(self, response: Response, relay: Relay) -> None:
        """HTTP/2 has no upgrade (RFC 9113, section 8.6)."""
        raise ValueError("HTTP/2 has no upgrade")

    def finish(self, trailers: Fields = ()) -> None:
        """Take the end of the response: the transaction is done."""
        self._connection.finish(self, trailers)

    def break_off(self) -> None:
        """End the stream so that what came of its response can't be taken for all of it."""
        error = ngh2.ErrorCode.INTERNAL_ERROR if self._head_sent else ngh2.ErrorCode.CANCEL
        self._connection.give_up(self, error)


class Http2Connection(Http2Output):
    """A client's HTTP/2 connection."""

    def __init__(self, front: Front, bounds: Bounds, scheme: bytes) -> None:
        """bounds: of the policy in force when the client connected. scheme: what the connection is."""
        super().__init__(front.engine.loop, bounds)
        self.client: Client
        self.account: Account
        self._front = front
        self._scheme = scheme
        self._peer = ""
        self._meter = FrameMeter()
        self._streams: dict[int, Http2Stream] = {}
        self._sending: dict[int, Http2Stream] = {}  # answered; what is queued of the response is on its way
        self._waiting: dict[int, tuple[tuple[tuple[bytes, bytes], ...], bool]] = {}  # undecided, in order
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf  # of the connection itself: idle, or a head that does not end
        self._retiring = False
        self._recorded = 0  # streams of which there is, or will be, a record
        self._open: set[int] = set()  # those of them that libnghttp2 has not closed
        self._going = False  # it is we who end the connection
        self._eof = False  # the client sends nothing more
        self._discarded: int | None = None  # bytes that came after the end

    # What the transport does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or turn the client away."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is wanted")
        peer = transport.get_extra_info("peername")
        if peer is None or transport.get_extra_info("sockname") is None:  # reset before it was accepted
            self._closing = True
            transport.abort()
            return
        self._start(transport, self._front.client(transport))
        excess = self._front.enter(self, self._peer)
        if excess is None:
            self.end()
            return
        self._rest()
        if excess > 0:
            self._refuse(Refusal(Reason.CONNECTIONS_EXHAUSTED, "Too many clients are connected."))
            self._go_away(ngh2.ErrorCode.ENHANCE_YOUR_CALM)
        else:
            self._flush()

    def take_over(self, transport: asyncio.Transport, client: Client, data: bytes) -> None:
        """Go on with a connection that was counted as HTTP/1.1's. data: what has come on it, from the preface on."""
        self._start(transport, client)
        self._rest()
        self._flush()
        self._receive(memoryview(data))

    def _start(self, transport: asyncio.Transport, client: Client) -> None:
        self._transport = transport
        self._peer = client.peername[0]
        self.client = client
        self._h2 = h2 = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                auto_window_update=False,
                max_inbound_header_list_size=self._bounds.head + FRAME,
                max_inbound_header_count=2 * self._bounds.fields + 100,
                max_outbound_ack=100,
                max_settings=1000,
                # As libnghttp2 estimates it, with the gateway's own fields; else a large response is a reset stream.
                max_send_header_block_length=2 * self._bounds.response_head + 64 * 1024,
                stream_reset_rate_limit=(200, 33),
                glitch_rate_limit=(1000, 100),
            ),
        )
        h2.initiate_connection({**_SETTINGS, ngh2.Setting.MAX_HEADER_LIST_SIZE: self._bounds.head})
        h2.set_local_window_size(CONNECTION_WINDOW)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._front.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes of frames."""
        self._receive(self._front.buffer[:nbytes])

    def _receive(self, data: memoryview) -> None:
        h2 = self._h2
        if h2 is None or self._closing:
            if self._discarded is not None:
                self._discarded += len(data)
                if self._discarded > LINGER_BYTES:
                    self.end()
            return
        try:
            excess = self._meter.feed(data, self.loop.time())
            if excess:
                self._flood(excess)
                return
            try:
                h2.receive_data(data)
            except ngh2.ProtocolError:
                self._handle(h2.events())
                self._broken_frames()
                return
            except ngh2.ConnectionStateError:  # the client said goodbye, and its last request is done
                self._close()
                return
            self._handle(h2.events())
            self._watch_head()
            self._flush_soon()
        except Exception:
            self._crash()

    def eof_received(self) -> bool:
        """Take the end of what the client sends: HTTP/2 has no half-closed connections, so that it is the end of all.

        What is written goes out first, within bounds: asyncio would wait for it for ever.
        """
        self._going = self._eof = True
        self._close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection, and let go of everything that it held."""
        transport, self._transport = self._transport, None
        self._closing = True
        if transport is None:
            return
        for stream in list(self._streams.values()):
            self._leave(stream)
        for stream_id in list(self._waiting):
            self._forget_waiting(stream_id)
        for pending in (self._timer, self._flushing):
            if pending is not None:
                pending.cancel()
        self._timer = self._flushing = None
        self._streams.clear()
        self._sending.clear()
        self._open.clear()
        self._h2 = None
        self.client.state = ConnectionState.CLOSED
        self.client.timestamp_end = time.time()
        self._front.leave(self, self._peer)

    @staticmethod
    def _leave(stream: Http2Stream) -> None:
        """Tell a request that its client has gone; a defect of one is not the others'."""
        try:
            if stream.transaction is not None and not stream.answered:
                stream.transaction.client_gone()
        except Exception:
            logger.exception("a request is broken off because of a defect")

    # Reading.

    def _handle(self, taken: list[ngh2.Event]) -> None:
        for event in taken:
            if isinstance(event, ngh2.RequestReceived):
                self._recorded += 1
                self._open.add(event.stream_id)
                if self._waiting or self._queued() > CONNECTION_QUEUED:
                    self._waiting[event.stream_id] = event.headers, event.end_stream
                else:
                    self._begin(event.stream_id, event.headers, event.end_stream)
            elif isinstance(event, ngh2.DataReceived):
                self._take_body(event)
            elif isinstance(event, ngh2.TrailersReceived):
                self._take_trailers(event)
            elif isinstance(event, ngh2.StreamClosed):
                self._closed(event)
            elif isinstance(event, ngh2.StreamReset):
                self._reset(event.stream_id)

    def _begin(self, stream_id: int, headers: tuple[tuple[bytes, bytes], ...], ended: bool) -> None:
        read = read_request(headers, self._scheme, ended, self._bounds)
        if isinstance(read, Refusal):
            self._refuse(read, stream_id, ended=ended)
            return
        self._streams[stream_id] = stream = Http2Stream(self, stream_id, read.method, ended=ended, declared=read.length)
        fields = read.fields
        stream.takes_trailers = (b"te", b"trailers") in fields
        if read.length is None:  # Arrival reads from the fields that there is a body of unknown length
            fields += ((b"transfer-encoding", b"chunked"),)
        request = new_request(read.method, read.path, b"HTTP/2.0", headers_of(fields), self._scheme, read.authority)
        head = RequestHead(
            read.method, read.path, "HTTP/2.0", CoreHeaders(fields), read.length, True, read.expects_continue
        )
        self._due = inf
        stream.transaction = transaction = Transaction(self._front.engine, stream, self._bounds, stream.deadline)
        whole = ended and read.length == 0
        transaction.begin(request, head, None, whole=whole)
        if whole:
            transaction.body_end()

    def _refuse(self, refusal: Refusal, stream_id: int = -1, *, ended: bool = True) -> None:
        """Let the chain answer what is no request. stream_id: -1 where there is no stream to answer on."""
        method, target = refusal.method or _PLACEHOLDER, refusal.target or _PLACEHOLDER
        stream = Http2Stream(self, stream_id, refusal.method, ended=ended)
        if stream_id > 0:
            self._streams[stream_id] = stream
        request = new_request(method, target, b"HTTP/2.0", Headers(refusal.fields), self._scheme)
        stream.transaction = Transaction(self._front.engine, stream, self._bounds, stream.deadline)
        stream.transaction.begin(request, None, refusal)

    def _take_body(self, event: ngh2.DataReceived) -> None:
        self._begin_waiting(event.stream_id)
        stream = self._streams.get(event.stream_id)
        if stream is None or stream.transaction is None or stream.answered:
            self._acknowledge(event.stream_id, len(event.data))
            return
        data = event.data
        if data:
            stream.unacknowledged += len(data)
            stream.received += len(data)
            if stream.received == stream.declared:
                # The service would take it for whole, which only END_STREAM says it is.
                stream.last = data
            else:
                stream.transaction.body(data)
            self.acknowledge(stream, 0)
        if event.end_stream:
            self._end_body(event.stream_id)

    def _take_trailers(self, event: ngh2.TrailersReceived) -> None:
        """Take the end of a body, and what follows it."""
        self._begin_waiting(event.stream_id)
        flaw = trailers_flaw(event.headers, self._bounds)
        stream = self._streams.get(event.stream_id)
        if flaw is None:
            self._end_body(event.stream_id, event.headers)
        elif stream is not None and stream.transaction is not None and not stream.answered:
            stream.transaction.body_refused(Refusal(Reason.BODY_MALFORMED, flaw))

    def _begin_waiting(self, stream_id: int) -> None:
        """Decide on a request now that waits, since more of it is here."""
        waiting = self._waiting.pop(stream_id, None)
        if waiting is not None:
            self._begin(stream_id, *waiting)

    def _end_body(self, stream_id: int, trailers: Fields = ()) -> None:
        stream = self._streams.get(stream_id) or self._sending.get(stream_id)
        if stream is not None and not stream.ended:
            stream.ended = True
            if stream.transaction is not None and not stream.answered:
                last, stream.last = stream.last, b""
                if last:
                    stream.transaction.body(last)
            if stream.transaction is not None and not stream.answered:
                stream.transaction.body_end(trailers)

    def _closed(self, event: ngh2.StreamClosed) -> None:
        """Take the end of a stream: complete, given up by the client, or malformed by libnghttp2's judgment."""
        stream_id = event.stream_id
        self._sending.pop(stream_id, None)
        stream = self._drop(stream_id)
        if stream_id not in self._open:
            self._recorded += 1
            self._refuse(Refusal(Reason.HEAD_MALFORMED, "The HTTP/2 message is malformed."))
            return
        self._open.discard(stream_id)
        malformed = event.error_code == ngh2.ErrorCode.PROTOCOL_ERROR  # the client's own word came as `StreamReset`
        if stream is None:
            self._forget_waiting(stream_id, malformed=malformed)
        elif stream.transaction is not None and not stream.answered:
            if malformed:
                stream.transaction.body_refused(_flaw(stream.declared))
            else:
                stream.transaction.client_gone()
        self._settle()

    def _reset(self, stream_id: int) -> None:
        """Take the client's word that it gives a stream up; `StreamClosed` follows."""
        self._sending.pop(stream_id, None)
        stream = self._drop(stream_id)
        if stream is not None and stream.transaction is not None and not stream.answered:
            stream.transaction.client_gone()
        elif stream is None:
            self._forget_waiting(stream_id)

    def _forget_waiting(self, stream_id: int, *, malformed: bool = False) -> None:
        """Put on record that a request ended before it was decided; nothing of it is forwarded.

        malformed: libnghttp2 has refused what followed its head.
        """
        waiting = self._waiting.pop(stream_id, None)
        if waiting is None:
            return
        headers, ended = waiting
        read = read_request(headers, self._scheme, ended, self._bounds)
        if not isinstance(read, Refusal):
            cause = Refusal(Reason.CLIENT_CLOSED, "The request ended before it was decided.")
            if malformed:
                cause = _flaw(read.length)
            read = cause._replace(method=read.method, target=read.path, fields=read.fields)
        try:
            self._refuse(read)
        except Exception:
            logger.exception("a request is broken off because of a defect")

    def acknowledge(self, stream: Http2Stream, more: int) -> None:
        """Let the client send as much again as was taken. more: bytes beside those that were counted."""
        amount, stream.unacknowledged = stream.unacknowledged + more, 0
        if stream.held:
            stream.unacknowledged = amount
        elif amount:
            self._acknowledge(stream.stream_id, amount)

    def _drop(self, stream_id: int) -> Http2Stream | None:
        """Take a stream out of those that run: what was held of its body leaves the connection's window."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            amount, stream.unacknowledged = stream.unacknowledged, 0
            self._acknowledge(stream_id, amount)
        return stream

    def _acknowledge(self, stream_id: int, amount: int) -> None:
        if amount:
            self.say(lambda h2: h2.acknowledge_received_data(amount, stream_id))

    def _record_refused(self) -> None:
        """Put on record what libnghttp2 has refused without a word to us: streams beyond STREAMS.

        A client that has not read our SETTINGS yet may mean well (RFC 9113, section 5.1.2).
        """
        begun = 0 if self._meter.head_since is None else 1
        while self._meter.opened - begun > self._recorded:
            self._recorded += 1
            self._refuse(Refusal(Reason.CONNECTIONS_EXHAUSTED, f"More than {STREAMS} requests at once."))
            if not self._meter.spend(REFUSED):
                self._flood("requests at once")
                return

    # What ends a connection.

    def _watch_head(self) -> None:
        """Hold a head that comes in pieces to its time."""
        since = self._meter.head_since
        if since is not None:
            self._due = min(self._due, since + self._bounds.head_timeout)
            self.look_at(self._due)
        elif not self._streams and not self._sending and not self._waiting:
            if self._due == inf:
                self._rest()
        else:
            self._due = inf

    def _rest(self) -> None:
        """Begin to wait for a request; frames that are none do not prolong it."""
        self._due = self.loop.time() + self._bounds.idle_timeout
        self.look_at(self._due)

    def _settle(self) -> None:
        """Go on after the end of a stream."""
        if not self._streams and not self._sending and not self._waiting:
            if self._retiring:
                self._go_away(ngh2.ErrorCode.NO_ERROR)
            elif self._due == inf:
                self._rest()

    def _flood(self, what: str) -> None:
        """Send a client away that makes work without making requests."""
        self._refuse(Refusal(Reason.FRAMES_EXCESSIVE, f"Too many {what}."))
        self._go_away(ngh2.ErrorCode.ENHANCE_YOUR_CALM)

    def _broken_frames(self) -> None:
        """End a connection whose frames can't be followed; libnghttp2 has its GOAWAY ready, or has said it.

        It is on record beside the requests that end with it, which are not to blame for it.
        """
        if not self._going:
            self._going = True
            self._refuse(Refusal(Reason.HEAD_MALFORMED, "The HTTP/2 frames are malformed."))
        self._close()

    def _go_away(self, error: ngh2.ErrorCode) -> None:
        """Say that nothing more is taken, and close."""
        self._going = True
        self.say(lambda h2: h2.terminate_connection(error))
        self._close()

    def _close(self) -> None:
        """Send what is left, and close so that it can be read: what the client has sent meanwhile is discarded."""
        if self._closing:
            return
        self._closing = True
        transport, h2 = self._transport, self._h2
        if transport is None or h2 is None:
            return
        self._congested = False
        with contextlib.suppress(ngh2.NGH2Error):
            self._meter.sent(self._write(h2))
            self._handle(h2.events())
        for stream in list(self._streams.values()):
            self._leave(stream)
        waiting = transport.get_write_buffer_size()
        if self._eof and not waiting:  # nothing more comes that could be unread when the socket is closed
            transport.close()
            return
        self.loop.call_later(FLUSH_SECONDS if waiting else LINGER_SECONDS, transport.abort)
        if transport.is_closing():
            return
        self._discarded = 0
        with contextlib.suppress(OSError):  # the client has gone, and asyncio has yet to tell
            transport.write_eof()

    def _crash(self) -> None:
        """End what a defect of ours has broken."""
        logger.exception("a connection is closed because of a defect")
        for stream in list(self._streams.values()):
            if stream.transaction is not None and not stream.answered:
                stream.transaction.crashed()
        self._streams.clear()
        self.end()

    def end(self) -> None:
        """End the connection now."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def retire(self) -> None:
        """End the connection: now where it has no request, else when the last of them is done.

        The GOAWAY comes last: some clients take it for the end of the requests that run (RFC 9113, section 6.8, says
        otherwise). Only one that does not stop to send requests is told before.
        """
        if self._retiring:
            return
        self._retiring = True
        self.loop.call_later(INSIST, lambda: self.say(lambda h2: h2.send_goaway(ngh2.ErrorCode.NO_ERROR)))
        self._settle()

    def last_call(self, seconds: float) -> None:
        """End the connection when it was idle for so long."""
        self.loop.call_later(seconds, self.retire)

    @property
    def transport(self) -> asyncio.Transport | None:
        """Return what it is on; None: it has ended, or was given away."""
        return self._transport

    @property
    def transactions(self) -> list[Transaction]:
        """Return what runs."""
        return [stream.transaction for stream in self._streams.values() if stream.transaction is not None]

    # Writing.

    def _flush(self) -> None:
        """Write what libnghttp2 has for the client, and go on with what waited for that."""
        self._flushing = None
        h2 = self._h2
        if h2 is None or self._closing:
            return
        try:
            self._meter.sent(self._write(h2))
            self._handle(h2.events())  # streams that ended with what was just sent
            if not h2.want_read and not h2.want_write:
                self._broken_frames()
                return
            self._record_refused()
            self._go_on(h2)
            if self.account.held or h2.queued_body_size() >= PAGE:
                self.recount()
        except Exception:
            self._crash()

    def recount(self) -> None:
        """Say anew how much is held for the client: by requests, and of responses that it does not take."""
        self.account.set(self._queued() + sum(stream.counted for stream in self._streams.values()))

    def relieve(self) -> None:
        """End the stream that holds the most."""
        h2 = self._h2
        if h2 is None:
            return
        streams = [*self._streams.values(), *self._sending.values()]
        largest = max(streams, key=lambda stream: stream.counted + self.queued(stream.stream_id), default=None)
        if largest is None:
            self.end()
            return
        transaction = largest.transaction
        if transaction is not None and not largest.answered:
            transaction.relieve()
            largest.counted = transaction.held if largest.transaction is not None else 0
        else:
            self._drop(largest.stream_id)
            self._sending.pop(largest.stream_id, None)
            self.say(lambda h2: h2.reset_stream(largest.stream_id, ngh2.ErrorCode.CANCEL))
            self._settle()
        self.recount()
        self.account.settle()

    def _go_on(self, h2: ngh2.Connection) -> None:
        """Go on with what waited for the client to take something."""
        for stream in list(self._streams.values()):
            if stream.congested and h2.queued_body_size(stream.stream_id) <= RESUMED:
                stream.congested = False
                if stream.transaction is not None:
                    stream.transaction.client_congested(False)
        for stream in list(self._sending.values()):
            queued = self.queued(stream.stream_id)
            if not queued:
                del self._sending[stream.stream_id]
                if not stream.ended:
                    # RFC 9113, section 8.1: the answer is complete, and the rest of the request is not wanted
                    stream_id = stream.stream_id
                    self.say(lambda h2, stream_id=stream_id: h2.reset_stream(stream_id, ngh2.ErrorCode.NO_ERROR))  # type: ignore[misc]
                self._settle()
            elif queued != stream.unacknowledged:
                stream.unacknowledged = queued
                stream.deadline.set(self._bounds.idle_timeout)
        while self._waiting and not self._closing and self._queued() <= CONNECTION_QUEUED:
            self._begin_waiting(next(iter(self._waiting)))

    def room(self, stream_id: int) -> int:
        """Bytes of a stream that the client would take now."""
        h2 = self._h2
        if h2 is None or stream_id < 0:
            return 0
        try:
            return min(h2.remote_window_size - h2.queued_body_size(), h2.stream_remote_window_size(stream_id))
        except ngh2.NGH2Error:
            return 0

    def _queued(self) -> int:
        return 0 if self._h2 is None else self._h2.queued_body_size()

    def measure(self, stream: Http2Stream) -> None:
        """Slow a response down that the client does not take."""
        h2 = self._h2
        if h2 is not None and not stream.congested and self.queued(stream.stream_id) > QUEUED:
            stream.congested = True
            if stream.transaction is not None:
                stream.transaction.client_congested(True)

    def stream_ended(self, stream: Http2Stream) -> None:
        """Note that the last of the response was handed to libnghttp2."""
        stream.answered = True

    def finish(self, stream: Http2Stream, trailers: Fields) -> None:
        """Take the end of a response: what is queued of it still goes out."""
        stream_id = stream.stream_id
        if not stream.answered and stream_id > 0:
            self.end_stream(stream_id, trailers)  # which an addon may have changed
        stream.answered = True
        stream.transaction = None
        if self._drop(stream_id) is not None:
            stream.deadline.set(self._bounds.idle_timeout)
            self._sending[stream_id] = stream
        self._flush_soon()

    def give_up(self, stream: Http2Stream, error: ngh2.ErrorCode) -> None:
        """Reset a stream."""
        stream.answered = True
        stream.transaction = None
        if self._drop(stream.stream_id) is not None:
            self.say(lambda h2: h2.reset_stream(stream.stream_id, error))
            self._settle()

    # Time.

    def look_at(self, due: float) -> None:
        """Have the connection's timer fire no later than at a time of the loop's clock."""
        timer = self._timer
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timer = self.loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._closing:
            return
        now = self.loop.time() + SLACK
        try:
            for stream in (*self._streams.values(), *self._sending.values()):
                if stream.deadline.due <= now:
                    stream.deadline.clear()
                    if stream.transaction is not None:
                        stream.transaction.expired()
                    else:  # answered, and not taken
                        self._sending.pop(stream.stream_id, None)
                        self.say(lambda h2, one=stream.stream_id: h2.reset_stream(one, ngh2.ErrorCode.CANCEL))  # type: ignore[misc]
                        self._settle()
            if self._due <= now:
                self._expired()
        except Exception:
            self._crash()
            return
        if not self._closing:
            streams = (*self._streams.values(), *self._sending.values())
            due = min(self._due, min((stream.deadline.due for stream in streams), default=inf))
            if due < inf:
                self.look_at(due)

    def _expired(self) -> None:
        """End a connection without a request, or with half a head."""
        if self._meter.head_since is not None:
            seconds = self._bounds.head_timeout
            self._refuse(Refusal(Reason.HEAD_TIMEOUT, f"The head did not arrive within {seconds:g} s."))
            self._go_away(ngh2.ErrorCode.ENHANCE_YOUR_CALM)
        else:
            self._go_away(ngh2.ErrorCode.NO_ERROR)


def _flaw(declared: int | None) -> Refusal:
    """Say what libnghttp2 has reset a stream for. declared: bytes of its body; None: it did not say."""
    if declared is not None:
        detail = f"The body is not one of {declared} bytes, as declared, or its trailers are malformed."
        return Refusal(Reason.LENGTH_MISMATCH, detail)
    return Refusal(Reason.BODY_MALFORMED, "The trailers are malformed.")
