"""One request and its response: decided before its body is read, forwarded only when Enforcer admitted it.

    head → requestheaders (the chain decides) ─┬─ denied or answered → sent at once → done
                                               └─ admitted ─┬─ buffer the body → request hook → forward
                                                            └─ forward, stream the body → request hook
    forwarded → response head → responseheaders ─┬─ buffer → response hook → send
                                                 └─ send, stream → response hook
    any failure → problem response while no head was sent, else a visible abort and the error hook

mitmproxy's own HttpStream reads the whole body before it sends a response that an addon has set, and can't stream then.
"""

from typing import Final

from mitmproxy.http import Headers
from mitmproxy.proxy import events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import SendHttp
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
from mitmproxy.proxy.layers.http._hooks import HttpResponseHeadersHook

from mitmgate.core.http1.framing import received_fields
from mitmgate.core.reason import Reason
from mitmgate.core.streaming import is_event_stream, streams
from mitmgate.engine.layer_events import Cut, ResponseBegun, UpstreamFailed
from mitmgate.engine.layer_stream_ending import RequestPhase, ResponsePhase
from mitmgate.engine.layer_stream_request import StreamRequest
from mitmgate.engine.layer_timers import Expired, Timer
from mitmgate.engine.layer_websocket import accepts

BUFFER: Final = 8 * 1024 * 1024
"""Bytes of a response that `stream: never` holds back; beyond them it streams all the same."""
QUIET_SECONDS: Final = 600.0
"""How long an event stream may be silent."""


class GatewayStream(StreamRequest):
    """The stream that takes HttpStream's place: the response's half, and what both halves may meet."""

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
        elif isinstance(event, Cut) and self._response is ResponsePhase.STREAMING:
            yield from self._abort(event.reason, ErrorCode.KILL)

    def _on_response(self, event: ResponseHeaders) -> CommandGenerator[None]:
        if self._response is not ResponsePhase.WAITING or self._request is RequestPhase.DROPPED:
            return
        flow, response = self.flow, event.response
        if response.status_code == 101:
            if not self._upgrade or self._decided is None or not accepts(self._decided, response):
                yield from self._fail(Reason.UPSTREAM_MALFORMED)
                return
        else:
            response.headers = Headers(received_fields(response.status_code, response.headers.fields))
        flow.response = response
        if self.exchange is not None and self._sent:
            self.exchange.upstream_seconds = self._clock() - self._sent
        self._response_length = event.length if isinstance(event, ResponseBegun) else None
        mode = "auto" if self.exchange is None or self.exchange.route is None else self.exchange.route.stream
        length = self._response_length
        quiet = is_event_stream(response.headers.get("content-type", "").encode("utf-8", "surrogateescape"))
        response.stream = streams(mode, length, events=quiet)
        self._quiet = QUIET_SECONDS if quiet else self._bounds.idle_timeout
        if response.stream and self._request is RequestPhase.COMPLETE:
            self._timer.set(self._quiet)
        yield HttpResponseHeadersHook(flow)
        if (yield from self._killed()):
            return
        if flow.response.stream and response.status_code != 101:
            yield from self._start_streaming()
        else:
            self._response = ResponsePhase.BUFFERING

    def _start_streaming(self) -> CommandGenerator[None]:
        response = self.flow.response
        if response is not None:
            response.stream = True
            self._response = ResponsePhase.STREAMING
            self._head_sent = True
            self._limit_lifetime()
            yield SendHttp(ResponseBegun(self.stream_id, response, self._response_length), self.context.client)

    def _on_response_body(self, event: ResponseData | ResponseEndOfMessage) -> CommandGenerator[None]:
        if isinstance(event, ResponseData):
            if self._response is ResponsePhase.STREAMING:
                self._delivered += len(event.data)
                if self._request is RequestPhase.COMPLETE:
                    self._timer.set(self._quiet)
                yield SendHttp(event, self.context.client)
            elif self._response is ResponsePhase.BUFFERING:
                self._response_body += event.data
                if len(self._response_body) > BUFFER:
                    held = bytes(self._response_body)
                    self._response_body.clear()
                    self._delivered += len(held)
                    yield from self._start_streaming()
                    yield SendHttp(ResponseData(self.stream_id, held), self.context.client)
        elif self._response is ResponsePhase.STREAMING:
            yield from self._respond(streamed=True)
        elif self._response is ResponsePhase.BUFFERING:
            if self.flow.response is not None:
                self.flow.response.data.content = bytes(self._response_body)
                self._response_body.clear()
            yield from self._respond(streamed=False)

    def _on_upstream_error(self, event: ResponseProtocolError) -> CommandGenerator[None]:
        if self._response is ResponsePhase.DONE or self._request in {RequestPhase.DROPPED, RequestPhase.WAITING}:
            return
        self.upstream = None
        if self.context.client.timestamp_end is not None:  # mitmproxy closes upstreams with the client
            yield from self._abort(Reason.CLIENT_CLOSED, ErrorCode.CLIENT_DISCONNECTED)
            return
        failed = event if isinstance(event, UpstreamFailed) else None
        whole = self._request is RequestPhase.COMPLETE and not self._streamed
        if (
            failed is not None
            and failed.untouched
            and failed.reason is Reason.UPSTREAM_CLOSED
            and whole
            and self._response is ResponsePhase.WAITING
            and self._idempotent
        ):
            if failed.stale and not self._replayed:
                self._replayed = True  # closed between two requests: the same endpoint, on a new connection
                yield from self._forward()
                return
            if self._next_endpoint(failed.reason):
                yield from self._forward()
                return
        yield from self._fail(failed.reason if failed is not None else Reason.UPSTREAM_CLOSED)

    def _on_expired(self, timer: Timer) -> CommandGenerator[None]:
        if self._response is ResponsePhase.DONE or self._request is RequestPhase.DROPPED:
            return
        if timer is self._lifetime:
            yield from self._abort(Reason.TOKEN_EXPIRED, ErrorCode.KILL)
            return
        stuck = self.upstream is not None and self._wire.congested(self.upstream)
        if self._request is not RequestPhase.COMPLETE and not stuck:
            yield from self._fail(Reason.BODY_TIMEOUT)
        elif self._response is ResponsePhase.STREAMING and self._wire.congested(self.context.client):
            yield from self._abort(Reason.CLIENT_CLOSED, ErrorCode.CLIENT_DISCONNECTED)
        else:
            yield from self._fail(Reason.UPSTREAM_TIMEOUT)
