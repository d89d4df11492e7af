"""A connection to an endpoint: one request, then its response, then perhaps another client's next."""

import asyncio
import logging
import time
from enum import Enum, auto
from typing import Final, Protocol

from mitmproxy.connection import Server

from mitmgate.core.cause import Cause, Failure
from mitmgate.core.headers import Fields
from mitmgate.core.http1 import END, Bounds, ResponseHead, ResponseReader
from mitmgate.core.http1.outgoing import OutgoingRequest
from mitmgate.core.http1.reader import ResponseEvent
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Forward
from mitmgate.core.rules import Endpoint, UpstreamTls
from mitmgate.proxy.tcp import TcpState, tcp_info
from mitmgate.proxy.timers import FLUSH_SECONDS
from mitmgate.proxy.tls import TlsTransport, last_words
from mitmgate.proxy.websocket import Relay

logger = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
"""What is read from a socket at once."""


PROOF: Final = 0.5
"""Seconds for which it is waited whether a service that has closed its connection reads what was sent behind that."""
_POLL: Final = 0.002


type Key = tuple[Endpoint, UpstreamTls | None]
"""What a connection can be used for again."""


class Phase(Enum):
    """IDLE: another request can be sent. OPENED: not used yet, and already somebody's. TUNNEL: a WebSocket's.

    LEAVING: a WebSocket's that has ended; what still comes is nobody's.
    """

    OPENED = auto()
    IDLE = auto()
    BUSY = auto()
    TUNNEL = auto()
    LEAVING = auto()
    CLOSED = auto()


class Recipient(Protocol):
    """Who sent the request, and takes what comes back. Nothing is called after `upstream_failed` or `response_end`."""

    __slots__ = ()

    def response_head(self, head: ResponseHead) -> None:
        """Take the head."""
        ...

    def response_body(self, data: bytes) -> None:
        """Take a part of the body."""
        ...

    def response_end(self, trailers: Fields = ()) -> None:
        """Take the end of the response, and what followed its body."""
        ...

    def upstream_failed(self, failure: Failure, *, untouched: bool, stale: bool, undelivered: bool) -> None:
        """Take the failure. untouched: no byte of a response came. stale: the connection had served before.

        undelivered: and it is known that the service has done nothing with the request: no byte of it
        has reached it, or it says so (RFC 9113, section 8.7).
        """
        ...

    def upstream_congested(self, congested: bool) -> None:
        """Stop, or go on, sending the request's body."""
        ...

    def broken(self) -> None:
        """End because of a defect."""
        ...


class UpstreamSide(Protocol):
    """The upstream's side of a transaction: a connection, or a stream of one."""

    server: Server
    phase: Phase
    congested: bool

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
        """Send a request. content: the whole body; None: it follows in parts, `length` bytes or (None) unknown.

        once: it can't be repeated, unless it has reached nobody. takes_trailers: the client does. announced: trailers
        that may follow the body. False, and nothing more comes of it, where the head can't be written safely.
        """
        ...

    def send_body(self, data: bytes) -> None:
        """Send a part of the body."""
        ...

    def end_body(self, trailers: Fields = ()) -> None:
        """Send the end of the body, and trailers, where its framing has a place for them."""
        ...

    @property
    def unsent(self) -> int:
        """Bytes that the service has not taken yet."""
        ...

    def hold(self, held: bool) -> None:
        """Stop, or go on, reading the response: its client is slow."""
        ...

    def abandon(self) -> None:
        """Give an unfinished exchange up: nothing more comes of it, and what it was sent on is not used for another."""
        ...


class Keeper(Protocol):
    """The pool that a connection goes back to."""

    def keep(self, connection: "UpstreamConnection") -> None:
        """Take a connection on which both messages are complete."""
        ...

    def drop(self, connection: "UpstreamConnection") -> None:
        """Forget a connection that is closed."""
        ...

    def closed_idle(self, connection: "UpstreamConnection") -> None:
        """Forget a connection that the service has closed while it was idle."""
        ...


class UpstreamConnection(asyncio.BufferedProtocol):
    """HTTP/1.1 towards an endpoint."""

    def __init__(self, pool: Keeper, key: Key, bounds: Bounds, buffer: memoryview, server: Server) -> None:
        """buffer: shared by all connections; what is read into it is taken out at once."""
        self.key = key
        self.server = server
        self.opened = time.monotonic()
        self.peer = ""  # the address that it is connected to
        self.idle_since = 0.0
        self.keep_seconds: float | None = None  # what the upstream says it waits for a next request
        self.phase = Phase.OPENED
        self._pool = pool
        self._bounds = bounds
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._recipient: Recipient | None = None
        self._reader = ResponseReader(b"GET", bounds)
        self._served = 0
        self._outgoing = OutgoingRequest()
        self._keep_alive = True
        self._held = False
        self._upgrade = False  # the current request asks for a WebSocket
        self._relay: Relay | None = None
        self._acked: int | None = None  # octets that the service had acknowledged before a request that is sent once
        self._undelivered = False
        self.loss: Failure | None = None  # how the connection ended, where not in order
        self.congested = False

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
        """Send a request. content: the whole body; None: it follows in parts, `length` bytes or (None) in chunks.

        once: it can't be repeated, unless it has reached nobody. takes_trailers: the client does. announced: trailers
        that may follow the body, which so is sent in chunks. False, and the connection is closed, where the head can't
        be written safely.
        """
        method, outgoing = forward.method.encode("latin-1"), self._outgoing
        if content is not None:
            length = len(content)
        target = forward.target.encode("latin-1")
        raw = outgoing.begin(
            method, target, forward.fields, length, upgrade=upgrade, takes_trailers=takes_trailers, announced=announced
        )
        if raw is None:
            self.abandon()
            return False
        closed, self.phase = self.phase is Phase.CLOSED, Phase.BUSY
        self._recipient = recipient
        self._upgrade = upgrade
        self._reader = ResponseReader(method, self._bounds)
        self._served += 1
        if once and self._served > 1:
            self._acked = tcp_info(self._transport)[1]
        if closed:  # between its opening and this
            self._fail(self.loss or Failure(Reason.UPSTREAM_CLOSED, Cause.CLOSED))
            return True
        if content is not None:
            raw += outgoing.body(content) or b""
            outgoing.end()
        self._write(raw)
        return True

    def send_body(self, data: bytes) -> None:
        """Send a part of the body."""
        if self.phase is Phase.BUSY:
            self._write(self._outgoing.body(data))

    def end_body(self, trailers: Fields = ()) -> None:
        """Send the end of the body."""
        if self.phase is Phase.BUSY:
            self._write(self._outgoing.end(trailers))

    @property
    def unsent(self) -> int:
        """Bytes that the service has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def ended(self) -> bool:
        """Whether the service has closed the connection, though nothing was read of that yet."""
        return tcp_info(self._transport)[0] in (TcpState.CLOSE, TcpState.CLOSE_WAIT)

    def abandon(self) -> None:
        """Close the connection, which has an unfinished exchange on it."""
        self._recipient = None
        self._end()

    def hold(self, held: bool) -> None:
        """Stop, or go on, reading the response: its client is slow."""
        if held is not self._held and self._transport is not None and not self._transport.is_closing():
            self._held = held
            if held:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _write(self, data: bytes | None) -> None:
        if data is None:  # not the body that the head declares: whatever comes next would be read as a part of it
            self._fail(Failure(Reason.BODY_MALFORMED, None))
        elif data and self._transport is not None:
            self._transport.write(data)

    # A WebSocket's frames.

    def tunnel(self, relay: Relay) -> None:
        """Give what comes to a relay, beginning with what came behind the 101."""
        self._relay = relay
        self.hold(False)
        if early := self._reader.leftover:
            relay.upstream_data(early)

    def send_frames(self, data: bytes) -> None:
        """Send bytes of frames."""
        if self._transport is not None:
            self._transport.write(data)

    def hold_frames(self, held: bool) -> None:
        """Stop, or go on, reading."""
        self.hold(held)

    def end_frames(self) -> None:
        """Close the connection, when what was sent is gone."""
        self._relay = self._recipient = None
        self.phase = Phase.LEAVING
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.close()  # what was sent goes out first
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, transport.abort)

    # What the transport does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes of the response."""
        if self.phase is Phase.BUSY:
            self._take(self._reader.feed(bytes(self._buffer[:nbytes])))
        elif self.phase is Phase.TUNNEL:
            self._pass_on(bytes(self._buffer[:nbytes]))
        elif self.phase is Phase.LEAVING:
            pass
        else:
            self._end()  # bytes that answer nothing: nobody can say what comes next

    def eof_received(self) -> bool:
        """Take the end of what the upstream sends; the connection is of no more use."""
        orderly = self._in_order
        if orderly and self._acked is not None and self.phase is Phase.BUSY and not self._reader.started:
            self._await_reset(time.monotonic() + PROOF)
            return True
        self._lost(orderly=orderly)
        return False

    @property
    def _in_order(self) -> bool:
        """Whether an end is the service's word: over TLS anybody on the way could end the connection below it."""
        return not isinstance(self._transport, TlsTransport) or self._transport.ended_in_order

    def _await_reset(self, until: float) -> None:
        """Find out whether a request that may be sent once has reached the service, which has closed the connection.

        Its end was sent before it had any octet of the request: it acknowledges none. Who has closed a connection for
        good answers what comes then with a reset; who still reads acknowledges it, and might act on it. (A reset that
        comes first proves nothing: what it acknowledges is not looked at.)
        """
        if self.phase is not Phase.BUSY:
            return
        state, acked = tcp_info(self._transport)
        if acked == self._acked and state != TcpState.CLOSE and time.monotonic() < until:
            asyncio.get_running_loop().call_later(_POLL, self._await_reset, until)
            return
        self._undelivered = acked == self._acked and state == TcpState.CLOSE
        self._lost(orderly=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection: without `eof_received` before it, a reset.

        A service that answers before it has read a whole request, and closes, resets the connection: writing to it
        fails, and the answer still lies in the socket, which asyncio is about to close.
        """
        if exc is not None and self._transport is not None:
            for data in [] if isinstance(self._transport, TlsTransport) else last_words(self._transport):
                if self.phase is Phase.BUSY:
                    self._take(self._reader.feed(data))
            self.loss = Failure(Reason.UPSTREAM_CLOSED, Cause.RESET, str(exc))
            if isinstance(exc, BrokenPipeError) and self._in_order:  # found out by writing: a reset behind the end
                before, now = (TcpState.CLOSE, self._acked), tcp_info(self._transport)
                self._undelivered = self._acked is not None and now == before
        if isinstance(self._transport, TlsTransport) and self._transport.flaw:  # an alert, and then perhaps a reset
            self.loss = Failure(Reason.UPSTREAM_CLOSED, Cause.TLS_FAILED, self._transport.flaw)
        self._lost(orderly=False)
        self._transport = None

    def pause_writing(self) -> None:
        """Slow the request's body down."""
        self.congested = True
        if self._recipient is not None:
            self._recipient.upstream_congested(True)

    def resume_writing(self) -> None:
        """Let the request's body go on."""
        self.congested = False
        if self._recipient is not None:
            self._recipient.upstream_congested(False)

    def _pass_on(self, data: bytes | None) -> None:
        recipient, relay = self._recipient, self._relay
        try:
            if relay is None:  # reading is held until there is one: only the end can come
                self._fail(self.loss or Failure(Reason.UPSTREAM_CLOSED, Cause.CLOSED))
            elif data is None:
                relay.upstream_ended()
            else:
                relay.upstream_data(data)
        except Exception:
            logger.exception("a WebSocket is broken off because of a defect")
            self.abandon()
            if recipient is not None:
                recipient.broken()

    def _take(self, taken: list[ResponseEvent]) -> None:
        recipient = None
        try:
            for event in taken:
                recipient = self._recipient
                if self.phase is not Phase.BUSY or recipient is None:
                    return
                if isinstance(event, bytes):
                    recipient.response_body(event)
                elif isinstance(event, ResponseHead):
                    if event.status == 101:
                        if not self._upgrade:
                            self._fail(Failure(Reason.UPSTREAM_MALFORMED, Cause.UPGRADE_INVALID, "an unasked 101"))
                            return
                        self.phase = Phase.TUNNEL
                        self.hold(True)
                    self._keep_alive = event.keep_alive
                    if b"keep-alive" in event.headers:
                        self.keep_seconds = _timeout(event.headers.one(b"keep-alive") or b"")
                    recipient.response_head(event)
                elif event is END:
                    self._finish()
                elif isinstance(event, Refusal):
                    self._fail(self.loss or Failure(event.reason, event.cause, event.detail))
        except Exception:
            logger.exception("an upstream connection is closed because of a defect")
            self.abandon()
            if recipient is not None:
                recipient.broken()

    def _finish(self) -> None:
        """Keep the connection only where both messages are complete, and gone out, and nothing follows them."""
        recipient, self._recipient = self._recipient, None
        self._acked = None
        transport = self._transport
        if (
            self._keep_alive
            and not self._upgrade  # who does not know the upgrade may read what follows as either protocol
            and self._outgoing.complete
            and not self._reader.pending
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        ):
            self.hold(False)
            self.phase = Phase.IDLE
            self.idle_since = time.monotonic()
            self._pool.keep(self)
        else:
            self._end()
        if recipient is not None:
            recipient.response_end(self._reader.trailers)

    def _lost(self, *, orderly: bool) -> None:
        if self.phase is Phase.BUSY:
            if self._undelivered:
                self._pool.closed_idle(self)  # it was, when the service closed it
            self._take(self._reader.eof(orderly=orderly))
        elif self.phase is Phase.TUNNEL:
            self._pass_on(None)
        elif self.phase is Phase.IDLE:
            self._pool.closed_idle(self)
        self._end()

    def _fail(self, failure: Failure) -> None:
        recipient, self._recipient = self._recipient, None
        self._end()
        if recipient is not None:
            untouched, stale = not self._reader.started, self._served > 1
            recipient.upstream_failed(failure, untouched=untouched, stale=stale, undelivered=self._undelivered)

    def _end(self) -> None:
        idle = self.phase is Phase.IDLE
        self.phase = Phase.CLOSED
        if idle:
            self._pool.drop(self)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            if transport.get_write_buffer_size():
                transport.abort()
            else:
                transport.close()


def _timeout(value: bytes) -> float | None:
    """Read `Keep-Alive: timeout=N` (RFC 2068, section 19.7.1.1, which everybody still sends)."""
    for part in value.split(b","):
        name, _, number = part.strip().partition(b"=")
        if name.lower() == b"timeout" and number.isdigit() and len(number) < 7:
            return float(number)
    return None
