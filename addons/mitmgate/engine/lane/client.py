"""The client's side: reads requests strictly, writes responses, and ends connections so that answers arrive.

    READING → (answered, and both sides want to go on) → READING
    READING → (answered before the request was read, or after a refusal) → LINGERING → closed
    READING → (a 101) → TUNNEL → closed

Lingering: a connection that is closed while bytes are still unread is reset by the kernel, and the client may lose the
answer. So our half is closed first, and what still comes is thrown away, within bounds (RFC 9112, section 9.6).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from mitmproxy.connection import Client, ConnectionState
from mitmproxy.http import Headers

from mitmgate.core.headers import Headers as CoreHeaders
from mitmgate.core.http1 import END, Bounds, Refusal, RequestHead, chunk
from mitmgate.core.http1.known import KnownFields
from mitmgate.core.http1.reader import RequestEvent
from mitmgate.core.http1.target import split_target
from mitmgate.core.reason import Reason
from mitmgate.engine.lane.answering import Answering, Hold, Phase
from mitmgate.engine.lane.deadline import LINGER_SECONDS
from mitmgate.engine.lane.request import new_request
from mitmgate.engine.lane.transit import Transit
from mitmgate.engine.lane.waiting import QUEUE, Ways
from mitmgate.engine.memory import PAGE, Account
from mitmgate.stages.message import headers_of

logger = logging.getLogger(__name__)

LINGER_BYTES: Final = 64 * 1024 * 1024
"""What is read and dropped of a client that was answered early."""
_PLACEHOLDER: Final = b"-"
_NO_HEADERS: Final = CoreHeaders(())


class Front(Protocol):
    """What a connection asks of the lane."""

    ways: Ways
    buffer: memoryview
    known: KnownFields

    def client(self, transport: asyncio.Transport) -> Client:
        """Make mitmproxy's record of a connection."""
        ...

    def enter(self, client: "LaneClient", peer: str) -> int | None:
        """Count the connection. Returns by how many there are too many; None: close it."""
        ...

    def leave(self, client: "LaneClient", peer: str) -> None:
        """Take the connection off the count."""
        ...


class LaneClient(Answering):
    """A client's connection. One request at a time; what is pipelined waits in the reader."""

    def __init__(self, front: Front, bounds: Bounds, scheme: bytes = b"http") -> None:
        """bounds: of the policy in force when the client connected. scheme: what the connection is."""
        super().__init__(front.ways.loop, bounds, front.known)
        self._scheme = scheme
        self._front = front
        self._buffer = front.buffer
        self._peer = ""
        self._discarded = 0
        self._stalled = False  # the next request waits until the client has read the last answer
        self.account: Account
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
            if self._phase is Phase.READING:
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
            elif self._phase is Phase.LINGERING:
                self._discarded += nbytes
                if self._discarded > LINGER_BYTES:
                    self._end()
        except Exception:
            self._broken()

    def eof_received(self) -> bool:
        """Take the end of what the client sends. It may still read: an answer that is owed is sent."""
        self._gone = True
        self._guarded(self._closed)
        return self._phase is not Phase.CLOSED

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        if self.transit is not None:
            self._gone = True
            self._guarded(self.transit.client_gone)
        elif not self._gone:  # reset: what was received of a head is on record all the same
            self._gone = True
            self._guarded(self._closed)
        self._phase = Phase.CLOSED
        self._deadline.close()
        self.client.state = ConnectionState.CLOSED
        self.client.timestamp_end = time.time()
        self._front.leave(self, self._peer)

    def pause_writing(self) -> None:
        """Slow down what is written: the client does not read."""
        self.congested = True
        self.recount()
        if self.transit is not None:
            self.transit.client_congested(True)

    def resume_writing(self) -> None:
        """Go on writing."""
        self.congested = False
        self.recount()
        if self.transit is not None:
            self.transit.client_congested(False)
        elif self._stalled:
            self._stalled = False
            self._release(Hold.STALLED)
            self._guarded(self._next)

    def recount(self) -> None:
        """Say anew how much is held for the client."""
        held = self._reader.pending
        if self.transit is not None:
            held += self.transit.held
        if self.congested and self._transport is not None:
            held += self._transport.get_write_buffer_size()
        self.account.set(held)

    def admits(self, wanted: int) -> bool:
        """Tell whether so many bytes more may be held for the client."""
        return self.account.admits(wanted)

    def relieve(self) -> None:
        """Let go of what is held: end the exchange, or, where there is none, the connection."""
        if self.transit is not None:
            self._guarded(self.transit.relieve)
            if self._transport is None or self._transport.get_write_buffer_size() < PAGE:
                return
        self.end()  # a head that does not end, or answers that the client does not read

    def hold_for_transit(self, held: bool) -> None:
        """Stop, or go on, reading the current request's body."""
        if held:
            self._hold(Hold.TRANSIT)
        else:
            self._release(Hold.TRANSIT)

    def _guarded[**P](self, action: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        try:
            action(*arguments, **named)
        except Exception:
            self._broken()

    def _broken(self) -> None:
        """End what a defect of ours has broken."""
        logger.exception("a connection is closed because of a defect")
        transit, self.transit = self.transit, None
        if transit is not None:
            transit.crashed()
        self.end()

    def _take(self, taken: list[RequestEvent]) -> None:
        for event in taken:
            if self._phase is not Phase.READING:
                return
            if isinstance(event, RequestHead):
                self._begin(event, more=len(taken) > 1)
            elif event is END:
                if self.transit is not None:
                    self.transit.body_end()
            elif isinstance(event, bytes):
                if self.transit is not None:
                    self.transit.body(event)
            elif isinstance(event, Refusal):
                if self._head is None:
                    self._refuse(event)
                else:
                    self._close = True
                    if self.transit is not None:
                        self.transit.body_refused(event)

    def _begin(self, head: RequestHead, *, more: bool) -> None:
        """Begin a request. more: a part of its body is there as well."""
        self._deadline.clear()
        target = head.target
        authority = b""
        if not target.startswith(b"/"):
            split = split_target(target)
            if split.scheme and split.scheme != self._scheme:
                detail = "The request target names another scheme than the connection has."
                self._refuse(Refusal(Reason.TARGET_INVALID, detail, head.method, target))
                return
            target, authority = split.path, split.authority
        self._head = head
        fields = headers_of(head.headers.fields)
        request = new_request(head.method, target, head.version.encode("ascii"), fields, self._scheme, authority)
        self.transit = transit = Transit(self._front.ways, self, self._bounds, self._deadline)
        transit.begin(request, head, None, more=more)

    def _refuse(self, refusal: Refusal) -> None:
        """Let the chain answer bytes that are no request, and end the connection with that answer."""
        self._deadline.clear()
        self._close = True
        method, target = refusal.method or _PLACEHOLDER, refusal.target or _PLACEHOLDER
        self._head = RequestHead(method, target, "HTTP/1.1", _NO_HEADERS, 0, False, False)
        request = new_request(method, target, b"HTTP/1.1", Headers(refusal.fields), self._scheme)
        self.transit = transit = Transit(self._front.ways, self, self._bounds, self._deadline)
        transit.begin(request, None, refusal)

    def _closed(self) -> None:
        missing = self._reader.eof() if self._phase is Phase.READING else None
        if self._head is None and missing is not None:
            self._refuse(missing)
        elif self._head is None or self._phase is not Phase.READING:
            self._end()
        elif self.transit is not None:
            self.transit.client_gone()

    def _expired(self) -> None:
        if self.transit is not None:
            self._guarded(self.transit.expired)
        elif self._phase is Phase.LINGERING or self._reader.idle or self._stalled:
            self._end()
        elif self._head is None:
            seconds = self._bounds.head_timeout
            detail = f"The head did not arrive within {seconds:g} s."
            self._guarded(self._refuse, Refusal(Reason.HEAD_TIMEOUT, detail, *self._reader.asked))

    @property
    def _last(self) -> bool:
        return self._last_call is not None

    @property
    def transits(self) -> list[Transit]:
        """The request that runs."""
        return [] if self.transit is None else [self.transit]

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

    def finish(self) -> None:
        """End the response, and go on with the next request or end the connection so that the answer can be read."""
        if self._chunked and not self._bodiless and self._transport is not None:
            self._transport.write(chunk(b""))
        self._chunked = False
        self.transit = None
        if self.account.held:
            self.recount()
        self._release(Hold.TRANSIT)
        if self._phase is not Phase.READING:
            return
        reader, transport = self._reader, self._transport
        if not self._close and reader.complete:
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
            if self._head is None and not self._reader.idle:
                self._deadline.set(self._bounds.head_timeout)
