"""One transaction: a request and its response, the same whatever the client's connection speaks.

It is decided on its head, before its body is read, and forwarded only when Enforcer admitted it. The client's side
feeds it (`begin`, `body`, `body_end`, `client_gone`), and so does the upstream's (`response_head`, `response_body`,
`response_end`, `upstream_failed`); it answers through `ClientSide`, and runs mitmproxy's hooks on the way:

    begin → requestheaders (the chain decides) ─┬─ denied or answered → sent at once → done
                                                └─ admitted ─┬─ buffer the body → request hook → forward
                                                             └─ forward, stream the body → request hook
    forwarded → response head → responseheaders ─┬─ buffer → response hook → send
                                                 ├─ send, stream → response hook
                                                 └─ a 101 → response hook → relay the WebSocket → websocket_end
    any failure → problem response while no head was sent, else a visible abort and the error hook

Both halves advance by themselves (`RequestPhase`, `ResponsePhase`); an upstream may answer before the request is whole.

| RequestPhase | what comes of the body | then |
| --- | --- | --- |
| WAITING | is not read: the chain decides | BUFFERING, STREAMING, or DROPPED where it is denied |
| BUFFERING | is put together | COMPLETE: the request hook, and the request is forwarded as a whole |
| STREAMING | goes on to the upstream | COMPLETE: the request hook |
| COMPLETE | | |
| DROPPED | is nobody's: it was answered, or failed | |

| ResponsePhase | what comes of the upstream | then |
| --- | --- | --- |
| WAITING | the head: the response-headers hook | BUFFERING or STREAMING |
| BUFFERING | is put together; beyond BUFFER bytes it streams | DONE: the response hook, and the response is sent |
| STREAMING | goes on to the client | DONE: the response hook |
| DONE | is nobody's | |

A hook that has to wait (a counter in Redis) suspends the transaction: what comes meanwhile is queued, in order, and the
sockets are not read beyond a bound.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Protocol

from mitmproxy import hooks
from mitmproxy.connection import Client, Server
from mitmproxy.flow import Error
from mitmproxy.http import Headers, HTTPFlow, Request, Response
from mitmproxy.proxy.layers.http._hooks import (
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)
from mitmproxy.proxy.layers.websocket import WebsocketEndHook
from mitmproxy.websocket import WebSocketData
from wsproto.frame_protocol import CloseReason

from mitmgate.core.cause import Cause, Failure
from mitmgate.core.grpc import is_call
from mitmgate.core.headers import Fields
from mitmgate.core.http1 import Bounds, RequestHead, ResponseHead
from mitmgate.core.http1.framing import received_fields
from mitmgate.core.openapi import BodyCheck
from mitmgate.core.problem import MEDIA_TYPE, problem_body
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Forward
from mitmgate.core.request import Request as Ingress
from mitmgate.core.rules import Endpoint
from mitmgate.core.streaming import is_event_stream, streams
from mitmgate.core.trailers import RequestTrailers, announcing, permitted
from mitmgate.core.verdict import Outcome, Step
from mitmgate.descriptors import Seldom
from mitmgate.pipeline.enforcer import BLACK_HOLE, point_at, problem_response
from mitmgate.pipeline.exchange import (
    Exchange,
    WebSocketEnd,
    exchange_of,
    expired,
    received,
    reject,
    reports,
    seconds_left,
)
from mitmgate.pipeline.message import headers_of, make_flow, make_request, make_response
from mitmgate.proxy.hooks import HookTable
from mitmgate.proxy.memory import PAGE
from mitmgate.proxy.pool import UNANSWERED, Unreachable, UpstreamPool
from mitmgate.proxy.upstream import Phase, Recipient, UpstreamConnection, UpstreamSide
from mitmgate.proxy.websocket import Pipe, Relay, accepts
from mitmgate.stages.arrival import names_of, subject_of, thumbprint_of
from mitmgate.stages.openapi import OpenApi
from mitmgate.stages.response_headers import hidden_fields

logger = logging.getLogger(__name__)

QUEUE: Final = 64 * 1024
"""Bytes that may wait for a transaction that waits, or pipelined behind one; then the socket is not read."""
BUFFER: Final = 8 * 1024 * 1024
"""Bytes of a response that `stream: never` holds back; beyond them it streams all the same."""
QUIET_SECONDS: Final = 600.0
"""How long an event stream, or a gRPC call, may be silent."""
FAILURES: Final = 1024
"""Endpoints and causes whose log lines are counted."""
IDEMPOTENT: Final = frozenset(["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
"""Methods of requests that may be sent twice (RFC 9110, section 9.2.2)."""
RESENDS: Final = 3
"""How often a request is sent anew, to whichever endpoint, because one has not looked at it, and says so (RFC 9113,
section 8.7): one that is being replaced may do so on several connections in a row."""
MALFORMED: Final = frozenset({400, 408, 414, 417, 431, 501, 505})
"""Statuses of the gateway's own after which a client is not read from again."""
_NOWHERE: Final = Server(address=None)
"""The server of a flow that has none yet."""

DETAILS: Final = {
    Reason.UPSTREAM_UNREACHABLE: "The service could not be reached.",
    Reason.UPSTREAM_TIMEOUT: "The service did not answer in time.",
    Reason.UPSTREAM_CLOSED: "The service closed the connection before its response was complete.",
    Reason.UPSTREAM_MALFORMED: "The service answered with something that is not a valid response.",
    Reason.BODY_TIMEOUT: "The request's body did not arrive in time.",
    Reason.CLIENT_CLOSED: "The client closed the connection.",
    Reason.MEMORY_EXHAUSTED: "The gateway has no room for another body.",
    Reason.DESCRIPTORS_EXHAUSTED: "The gateway has no room for another connection.",
}


class RequestPhase(Enum):
    """How far the request has come."""

    WAITING = auto()
    BUFFERING = auto()
    STREAMING = auto()
    COMPLETE = auto()
    DROPPED = auto()  # answered; what still comes of it is nobody's


class ResponsePhase(Enum):
    """How far the response has come."""

    WAITING = auto()
    BUFFERING = auto()
    STREAMING = auto()
    DONE = auto()


_LATE: Final = {
    ResponsePhase.WAITING: Cause.RESPONSE_TIMEOUT,
    ResponsePhase.BUFFERING: Cause.BODY_TIMEOUT,
    ResponsePhase.STREAMING: Cause.BODY_STALLED,
}
"""What an endpoint that let a deadline pass was late with."""


class FailureLog:
    """Log lines of failed endpoints: for each endpoint and cause one a second at most."""

    def __init__(self) -> None:
        """Start with none."""
        self._seldom: dict[tuple[str, str, Cause | None], Seldom] = {}

    def log(self, upstream: str, endpoint: str, failure: Failure) -> None:
        """Log a failure. All names are of policies."""
        key = upstream, endpoint, failure.cause
        if key not in self._seldom and len(self._seldom) >= FAILURES:
            self._seldom.clear()
        seldom = self._seldom.setdefault(key, Seldom(logger))
        detail = f" ({failure.detail})" if failure.detail else ""
        seldom.log(logging.WARNING, "upstream %s, endpoint %s: %s%s", upstream, endpoint, failure.cause, detail)


@dataclass(frozen=True, slots=True)
class Engine:
    """What transactions share. fail_over: the next endpoint after one that could not be used; None: there is none.

    unanswered: told of an endpoint that lets a connection wait. withdrawn: says why what admitted an exchange no longer
    holds; None: it does.
    """

    loop: asyncio.AbstractEventLoop
    table: HookTable
    pool: UpstreamPool
    fail_over: Callable[[Exchange, Reason], Endpoint | None]
    unanswered: Callable[[Exchange], None]
    withdrawn: Callable[[Exchange], Reason | None] = lambda exchange: None
    failures: FailureLog = field(default_factory=FailureLog)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def background(self, pending: Coroutine[Any, Any, None]) -> None:
        """Run something that nobody waits for."""
        task = self.loop.create_task(pending)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Expiry(Protocol):
    """The deadline of a transaction; `expired` is called when it passes."""

    def set(self, seconds: float) -> None:
        """Expire in so many seconds, instead of when it was to expire."""
        ...

    def at(self, due: float) -> None:
        """Expire at a time of the loop's clock."""
        ...

    def clear(self) -> None:
        """Don't expire."""
        ...


class ClientSide(Protocol):
    """The client's side of a transaction."""

    client: Client
    congested: bool

    @property
    def takes_trailers(self) -> bool:
        """Whether the client takes trailers, as its TE says (RFC 9110, section 10.1.4)."""
        ...

    def hold_request_body(self, held: bool) -> None:
        """Stop, or go on, reading the request's body."""
        ...

    def ask_for_body(self) -> None:
        """Send the 100 that the client waits for."""
        ...

    def send_head(self, response: Response, length: int | None, body: bytes | None, *, close: bool = False) -> None:
        """Send a response's head. length: of its body; None: not known. body: the whole body; None: it follows."""
        ...

    def send_body(self, data: bytes) -> None:
        """Send a part of the body."""
        ...

    @property
    def room(self) -> float:
        """Bytes of a response that the client would take now, as far as it says so."""
        ...

    @property
    def pipe(self) -> Pipe:
        """The client's side of a WebSocket."""
        ...

    def switch(self, response: Response, relay: Relay) -> None:
        """Send a 101, and give what comes from now on to a relay."""
        ...

    def recount(self) -> None:
        """Say anew how much is held for the client."""
        ...

    def admits(self, wanted: int) -> bool:
        """Tell whether so many bytes more may be held for the client."""
        ...

    def finish(self, trailers: Fields = ()) -> None:
        """Take the end of the response, and what follows its body: the transaction is done."""
        ...

    def break_off(self) -> None:
        """End the connection inside a response, or before it: the transaction is done."""
        ...


class Transaction(Recipient):
    """One request on its way through the gateway, and its response."""

    __slots__ = (
        "_bounds",
        "_check",
        "_client",
        "_content",
        "_continued",
        "_conversation",
        "_deadline",
        "_defect",
        "_delivered",
        "_dialling",
        "_engine",
        "_events",
        "_expects",
        "_forward",
        "_fresh",
        "_gone",
        "_head_sent",
        "_held",
        "_length",
        "_lifetime",
        "_limit",
        "_overdue",
        "_queue",
        "_queued",
        "_quiet",
        "_received",
        "_relay",
        "_request",
        "_request_body",
        "_resent",
        "_response",
        "_response_body",
        "_response_length",
        "_retries",
        "_sent",
        "_started",
        "_trailers",
        "_upgrade",
        "_upstream",
        "_void",
        "_waiting",
        "exchange",
        "flow",
    )  # fmt: skip

    def __init__(self, engine: Engine, client: ClientSide, bounds: Bounds, deadline: Expiry) -> None:
        """deadline: the connection's or the stream's, which is the transaction's as long as it lasts."""
        self._engine = engine
        self._client = client
        self._bounds = bounds
        self._deadline = deadline
        self.flow: HTTPFlow
        self.exchange: Exchange | None = None
        self._request = RequestPhase.WAITING
        self._response = ResponsePhase.WAITING
        self._request_body: list[bytes] = []
        self._response_body: list[bytes] = []
        self._content = b""  # the request's whole body, as it came
        self._trailers: Fields = ()  # of the request, that go on
        self._upstream: UpstreamSide | None = None
        self._length: int | None = 0  # of the request's body
        self._received = 0
        self._limit = 0  # bytes of the request's body; 0: none
        self._check: BodyCheck | None = None  # what the whole body has to be, before anything of the request is sent
        self._started = 0.0  # when the body began
        self._response_length: int | None = 0
        self._events = False  # the response is a stream of events
        self._quiet = 0.0  # seconds that a streamed response may pause
        self._head_sent = False
        self._sent = 0.0  # when the request was complete at the upstream
        self._delivered = 0
        self._retries = 0
        self._void: Reason | None = None  # why what admitted it counts no longer
        self._forward: Forward | None = None  # what is sent, whatever becomes of the flow
        self._resent = 0  # how often it was sent anew to the same endpoint, which had done nothing with it
        self._expects = False  # the request holds `Expect: 100-continue`
        self._conversation = False  # both bodies are streams of messages, which may pause (gRPC)
        self._continued = False  # and the client has been told, or does not wait
        self._gone = False  # the client's connection has ended
        self._defect = False  # because of a defect of ours
        self._waiting = False  # for a hook, or for a connection
        self._fresh = False  # the loop has done nothing else since the chain was asked
        self._upgrade = False  # the request asks for a WebSocket, and may
        self._relay: Relay | None = None
        self._dialling: asyncio.Task[Callable[[], None]] | None = None
        self._overdue = False  # the deadline passed meanwhile
        self._queue: deque[Callable[[], None]] | None = None
        self._queued = 0
        self._held = False
        self._lifetime: asyncio.TimerHandle | None = None

    @property
    def lasts(self) -> bool:
        """Whether the response is being streamed, or a WebSocket goes on, and so outlives its decision."""
        return self._response is ResponsePhase.STREAMING or self._relay is not None

    @property
    def lasts_for_client(self) -> bool:
        """Whether it has an end of its own: events, and what is to be a WebSocket, go on until the client leaves."""
        return self._upgrade or (self._events and self._response is ResponsePhase.STREAMING)

    @property
    def held(self) -> int:
        """Bytes that are put together, queued, or wait to be taken by the service."""
        if self._relay is not None:
            return self._relay.held
        held = self._queued
        if not self.flow.request.stream and self._request is not RequestPhase.DROPPED:
            held += self._received
        if self._response is ResponsePhase.BUFFERING and self._request is not RequestPhase.DROPPED:
            held += self._delivered
        if self._upstream is not None and self._upstream.congested:
            held += self._upstream.unsent
        return held

    @property
    def _over(self) -> bool:
        return self._response is ResponsePhase.DONE or self._request is RequestPhase.DROPPED

    # The request: decided before its body is read, and sent to an endpoint that can be reached.

    def begin(
        self,
        request: Request,
        head: RequestHead | None,
        refusal: Refusal | None,
        *,
        more: bool = False,
        whole: bool = False,
    ) -> None:
        """Have the chain decide.

        head: None where the bytes never became a request, and `refusal` says why. more: a part of the body is there, so
        that no client waits to be asked for it. whole: `body_end` is called next, in the same turn of the loop.
        """
        connection = self._client.client
        self._fresh = whole
        self.flow = flow = make_flow(connection, _NOWHERE)
        flow.request = request
        if head is not None:
            received(flow, _ingress(connection, request, head))
            self._length = head.body
            self._expects = head.expects_continue
            self._continued = more
        elif refusal is not None:
            reject(flow, refusal.reason, refusal.detail)
        self._hook(HttpRequestHeadersHook, self._decided if head is not None else self._refused)

    def _refused(self) -> None:
        self.exchange = exchange_of(self.flow)
        if not self._killed():
            if self.flow.response is None:
                self.flow.response = unadmitted(self.exchange)
            self._answer()

    def _decided(self) -> None:
        flow = self.flow
        self.exchange = exchange = exchange_of(flow)
        if self._killed():
            return
        if flow.response is not None:
            self._answer()
        elif exchange is None or not exchange.admitted:
            flow.response = unadmitted(exchange)
            self._answer()
        elif self._gone:
            self._abort(Reason.CLIENT_CLOSED)
        else:
            self._admitted(exchange)

    def _admitted(self, exchange: Exchange) -> None:
        """Read the body: into memory where it is small, else on its way to the upstream."""
        route, length = exchange.route, self._length
        forward = exchange.forward
        if route is None or forward is None or exchange.endpoint is None:
            self._fail(Reason.STAGE_ERROR)
            return
        self._forward = forward
        self._upgrade = exchange.head is not None and exchange.head.upgrade == "websocket"
        if self._upgrade and (not route.websocket or length != 0):
            self._fail(Reason.UPGRADE_REFUSED)
            return
        self._retries = route.upstream.retries
        if length == 0:
            self._request = RequestPhase.BUFFERING
            return
        if exchange.max_body and exchange.snapshot.mode == "enforce" and route.mode == "enforce":
            self._limit = exchange.max_body
            if length is not None and length > self._limit:
                self._fail(Reason.BODY_TOO_LARGE, f"The body is larger than {self._limit} bytes.")
                return
        self._conversation = exchange.endpoint.http2 and is_call(exchange.request)
        if exchange.body_check is not None:
            self._hold_to(exchange, exchange.body_check.bound, length)
        passes = self._check is None and (streams(route.stream, length) or self.flow.request.stream)
        if not self._client.admits(QUEUE if passes or length is None else length):
            self._fail(Reason.MEMORY_EXHAUSTED)
            return
        self._started = self._engine.loop.time()
        self._set_body_deadline()
        if passes:
            self.flow.request.stream = True
            self._connect(self._stream_request)
        else:
            self._request = RequestPhase.BUFFERING
            self._ask_for_body()

    def _hold_to(self, exchange: Exchange, bound: int, length: int | None) -> None:
        """Hold the body until it is whole, to be checked. Where nothing is enforced, only one that is known to fit."""
        if reports(exchange):
            if length is None or length > bound:
                return
        else:
            self._limit = min(self._limit, bound) if self._limit else bound
        self._check = exchange.body_check
        self.flow.request.stream = False

    def _body_refused(self, check: BodyCheck) -> bool:
        """Tell whether the whole body is refused, which is then said."""
        exchange, refusal = self.exchange, check.refusal(self._content)
        if refusal is None or exchange is None:
            return exchange is None
        if reports(exchange):
            exchange.verdict.record(Step(OpenApi.name, Outcome.OBSERVE, refusal.reason, refusal.detail))
            return False
        self._fail(refusal.reason, refusal.detail)
        return True

    def _stream_request(self, upstream: UpstreamSide) -> None:
        if self._withdrawn():
            return
        self._request = RequestPhase.STREAMING
        self._ask_for_body()
        self._send_request(upstream, None)
        if self._request is RequestPhase.STREAMING:
            self._limit_lifetime(None)

    def _ask_for_body(self) -> None:
        """Send the 100 that an admitted client waits for, unless the body is there (RFC 9110, section 10.1.1)."""
        if self._expects and not self._continued and not self._queue:
            self._client.ask_for_body()

    def body(self, data: bytes) -> None:
        """Take a part of the request's body."""
        if self._waiting:
            self._queued += len(data)
            self._later(lambda: self._queued_body(data))
            if self._queued > QUEUE:
                self._hold_client(True)
            self._client.recount()
            return
        request = self._request
        if request is not RequestPhase.STREAMING and request is not RequestPhase.BUFFERING:
            return
        self._received += len(data)
        if self._limit and self._received > self._limit:
            self._fail(Reason.BODY_TOO_LARGE, f"The body is larger than {self._limit} bytes.")
            return
        self._set_body_deadline()
        if request is RequestPhase.STREAMING:
            if self._upstream is not None:
                self._upstream.send_body(data)
        else:
            self._request_body.append(data)
            self._client.recount()

    def _queued_body(self, data: bytes) -> None:
        self._queued -= len(data)
        self.body(data)

    def _set_body_deadline(self) -> None:
        """Give the body a pause's length and, unless the route always streams, no more than its bytes have earned."""
        exchange, bounds = self.exchange, self._bounds
        if self._conversation:
            self._deadline.set(QUIET_SECONDS)
            return
        if exchange is not None and exchange.route is not None and exchange.route.stream == "always":
            self._deadline.set(bounds.idle_timeout)
            return
        self._deadline.at(bounds.body_due(self._started, self._received, self._engine.loop.time()))

    def body_end(self, trailers: Fields = ()) -> None:
        """Take the end of the request, and what followed its body."""
        if self._waiting:
            self._later(partial(self.body_end, trailers))
            return
        request = self._request
        if request is not RequestPhase.STREAMING and request is not RequestPhase.BUFFERING:
            return
        flow = self.flow
        self._deadline.clear()
        flow.request.data.timestamp_end = time.time()
        self._request = RequestPhase.COMPLETE
        if trailers and (rule := self._trailer_rule()) is not None:
            self._trailers = rule.permitted(trailers)
            flow.request.data.trailers = headers_of(self._trailers) or None
        if request is RequestPhase.STREAMING:
            self._hook(HttpRequestHook, self._streamed)
        else:
            flow.request.data.content = self._content = b"".join(self._request_body)
            self._request_body.clear()
            if self._check is not None and self._body_refused(self._check):
                return
            self._hook(HttpRequestHook, self._buffered)

    def _streamed(self) -> None:
        if self._killed():
            return
        if self._upstream is not None:
            self._upstream.end_body(self._trailers)
        if self._response is ResponsePhase.WAITING:
            self._await_response()
        elif self._response is ResponsePhase.STREAMING:
            self._deadline.set(self._quiet)
        elif self._response is ResponsePhase.BUFFERING:
            self._await_body()

    def _buffered(self) -> None:
        if self._killed():
            return
        if self.flow.response is not None:
            self._answer()
        elif self._gone:
            self._abort(Reason.CLIENT_CLOSED)
        else:
            self._connect(self._forward_whole)

    def _forward_whole(self, upstream: UpstreamSide) -> None:
        """Send a whole request."""
        if self._withdrawn():
            return
        self._await_response()
        self._send_request(upstream, self._content)

    def _withdrawn(self) -> bool:
        """Answer in the service's place where what admitted a request no longer holds, while it is not yet sent.

        In the turn of the loop in which the chain was asked nothing else can have come, and it is not asked again.
        """
        exchange, reason, fresh = self.exchange, self._void, self._fresh
        self._fresh = False  # it may be sent once more, later
        if reason is None and not fresh and exchange is not None and exchange.principal is not None:
            reason = self._engine.withdrawn(exchange)
            if reason is None and seconds_left(exchange) == 0.0:
                reason = expired(exchange)
        if reason is not None:
            self._fail(reason)
        return reason is not None

    def _send_request(self, upstream: UpstreamSide, content: bytes | None) -> None:
        """Send the request that was decided on, whatever the flow says by now. content: None: the body follows."""
        forward = self._forward
        if forward is None:
            raise ValueError("nothing to forward")
        announced, trailers = self._announced(streams=content is None), self._trailers
        sent = upstream.send(
            self,
            forward,
            self._length,
            None if announced else content,
            upgrade=self._upgrade,
            once=content is not None and not self._idempotent,
            takes_trailers=self._client.takes_trailers,
            announced=announced,
        )
        if not sent:
            self._leave_upstream()
            self._fail(Reason.REWRITE_REFUSED, "The request can't be written safely.")
        elif announced and content is not None:
            upstream.send_body(content)
            upstream.end_body(trailers)

    def _trailer_rule(self) -> RequestTrailers | None:
        """Return what decides on the request's trailers; None: its service is given none."""
        exchange = self.exchange
        if exchange is None or exchange.route is None or not exchange.route.upstream.trailers:
            return None
        route = exchange.route
        return RequestTrailers(route.upstream.trailers, exchange.snapshot.client_fields, route.rewrite.remove)

    def _announced(self, *, streams: bool) -> bytes:
        """Return the Trailer field to send. streams: what follows the body is not known yet, but by the client's."""
        if not streams:
            return announcing(self._trailers) if self._trailers else b""
        rule, exchange = self._trailer_rule(), self.exchange
        return b"" if rule is None or exchange is None else rule.announced(exchange.request.headers.all(b"trailer"))

    def _await_response(self) -> None:
        self._sent = self._engine.loop.time()
        route = None if self.exchange is None else self.exchange.route
        self._deadline.set(self._bounds.body_timeout if route is None else route.upstream.response_timeout)

    def _await_body(self) -> None:
        """Give the body of a response that is held back a time of its own."""
        upstream = None if self.exchange is None or self.exchange.route is None else self.exchange.route.upstream
        if upstream is not None:
            self._deadline.set(upstream.response_timeout if upstream.body_timeout is None else upstream.body_timeout)

    def body_refused(self, refusal: Refusal) -> None:
        """Take what is wrong with the request's body."""
        if self._waiting:
            self._later(lambda: self.body_refused(refusal))
        elif not self._over:
            self._fail(refusal.reason, refusal.detail)

    def client_gone(self) -> None:
        """Take the end of the client's connection."""
        self._gone = True
        if self._relay is not None:
            self._relay.client_ended()
            return
        if self._dialling is not None:
            self._dialling.cancel()
        elif not self._waiting and not self._over:
            self._abort(Reason.CLIENT_CLOSED)

    # An endpoint that can be reached: the chosen one, or the next where the policy allows one.

    def _connect(self, then: Callable[[UpstreamSide], None]) -> None:
        """Reach the chosen endpoint, or the next one; nothing was sent yet, so that any request may be tried again."""
        exchange = self.exchange
        if exchange is None or exchange.endpoint is None or exchange.route is None:
            self._fail(Reason.STAGE_ERROR)
            return
        upstream = exchange.route.upstream
        if not self._resent:
            connection = self._engine.pool.take(exchange.endpoint, upstream.tls, repeatable=self._repeatable)
            if connection is not None:
                self._reached(connection, then)
                return
        self._wait(self._dial(exchange, then), dial=True)

    async def _dial(self, exchange: Exchange, then: Callable[[UpstreamSide], None]) -> Callable[[], None]:
        """Open a connection. Returns what is to be done with it."""
        if exchange.endpoint is None or exchange.route is None:
            return lambda: self._fail(Reason.STAGE_ERROR)
        upstream = exchange.route.upstream
        waiting = self._engine.loop.call_later(UNANSWERED, self._engine.unanswered, exchange)
        try:
            connection = await self._engine.pool.open(
                exchange.endpoint, upstream.tls, upstream.connect_timeout, self._client.client
            )
        except Unreachable as error:
            failure = error.failure
            return lambda: self._not_reached(failure, then)
        finally:
            waiting.cancel()
        return lambda: self._reached(connection, then)

    def _reached(self, connection: UpstreamSide, then: Callable[[UpstreamSide], None]) -> None:
        if self._gone or self._over:
            connection.abandon()
            if not self._over:
                self._abort(Reason.CLIENT_CLOSED)
            return
        self._upstream = connection
        self.flow.server_conn = connection.server
        then(connection)

    def _not_reached(self, failure: Failure, then: Callable[[UpstreamSide], None]) -> None:
        if self._over:
            return
        if self._gone:
            self._abort(Reason.CLIENT_CLOSED)
            return
        self._blame_endpoint(failure)
        if failure.reason is not Reason.DESCRIPTORS_EXHAUSTED and self._next_endpoint(failure.reason):
            self._connect(then)
        else:
            self._fail(failure.reason)

    @property
    def _idempotent(self) -> bool:
        """Whether the request may be sent twice (RFC 9110, section 9.2.2)."""
        return self._forward is not None and self._forward.method in IDEMPOTENT

    @property
    def _repeatable(self) -> bool:
        """Whether it also can be: a body that is streamed is gone."""
        return self._idempotent and not self.flow.request.stream

    def _next_endpoint(self, reason: Reason) -> bool:
        """Point the request at another endpoint, where the policy still allows one. reason: why this one failed."""
        exchange = self.exchange
        if exchange is None or self._retries <= 0:
            return False
        self._retries -= 1
        endpoint = self._engine.fail_over(exchange, reason)
        if endpoint is None:
            return False
        exchange.endpoint = endpoint
        point_at(self.flow, endpoint)
        if exchange.route is not None and exchange.route.upstream.host == "upstream" and self._forward is not None:
            self._forward = self._forward.to_host(endpoint.url.partition("://")[2])
            self.flow.request.headers["host"] = self._forward.host
        return True

    # The response.

    def response_head(self, head: ResponseHead) -> None:
        """Take the head of the response."""
        if self._waiting:
            self._hold_upstream(lambda: self.response_head(head))
            return
        if self._response is not ResponsePhase.WAITING or self._request is RequestPhase.DROPPED:
            return
        if head.status == 101:
            self._answered_101(head)
            return
        flow, exchange = self.flow, self.exchange
        fields = received_fields(head.status, head.headers.fields)
        flow.response = response = make_response(head.status, headers_of(fields), None, complete=False)
        if exchange is not None and self._sent:
            exchange.upstream_seconds = self._engine.loop.time() - self._sent
        length = head.body
        self._response_length = length = None if length is None or length < 0 else length
        mode = "auto" if exchange is None or exchange.route is None else exchange.route.stream
        self._events = is_event_stream(head.headers.one(b"content-type"))
        response.stream = streams(mode, length, events=self._events)
        if not response.stream and mode == "auto" and length is not None and length > self._client.room:
            response.stream = True  # held back it would wait here, as a whole, for a client that takes none of it
        self._quiet = QUIET_SECONDS if self._events else self._bounds.idle_timeout
        if response.stream and self._request is RequestPhase.COMPLETE:
            self._deadline.set(self._quiet)
        self._hook(HttpResponseHeadersHook, self._response_decided)

    def _answered_101(self, head: ResponseHead) -> None:
        """Take the upstream's word that the connection is a WebSocket from here on, where it answers this handshake."""
        self.flow.response = response = make_response(101, headers_of(head.headers.fields), b"")
        forward = self._forward
        if not self._upgrade or forward is None or not accepts(forward, response):
            self.flow.response = None
            detail = "a 101 that does not answer the handshake"
            self._blame_endpoint(Failure(Reason.UPSTREAM_MALFORMED, Cause.UPGRADE_INVALID, detail))
            self._fail(Reason.UPSTREAM_MALFORMED)
            return
        self._deadline.clear()
        self.flow.websocket = WebSocketData()  # before the hooks: addons see what follows
        self._hook(HttpResponseHeadersHook, lambda: self._hook(HttpResponseHook, self._switch))

    def _switch(self) -> None:
        if self._killed() or self._response_refused():
            return
        flow, upstream, response = self.flow, self._upstream, self.flow.response
        if (
            self._gone
            or response is None
            or not isinstance(upstream, UpstreamConnection)
            or upstream.phase is not Phase.TUNNEL
        ):
            flow.websocket = None  # none has begun while the hooks waited: the end is an ordinary one, and on record
            if self._gone:
                self._abort(Reason.CLIENT_CLOSED)
            else:
                self._blame_endpoint(Failure(Reason.UPSTREAM_CLOSED, Cause.CLOSED, "behind its 101"))
                self._fail(Reason.UPSTREAM_CLOSED)
            return
        self._head_sent = True
        client = self._client
        self._relay = relay = Relay(
            flow, self._engine.table, client.pipe, upstream, self._wait_for, self._relayed, client.recount
        )
        self._limit_lifetime(self._stream_timeout())
        relay.start()
        self._client.switch(response, relay)
        if self._relay is not None:
            upstream.tunnel(relay)

    def _wait_for(self, pending: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        """Go on with a relay when a hook of its has ended."""
        task = self._engine.loop.create_task(pending)

        def go_on(task: asyncio.Task[None]) -> None:
            try:
                if not task.cancelled():
                    task.result()
                then()
            except Exception:
                logger.exception("a WebSocket is broken off because of a defect")
                self.broken()

        task.add_done_callback(go_on)

    def _relayed(self, reason: Reason | None) -> None:
        """Take the end of a WebSocket."""
        self._stop()
        relay, data = self._relay, self.flow.websocket
        if relay is not None and data is not None and self.exchange is not None:
            messages_in, self.exchange.body_in, messages_out, self.exchange.body_out = relay.counted
            code = data.close_code or CloseReason.ABNORMAL_CLOSURE
            self.exchange.websocket = WebSocketEnd(int(code), relay.closed_by, messages_in, messages_out)
            if relay.closed_by == "upstream" and code == CloseReason.ABNORMAL_CLOSURE:
                loss = self._upstream.loss if isinstance(self._upstream, UpstreamConnection) else None
                failure = loss or Failure(Reason.UPSTREAM_CLOSED, Cause.CLOSED, "a WebSocket, without a close frame")
                self._blame_endpoint(failure)
        self._relay = self._upstream = None
        self._response = ResponsePhase.DONE
        if reason is not None:
            self._blame(reason, DETAILS.get(reason, reason.title))
        self._hook(WebsocketEndHook, self._done)

    def _response_decided(self) -> None:
        if self._killed() or self._response_refused():
            return
        response = self.flow.response
        if response is not None and response.stream:
            self._start_streaming(response)
        else:
            self._response = ResponsePhase.BUFFERING
            if self._request is RequestPhase.COMPLETE:
                self._await_body()

    def _response_refused(self) -> bool:
        """Answer in the place of a response that a stage has failed on; the client gets nothing of it."""
        exchange = self.exchange
        if exchange is None or not exchange.response_refused:
            return False
        self.flow.websocket = None
        self._fail(Reason.STAGE_ERROR)
        return True

    def _start_streaming(self, response: Response) -> None:
        response.stream = True
        self._response = ResponsePhase.STREAMING
        self._head_sent = True
        self._limit_lifetime(self._stream_timeout())
        self._client.send_head(response, self._response_length, None)
        if self._client.congested:
            self.client_congested(True)

    def response_body(self, data: bytes) -> None:
        """Take a part of the response's body."""
        if self._waiting:
            self._hold_upstream(lambda: self.response_body(data))
        elif self._response is ResponsePhase.STREAMING:
            self._delivered += len(data)
            if self._request is RequestPhase.COMPLETE or self._conversation:
                self._deadline.set(self._quiet)
            self._client.send_body(data)
        elif self._response is ResponsePhase.BUFFERING:
            self._response_body.append(data)
            self._delivered += len(data)
            if self._delivered > BUFFER and self.flow.response is not None:
                held = b"".join(self._response_body)
                self._response_body.clear()
                self._start_streaming(self.flow.response)
                self._client.send_body(held)
            if self._delivered >= PAGE:
                self._client.recount()

    def response_end(self, trailers: Fields = ()) -> None:
        """Take the end of the response, and the trailers."""
        if self._waiting:
            self._hold_upstream(lambda: self.response_end(trailers))
            return
        self._upstream = None
        if trailers and self._client.takes_trailers and self.flow.response is not None and self.exchange is not None:
            rule = self.exchange.snapshot.response_headers
            self.flow.response.data.trailers = headers_of(permitted(trailers, hidden_fields(rule))) or None
        if self._response is ResponsePhase.STREAMING:
            self._respond(streamed=True)
        elif self._response is ResponsePhase.BUFFERING:
            if self.flow.response is not None:
                self.flow.response.data.content = b"".join(self._response_body)
                self._response_body.clear()
            self._respond(streamed=False)

    def upstream_failed(self, failure: Failure, *, untouched: bool, stale: bool, undelivered: bool) -> None:
        """Take what went wrong at the upstream; try again where nothing can have been done by it."""
        if self._waiting:
            later = partial(self.upstream_failed, failure, untouched=untouched, stale=stale, undelivered=undelivered)
            self._later(later)
            return
        if self._over or self._request is RequestPhase.WAITING:
            return
        self._upstream = None
        again = (
            untouched
            and failure.reason is Reason.UPSTREAM_CLOSED
            and self._request is RequestPhase.COMPLETE
            and not self.flow.request.stream
            and self._response is ResponsePhase.WAITING
            and (self._idempotent or undelivered)
        )
        route = None if self.exchange is None else self.exchange.route
        others = route is not None and len(route.upstream.endpoints) > 1
        left = RESENDS - self._resent
        # Closed between two requests, or not looked at: the same endpoint, on a new connection. The last is another's.
        if again and (left > others if undelivered else stale and not self._resent):
            self._resent += 1
            self._connect(self._forward_whole)
            return
        self._blame_endpoint(failure)
        if again and (left > 0 or not undelivered) and self._next_endpoint(failure.reason):
            self._resent += undelivered
            self._connect(self._forward_whole)
        else:
            self._fail(failure.reason)

    def upstream_congested(self, congested: bool) -> None:
        """Slow the client's upload down, or let it go on."""
        if self._relay is not None:
            self._relay.congested(client=False, congested=congested)
            return
        self._hold_client(congested)
        self._client.recount()

    def client_congested(self, congested: bool) -> None:
        """Slow the response down, or let it go on."""
        if self._relay is not None:
            self._relay.congested(client=True, congested=congested)
            return
        if self._upstream is not None and self._response is ResponsePhase.STREAMING:
            self._upstream.hold(congested)

    def expired(self) -> None:
        """Take the passing of the deadline."""
        if self._waiting:
            self._overdue = True
            return
        if self._over:
            return
        stuck = self._upstream is not None and self._upstream.congested
        if self._request is not RequestPhase.COMPLETE and not stuck:
            self._fail(Reason.BODY_TIMEOUT)
        elif self._response is ResponsePhase.STREAMING and self._client.congested:
            self._abort(Reason.CLIENT_CLOSED)
        else:
            late = _LATE[self._response] if self._request is RequestPhase.COMPLETE else Cause.REQUEST_NOT_TAKEN
            self._blame_endpoint(Failure(Reason.UPSTREAM_TIMEOUT, late))
            self._fail(Reason.UPSTREAM_TIMEOUT)

    def _limit_lifetime(self, bound: float | None) -> None:
        """End what lasts when a credential that opened it expires, or after `bound` seconds."""
        if self._lifetime is not None:
            self._lifetime.cancel()
            self._lifetime = None
        exchange = self.exchange
        left, reason = None if exchange is None else seconds_left(exchange), Reason.STREAM_TIMEOUT
        if exchange is not None and left is not None:
            reason = expired(exchange)
        if bound is not None and self._relay is None and (left is None or bound < left):
            left, reason = bound, Reason.STREAM_TIMEOUT
        if exchange is not None and exchange.principal is not None:
            withdrawn = self._engine.withdrawn(exchange)  # while the service was asked
            left, reason = (left, reason) if withdrawn is None else (0.0, withdrawn)
        if self._void is not None:
            left, reason = 0.0, self._void
        if left is not None:
            self._lifetime = self._engine.loop.call_later(left, self.outlived, reason)

    def _stream_timeout(self) -> float | None:
        exchange = self.exchange
        return None if exchange is None or exchange.route is None else exchange.route.stream_timeout

    def outlived(self, reason: Reason) -> None:
        """End what lasts, or will; a defect ends the client's connection."""
        self._void = reason
        try:
            self.cut(reason)
        except Exception:
            logger.exception("a request is broken off because of a defect")
            self.broken()

    def cut(self, reason: Reason) -> None:
        """End a streamed response, or a streamed request: what admitted it no longer holds."""
        if self._relay is not None:
            self._relay.cut(reason)
        elif self.lasts:
            self._abort(reason)
        elif self._uploads:
            if self._waiting:
                self._later(partial(self.cut, reason))
            else:
                self._fail(reason)

    def cut_withdrawn(self) -> None:
        """End what lasts, where what admitted it no longer holds."""
        exchange = self.exchange
        if exchange is None or not (self.lasts or self._uploads):
            return
        reason = self._engine.withdrawn(exchange)
        if reason is not None:
            self.outlived(reason)

    @property
    def _uploads(self) -> bool:
        return self._request is RequestPhase.STREAMING and not self._over

    def relieve(self) -> None:
        """End the exchange, because too much is held for this client; with a problem while that can still be said."""
        if self._relay is not None:
            self._relay.cut(Reason.MEMORY_EXHAUSTED)
        elif self._waiting:
            self._later(self.relieve)
        elif not self._over:
            self._fail(Reason.MEMORY_EXHAUSTED)

    def stop(self, reason: Reason) -> None:
        """End the exchange, because the gateway ends: with a problem while that can still be said."""
        if self._relay is not None:
            self._relay.cut(reason)
        elif self._waiting:
            self._blame(reason, "")
        elif not self._over:
            self._fail(reason)

    # The end: with a response, with a problem, or visibly broken off.

    def broken(self) -> None:
        """End because of a defect."""
        self.crashed()
        self._client.break_off()

    def crashed(self) -> None:
        """Record the end of what a defect of ours has broken; the client's connection is closed by its owner."""
        self._stop()
        self._relay = None
        self._leave_upstream()
        if self._response is ResponsePhase.DONE:
            return
        if self._waiting and self._request is RequestPhase.WAITING:  # it ends, on record, when what it waits for does
            self._gone = self._defect = True
            if self._dialling is not None:
                self._dialling.cancel()
            return
        self._response = ResponsePhase.DONE
        self._request = RequestPhase.DROPPED
        self._blame(Reason.STAGE_ERROR, "The gateway failed.")
        self.flow.error = Error("The gateway failed.")
        self.flow.live = False
        self._hook(HttpErrorHook, lambda: None)

    def _answer(self) -> None:
        """Send a response that the gateway made, at once: what is still to come of the request is not waited for."""
        self._stop()
        self._request = RequestPhase.DROPPED
        self._request_body.clear()
        self._response_body.clear()
        response = self.flow.response
        if response is None:
            raise ValueError("no response")
        response.stream = False
        self._response = ResponsePhase.BUFFERING
        self._hook(HttpResponseHeadersHook, lambda: self._respond(streamed=False))

    def _respond(self, *, streamed: bool) -> None:
        """Fire the response hook, and send what was not sent yet."""
        response = self.flow.response
        if response is None:
            raise ValueError("no response")
        self._stop()
        response.data.timestamp_end = time.time()
        self._count()
        self._hook(HttpResponseHook, self._end_streamed if streamed else self._end_buffered)

    def _end_buffered(self) -> None:
        if self._killed(hook=False):
            return
        self._response = ResponsePhase.DONE
        self._head_sent = True
        response = self.flow.response
        if response is not None:
            content = response.data.content or b""
            if response.data.trailers:
                self._client.send_head(response, None, None)
                self._client.send_body(content)
            else:
                close = self._request is RequestPhase.DROPPED and response.data.status_code in MALFORMED
                self._client.send_head(response, len(content), content, close=close)
        self._done()

    def _end_streamed(self) -> None:
        if self._killed(hook=False):
            return
        self._response = ResponsePhase.DONE
        self._done()

    def _done(self) -> None:
        self.flow.live = False
        self._leave_upstream()
        response = self.flow.response
        trailers = None if response is None else response.data.trailers
        self._client.finish(() if trailers is None else trailers.fields)

    def _fail(self, reason: Reason, detail: str = "") -> None:
        """Answer with a problem while that is possible, else end visibly."""
        exchange = self.exchange
        if self._head_sent or exchange is None:
            self._abort(reason)
            return
        detail = detail or DETAILS.get(reason, "")
        self._blame(reason, detail)
        exchange.body_in = self._received
        self._leave_upstream()
        self.flow.response = problem_response(exchange, reason, detail)
        self._answer()

    def _abort(self, reason: Reason) -> None:
        """End without a response, or in the middle of one, so that the client can't take it for complete."""
        self._stop()
        if self._defect:
            reason = Reason.STAGE_ERROR
        detail = DETAILS.get(reason, reason.title)
        self._blame(reason, detail)
        self._request = RequestPhase.DROPPED
        self._response = ResponsePhase.DONE
        self._leave_upstream()
        self._request_body.clear()
        self._response_body.clear()
        self.flow.error = Error(detail)
        self._count()
        self._hook(HttpErrorHook, self._gone_for_good)

    def _gone_for_good(self) -> None:
        self.flow.live = False
        self._client.break_off()

    def _killed(self, *, hook: bool = True) -> bool:
        """End where an addon killed the flow."""
        error = self.flow.error
        if error is None or error.msg != Error.KILLED_MESSAGE:
            return False
        self._stop()
        self._request = RequestPhase.DROPPED
        self._response = ResponsePhase.DONE
        self._leave_upstream()
        if hook:
            self._hook(HttpErrorHook, self._gone_for_good)
        else:
            self._gone_for_good()
        return True

    def _blame(self, reason: Reason, detail: str) -> None:
        if self.exchange is not None:
            self.exchange.failure = reason
            self.exchange.failure_detail = detail
            self.exchange.uploading = self._request is RequestPhase.STREAMING

    def _blame_endpoint(self, failure: Failure) -> None:
        """Keep the cause for the record, and log it."""
        exchange = self.exchange
        if exchange is not None and exchange.route is not None and failure.cause is not None:
            exchange.cause = failure.cause
            endpoint = "no endpoint" if exchange.endpoint is None else exchange.endpoint.url
            self._engine.failures.log(exchange.route.upstream.name, endpoint, failure)

    def _leave_upstream(self) -> None:
        """Close an upstream connection that has an unfinished exchange on it: it is never used again."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None and upstream.phase is not Phase.IDLE:
            upstream.abandon()

    def _stop(self) -> None:
        self._deadline.clear()
        if self._lifetime is not None:
            self._lifetime.cancel()
            self._lifetime = None

    def _count(self) -> None:
        """Say how much of streamed bodies went through, for those that record it."""
        if self.exchange is None:
            return
        if self.flow.request.stream:
            self.exchange.body_in = self._received
        if self.flow.response is not None and self.flow.response.stream:
            self.exchange.body_out = self._delivered

    # Waiting for a hook, or for a connection.

    def _hook(self, hook: type[hooks.Hook], then: Callable[[], None]) -> None:
        """Run a hook, then go on: at once, unless something in it has to wait."""
        pending = self._engine.table.run(hook, self.flow)
        if pending is None:
            then()
        else:
            self._wait(_ended(pending, then))

    def _wait(self, pending: Coroutine[Any, Any, Callable[[], None]], *, dial: bool = False) -> None:
        """Suspend until something is done. dial: it is given up where the client leaves meanwhile."""
        self._waiting, self._fresh = True, False
        task = self._engine.loop.create_task(pending)
        if dial:
            self._dialling = task
        task.add_done_callback(self._go_on)

    def _go_on(self, task: "asyncio.Task[Callable[[], None]]") -> None:
        self._waiting = False
        self._dialling = None
        try:
            if task.cancelled():
                self._abort(Reason.CLIENT_CLOSED if self._gone else Reason.STAGE_ERROR)
                return
            task.result()()
            queue = self._queue
            while queue and not self._waiting:
                queue.popleft()()
            if self._waiting:
                return
            self._queue = None
            if self._queued:
                self._queued = 0
                self._client.recount()
            if self._held and (self._upstream is None or not self._upstream.congested):
                self._hold_client(False)
            if self._upstream is not None and not (self.lasts and self._client.congested):
                self._upstream.hold(False)
            if self._gone and not self._over:
                self._abort(Reason.CLIENT_CLOSED)
            elif self._overdue:
                self._overdue = False
                self.expired()
        except Exception:
            logger.exception("a request is broken off because of a defect")
            self.broken()

    def _later(self, action: Callable[[], None]) -> None:
        if self._queue is None:
            self._queue = deque()
        self._queue.append(action)

    def _hold_upstream(self, action: Callable[[], None]) -> None:
        """Queue what came from the upstream, and let no more come."""
        self._later(action)
        if self._upstream is not None:
            self._upstream.hold(True)

    def _hold_client(self, held: bool) -> None:
        if held is not self._held:
            self._held = held
            self._client.hold_request_body(held)


async def _ended(pending: Coroutine[Any, Any, None], then: Callable[[], None]) -> Callable[[], None]:
    await pending
    return then


def _ingress(client: Client, request: Request, head: RequestHead) -> Ingress:
    """Take the request as it arrived, as `stages.arrival.ingress` does, without parsing its fields again."""
    data = request.data
    return Ingress(
        method=data.method.decode("latin-1"),
        target=data.path.decode("latin-1"),
        version=head.version,
        headers=head.headers,
        scheme="https" if client.tls else "http",
        authority=data.authority.decode("latin-1"),
        peer=client.peername[0],
        declared_body=head.body,
        certificate=subject_of(client) if client.certificate_list else None,
        thumbprint=thumbprint_of(client) if client.certificate_list else None,
        names=names_of(client) if client.certificate_list else None,
    )


def unadmitted(exchange: Exchange | None) -> Response:
    """Answer where nobody admitted and nobody denied: the chain is broken, and broken means closed."""
    detail = "The gateway could not decide on this request."
    if exchange is not None:
        exchange.failure = Reason.STAGE_ERROR
        exchange.failure_detail = detail
        return problem_response(exchange, Reason.STAGE_ERROR, detail)
    body = problem_body(Reason.STAGE_ERROR, detail, secrets.token_hex(16))
    fields = Headers(((b"Content-Type", MEDIA_TYPE), (b"Cache-Control", b"no-store")))
    return make_response(Reason.STAGE_ERROR.status, fields, body)


def new_request(
    method: bytes, path: bytes, version: bytes, headers: Headers, scheme: bytes, authority: bytes = b""
) -> Request:
    """Make mitmproxy's request out of parsed parts. authority: HTTP/2's `:authority`, empty on HTTP/1."""
    return make_request(BLACK_HOLE, method, path, version, headers, scheme, authority)
