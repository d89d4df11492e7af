"""One request and its response: decided before its body is read, forwarded only when Enforcer admitted it.

    begin → requestheaders (the chain decides) ─┬─ denied or answered → sent at once → done
                                                └─ admitted ─┬─ buffer the body → request hook → forward
                                                             └─ forward, stream the body → request hook
    forwarded → response head → responseheaders ─┬─ buffer → response hook → send
                                                 └─ send, stream → response hook
    any failure → problem response while no head was sent, else a visible abort and the error hook

The same states as engine/layer_stream.py, in callbacks. A hook that has to wait (a counter in Redis) suspends the
transit: what comes meanwhile is queued, in order, and the sockets are not read beyond a bound.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
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

from mitmgate.core.http1 import Bounds, Refusal, RequestHead, ResponseHead, request_head
from mitmgate.core.http1.writer import PHRASES, end_to_end
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.engine.hooks import HookTable
from mitmgate.engine.lane.deadline import Deadline
from mitmgate.engine.lane.pool import Unreachable, UpstreamPool
from mitmgate.engine.lane.upstream import LaneUpstream, Phase
from mitmgate.engine.layer_stream import BUFFER, QUIET_SECONDS
from mitmgate.engine.layer_stream_ending import DETAILS, MALFORMED, RequestPhase, ResponsePhase
from mitmgate.engine.layer_stream_request import IDEMPOTENT, LARGE, unadmitted
from mitmgate.stages.enforcer import point_at, problem_response
from mitmgate.stages.exchange import Exchange, exchange_of, reject

logger = logging.getLogger(__name__)

QUEUE: Final = 64 * 1024
"""Bytes of a request's body that may wait while the transit waits; then the client is not read."""
_WITH_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})
_LENGTH: Final = b"content-length"


@dataclass(frozen=True, slots=True)
class Ways:
    """What transits share. fail_over: the next endpoint after one that could not be used; None: there is none."""

    loop: asyncio.AbstractEventLoop
    table: HookTable
    pool: UpstreamPool
    fail_over: Callable[[Exchange], Endpoint | None]


class Requester(Protocol):
    """The client's side of a transit."""

    connection: Client
    congested: bool

    def hold_for_transit(self, held: bool) -> None:
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

    def finish(self) -> None:
        """Take the end of the response: the transit is done."""
        ...

    def break_off(self) -> None:
        """End the connection inside a response, or before it: the transit is done."""
        ...


class Transit:
    """One request on its way through the gateway."""

    __slots__ = (
        "_bounds",
        "_client",
        "_deadline",
        "_delivered",
        "_expects",
        "_gone",
        "_head_sent",
        "_held",
        "_length",
        "_lifetime",
        "_limit",
        "_moved",
        "_overdue",
        "_queue",
        "_queued",
        "_quiet",
        "_received",
        "_replayed",
        "_request",
        "_request_body",
        "_response",
        "_response_body",
        "_response_length",
        "_retries",
        "_sent",
        "_started",
        "_upstream",
        "_waiting",
        "_ways",
        "exchange",
        "flow",
    )  # fmt: skip

    def __init__(self, ways: Ways, client: Requester, bounds: Bounds, deadline: Deadline) -> None:
        """deadline: the connection's, which is the transit's as long as it lasts."""
        self._ways = ways
        self._client = client
        self._bounds = bounds
        self._deadline = deadline
        self.flow: HTTPFlow
        self.exchange: Exchange | None = None
        self._request = RequestPhase.WAITING
        self._response = ResponsePhase.WAITING
        self._request_body: list[bytes] = []
        self._response_body: list[bytes] = []
        self._upstream: LaneUpstream | None = None
        self._length: int | None = 0  # of the request's body
        self._received = 0
        self._limit = 0  # bytes of the request's body; 0: none
        self._started = 0.0  # when the body began
        self._response_length: int | None = 0
        self._quiet = 0.0  # seconds that a streamed response may pause
        self._head_sent = False
        self._sent = 0.0  # when the request was complete at the upstream
        self._delivered = 0
        self._retries = 0
        self._moved = False  # to another endpoint than the one that the request was made for
        self._replayed = False  # a stale connection was replaced once
        self._expects = False
        self._gone = False  # the client's connection has ended
        self._waiting = False  # for a hook, or for a connection
        self._overdue = False  # the deadline passed meanwhile
        self._queue: deque[Callable[[], None]] | None = None
        self._queued = 0
        self._held = False
        self._lifetime: asyncio.TimerHandle | None = None

    # The request.

    def begin(self, request: Request, head: RequestHead | None, refusal: Refusal | None) -> None:
        """Have the chain decide. head: None where the bytes never became a request, and `refusal` says why."""
        connection = self._client.connection
        self.flow = flow = HTTPFlow(connection, _nowhere())
        flow.request = request
        flow.live = True
        if head is None:
            if refusal is not None:
                reject(flow, refusal.reason, refusal.detail)
        else:
            self._length = head.body
            self._expects = head.expects_continue
        self._hook(HttpRequestHeadersHook(flow), self._decided if head is not None else self._refused)

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
        if route is None or exchange.forward is None or exchange.endpoint is None:
            self._fail(Reason.STAGE_ERROR)
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
        self._started = self._ways.loop.time()
        self._set_body_deadline()
        large = length is None or length > LARGE
        if route.stream == "always" or (route.stream == "auto" and large) or self.flow.request.stream:
            self.flow.request.stream = True
            self._connect(self._stream_request)
        else:
            self._request = RequestPhase.BUFFERING
            self._ask_for_body()

    def _stream_request(self, upstream: LaneUpstream) -> None:
        self._request = RequestPhase.STREAMING
        self._ask_for_body()
        self._send_request(upstream, None)

    def _ask_for_body(self) -> None:
        """Send the 100 that an admitted client waits for, unless the body is there (RFC 9110, section 10.1.1)."""
        if self._expects and not self._queue:
            self._client.ask_for_body()

    def body(self, data: bytes) -> None:
        """Take a part of the request's body."""
        if self._waiting:
            self._queued += len(data)
            self._later(lambda: self.body(data))
            if self._queued > QUEUE:
                self._hold_client(True)
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

    def _set_body_deadline(self) -> None:
        """Give the body a pause's length and, unless the route always streams, no more than its bytes have earned."""
        exchange, bounds = self.exchange, self._bounds
        if exchange is not None and exchange.route is not None and exchange.route.stream == "always":
            self._deadline.set(bounds.idle_timeout)
            return
        earned = bounds.body_timeout + self._received / bounds.body_rate
        self._deadline.at(min(self._started + earned, self._ways.loop.time() + bounds.body_timeout))

    def body_end(self) -> None:
        """Take the end of the request."""
        if self._waiting:
            self._later(self.body_end)
            return
        request = self._request
        if request is not RequestPhase.STREAMING and request is not RequestPhase.BUFFERING:
            return
        flow = self.flow
        self._deadline.clear()
        flow.request.data.timestamp_end = time.time()
        self._request = RequestPhase.COMPLETE
        if request is RequestPhase.STREAMING:
            self._hook(HttpRequestHook(flow), self._streamed)
        else:
            flow.request.data.content = b"".join(self._request_body)
            self._request_body.clear()
            self._hook(HttpRequestHook(flow), self._buffered)

    def _streamed(self) -> None:
        if self._killed():
            return
        if self._upstream is not None:
            self._upstream.end_body()
        if self._response is ResponsePhase.WAITING:
            self._await_response()
        elif self._response is ResponsePhase.STREAMING:
            self._deadline.set(self._quiet)

    def _buffered(self) -> None:
        if self._killed():
            return
        if self.flow.response is not None:
            self._answer()
        elif self._gone:
            self._abort(Reason.CLIENT_CLOSED)
        else:
            self._connect(self._forward)

    def _forward(self, upstream: LaneUpstream) -> None:
        """Send a whole request."""
        self._await_response()
        self._send_request(upstream, self.flow.request.data.content or b"")

    def _send_request(self, upstream: LaneUpstream, content: bytes | None) -> None:
        """Send the request that Rewrite made, whatever the flow says by now. content: None: the body follows."""
        exchange = self.exchange
        made = None if exchange is None else exchange.forward
        if exchange is None or made is None:
            raise ValueError("nothing to forward")
        method = made.method.encode("latin-1")
        fields = made.fields
        if self._expects:
            fields = tuple(field for field in fields if field[0].lower() != b"expect")
        if self._moved and exchange.endpoint is not None:
            fields = _with_host(fields, exchange.endpoint)
        length = self._length if content is None else len(content)
        fields = end_to_end(fields)
        if length is None:
            fields += ((b"Transfer-Encoding", b"chunked"),)
        elif length or method in _WITH_CONTENT:
            fields += ((b"Content-Length", b"%d" % length),)
        raw = request_head(method, made.target.encode("latin-1"), fields)
        if raw is None:
            self._leave_upstream()
            self._fail(Reason.REWRITE_REFUSED, "The request can't be written safely.")
            return
        upstream.send(self, method, raw, content, chunked=length is None)

    def _await_response(self) -> None:
        self._sent = self._ways.loop.time()
        route = None if self.exchange is None else self.exchange.route
        self._deadline.set(self._bounds.body_timeout if route is None else route.upstream.response_timeout)

    def body_refused(self, refusal: Refusal) -> None:
        """Take what is wrong with the request's body."""
        if self._waiting:
            self._later(lambda: self.body_refused(refusal))
        elif not self._over:
            self._fail(refusal.reason, refusal.detail)

    def client_gone(self) -> None:
        """Take the end of the client's connection."""
        self._gone = True
        if not self._waiting and not self._over:
            self._abort(Reason.CLIENT_CLOSED)

    # Reaching an upstream.

    def _connect(self, then: Callable[[LaneUpstream], None]) -> None:
        """Reach the chosen endpoint, or the next one; nothing was sent yet, so that any request may be tried again."""
        exchange = self.exchange
        if exchange is None or exchange.endpoint is None or exchange.route is None:
            self._fail(Reason.STAGE_ERROR)
            return
        upstream = exchange.route.upstream
        if not self._replayed:
            idempotent = self.flow.request.data.method in IDEMPOTENT
            connection = self._ways.pool.take(exchange.endpoint, upstream.tls, idempotent=idempotent)
            if connection is not None:
                self._reached(connection, then)
                return
        self._wait(self._dial(exchange, then))

    async def _dial(self, exchange: Exchange, then: Callable[[LaneUpstream], None]) -> Callable[[], None]:
        """Open a connection. Returns what is to be done with it."""
        if exchange.endpoint is None or exchange.route is None:
            return lambda: self._fail(Reason.STAGE_ERROR)
        upstream = exchange.route.upstream
        try:
            connection = await self._ways.pool.open(
                exchange.endpoint, upstream.tls, upstream.connect_timeout, self._client.connection
            )
        except Unreachable as error:
            reason = error.reason
            return lambda: self._not_reached(reason, then)
        return lambda: self._reached(connection, then)

    def _reached(self, connection: LaneUpstream, then: Callable[[LaneUpstream], None]) -> None:
        if self._gone or self._over:
            connection.abandon()
            if not self._over:
                self._abort(Reason.CLIENT_CLOSED)
            return
        self._upstream = connection
        self.flow.server_conn = connection.server
        then(connection)

    def _not_reached(self, reason: Reason, then: Callable[[LaneUpstream], None]) -> None:
        if self._over:
            return
        if self._gone:
            self._abort(Reason.CLIENT_CLOSED)
        elif self._next_endpoint():
            self._connect(then)
        else:
            self._fail(reason)

    def _next_endpoint(self) -> bool:
        """Point the request at another endpoint, where the policy still allows one."""
        exchange = self.exchange
        if exchange is None or self._retries <= 0:
            return False
        self._retries -= 1
        endpoint = self._ways.fail_over(exchange)
        if endpoint is None:
            return False
        exchange.endpoint = endpoint
        point_at(self.flow, endpoint)
        if exchange.route is not None and exchange.route.upstream.host == "upstream":
            self._moved = True
            self.flow.request.headers["host"] = endpoint.url.partition("://")[2]
        return True

    # The response.

    def response_head(self, head: ResponseHead) -> None:
        """Take the head of the response."""
        if self._waiting:
            self._hold_upstream(lambda: self.response_head(head))
            return
        if self._response is not ResponsePhase.WAITING or self._request is RequestPhase.DROPPED:
            return
        flow, exchange = self.flow, self.exchange
        received = head.headers.fields
        fields = end_to_end(received)
        if fields is not received and head.status != 204 and _LENGTH in head.headers:
            fields += tuple(field for field in received if field[0].lower() == _LENGTH)
        flow.response = response = Response(
            b"HTTP/1.1", head.status, PHRASES.get(head.status, b""), Headers(fields), None, None, time.time(), None
        )
        if exchange is not None and self._sent:
            exchange.upstream_seconds = self._ways.loop.time() - self._sent
        length = head.body
        self._response_length = length = None if length is None or length < 0 else length
        mode = "auto" if exchange is None or exchange.route is None else exchange.route.stream
        kind = head.headers.one(b"content-type")
        quiet = kind is not None and kind[:17].lower() == b"text/event-stream"
        response.stream = length != 0 and (
            mode == "always" or (mode == "auto" and (length is None or length > LARGE or quiet))
        )
        self._quiet = QUIET_SECONDS if quiet else self._bounds.idle_timeout
        if response.stream and self._request is RequestPhase.COMPLETE:
            self._deadline.set(self._quiet)
        self._hook(HttpResponseHeadersHook(flow), self._response_decided)

    def _response_decided(self) -> None:
        if self._killed():
            return
        response = self.flow.response
        if response is not None and response.stream:
            self._start_streaming(response)
        else:
            self._response = ResponsePhase.BUFFERING

    def _start_streaming(self, response: Response) -> None:
        response.stream = True
        self._response = ResponsePhase.STREAMING
        self._head_sent = True
        self._limit_lifetime()
        self._client.send_head(response, self._response_length, None)
        if self._client.congested:
            self.client_congested(True)

    def response_body(self, data: bytes) -> None:
        """Take a part of the response's body."""
        if self._waiting:
            self._hold_upstream(lambda: self.response_body(data))
        elif self._response is ResponsePhase.STREAMING:
            self._delivered += len(data)
            if self._request is RequestPhase.COMPLETE:
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

    def response_end(self) -> None:
        """Take the end of the response."""
        if self._waiting:
            self._hold_upstream(self.response_end)
            return
        self._upstream = None
        if self._response is ResponsePhase.STREAMING:
            self._respond(streamed=True)
        elif self._response is ResponsePhase.BUFFERING:
            if self.flow.response is not None:
                self.flow.response.data.content = b"".join(self._response_body)
                self._response_body.clear()
            self._respond(streamed=False)

    def upstream_failed(self, reason: Reason, *, untouched: bool, stale: bool) -> None:
        """Take what went wrong at the upstream; try again where nothing can have been done by it."""
        if self._waiting:
            self._later(lambda: self.upstream_failed(reason, untouched=untouched, stale=stale))
            return
        if self._over or self._request is RequestPhase.WAITING:
            return
        self._upstream = None
        if (
            untouched
            and reason is Reason.UPSTREAM_CLOSED
            and self._request is RequestPhase.COMPLETE
            and not self.flow.request.stream
            and self._response is ResponsePhase.WAITING
            and self.flow.request.data.method in IDEMPOTENT
        ):
            if stale and not self._replayed:
                self._replayed = True  # closed between two requests: the same endpoint, on a new connection
                self._connect(self._forward)
                return
            if self._next_endpoint():
                self._connect(self._forward)
                return
        self._fail(reason)

    def upstream_congested(self, congested: bool) -> None:
        """Slow the client's upload down, or let it go on."""
        self._hold_client(congested)

    def client_congested(self, congested: bool) -> None:
        """Slow the response down, or let it go on."""
        if self._upstream is not None and self._response is ResponsePhase.STREAMING:
            self._upstream.hold(congested)

    # The end.

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
            self._fail(Reason.UPSTREAM_TIMEOUT)

    @property
    def lasts(self) -> bool:
        """Whether the response is being streamed, and so outlives its decision."""
        return self._response is ResponsePhase.STREAMING

    def _outlived(self) -> None:
        try:
            self.cut(Reason.TOKEN_EXPIRED)
        except Exception:
            logger.exception("a request is broken off because of a defect")
            self.broken()

    def cut(self, reason: Reason) -> None:
        """End a streamed response: what admitted it no longer holds."""
        if self.lasts:
            self._abort(reason)

    def broken(self) -> None:
        """End because of a defect."""
        self.crashed()
        self._client.break_off()

    def crashed(self) -> None:
        """Record the end of what a defect of ours has broken; the client's connection is closed by its owner."""
        self._stop()
        self._leave_upstream()
        if self._request is RequestPhase.WAITING or self._response is ResponsePhase.DONE:
            return
        self._response = ResponsePhase.DONE
        self._request = RequestPhase.DROPPED
        self._blame(Reason.STAGE_ERROR, "The gateway failed.")
        self.flow.error = Error("The gateway failed.")
        self.flow.live = False
        self._hook(HttpErrorHook(self.flow), lambda: None)

    @property
    def _over(self) -> bool:
        return self._response is ResponsePhase.DONE or self._request is RequestPhase.DROPPED

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
        self._hook(HttpResponseHeadersHook(self.flow), lambda: self._respond(streamed=False))

    def _respond(self, *, streamed: bool) -> None:
        """Fire the response hook, and send what was not sent yet."""
        response = self.flow.response
        if response is None:
            raise ValueError("no response")
        self._stop()
        response.data.timestamp_end = time.time()
        self._count()
        self._hook(HttpResponseHook(self.flow), self._end_streamed if streamed else self._end_buffered)

    def _end_buffered(self) -> None:
        if self._killed(hook=False):
            return
        self._response = ResponsePhase.DONE
        self._head_sent = True
        response = self.flow.response
        if response is not None:
            content = response.data.content or b""
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
        self._client.finish()

    def _fail(self, reason: Reason, detail: str = "") -> None:
        """Answer with a problem while that is possible, else end visibly."""
        exchange = self.exchange
        if self._head_sent or exchange is None:
            self._abort(reason)
            return
        detail = detail or DETAILS.get(reason, "")
        self._blame(reason, detail)
        self._leave_upstream()
        self.flow.response = problem_response(exchange, reason, detail)
        self._answer()

    def _abort(self, reason: Reason) -> None:
        """End without a response, or in the middle of one, so that the client can't take it for complete."""
        self._stop()
        self._request = RequestPhase.DROPPED
        self._response = ResponsePhase.DONE
        detail = DETAILS.get(reason, reason.title)
        self._blame(reason, detail)
        self._leave_upstream()
        self._request_body.clear()
        self._response_body.clear()
        self.flow.error = Error(detail)
        self._count()
        self._hook(HttpErrorHook(self.flow), self._gone_for_good)

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
            self._hook(HttpErrorHook(self.flow), self._gone_for_good)
        else:
            self._gone_for_good()
        return True

    def _blame(self, reason: Reason, detail: str) -> None:
        if self.exchange is not None:
            self.exchange.failure = reason
            self.exchange.failure_detail = detail

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

    def _limit_lifetime(self) -> None:
        """End what lasts when the token that opened it expires."""
        exchange = self.exchange
        if exchange is not None and exchange.principal is not None:
            elapsed = time.perf_counter() - exchange.started
            left = max(0.0, exchange.principal.expires - exchange.now - elapsed)
            self._lifetime = self._ways.loop.call_later(left, self._outlived)

    # Waiting.

    def _hook(self, hook: hooks.Hook, then: Callable[[], None]) -> None:
        """Run a hook, then go on: at once, unless something in it has to wait."""
        pending = self._ways.table.start(hook)
        if pending is None:
            then()
        else:
            self._wait(_ended(pending, then))

    def _wait(self, pending: Coroutine[Any, Any, Callable[[], None]]) -> None:
        self._waiting = True
        task = self._ways.loop.create_task(pending)
        task.add_done_callback(self._go_on)

    def _go_on(self, task: "asyncio.Task[Callable[[], None]]") -> None:
        self._waiting = False
        try:
            if task.cancelled():
                self._abort(Reason.STAGE_ERROR)
                return
            task.result()()
            queue = self._queue
            while queue and not self._waiting:
                queue.popleft()()
            if self._waiting:
                return
            self._queue = None
            self._queued = 0
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
            self._client.hold_for_transit(held)


async def _ended(pending: Coroutine[Any, Any, None], then: Callable[[], None]) -> Callable[[], None]:
    await pending
    return then


_NOWHERE: Final = Server(address=None)


def _nowhere() -> Server:
    """Return the server of a flow that has none yet."""
    return _NOWHERE


def _with_host(fields: tuple[tuple[bytes, bytes], ...], endpoint: Endpoint) -> tuple[tuple[bytes, bytes], ...]:
    """Put the endpoint that was reached into Host."""
    host = endpoint.url.partition("://")[2].encode("latin-1")
    return tuple((name, host) if name.lower() == b"host" else (name, value) for name, value in fields)
