"""The request's half of a stream: decided before its body is read, and sent to an endpoint that can be reached."""

import secrets
import time
from typing import Final

from mitmproxy.http import Headers, HTTPFlow, Response
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    RequestHeaders,
    RequestProtocolError,
    ResponseHeaders,
)
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook, HttpRequestHook

from mitmgate.core.problem import MEDIA_TYPE, problem_body
from mitmgate.core.reason import Reason
from mitmgate.core.streaming import streams
from mitmgate.engine.layer_events import (
    BodyRefused,
    GetUpstream,
    Reached,
    RequestBegun,
    RequestForwarded,
    RequestRefused,
)
from mitmgate.engine.layer_stream_ending import RequestPhase, ResponsePhase, StreamEnding
from mitmgate.stages.enforcer import point_at, problem_response
from mitmgate.stages.exchange import Exchange, exchange_of, reject
from mitmgate.stages.message import make_response

IDEMPOTENT: Final = frozenset(["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])  # RFC 9110, section 9.2.2


class StreamRequest(StreamEnding):
    """The request's half."""

    def _on_head(self, event: RequestHeaders) -> CommandGenerator[None]:
        self.flow = flow = HTTPFlow(self.context.client, self.context.server)
        flow.request = event.request
        flow.live = True
        if isinstance(event, RequestRefused):
            reject(flow, event.refusal.reason, event.refusal.detail)
        yield HttpRequestHeadersHook(flow)
        exchange = self.exchange = exchange_of(flow)
        if (yield from self._killed()):
            return
        if flow.response is not None:
            yield from self._answer()
        elif exchange is None or not exchange.admitted or not isinstance(event, RequestBegun):
            flow.response = unadmitted(exchange)
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
        if exchange.forward is None:
            yield from self._fail(Reason.STAGE_ERROR)
            return
        self._decided = exchange.forward
        if event.end_stream:
            self._request = RequestPhase.BUFFERING
            return
        self._body_started = self._clock()
        self._set_body_deadline()
        mode = "auto" if route is None else route.stream
        if streams(mode, event.length) or flow.request.stream:
            flow.request.stream = self._streamed = True
            if (yield from self._connect()):
                self._request = RequestPhase.STREAMING
                yield from self._ask_for_body(event)
                yield SendHttp(RequestForwarded(self.stream_id, self._decided, self._length, None), self.context.server)
        else:
            self._request = RequestPhase.BUFFERING
            yield from self._ask_for_body(event)

    def _ask_for_body(self, event: RequestBegun) -> CommandGenerator[None]:
        """Send the 100 that an admitted client waits for, unless the body is there (RFC 9110, section 10.1.1)."""
        if event.expects_continue and not self._paused_event_queue:
            yield SendHttp(ResponseHeaders(self.stream_id, make_response(100, Headers(), None)), self.context.client)

    def _on_body(self, event: RequestData | RequestEndOfMessage) -> CommandGenerator[None]:
        if self._request in {RequestPhase.DROPPED, RequestPhase.WAITING, RequestPhase.COMPLETE}:
            return
        if isinstance(event, RequestEndOfMessage):
            yield from self._on_body_end()
            return
        self._received += len(event.data)
        if self._limit is not None and self._received > self._limit:
            yield from self._fail(Reason.BODY_TOO_LARGE, f"The body is larger than {self._limit} bytes.")
            return
        self._set_body_deadline()
        if self._request is RequestPhase.STREAMING:
            yield SendHttp(event, self.context.server)
        else:
            self._request_body += event.data

    def _set_body_deadline(self) -> None:
        """Give the body a pause's length and, unless the route always streams, no more than its bytes have earned."""
        exchange = self.exchange
        if exchange is not None and exchange.route is not None and exchange.route.stream == "always":
            self._timer.set(self._bounds.idle_timeout)
            return
        self._timer.at(self._bounds.body_due(self._body_started, self._received, self._clock()))

    def _on_body_end(self) -> CommandGenerator[None]:
        flow = self.flow
        self._timer.clear()
        streaming = self._request is RequestPhase.STREAMING
        if not streaming:
            self._content = flow.request.data.content = bytes(self._request_body)
            self._request_body.clear()
        flow.request.timestamp_end = time.time()
        self._request = RequestPhase.COMPLETE
        yield HttpRequestHook(flow)
        if (yield from self._killed()):
            return
        if streaming:
            yield SendHttp(RequestEndOfMessage(self.stream_id), self.context.server)
            if self._response is ResponsePhase.WAITING:
                self._await_response()
            elif self._response is ResponsePhase.STREAMING:
                self._timer.set(self._quiet)
        elif flow.response is not None:
            yield from self._answer()
        elif (gone := self._client_error_queued()) is not None:
            yield from self._on_client_error(gone)
        else:
            yield from self._forward()

    def _forward(self) -> CommandGenerator[None]:
        """Send a whole request."""
        if (yield from self._connect()) and self._decided is not None:
            content = self._content
            self._await_response()
            yield SendHttp(RequestForwarded(self.stream_id, self._decided, len(content), content), self.context.server)

    @property
    def _idempotent(self) -> bool:
        return self._decided is not None and self._decided.method in IDEMPOTENT

    def _await_response(self) -> None:
        self._sent = self._clock()
        route = None if self.exchange is None else self.exchange.route
        self._timer.set(self._bounds.body_timeout if route is None else route.upstream.response_timeout)

    def _connect(self) -> CommandGenerator[bool]:
        """Reach the chosen endpoint, or the next one; nothing was sent yet, so that any request may be tried again."""
        exchange = self.exchange
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
                idempotent=self._idempotent,
            )
            if self._request is RequestPhase.DROPPED:
                return False
            if reached.connection is not None:
                self.upstream = self.context.server = self.flow.server_conn = reached.connection
                return True
            gone = self._client_error_queued()
            if gone is not None:
                yield from self._on_client_error(gone)
                return False
            failure = reached.failure or Reason.UPSTREAM_UNREACHABLE
            if failure is Reason.CLIENT_CLOSED:
                yield from self._abort(failure, ErrorCode.CLIENT_DISCONNECTED)
                return False
            if failure is Reason.DESCRIPTORS_EXHAUSTED or not self._next_endpoint(failure):
                yield from self._fail(failure)
                return False

    def _next_endpoint(self, reason: Reason) -> bool:
        """Point the request at another endpoint, where the policy still allows one. reason: why this one failed."""
        exchange = self.exchange
        if exchange is None or self._retries <= 0:
            return False
        self._retries -= 1
        endpoint = self._fail_over(exchange, reason)
        if endpoint is None:
            return False
        exchange.endpoint = endpoint
        point_at(self.flow, endpoint)
        if exchange.route is not None and exchange.route.upstream.host == "upstream":
            self._name_host(endpoint.url.partition("://")[2])
        return True

    def _name_host(self, host: str) -> None:
        """Put another Host into the request, for an upstream whose endpoints have names of their own."""
        if self._decided is not None:
            self._decided = self._decided.to_host(host)
            self.flow.request.headers["host"] = host

    def _on_client_error(self, event: RequestProtocolError) -> CommandGenerator[None]:
        if self._response is ResponsePhase.DONE or self._request is RequestPhase.DROPPED:
            return
        if isinstance(event, BodyRefused):
            yield from self._fail(event.refusal.reason, event.refusal.detail)
        else:
            yield from self._abort(Reason.CLIENT_CLOSED, ErrorCode.CLIENT_DISCONNECTED)


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
