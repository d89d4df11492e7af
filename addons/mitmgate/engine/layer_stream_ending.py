"""How a stream ends: with a response, with a problem, or visibly broken off; the state that all of it is about."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from mitmproxy.connection import Server
from mitmproxy.flow import Error
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.http import DropStream, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._hooks import HttpErrorHook, HttpResponseHeadersHook, HttpResponseHook
from mitmproxy.websocket import WebSocketData

from mitmgate.core.http1 import Bounds
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.rules import Endpoint
from mitmgate.engine.layer_events import ResponseBegun
from mitmgate.engine.layer_timers import Timer, Timers
from mitmgate.engine.layer_websocket import BoundedWebsocketLayer
from mitmgate.engine.layer_wire import Wire
from mitmgate.stages.enforcer import problem_response
from mitmgate.stages.exchange import Exchange, seconds_left

MALFORMED: Final = frozenset({400, 408, 414, 417, 431, 501, 505})
"""Statuses of the gateway's own after which a client is not read from again."""

DETAILS: Final = {
    Reason.UPSTREAM_UNREACHABLE: "The service could not be reached.",
    Reason.UPSTREAM_TIMEOUT: "The service did not answer in time.",
    Reason.UPSTREAM_CLOSED: "The service closed the connection before its response was complete.",
    Reason.UPSTREAM_MALFORMED: "The service answered with something that is not a valid response.",
    Reason.BODY_TIMEOUT: "The request's body did not arrive in time.",
    Reason.CLIENT_CLOSED: "The client closed the connection.",
    Reason.DESCRIPTORS_EXHAUSTED: "The gateway has no room for another connection.",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a stream needs beside its flow.

    fail_over: the next endpoint after one that could not be used; None where there is none.
    """

    bounds: Bounds
    timers: Timers
    wire: Wire
    fail_over: Callable[[Exchange, Reason], Endpoint | None]


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


class StreamEnding(HttpStream):
    """The state of a stream, and the ways in which it ends. What begins it is in layer_stream_request.py."""

    def __init__(self, context: Context, stream_id: int, surroundings: Surroundings) -> None:
        """stream_id: of the connection to the client."""
        super().__init__(context, stream_id)
        # mitmproxy's own states, which are not used here, would make each stream refer to itself.
        del self.client_state, self.server_state
        self._bounds = surroundings.bounds
        self._wire = surroundings.wire
        self._fail_over = surroundings.fail_over
        self._clock = surroundings.timers.clock
        self._timer = Timer(surroundings.timers, self)
        self._lifetime = Timer(surroundings.timers, self)  # of what outlives the decision: streams and WebSockets
        self._request = RequestPhase.WAITING
        self._response = ResponsePhase.WAITING
        self._request_body = bytearray()
        self._response_body = bytearray()
        self.exchange: Exchange | None = None
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
        self._decided: Forward | None = None  # what the upstream gets: never read from the flow, which can be edited
        self._streamed = False  # the request's body
        self._content = b""  # the request's body, where it was read before it is sent

    def __repr__(self) -> str:
        """Show the states, for mitmproxy's debug output."""
        return f"{type(self).__name__}({self.stream_id}, {self._request.name}, {self._response.name})"

    @property
    def lasts(self) -> bool:
        """Whether the response is being streamed, or the connection is a WebSocket."""
        return self._response is ResponsePhase.STREAMING or self.child_layer is not None

    @property
    def queued(self) -> int:
        """Bytes that arrived while the stream waited for a hook or a connection."""
        if self._paused is None:
            return 0
        return sum(len(e.data) for e in self._paused_event_queue if isinstance(e, RequestData | ResponseData))

    def _answer(self) -> CommandGenerator[None]:
        """Send a response that the gateway made, at once: what is still to come of the request is not waited for."""
        self._timer.clear()
        self._request = RequestPhase.DROPPED
        self._request_body.clear()
        self._response_body.clear()
        response = self.flow.response
        if response is None:
            return
        response.stream = False
        self._response = ResponsePhase.BUFFERING
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
        switching = response.status_code == 101 and self._request is not RequestPhase.DROPPED
        if switching:
            flow.websocket = WebSocketData()  # before the hook: addons see what follows
        yield HttpResponseHook(flow)
        if (yield from self._killed(hook=False)):
            return
        self._response = ResponsePhase.DONE
        client = self.context.client
        if not streamed:
            self._head_sent = True
            content = flow.response.raw_content if flow.response is not None else None
            length = len(content or b"")
            close = self._request is RequestPhase.DROPPED and response.status_code in MALFORMED
            yield SendHttp(ResponseBegun(self.stream_id, flow.response or response, length, close=close), client)
            if content:
                yield SendHttp(ResponseData(self.stream_id, content), client)
        if switching:
            self._limit_lifetime()
            self.child_layer = BoundedWebsocketLayer(self.context, flow)
            self._handle_event = self.passthrough  # as HttpStream.flow_done does
            yield from self.child_layer.handle_event(events.Start())
            yield SendHttp(ResponseEndOfMessage(self.stream_id), client)
            return
        flow.live = False
        yield from self._leave_upstream(self._request is RequestPhase.COMPLETE)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), client)

    def _limit_lifetime(self) -> None:
        """End what lasts when the token that opened it expires."""
        left = None if self.exchange is None else seconds_left(self.exchange)
        if left is not None:
            self._lifetime.set(left)

    def crashed(self) -> HttpErrorHook | None:
        """End what a defect of ours has broken; returns the hook that still has to fire."""
        if self._request is RequestPhase.WAITING or self.response_done:
            return None
        self._timer.clear()
        self._lifetime.clear()
        if self.exchange is not None:
            self.exchange.failure = Reason.STAGE_ERROR
            self.exchange.failure_detail = "The gateway failed."
        self.flow.error = Error("The gateway failed.")
        self.flow.live = False
        return HttpErrorHook(self.flow)

    @property
    def response_done(self) -> bool:
        """Whether the response was sent, or can't be sent any more."""
        return self._response is ResponsePhase.DONE

    def _count(self) -> None:
        """Say how much of streamed bodies went through, for those that record it."""
        if self.exchange is None:
            return
        if self._streamed:
            self.exchange.body_in = self._received
        if self.flow.response is not None and self.flow.response.stream:
            self.exchange.body_out = self._delivered

    def _fail(self, reason: Reason, detail: str = "") -> CommandGenerator[None]:
        """Answer with a problem while that is possible, else end visibly."""
        exchange = self.exchange
        if self._head_sent or exchange is None:
            yield from self._abort(reason, ErrorCode.KILL)
            return
        detail = detail or DETAILS.get(reason, "")
        self._blame(reason, detail)
        exchange.body_in = self._received  # which may be less than was declared
        yield from self._leave_upstream(complete=False)
        self.flow.response = problem_response(exchange, reason, detail)
        yield from self._answer()

    def _abort(self, reason: Reason, code: ErrorCode) -> CommandGenerator[None]:
        """End without a response, or in the middle of one, so that the client can't take it for complete."""
        self._timer.clear()
        self._lifetime.clear()
        detail = DETAILS.get(reason, reason.title)
        self._blame(reason, detail)
        self._request = RequestPhase.DROPPED
        self._response = ResponsePhase.DONE
        yield from self._leave_upstream(complete=False)
        self._request_body.clear()
        self._response_body.clear()
        self.flow.error = Error(detail)
        self._count()
        yield HttpErrorHook(self.flow)
        yield from self._gone(code)

    def _blame(self, reason: Reason, detail: str) -> None:
        if self.exchange is not None:
            self.exchange.failure = reason
            self.exchange.failure_detail = detail
            self.exchange.uploading = self._request is RequestPhase.STREAMING

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
        self._request = RequestPhase.DROPPED
        self._response = ResponsePhase.DONE
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
