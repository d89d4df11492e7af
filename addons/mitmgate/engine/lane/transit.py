"""One request and its response: decided before its body is read, forwarded only when Enforcer admitted it.

    begin → requestheaders (the chain decides) ─┬─ denied or answered → sent at once → done
                                                └─ admitted ─┬─ buffer the body → request hook → forward
                                                             └─ forward, stream the body → request hook
    forwarded → response head → responseheaders ─┬─ buffer → response hook → send
                                                 └─ send, stream → response hook
    any failure → problem response while no head was sent, else a visible abort and the error hook

The same states as engine/layer_stream.py, in callbacks. The request's half is in requesting.py, the end in ending.py.
"""

import logging

from mitmproxy.http import Response
from mitmproxy.proxy.layers.http._hooks import (
    HttpResponseHeadersHook,
)

from mitmgate.core.http1 import ResponseHead
from mitmgate.core.http1.framing import received_fields
from mitmgate.core.reason import Reason
from mitmgate.core.streaming import is_event_stream, streams
from mitmgate.engine.lane.requesting import TransitRequest
from mitmgate.engine.layer_stream import BUFFER, QUIET_SECONDS
from mitmgate.engine.layer_stream_ending import RequestPhase, ResponsePhase
from mitmgate.stages.exchange import seconds_left
from mitmgate.stages.message import headers_of, make_response

logger = logging.getLogger(__name__)


class Transit(TransitRequest):
    """One request on its way through the gateway: the response's half, and what both halves may meet."""

    __slots__ = ()

    def response_head(self, head: ResponseHead) -> None:
        """Take the head of the response."""
        if self._waiting:
            self._hold_upstream(lambda: self.response_head(head))
            return
        if self._response is not ResponsePhase.WAITING or self._request is RequestPhase.DROPPED:
            return
        flow, exchange = self.flow, self.exchange
        fields = received_fields(head.status, head.headers.fields)
        flow.response = response = make_response(head.status, headers_of(fields), None, complete=False)
        if exchange is not None and self._sent:
            exchange.upstream_seconds = self._ways.loop.time() - self._sent
        length = head.body
        self._response_length = length = None if length is None or length < 0 else length
        mode = "auto" if exchange is None or exchange.route is None else exchange.route.stream
        quiet = is_event_stream(head.headers.one(b"content-type"))
        response.stream = streams(mode, length, events=quiet)
        self._quiet = QUIET_SECONDS if quiet else self._bounds.idle_timeout
        if response.stream and self._request is RequestPhase.COMPLETE:
            self._deadline.set(self._quiet)
        self._hook(HttpResponseHeadersHook, self._response_decided)

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
            and self._idempotent
        ):
            if stale and not self._replayed:
                self._replayed = True  # closed between two requests: the same endpoint, on a new connection
                self._connect(self._forward)
                return
            if self._next_endpoint(reason):
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

    def _limit_lifetime(self) -> None:
        """End what lasts when the token that opened it expires."""
        left = None if self.exchange is None else seconds_left(self.exchange)
        if left is not None:
            self._lifetime = self._ways.loop.call_later(left, self._outlived)

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

    def stop(self, reason: Reason) -> None:
        """End the exchange, because the gateway ends: with a problem while that can still be said."""
        if self._waiting:
            self._blame(reason, "")
        elif not self._over:
            self._fail(reason)
