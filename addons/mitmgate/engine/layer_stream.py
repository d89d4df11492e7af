"""One request and its response: decided before its body is read, forwarded only when Enforcer admitted it.

    head → requestheaders (the chain decides) ─┬─ denied or answered → sent at once → done
                                               └─ admitted ─┬─ buffer the body → request hook → forward
                                                            └─ forward, stream the body → request hook
    forwarded → response head → responseheaders ─┬─ buffer → response hook → send
                                                 └─ send, stream → response hook
    any failure → problem response while no head was sent, else a visible abort and the error hook

mitmproxy's own HttpStream reads the whole body before it sends a response that an addon has set, and can't stream then.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from mitmproxy.connection import Server
from mitmproxy.flow import Error
from mitmproxy.http import Headers, HTTPFlow, Response
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import (
    HttpErrorHook,
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)
from mitmproxy.websocket import WebSocketData

from mitmgate.core.http1 import Bounds
from mitmgate.core.http1.writer import end_to_end
from mitmgate.core.problem import MEDIA_TYPE, problem_body
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.engine.layer_events import (
    BodyRefused,
    GetUpstream,
    Reached,
    RequestBegun,
    RequestForwarded,
    RequestRefused,
    ResponseBegun,
    UpstreamFailed,
)
from mitmgate.engine.layer_timers import Expired, Timer, Timers
from mitmgate.engine.layer_websocket import BoundedWebsocketLayer, accepts
from mitmgate.engine.layer_wire import Wire
from mitmgate.stages.enforcer import point_at, problem_response
from mitmgate.stages.exchange import Exchange, exchange_of, reject

LARGE: Final = 1024 * 1024
"""Bytes above which `stream: auto` streams a body of known length."""
BUFFER: Final = 8 * 1024 * 1024
"""Bytes of a response that `stream: never` holds back; beyond them it streams all the same."""
QUIET_SECONDS: Final = 600.0
"""How long an event stream may be silent."""
IDEMPOTENT: Final = frozenset(b"GET HEAD OPTIONS PUT DELETE TRACE".split())  # RFC 9110, section 9.2.2
_MALFORMED: Final = frozenset({400, 408, 414, 417, 431, 501, 505})
"""Statuses of the gateway's own after which a client is not read from again."""

_DETAILS: Final = {
    Reason.UPSTREAM_UNREACHABLE: "The service could not be reached.",
    Reason.UPSTREAM_TIMEOUT: "The service did not answer in time.",
    Reason.UPSTREAM_CLOSED: "The service closed the connection before its response was complete.",
    Reason.UPSTREAM_MALFORMED: "The service answered with something that is not a valid response.",
    Reason.BODY_TIMEOUT: "The request's body did not arrive in time.",
    Reason.CLIENT_CLOSED: "The client closed the connection.",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a stream needs beside its flow.

    fail_over: the next endpoint after one that could not be used; None where there is none.
    """

    bounds: Bounds
    timers: Timers
    wire: Wire
    fail_over: Callable[[Exchange], Endpoint | None]


class _Request(Enum):
    WAITING = auto()
    BUFFERING = auto()
    STREAMING = auto()
    COMPLETE = auto()
    DROPPED = auto()  # answered; what still comes of it is nobody's


class _Response(Enum):
    WAITING = auto()
    BUFFERING = auto()
    STREAMING = auto()
    DONE = auto()


class GatewayStream(HttpStream):
    """The stream that takes HttpStream's place."""

    def __init__(self, context: Context, stream_id: int, surroundings: Surroundings) -> None:
        """stream_id: of the connection to the client."""
        super().__init__(context, stream_id)
        self._bounds = surroundings.bounds
        self._wire = surroundings.wire
        self._fail_over = surroundings.fail_over
        self._clock = surroundings.timers.clock
        self._timer = Timer(surroundings.timers, self)
        self._lifetime = Timer(surroundings.timers, self)  # of what outlives the decision: streams and WebSockets
        self._request = _Request.WAITING
        self._response = _Response.WAITING
        self._request_body = bytearray()
        self._response_body = bytearray()
        self._exchange: Exchange | None = None
        self.upstream: Server | None = None
        self._length: int | None = 0  # of the request's body
        self._received = 0
        self._limit: int | None = None
        self._body_started = 0.0
        self._response_length: int | None = 0
        self._quiet = 0.0  # seconds that a streamed response may pause
        self._head_sent = False
        self._sent = 0.0  # when the request was complete at the upstream
        self._delivered = 0
        self._retries = 0
        self._replayed = False  # a stale connection was replaced once
        self._upgrade = False

    def __repr__(self) -> str:
        """Show the states, for mitmproxy's debug output."""
        return f"GatewayStream({self.stream_id}, {self._request.name}, {self._response.name})"

    @property
    def queued(self) -> int:
        """Bytes that arrived while the stream waited for a hook or a connection."""
        if self._paused is None:
            return 0
        return sum(len(e.data) for e in self._paused_event_queue if isinstance(e, RequestData | ResponseData))

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, RequestData | RequestEndOfMessage):
            yield from self._on_body(event)
        elif isinstance(event, ResponseData | ResponseEndOfMessage):
            yield from self._on_response_body(event)
        elif isinstance(event, ResponseHeaders):
            yield from self._on_response(event)
        elif isinstance(event, RequestHeaders):
            yield from self._on_head(event)
        elif isinstance(event, RequestProtocolError):
            yield from self._on_client_error(event)
        elif isinstance(event, ResponseProtocolError):
            yield from self._on_upstream_error(event)
        elif isinstance(event, Expired) and event.current:
            yield from self._on_expired(event.timer)

    # The request.

    def _on_head(self, event: RequestHeaders) -> CommandGenerator[None]:
        self.flow = flow = HTTPFlow(self.context.client, self.context.server)
        flow.request = event.request
        flow.live = True
        if isinstance(event, RequestRefused):
            reject(flow, event.refusal.reason, event.refusal.detail)
        yield HttpRequestHeadersHook(flow)
        exchange = self._exchange = exchange_of(flow)
        if (yield from self._killed()):
            return
        if flow.response is not None:
            yield from self._answer()
        elif exchange is None or not exchange.admitted or not isinstance(event, RequestBegun):
            flow.response = _unadmitted(exchange)
            yield from self._answer()
        elif (gone := self._client_error_queued()) is not None:
            yield from self._on_client_error(gone)
        else:
            yield from self._admitted(event, exchange)

    def _admitted(self, event: RequestBegun, exchange: Exchange) -> CommandGenerator[None]:
        """Read the body: into memory where it is small, else on its way to the upstream."""
        flow, route = self.flow, exchange.route
        self._length = event.length
        enforced = exchange.snapshot.mode == "enforce" and (route is None or route.mode == "enforce")
        if enforced and exchange.max_body:
            self._limit = exchange.max_body
            if event.length is not None and event.length > self._limit:
                yield from self._fail(Reason.BODY_TOO_LARGE, f"The body is larger than {self._limit} bytes.")
                return
        self._retries = 0 if route is None else route.upstream.retries
        self._upgrade = exchange.head is not None and exchange.head.upgrade == "websocket"
        if self._upgrade and (route is None or not route.websocket):
            yield from self._fail(Reason.UPGRADE_REFUSED)
            return
        flow.request.headers.pop("expect", None)
        if event.end_stream:
            self._request = _Request.BUFFERING
            return
        if event.expects_continue and not self._paused_event_queue:
            continue_response = Response.make(100)
            yield SendHttp(ResponseHeaders(self.stream_id, continue_response), self.context.client)
        self._body_started = self._clock()
        self._set_body_deadline()
        mode = "auto" if route is None else route.stream
        large = event.length is None or event.length > LARGE
        if mode == "always" or (mode == "auto" and large) or flow.request.stream:
            flow.request.stream = True
            if (yield from self._connect()):
                self._request = _Request.STREAMING
                yield SendHttp(RequestForwarded(self.stream_id, flow.request, self._length, None), self.context.server)
        else:
            self._request = _Request.BUFFERING

    def _on_body(self, event: RequestData | RequestEndOfMessage) -> CommandGenerator[None]:
        if self._request in {_Request.DROPPED, _Request.WAITING, _Request.COMPLETE}:
            return
        if isinstance(event, RequestEndOfMessage):
            yield from self._on_body_end()
            return
        self._received += len(event.data)
        if self._limit is not None and self._received > self._limit:
            yield from self._fail(Reason.BODY_TOO_LARGE, f"The body is larger than {self._limit} bytes.")
            return
        self._set_body_deadline()
        if self._request is _Request.STREAMING:
            yield SendHttp(event, self.context.server)
        else:
            self._request_body += event.data

    def _set_body_deadline(self) -> None:
        """Give the body a pause's length and, unless the route always streams, no more than its bytes have earned."""
        exchange = self._exchange
        if exchange is not None and exchange.route is not None and exchange.route.stream == "always":
            self._timer.set(self._bounds.idle_timeout)
            return
        earned = self._bounds.body_timeout + self._received / self._bounds.body_rate
        self._timer.at(min(self._body_started + earned, self._clock() + self._bounds.body_timeout))

    def _on_body_end(self) -> CommandGenerator[None]:
        flow = self.flow
        self._timer.clear()
        streaming = self._request is _Request.STREAMING
        if not streaming:
            flow.request.data.content = bytes(self._request_body)
            self._request_body.clear()
        flow.request.timestamp_end = time.time()
        self._request = _Request.COMPLETE
        yield HttpRequestHook(flow)
        if (yield from self._killed()):
            return
        if streaming:
            yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)
            if self._response is _Response.WAITING:
                self._await_response()
        elif flow.response is not None:
            yield from self._answer()
        elif (gone := self._client_error_queued()) is not None:
            yield from self._on_client_error(gone)
        else:
            yield from self._forward()

    def _forward(self) -> CommandGenerator[None]:
        """Send a whole request."""
        if (yield from self._connect()):
            content = self.flow.request.raw_content or b""
            self._await_response()
            yield SendHttp(
                RequestForwarded(self.stream_id, self.flow.request, len(content), content), self.context.server
            )

    def _await_response(self) -> None:
        self._sent = self._clock()
        route = None if self._exchange is None else self._exchange.route
        self._timer.set(self._bounds.body_timeout if route is None else route.upstream.response_timeout)

    def _connect(self) -> CommandGenerator[bool]:
        """Reach the chosen endpoint, or the next one; nothing was sent yet, so that any request may be tried again."""
        exchange = self._exchange
        if exchange is None or exchange.endpoint is None or exchange.route is None:
            yield from self._fail(Reason.STAGE_ERROR, "")
            return False
        upstream = exchange.route.upstream
        while True:
            reached: Reached = yield GetUpstream(
                exchange.endpoint,
                upstream.tls,
                upstream.connect_timeout,
                fresh=self._replayed,
                idempotent=self.flow.request.data.method in IDEMPOTENT,
            )
            if self._request is _Request.DROPPED:
                return False
            if reached.connection is not None:
                self.upstream = self.context.server = self.flow.server_conn = reached.connection
                return True
            gone = self._client_error_queued()
            if gone is not None:
                yield from self._on_client_error(gone)
                return False
            if not self._next_endpoint():
                yield from self._fail(reached.failure or Reason.UPSTREAM_UNREACHABLE)
                return False

    def _next_endpoint(self) -> bool:
        """Point the request at another endpoint, where the policy still allows one."""
        exchange = self._exchange
        if exchange is None or self._retries <= 0:
            return False
        self._retries -= 1
        endpoint = self._fail_over(exchange)
        if endpoint is None:
            return False
        exchange.endpoint = endpoint
        point_at(self.flow, endpoint)
        if exchange.route is not None and exchange.route.upstream.host == "upstream":
            self.flow.request.headers["host"] = endpoint.url.partition("://")[2]
        return True

    # The response.

    def _on_response(self, event: ResponseHeaders) -> CommandGenerator[None]:
        if self._response is not _Response.WAITING or self._request is _Request.DROPPED:
            return
        flow, response = self.flow, event.response
        if response.status_code == 101:
            if not self._upgrade or not accepts(flow.request, response):
                yield from self._fail(Reason.UPSTREAM_MALFORMED)
                return
        else:
            response.headers = Headers(_received(response.headers.fields, response.status_code))
        flow.response = response
        if self._exchange is not None and self._sent:
            self._exchange.upstream_seconds = self._clock() - self._sent
        self._response_length = event.length if isinstance(event, ResponseBegun) else None
        mode = "auto" if self._exchange is None or self._exchange.route is None else self._exchange.route.stream
        length = self._response_length
        quiet = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        large = length is None or length > LARGE or quiet
        response.stream = length != 0 and (mode == "always" or (mode == "auto" and large))
        self._quiet = QUIET_SECONDS if quiet else self._bounds.idle_timeout
        if response.stream and self._request is _Request.COMPLETE:
            self._timer.set(self._quiet)
        yield HttpResponseHeadersHook(flow)
        if (yield from self._killed()):
            return
        if flow.response.stream and response.status_code != 101:
            yield from self._start_streaming()
        else:
            self._response = _Response.BUFFERING

    def _start_streaming(self) -> CommandGenerator[None]:
        response = self.flow.response
        if response is not None:
            response.stream = True
            self._response = _Response.STREAMING
            self._head_sent = True
            self._limit_lifetime()
            yield SendHttp(ResponseBegun(self.stream_id, response, self._response_length), self.context.client)

    def _limit_lifetime(self) -> None:
        """End what lasts when the token that opened it expires."""
        exchange = self._exchange
        if exchange is not None and exchange.principal is not None:
            elapsed = time.perf_counter() - exchange.started
            self._lifetime.set(max(0.0, exchange.principal.expires - exchange.now - elapsed))

    def _on_response_body(self, event: ResponseData | ResponseEndOfMessage) -> CommandGenerator[None]:
        if isinstance(event, ResponseData):
            if self._response is _Response.STREAMING:
                self._delivered += len(event.data)
                if self._request is _Request.COMPLETE:
                    self._timer.set(self._quiet)
                yield SendHttp(event, self.context.client)
            elif self._response is _Response.BUFFERING:
                self._response_body += event.data
                if len(self._response_body) > BUFFER:
                    held = bytes(self._response_body)
                    self._response_body.clear()
                    self._delivered += len(held)
                    yield from self._start_streaming()
                    yield SendHttp(ResponseData(self.stream_id, held), self.context.client)
        elif self._response is _Response.STREAMING:
            yield from self._respond(streamed=True)
        elif self._response is _Response.BUFFERING:
            if self.flow.response is not None:
                self.flow.response.data.content = bytes(self._response_body)
                self._response_body.clear()
            yield from self._respond(streamed=False)

    def _answer(self) -> CommandGenerator[None]:
        """Send a response that the gateway made, at once: what is still to come of the request is not waited for."""
        self._timer.clear()
        self._request = _Request.DROPPED
        self._request_body.clear()
        self._response_body.clear()
        response = self.flow.response
        if response is None:
            return
        response.stream = False
        self._response = _Response.BUFFERING
        yield HttpResponseHeadersHook(self.flow)
        yield from self._respond(streamed=False)

    def _respond(self, *, streamed: bool) -> CommandGenerator[None]:
        """Fire the response hook, and send what was not sent yet."""
        flow, response = self.flow, self.flow.response
        if response is None:
            return
        self._timer.clear()
        self._lifetime.clear()
        response.timestamp_end = time.time()
        self._count()
        switching = response.status_code == 101 and self._request is not _Request.DROPPED
        if switching:
            flow.websocket = WebSocketData()  # before the hook: addons see what follows
        yield HttpResponseHook(flow)
        if (yield from self._killed(hook=False)):
            return
        self._response = _Response.DONE
        client = self.context.client
        if not streamed:
            self._head_sent = True
            content = flow.response.raw_content if flow.response is not None else None
            length = len(content or b"")
            close = self._request is _Request.DROPPED and response.status_code in _MALFORMED
            yield SendHttp(ResponseBegun(self.stream_id, flow.response or response, length, close=close), client)
            if content:
                yield SendHttp(ResponseData(self.stream_id, content), client)
        if switching:
            self._limit_lifetime()
            self.child_layer = BoundedWebsocketLayer(self.context, flow)
            self._handle_event = self.passthrough  # type: ignore[method-assign]  # as HttpStream.flow_done does
            yield from self.child_layer.handle_event(events.Start())
            yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
            return
        flow.live = False
        yield from self._leave_upstream(self._request is _Request.COMPLETE)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)

    def _count(self) -> None:
        """Say how much of streamed bodies went through, for those that record it."""
        if self._exchange is None:
            return
        if self.flow.request.stream:
            self._exchange.body_in = self._received
        if self.flow.response is not None and self.flow.response.stream:
            self._exchange.body_out = self._delivered

    # Failures.

    def _on_client_error(self, event: RequestProtocolError) -> CommandGenerator[None]:
        if self._response is _Response.DONE or self._request is _Request.DROPPED:
            return
        if isinstance(event, BodyRefused):
            yield from self._fail(event.refusal.reason, event.refusal.detail)
        else:
            yield from self._abort(Reason.CLIENT_CLOSED, ErrorCode.CLIENT_DISCONNECTED)

    def _on_upstream_error(self, event: ResponseProtocolError) -> CommandGenerator[None]:
        if self._response is _Response.DONE or self._request in {_Request.DROPPED, _Request.WAITING}:
            return
        self.upstream = None
        if self.context.client.timestamp_end is not None:  # mitmproxy closes upstreams with the client
            yield from self._abort(Reason.CLIENT_CLOSED, ErrorCode.CLIENT_DISCONNECTED)
            return
        failed = event if isinstance(event, UpstreamFailed) else None
        whole = self._request is _Request.COMPLETE and not self.flow.request.stream
        if (
            failed is not None
            and failed.untouched
            and failed.reason is Reason.UPSTREAM_CLOSED
            and whole
            and self._response is _Response.WAITING
            and self.flow.request.data.method in IDEMPOTENT
        ):
            if failed.stale and not self._replayed:
                self._replayed = True  # closed between two requests: the same endpoint, on a new connection
                yield from self._forward()
                return
            if self._next_endpoint():
                yield from self._forward()
                return
        yield from self._fail(failed.reason if failed is not None else Reason.UPSTREAM_CLOSED)

    def _on_expired(self, timer: Timer) -> CommandGenerator[None]:
        if self._response is _Response.DONE or self._request is _Request.DROPPED:
            return
        if timer is self._lifetime:
            yield from self._abort(Reason.TOKEN_EXPIRED, ErrorCode.KILL)
            return
        stuck = self.upstream is not None and self._wire.congested(self.upstream)
        if self._request is not _Request.COMPLETE and not stuck:
            yield from self._fail(Reason.BODY_TIMEOUT)
        elif self._response is _Response.STREAMING and self._wire.congested(self.context.client):
            yield from self._abort(Reason.CLIENT_CLOSED, ErrorCode.CLIENT_DISCONNECTED)
        else:
            yield from self._fail(Reason.UPSTREAM_TIMEOUT)

    def _fail(self, reason: Reason, detail: str = "") -> CommandGenerator[None]:
        """Answer with a problem while that is possible, else end visibly."""
        exchange = self._exchange
        if self._head_sent or exchange is None:
            yield from self._abort(reason, ErrorCode.KILL)
            return
        detail = detail or _DETAILS.get(reason, "")
        exchange.failure = reason
        exchange.failure_detail = detail
        yield from self._leave_upstream(complete=False)
        self.flow.response = problem_response(exchange, reason, detail)
        yield from self._answer()

    def _abort(self, reason: Reason, code: ErrorCode) -> CommandGenerator[None]:
        """End without a response, or in the middle of one, so that the client can't take it for complete."""
        self._timer.clear()
        self._lifetime.clear()
        self._request = _Request.DROPPED
        self._response = _Response.DONE
        detail = _DETAILS.get(reason, reason.title)
        if self._exchange is not None:
            self._exchange.failure = reason
            self._exchange.failure_detail = detail
        yield from self._leave_upstream(complete=False)
        self._request_body.clear()
        self._response_body.clear()
        self.flow.error = Error(detail)
        self._count()
        yield HttpErrorHook(self.flow)
        yield from self._gone(code)

    def _gone(self, code: ErrorCode) -> CommandGenerator[None]:
        self.flow.live = False
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseProtocolError(self.stream_id, "aborted", code), self.context.client)

    def _killed(self, *, hook: bool = True) -> CommandGenerator[bool]:
        """End where an addon, or somebody in mitmweb, killed the flow."""
        error = self.flow.error
        if error is None or error.msg != Error.KILLED_MESSAGE:
            return False
        self._timer.clear()
        self._lifetime.clear()
        self._request = _Request.DROPPED
        self._response = _Response.DONE
        yield from self._leave_upstream(complete=False)
        if hook:
            yield HttpErrorHook(self.flow)
        yield from self._gone(ErrorCode.KILL)
        return True

    def _leave_upstream(self, complete: bool) -> CommandGenerator[None]:
        """Let go of the upstream connection; one that has an unfinished exchange on it is closed, never used again."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None and not complete:
            yield SendHttp(RequestProtocolError(self.stream_id, "aborted", ErrorCode.CANCEL), upstream)

    def _client_error_queued(self) -> RequestProtocolError | None:
        """Find what the client did while this stream waited for a hook."""
        return next((e for e in self._paused_event_queue if isinstance(e, RequestProtocolError)), None)


def _received(fields: tuple[tuple[bytes, bytes], ...], status: int) -> tuple[tuple[bytes, bytes], ...]:
    """Take hop-by-hop fields out of an upstream's response; Content-Length stays, as a statement about the content."""
    kept = end_to_end(fields)
    if kept is fields or status == 204:
        return kept
    return kept + tuple(field for field in fields if field[0].lower() == b"content-length")


def _unadmitted(exchange: Exchange | None) -> Response:
    """Answer where nobody admitted and nobody denied: the chain is broken, and broken means closed."""
    detail = "The gateway could not decide on this request."
    if exchange is not None:
        exchange.failure = Reason.STAGE_ERROR
        exchange.failure_detail = detail
        return problem_response(exchange, Reason.STAGE_ERROR, detail)
    body = problem_body(Reason.STAGE_ERROR, detail, secrets.token_hex(16))
    fields = Headers(((b"Content-Type", MEDIA_TYPE), (b"Cache-Control", b"no-store")))
    return Response.make(Reason.STAGE_ERROR.status, body, fields)
