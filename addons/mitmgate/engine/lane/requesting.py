"""The request's half of a transit: decided before its body is read, and sent to an endpoint that can be reached."""

import secrets
import time
from typing import Final

from mitmproxy.connection import Client, Server
from mitmproxy.http import Headers, HTTPFlow, Request, Response
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
)

from mitmgate.core.http1 import Refusal, RequestHead
from mitmgate.core.problem import MEDIA_TYPE, problem_body
from mitmgate.core.reason import Reason
from mitmgate.core.request import Request as Ingress
from mitmgate.core.streaming import streams
from mitmgate.engine.lane.reaching import TransitReaching
from mitmgate.engine.lane.upstream import LaneUpstream
from mitmgate.engine.lane.waiting import QUEUE, RequestPhase, ResponsePhase
from mitmgate.stages.arrival import subject_of
from mitmgate.stages.enforcer import problem_response
from mitmgate.stages.exchange import Exchange, exchange_of, received, reject
from mitmgate.stages.message import make_response

_NOWHERE: Final = Server(address=None)
"""The server of a flow that has none yet."""


class TransitRequest(TransitReaching):
    """The request's half."""

    __slots__ = ()

    def begin(self, request: Request, head: RequestHead | None, refusal: Refusal | None, *, more: bool = False) -> None:
        """Have the chain decide.

        head: None where the bytes never became a request, and `refusal` says why. more: a part of the body is there, so
        that no client waits to be asked for it.
        """
        connection = self._client.client
        self.flow = flow = HTTPFlow(connection, _NOWHERE)
        flow.request = request
        flow.live = True
        if head is not None:
            received(flow, _ingress(connection, request, head))
            self._length = head.body
            self._expects = head.expects_continue
            self._asked = more
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
        made = exchange.forward
        if route is None or made is None or exchange.endpoint is None:
            self._fail(Reason.STAGE_ERROR)
            return
        self._made = made
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
        passes = streams(route.stream, length) or self.flow.request.stream
        if not self._client.admits(QUEUE if passes or length is None else length):
            self._fail(Reason.MEMORY_EXHAUSTED)
            return
        self._started = self._ways.loop.time()
        self._set_body_deadline()
        if passes:
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
        if self._expects and not self._asked and not self._queue:
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
        if exchange is not None and exchange.route is not None and exchange.route.stream == "always":
            self._deadline.set(bounds.idle_timeout)
            return
        self._deadline.at(bounds.body_due(self._started, self._received, self._ways.loop.time()))

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
            self._hook(HttpRequestHook, self._streamed)
        else:
            flow.request.data.content = self._content = b"".join(self._request_body)
            self._request_body.clear()
            self._hook(HttpRequestHook, self._buffered)

    def _streamed(self) -> None:
        if self._killed():
            return
        if self._upstream is not None:
            self._upstream.end_body()
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
            self._connect(self._forward)

    def _forward(self, upstream: LaneUpstream) -> None:
        """Send a whole request."""
        self._await_response()
        self._send_request(upstream, self._content)

    def _send_request(self, upstream: LaneUpstream, content: bytes | None) -> None:
        """Send the request that was decided on, whatever the flow says by now. content: None: the body follows."""
        made = self._made
        if made is None:
            raise ValueError("nothing to forward")
        if not upstream.send(self, made, self._length, content, upgrade=self._upgrade):
            self._leave_upstream()
            self._fail(Reason.REWRITE_REFUSED, "The request can't be written safely.")

    def _await_response(self) -> None:
        self._sent = self._ways.loop.time()
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
