"""The client's side: reads requests strictly, writes responses, and ends connections so that answers arrive.

    READING → (answered, and both sides want to go on) → READING
    READING → (answered before the request was read, or after a refusal) → LINGERING → closed
    READING → (a 101) → TUNNEL → closed
    READING → (HTTP/2's preface, in plain text) → another's (proxy/http2.py)

Lingering: a connection that is closed while bytes are still unread is reset by the kernel, and the client may lose the
answer. So our half is closed first, and what still comes is thrown away, within bounds (RFC 9112, section 9.6).
"""

import asyncio
import contextlib
import fcntl
import logging
import socket
import struct
import termios
import time
from collections.abc import Callable
from enum import Enum, auto
from math import inf
from typing import Final, Protocol

from mitmproxy.connection import Client, ConnectionState
from mitmproxy.http import Headers, Response

from mitmgate.core.headers import Fields, listed
from mitmgate.core.headers import Headers as CoreHeaders
from mitmgate.core.http1 import END, Bounds, RequestHead, RequestReader, chunk, response_head
from mitmgate.core.http1.framing import CLOSE, UNSENDABLE, frame_response
from mitmgate.core.http1.known import KnownFields
from mitmgate.core.http1.reader import HTTP2, RequestEvent
from mitmgate.core.http1.target import split_target
from mitmgate.core.http1.writer import last_chunk
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.pipeline.message import headers_of
from mitmgate.proxy.memory import PAGE, Account
from mitmgate.proxy.tcp import TcpState, tcp_info
from mitmgate.proxy.timers import FLUSH_SECONDS, LINGER_SECONDS, Deadline
from mitmgate.proxy.transaction import QUEUE, Engine, Transaction, new_request
from mitmgate.proxy.websocket import Relay

logger = logging.getLogger(__name__)

LINGER_BYTES: Final = 64 * 1024 * 1024
"""What is read and dropped of a client that was answered early."""
RESET_POLL: Final = 0.05
"""Seconds after which to look again whether a client has taken what was sent before its connection is reset."""
LISTENS: Final = 1.0
"""Seconds after which a client that sends nothing more is asked whether it reads; twice as many for the next time."""
_PLACEHOLDER: Final = b"-"
_NO_HEADERS: Final = CoreHeaders(())
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    """What is done with bytes that come."""

    READING = auto()
    LINGERING = auto()
    TUNNEL = auto()
    CLOSED = auto()


class Hold:
    """Why a client's socket is not read; several can hold at once."""

    TRANSACTION: Final = 1  # the current request can't take more of its body
    PIPELINE: Final = 2  # enough of the next requests is there
    STALLED: Final = 4  # the client does not read its answers


class Front(Protocol):
    """What a connection asks of its listener."""

    engine: Engine
    buffer: memoryview
    known: KnownFields

    def client(self, transport: asyncio.Transport) -> Client:
        """Make mitmproxy's record of a connection."""
        ...

    def enter(self, client: "Http1Connection", peer: str) -> int | None:
        """Count the connection. Returns by how many there are too many; None: close it."""
        ...

    def leave(self, client: "Http1Connection", peer: str) -> None:
        """Take the connection off the count."""
        ...

    def speak_http2(
        self, client: "Http1Connection", transport: asyncio.Transport, bounds: Bounds, data: bytes
    ) -> "Successor":
        """Have the connection be HTTP/2's. data: what has come on it, from the preface on."""
        ...


class Successor(Protocol):
    """Who has the connection from now on."""

    def last_call(self, seconds: float) -> None:
        """End the connection when it was idle for so long."""
        ...

    def retire(self) -> None:
        """Take no further request."""
        ...


class Http1Connection(asyncio.BufferedProtocol):
    """A client's connection. One request at a time; what is pipelined waits in the reader."""

    def __init__(self, front: Front, bounds: Bounds, scheme: bytes = b"http") -> None:
        """bounds: of the policy in force when the client connected. scheme: what the connection is."""
        self._loop = loop = front.engine.loop
        self._bounds = bounds
        # Over TLS, ALPN says what is spoken (RFC 9113, section 3.2).
        self._reader = RequestReader(bounds, front.known, http2=scheme == b"http")
        self._deadline = Deadline(loop, self._expired)
        self._transport: asyncio.Transport | None = None
        self._phase = Phase.READING
        self._head: RequestHead | None = None
        self._responding = False  # a final head was sent for the current request
        self._close = False  # the connection ends with the current response
        self._chunked = False
        self._until_close = False
        self._bodiless = False
        self._gone = False  # the client sends nothing more
        self._holds = 0
        self._relay: Relay | None = None
        self.congested = False
        self.client: Client
        self.transaction: Transaction | None = None
        self._scheme = scheme
        self._front = front
        self._buffer = front.buffer
        self._peer = ""
        self._discarded = 0
        self._stalled = False  # the next request waits until the client has read the last answer
        self.account: Account
        self._asking: asyncio.TimerHandle | None = None  # whether the client, which has gone, still reads
        self._last_call: float | None = None  # seconds for which a next request is waited for; it is the last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or turn the client away."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is wanted")
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer is None or own is None:  # reset before it was accepted
            self._phase = Phase.CLOSED
            transport.abort()
            return
        self._transport = transport
        self._peer = peer[0]
        self.client = self._front.client(transport)
        excess = self._front.enter(self, self._peer)
        if excess is None:
            self.end()
        elif excess > 0:
            self._guarded(self._refuse, Refusal(Reason.CONNECTIONS_EXHAUSTED, "Too many clients are connected."))
        else:
            self._deadline.set(self._bounds.idle_timeout)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes of requests."""
        try:
            phase = self._phase
            if phase is Phase.READING:
                reader = self._reader
                idle = reader.idle
                self._take(reader.feed(bytes(self._buffer[:nbytes])))
                if self._phase is not Phase.READING:
                    return
                if self._head is None:
                    if idle and not reader.idle:
                        self._deadline.set(self._bounds.head_timeout)
                elif reader.pending > QUEUE:
                    self._hold(Hold.PIPELINE)
                if reader.pending >= PAGE:
                    self.recount()
            elif self._relay is not None:
                self._relay.client_data(bytes(self._buffer[:nbytes]))
            elif phase is Phase.LINGERING:
                self._discarded += nbytes
                if self._discarded > LINGER_BYTES:
                    self._end()
        except Exception:
            self._broken()

    def eof_received(self) -> bool:
        """Take the end of what the client sends. It may still read: an answer that is owed is sent."""
        if not self._gone:
            self._gone = True
            self._guarded(self._closed)
        return self._phase is not Phase.CLOSED

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        if self.transaction is not None:
            self._gone = True
            self._guarded(self.transaction.client_gone)
        elif not self._gone:  # reset: what was received of a head is on record all the same
            self._gone = True
            self._guarded(self._closed)
        self._phase = Phase.CLOSED
        self._deadline.close()
        if self._asking is not None:
            self._asking.cancel()
        self.client.state = ConnectionState.CLOSED
        self.client.timestamp_end = time.time()
        self._front.leave(self, self._peer)

    def pause_writing(self) -> None:
        """Slow down what is written: the client does not read."""
        self.congested = True
        self.recount()
        if self.transaction is not None:
            self.transaction.client_congested(True)

    def resume_writing(self) -> None:
        """Go on writing."""
        self.congested = False
        self.recount()
        if self.transaction is not None:
            self.transaction.client_congested(False)
        elif self._stalled:
            self._stalled = False
            self._release(Hold.STALLED)
            self._guarded(self._next)

    def recount(self) -> None:
        """Say anew how much is held for the client."""
        held = self._reader.pending
        if self.transaction is not None:
            held += self.transaction.held
        if self.congested and self._transport is not None:
            held += self._transport.get_write_buffer_size()
        self.account.set(held)

    def admits(self, wanted: int) -> bool:
        """Tell whether so many bytes more may be held for the client."""
        return self.account.admits(wanted)

    def relieve(self) -> None:
        """Let go of what is held: end the exchange, or, where there is none, the connection."""
        if self.transaction is not None:
            self._guarded(self.transaction.relieve)
            if self._transport is None or self._transport.get_write_buffer_size() < PAGE:
                return
        self.end()  # a head that does not end, or answers that the client does not read

    def hold_request_body(self, held: bool) -> None:
        """Stop, or go on, reading the current request's body."""
        if held:
            self._hold(Hold.TRANSACTION)
        else:
            self._release(Hold.TRANSACTION)

    def _guarded[**P](self, action: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        try:
            action(*arguments, **named)
        except Exception:
            self._broken()

    def _broken(self) -> None:
        """End what a defect of ours has broken."""
        logger.exception("a connection is closed because of a defect")
        transaction, self.transaction = self.transaction, None
        if transaction is not None:
            transaction.crashed()
        self.end()

    def _take(self, taken: list[RequestEvent]) -> None:
        for event in taken:
            if self._phase is not Phase.READING:
                return
            if isinstance(event, RequestHead):
                self._begin(event, more=len(taken) > 1)
            elif event is END:
                if self.transaction is not None:
                    self.transaction.body_end(self._reader.trailers)
            elif isinstance(event, bytes):
                if self.transaction is not None:
                    self.transaction.body(event)
            elif event is HTTP2:
                self._speak_http2()
            elif isinstance(event, Refusal):
                if self._head is None:
                    self._refuse(event)
                else:
                    self._close = True
                    if self.transaction is not None:
                        self.transaction.body_refused(event)

    def _begin(self, head: RequestHead, *, more: bool) -> None:
        """Begin a request. more: a part of its body is there as well."""
        self._deadline.clear()
        target = head.target
        authority = b""
        if not target.startswith(b"/"):
            split = split_target(target)
            if split.scheme and split.scheme != self._scheme:
                detail = "The request target names another scheme than the connection has."
                self._refuse(Refusal(Reason.TARGET_INVALID, detail, head.method, target, head.headers.fields))
                return
            target, authority = split.path, split.authority
        self._head = head
        fields = headers_of(head.headers.fields)
        request = new_request(head.method, target, head.version.encode("ascii"), fields, self._scheme, authority)
        self.transaction = transaction = Transaction(self._front.engine, self, self._bounds, self._deadline)
        transaction.begin(request, head, None, more=more, whole=head.body == 0)

    def _speak_http2(self) -> None:
        """Give the connection away: the client has known before that HTTP/2 is spoken here (RFC 9113, section 3.3)."""
        transport = self._transport
        if transport is None:
            return
        successor = self._front.speak_http2(self, transport, self._bounds, self._reader.take_pending())
        self._transport = None
        self._phase = Phase.CLOSED
        self._deadline.close()
        if self._last_call is not None:
            successor.last_call(self._last_call)
        if self._close:
            successor.retire()

    def _refuse(self, refusal: Refusal) -> None:
        """Let the chain answer bytes that are no request, and end the connection with that answer."""
        self._deadline.clear()
        self._close = True
        method, target = refusal.method or _PLACEHOLDER, refusal.target or _PLACEHOLDER
        self._head = RequestHead(method, target, "HTTP/1.1", _NO_HEADERS, 0, False, False)
        request = new_request(method, target, b"HTTP/1.1", Headers(refusal.fields), self._scheme)
        self.transaction = transaction = Transaction(self._front.engine, self, self._bounds, self._deadline)
        transaction.begin(request, None, refusal)

    def _closed(self) -> None:
        """Take the end of what the client sends; requests that are complete are answered first.

        Whether it has closed its connection, too, only a reset tells, which comes when something is sent to it.
        """
        reader, transaction = self._reader, self.transaction
        missing = reader.eof() if self._phase is Phase.READING else None
        if self._head is None and missing is not None:
            self._refuse(missing)
        elif self._phase is not Phase.READING:
            self._end()
        elif transaction is not None:
            if missing is not None or transaction.lasts_for_client:
                transaction.client_gone()
            elif self._asking is None:
                self._asking = self._loop.call_later(LISTENS, self._ask_whether_it_reads, 2 * LISTENS)
        elif not (reader.complete and reader.pending):
            self._end()

    def _ask_whether_it_reads(self, pause: float) -> None:
        """Send an interim response: a client that has closed its connection answers with a reset.

        Every client of HTTP/1.1 takes one that it does not expect (RFC 9110, section 15.2). pause: seconds to the next.
        """
        transport, head = self._transport, self._head
        if transport is None or self._phase is not Phase.READING:
            return
        if tcp_info(transport)[0] == TcpState.CLOSE:
            transport.abort()
            return
        if head is not None and head.version == "HTTP/1.1" and not self._responding:
            transport.write(CONTINUE)
        self._asking = self._loop.call_later(pause, self._ask_whether_it_reads, 2 * pause)

    def _expired(self) -> None:
        if self.transaction is not None:
            self._guarded(self.transaction.expired)
        elif self._phase is Phase.LINGERING or self._reader.idle or self._stalled:
            self._end()
        elif self._head is None:
            seconds = self._bounds.head_timeout
            detail = f"The head did not arrive within {seconds:g} s."
            self._guarded(self._refuse, self._reader.unfinished(Reason.HEAD_TIMEOUT, detail))

    @property
    def _last(self) -> bool:
        return self._last_call is not None

    @property
    def transport(self) -> asyncio.Transport | None:
        """Return what it is on; None: it has ended, or was given away."""
        return self._transport

    @property
    def transactions(self) -> list[Transaction]:
        """The request that runs."""
        return [] if self.transaction is None else [self.transaction]

    def last_call(self, seconds: float) -> None:
        """Take one more request, if it comes within so many seconds: its response says that it is the last.

        A response that streams has told the client that the connection goes on, so what follows it is waited for.
        """
        self._last_call = seconds
        if self._phase is Phase.READING and self._head is None and self._reader.idle:
            self._deadline.set(seconds)

    def retire(self) -> None:
        """End the connection: now where it waits for a request, else with the response."""
        self._close = True
        if self._phase is Phase.READING and self._head is None and self._reader.idle:
            self._end()

    @property
    def takes_trailers(self) -> bool:
        """Whether the client's TE says so, which its Connection names, and its version has chunks."""
        head = self._head
        if head is None or head.version != "HTTP/1.1" or b"te" not in head.headers:
            return False
        headers = head.headers
        return listed(headers.all(b"te"), b"trailers") and listed(headers.all(b"connection"), b"te")

    def finish(self, trailers: Fields = ()) -> None:
        """End the response, and go on with the next request or end the connection so that the answer can be read."""
        if self._chunked and not self._bodiless and self._transport is not None:
            self._transport.write(last_chunk(trailers))
        self._chunked = False
        self.transaction = None
        if self.account.held:
            self.recount()
        self._release(Hold.TRANSACTION)
        if self._phase is not Phase.READING:
            return
        reader, transport = self._reader, self._transport
        if not self._close and reader.complete and (reader.pending or not self._gone):
            self._head = None
            self._responding = False
            self._deadline.set(self._bounds.idle_timeout if self._last_call is None else self._last_call)
            if self.congested:
                self._stalled = True
                self._hold(Hold.STALLED)
            elif reader.pending or self._holds:
                self._loop.call_soon(self._next_soon)
            else:
                reader.next()
            return
        unread = not reader.complete or reader.pending
        if self._gone or not unread or transport is None or transport.is_closing():
            self._end()
            return
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Send nothing more, so that what was sent can be read: what still comes is thrown away for a moment."""
        self._phase = Phase.LINGERING
        if self._holds:
            self._holds = 0
            transport.resume_reading()
        self._deadline.set(LINGER_SECONDS)
        try:
            transport.write_eof()
        except OSError:  # the client has gone, and asyncio has yet to tell
            self._end()

    def _next_soon(self) -> None:
        if self._phase is Phase.READING and self._head is None and not self._stalled:
            self._guarded(self._next)

    def _next(self) -> None:
        """Go on to the next request, of which bytes may be there."""
        self._take(self._reader.next())
        if self._phase is Phase.READING:
            self._release(Hold.PIPELINE)
            if self._gone:
                self._closed()
            elif self._head is None and not self._reader.idle:
                self._deadline.set(self._bounds.head_timeout)

    # Writing: responses, and the end of the connection.

    def _hold(self, reason: int) -> None:
        if not self._holds and self._transport is not None and not self._transport.is_closing() and not self._gone:
            self._transport.pause_reading()
        self._holds |= reason

    def _release(self, reason: int) -> None:
        if self._holds & reason:
            self._holds &= ~reason
            if not self._holds and self._transport is not None and not self._transport.is_closing() and not self._gone:
                self._transport.resume_reading()

    def ask_for_body(self) -> None:
        """Send the 100 that the client waits for."""
        if self._transport is not None:
            self._transport.write(CONTINUE)

    def send_head(self, response: Response, length: int | None, body: bytes | None, *, close: bool = False) -> None:
        """Send a response's head. length: of its body; None: not known. body: the whole body; None: it follows."""
        head, transport = self._head, self._transport
        if head is None or transport is None:
            return
        status = response.data.status_code
        self._responding = True
        if self._last:
            self._close = True
        fields, self._chunked, self._until_close, self._bodiless = frame_response(
            status, response.data.headers.fields, length, head.method, head.version
        )
        last = self._gone and not self._reader.pending
        if close or self._until_close or last or not (head.keep_alive and self._reader.complete):
            self._close = True
        if self._close:
            fields += CLOSE
        raw = response_head(status, fields)
        if raw is None:  # an addon put a line end into a field: nothing of it leaves
            self._close = True
            raw, self._bodiless, self._chunked = UNSENDABLE, True, False
        transport.write(raw + body if body and not self._bodiless else raw)

    def send_body(self, data: bytes) -> None:
        """Send a part of the body."""
        if data and not self._bodiless and self._transport is not None:
            self._transport.write(chunk(data) if self._chunked else data)

    # A WebSocket's frames.

    @property
    def room(self) -> float:
        """HTTP/1.1 has no windows."""
        return inf

    @property
    def pipe(self) -> "Http1Connection":
        """The client's side of a WebSocket."""
        return self

    def switch(self, response: Response, relay: Relay) -> None:
        """Send a 101, and give what comes from now on to a relay."""
        raw = response_head(101, response.data.headers.fields)
        if raw is None or self._transport is None:
            raise ValueError("the 101 can't be sent")
        self._responding = True
        self._phase = Phase.TUNNEL
        self._relay = relay
        self._deadline.clear()
        self._transport.write(raw)
        self._release(Hold.PIPELINE)
        if early := self._reader.take_pending():
            relay.client_data(early)

    def send_frames(self, data: bytes) -> None:
        """Send bytes of frames."""
        if self._transport is not None:
            self._transport.write(data)

    def hold_frames(self, held: bool) -> None:
        """Stop, or go on, reading."""
        if held:
            self._hold(Hold.TRANSACTION)
        else:
            self._release(Hold.TRANSACTION)

    def end_frames(self) -> None:
        """Close the connection so that what was sent can be read: what still comes is thrown away for a moment."""
        self._relay = None
        transport = self._transport
        if self._gone or transport is None or transport.is_closing():
            self._end()
            return
        self._linger(transport)

    def break_off(self) -> None:
        """End the connection inside a response, so that the client can't take it for complete."""
        transport = self._transport
        self.transaction = None
        if self._ends_body and transport is not None and not transport.is_closing():
            self._phase = Phase.CLOSED
            self._deadline.close()
            transport.pause_reading()
            self._reset(transport, self._loop.time() + FLUSH_SECONDS)
        else:
            self._end()

    @property
    def _ends_body(self) -> bool:
        """Whether the end of the connection says that the response is whole, so that any other end must be a reset."""
        return self._responding and self._until_close and not self._bodiless

    def _reset(self, transport: asyncio.Transport, until: float) -> None:
        """Reset the connection when the client has what was sent, earlier responses among it, or at a time at last.

        A reset overtakes what is on its way.
        """
        if self._transport is None:
            return
        if self._loop.time() < until and (transport.get_write_buffer_size() or _on_its_way(transport)):
            self._loop.call_later(RESET_POLL, self._reset, transport, until)
        else:
            self._abort()

    def end(self) -> None:
        """End the connection, now; what the current request came to is recorded when the socket is closed."""
        self._phase = Phase.CLOSED
        self._deadline.close()
        self._abort()

    def _abort(self) -> None:
        """Close the socket. What the client has not taken is lost, and must not look like the end of a body."""
        transport = self._transport
        if transport is None:
            return
        if self._ends_body:
            with contextlib.suppress(OSError):  # it is closed already
                endpoint = transport.get_extra_info("socket")
                endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()

    def _end(self) -> None:
        if self._phase is Phase.CLOSED:
            return
        self._phase = Phase.CLOSED
        self._deadline.close()
        transport = self._transport
        if transport is None:
            return
        transport.close()
        if transport.get_write_buffer_size():
            self._loop.call_later(FLUSH_SECONDS, self._abort)


def _on_its_way(transport: asyncio.Transport) -> bool:
    """Tell whether the client has yet to acknowledge something, and may still do so."""
    endpoint = transport.get_extra_info("socket")
    if tcp_info(transport)[0] == TcpState.CLOSE:
        return False
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(endpoint.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return False
    return bool(count)
