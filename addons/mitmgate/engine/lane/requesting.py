"""The request's half of a transit: decided before its body is read, and sent to an endpoint that can be reached."""

import time
from collections.abc import Callable
from typing import Final

from mitmproxy.connection import Server
from mitmproxy.http import HTTPFlow, Request
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
)

from mitmgate.core.http1 import Refusal, RequestHead, request_head
from mitmgate.core.http1.writer import end_to_end
from mitmgate.core.reason import Reason
from mitmgate.core.request import Request as Ingress
from mitmgate.core.rules import Endpoint
from mitmgate.engine.lane.ending import TransitEnding
from mitmgate.engine.lane.pool import Unreachable
from mitmgate.engine.lane.upstream import LaneUpstream
from mitmgate.engine.layer_stream_ending import RequestPhase, ResponsePhase
from mitmgate.engine.layer_stream_request import IDEMPOTENT, LARGE, unadmitted
from mitmgate.stages.enforcer import point_at
from mitmgate.stages.exchange import Exchange, exchange_of, received, reject

QUEUE: Final = 64 * 1024
"""Bytes of a request's body that may wait while the transit waits; then the client is not read."""
_WITH_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})
_NOWHERE: Final = Server(address=None)
"""The server of a flow that has none yet."""


class TransitRequest(TransitEnding):
    """The request's half."""

    __slots__ = ()

    def begin(self, request: Request, head: RequestHead | None, refusal: Refusal | None, *, more: bool = False) -> None:
        """Have the chain decide.

        head: None where the bytes never became a request, and `refusal` says why. more: a part of the body is there, so
        that no client waits to be asked for it.
        """
        connection = self._client.connection
        self.flow = flow = HTTPFlow(connection, _NOWHERE)
        flow.request = request
        flow.live = True
        if head is not None:
            received(flow, _ingress(connection.peername[0], request, head))
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
        if route is None or exchange.forward is None or exchange.endpoint is None:
            self._fail(Reason.STAGE_ERROR)
            return
        self._retries = route.upstream.retries
        if self._expects:
            self.flow.request.headers.pop("expect", None)  # the gateway itself answers it
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
        if self._expects and not self._asked and not self._queue:
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
            connection = self._ways.pool.take(exchange.endpoint, upstream.tls, idempotent=self._idempotent)
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

    @property
    def _idempotent(self) -> bool:
        """Whether the request may be sent twice (RFC 9110, section 9.2.2)."""
        made = None if self.exchange is None else self.exchange.forward
        return made is not None and made.method in IDEMPOTENT

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


def _ingress(peer: str, request: Request, head: RequestHead) -> Ingress:
    """Take the request as it arrived, as `stages.arrival.ingress` does, without parsing its fields again."""
    data = request.data
    return Ingress(
        method=data.method.decode("latin-1"),
        target=data.path.decode("latin-1"),
        version=head.version,
        headers=head.headers,
        scheme="http",
        authority=data.authority.decode("latin-1"),
        peer=peer,
        declared_body=head.body,
    )


def _with_host(fields: tuple[tuple[bytes, bytes], ...], endpoint: Endpoint) -> tuple[tuple[bytes, bytes], ...]:
    """Put the endpoint that was reached into Host."""
    host = endpoint.url.partition("://")[2].encode("latin-1")
    return tuple((name, host) if name.lower() == b"host" else (name, value) for name, value in fields)
