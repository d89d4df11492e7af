"""The state of a transit, and how it waits.

A hook that has to wait (a counter in Redis) suspends the transit: what comes meanwhile is queued, in order, and the
sockets are not read beyond a bound.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final, Protocol

from mitmproxy import hooks
from mitmproxy.connection import Client
from mitmproxy.http import HTTPFlow, Response

from mitmgate.core.http1 import Bounds
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.rules import Endpoint
from mitmgate.engine.hooks import HookTable
from mitmgate.engine.lane.pool import UpstreamPool
from mitmgate.engine.lane.upstream import LaneUpstream, Recipient
from mitmgate.proxy.websocket import Pipe, Relay
from mitmgate.stages.exchange import Exchange

logger = logging.getLogger(__name__)

QUEUE: Final = 64 * 1024
"""Bytes that may wait for a transit that waits, or pipelined behind one; then the socket is not read."""
MALFORMED: Final = frozenset({400, 408, 414, 417, 431, 501, 505})
"""Statuses of the gateway's own after which a client is not read from again."""

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


@dataclass(frozen=True, slots=True)
class Ways:
    """What transits share. fail_over: the next endpoint after one that could not be used; None: there is none."""

    loop: asyncio.AbstractEventLoop
    table: HookTable
    pool: UpstreamPool
    fail_over: Callable[[Exchange, Reason], Endpoint | None]
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def background(self, pending: Coroutine[Any, Any, None]) -> None:
        """Run something that nobody waits for."""
        task = self.loop.create_task(pending)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Expiry(Protocol):
    """The deadline of a transit; `expired` is called when it passes."""

    def set(self, seconds: float) -> None:
        """Expire in so many seconds, instead of when it was to expire."""
        ...

    def at(self, due: float) -> None:
        """Expire at a time of the loop's clock."""
        ...

    def clear(self) -> None:
        """Don't expire."""
        ...


class Requester(Protocol):
    """The client's side of a transit."""

    client: Client
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

    def finish(self) -> None:
        """Take the end of the response: the transit is done."""
        ...

    def break_off(self) -> None:
        """End the connection inside a response, or before it: the transit is done."""
        ...


class TransitState(Recipient):
    """What a transit knows, and its suspension."""

    __slots__ = (
        "_asked",
        "_bounds",
        "_client",
        "_content",
        "_deadline",
        "_delivered",
        "_dialling",
        "_expects",
        "_gone",
        "_head_sent",
        "_held",
        "_length",
        "_lifetime",
        "_limit",
        "_made",
        "_overdue",
        "_queue",
        "_queued",
        "_quiet",
        "_received",
        "_relay",
        "_replayed",
        "_request",
        "_request_body",
        "_response",
        "_response_body",
        "_response_length",
        "_retries",
        "_sent",
        "_started",
        "_upgrade",
        "_upstream",
        "_waiting",
        "_ways",
        "exchange",
        "flow",
    )  # fmt: skip

    def __init__(self, ways: Ways, client: Requester, bounds: Bounds, deadline: Expiry) -> None:
        """deadline: the connection's or the stream's, which is the transit's as long as it lasts."""
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
        self._content = b""  # the request's whole body, as it came
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
        self._made: Forward | None = None  # what is sent, whatever becomes of the flow
        self._replayed = False  # a stale connection was replaced once
        self._expects = False  # the request holds `Expect: 100-continue`
        self._asked = False  # and the client has been told, or does not wait
        self._gone = False  # the client's connection has ended
        self._waiting = False  # for a hook, or for a connection
        self._upgrade = False  # the request asks for a WebSocket, and may
        self._relay: Relay | None = None
        self._dialling: asyncio.Task[Callable[[], None]] | None = None
        self._overdue = False  # the deadline passed meanwhile
        self._queue: deque[Callable[[], None]] | None = None
        self._queued = 0
        self._held = False
        self._lifetime: asyncio.TimerHandle | None = None

    def expired(self) -> None:
        """Take the passing of the deadline."""
        raise NotImplementedError

    def _abort(self, reason: Reason) -> None:
        raise NotImplementedError

    @property
    def lasts(self) -> bool:
        """Whether the response is being streamed, or a WebSocket goes on, and so outlives its decision."""
        return self._response is ResponsePhase.STREAMING or self._relay is not None

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

    def _hook(self, hook: type[hooks.Hook], then: Callable[[], None]) -> None:
        """Run a hook, then go on: at once, unless something in it has to wait."""
        pending = self._ways.table.run(hook, self.flow)
        if pending is None:
            then()
        else:
            self._wait(_ended(pending, then))

    def _wait(self, pending: Coroutine[Any, Any, Callable[[], None]], *, dial: bool = False) -> None:
        """Suspend until something is done. dial: it is given up where the client leaves meanwhile."""
        self._waiting = True
        task = self._ways.loop.create_task(pending)
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
            self._client.hold_for_transit(held)


async def _ended(pending: Coroutine[Any, Any, None], then: Callable[[], None]) -> Callable[[], None]:
    await pending
    return then
