"""One request and its response: decided before its body is read, forwarded only when Enforcer admitted it.

    begin → requestheaders (the chain decides) ─┬─ denied or answered → sent at once → done
                                                └─ admitted ─┬─ buffer the body → request hook → forward
                                                             └─ forward, stream the body → request hook
    forwarded → response head → responseheaders ─┬─ buffer → response hook → send
                                                 └─ send, stream → response hook
    any failure → problem response while no head was sent, else a visible abort and the error hook

The request's half is in requesting.py, the end in ending.py.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from mitmproxy.http import Response
from mitmproxy.proxy.layers.http._hooks import HttpResponseHeadersHook, HttpResponseHook
from mitmproxy.proxy.layers.websocket import WebsocketEndHook
from mitmproxy.websocket import WebSocketData
from wsproto.frame_protocol import CloseReason

from mitmgate.core.http1 import ResponseHead
from mitmgate.core.http1.framing import received_fields
from mitmgate.core.reason import Reason
from mitmgate.core.streaming import is_event_stream, streams
from mitmgate.engine.lane.requesting import TransitRequest
from mitmgate.engine.lane.upstream import Phase
from mitmgate.engine.lane.waiting import DETAILS, RequestPhase, ResponsePhase
from mitmgate.engine.memory import PAGE
from mitmgate.proxy.websocket import Relay, accepts
from mitmgate.stages.exchange import WebSocketEnd, seconds_left
from mitmgate.stages.message import headers_of, make_response

logger = logging.getLogger(__name__)

BUFFER: Final = 8 * 1024 * 1024
"""Bytes of a response that `stream: never` holds back; beyond them it streams all the same."""
QUIET_SECONDS: Final = 600.0
"""How long an event stream may be silent."""


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
        if head.status == 101:
            self._answered_101(head)
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
        if not response.stream and mode == "auto" and length is not None and length > self._client.room:
            response.stream = True  # held back it would wait here, as a whole, for a client that takes none of it
        self._quiet = QUIET_SECONDS if quiet else self._bounds.idle_timeout
        if response.stream and self._request is RequestPhase.COMPLETE:
            self._deadline.set(self._quiet)
        self._hook(HttpResponseHeadersHook, self._response_decided)

    def _answered_101(self, head: ResponseHead) -> None:
        """Take the upstream's word that the connection is a WebSocket from here on, where it answers this handshake."""
        self.flow.response = response = make_response(101, headers_of(head.headers.fields), b"")
        made = self._made
        if not self._upgrade or made is None or not accepts(made, response):
            self.flow.response = None
            self._fail(Reason.UPSTREAM_MALFORMED)
            return
        self._deadline.clear()
        self.flow.websocket = WebSocketData()  # before the hooks: addons see what follows
        self._hook(HttpResponseHeadersHook, lambda: self._hook(HttpResponseHook, self._switch))

    def _switch(self) -> None:
        if self._killed():
            return
        flow, upstream, response = self.flow, self._upstream, self.flow.response
        if self._gone or upstream is None or response is None or upstream.phase is not Phase.TUNNEL:
            flow.websocket = None  # none has begun while the hooks waited: the end is an ordinary one, and on record
            if self._gone:
                self._abort(Reason.CLIENT_CLOSED)
            else:
                self._fail(Reason.UPSTREAM_CLOSED)
            return
        self._head_sent = True
        client = self._client
        self._relay = relay = Relay(
            flow, self._ways.table, client.pipe, upstream, self._wait_for, self._relayed, client.recount
        )
        self._limit_lifetime()
        relay.start()
        self._client.switch(response, relay)
        if self._relay is not None:
            upstream.tunnel(relay)

    def _wait_for(self, pending: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
        """Go on with a relay when a hook of its has ended."""
        task = self._ways.loop.create_task(pending)

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
        self._relay = self._upstream = None
        self._response = ResponsePhase.DONE
        if reason is not None:
            self._blame(reason, DETAILS.get(reason, reason.title))
        self._hook(WebsocketEndHook, self._done)

    def _response_decided(self) -> None:
        if self._killed():
            return
        response = self.flow.response
        if response is not None and response.stream:
            self._start_streaming(response)
        else:
            self._response = ResponsePhase.BUFFERING
            if self._request is RequestPhase.COMPLETE:
                self._await_body()

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
            if self._delivered >= PAGE:
                self._client.recount()

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
            self._fail(Reason.UPSTREAM_TIMEOUT)

    def _limit_lifetime(self) -> None:
        """End what lasts when the token that opened it expires, or when the route's time for a stream is over."""
        exchange = self.exchange
        left, reason = None if exchange is None else seconds_left(exchange), Reason.TOKEN_EXPIRED
        bound = None if exchange is None or exchange.route is None else exchange.route.stream_timeout
        if bound is not None and self._relay is None and (left is None or bound < left):
            left, reason = bound, Reason.STREAM_TIMEOUT
        if left is not None:
            self._lifetime = self._ways.loop.call_later(left, self._outlived, reason)

    def _outlived(self, reason: Reason) -> None:
        try:
            self.cut(reason)
        except Exception:
            logger.exception("a request is broken off because of a defect")
            self.broken()

    def cut(self, reason: Reason) -> None:
        """End a streamed response: what admitted it no longer holds."""
        if self._relay is not None:
            self._relay.cut(reason)
        elif self.lasts:
            self._abort(reason)

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
