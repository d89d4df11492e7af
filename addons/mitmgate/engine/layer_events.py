"""The events that the protocol layers speak among themselves, beside mitmproxy's own."""

from dataclasses import dataclass

from mitmproxy.connection import Server
from mitmproxy.http import Request, Response
from mitmproxy.proxy import events
from mitmproxy.proxy.layers.http._base import HttpCommand, HttpEvent
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestHeaders,
    RequestProtocolError,
    ResponseHeaders,
    ResponseProtocolError,
)

from mitmgate.core.http1 import Refusal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.rules import Endpoint, UpstreamTls
from mitmgate.stages.exchange import Exchange


class Retire(events.Event):
    """The gateway shuts down: no further request on this connection."""


class ClientGone(events.Event):
    """The client is gone.

    mitmproxy tells so itself, but not where it cancels what waits for its lock; nor does it tell of a dial that it
    cancels.
    """


class Cut(events.Event):
    """What was admitted no longer is: end an exchange that lasts."""

    def __init__(self, exchange: Exchange, reason: Reason) -> None:
        """reason: what the audit event says."""
        self.exchange = exchange
        self.reason = reason


class RequestBegun(RequestHeaders):
    """A well-formed head. length: bytes of the body; None: not known."""

    def __init__(self, stream_id: int, request: Request, length: int | None, expects_continue: bool = False) -> None:
        """expects_continue: the client waits for a 100 before it sends the body."""
        super().__init__(stream_id, request, length == 0)
        self.length = length
        self.expects_continue = expects_continue


class RequestRefused(RequestHeaders):
    """Bytes that never became a request. The request is a placeholder with what could be read."""

    def __init__(self, stream_id: int, request: Request, refusal: Refusal) -> None:
        """refusal: why."""
        super().__init__(stream_id, request, end_stream=True)
        self.refusal = refusal


class BodyRefused(RequestProtocolError):  # noqa: N818  # an event, not an exception
    """The body of a request turned out malformed, after its head was read."""

    def __init__(self, stream_id: int, refusal: Refusal) -> None:
        """refusal: why."""
        super().__init__(stream_id, refusal.detail, ErrorCode.GENERIC_CLIENT_ERROR)
        self.refusal = refusal


class RequestForwarded(HttpEvent):
    """A request on its way to the upstream: what was decided, and not the flow, which people and scripts can edit.

    content: the whole body; None: it follows, `length` bytes or unknown.
    """

    def __init__(self, stream_id: int, forward: Forward, length: int | None, content: bytes | None) -> None:
        """Say how the request is framed."""
        super().__init__(stream_id)
        self.forward = forward
        self.length = length
        self.content = content


class ResponseBegun(ResponseHeaders):
    """A response's head, from the upstream or to the client. length: None: not known."""

    def __init__(self, stream_id: int, response: Response, length: int | None, *, close: bool = False) -> None:
        """length: bytes of the body. close: the client's connection ends with this response."""
        super().__init__(stream_id, response, length == 0)
        self.length = length
        self.close = close


class UpstreamFailed(ResponseProtocolError):  # noqa: N818  # an event, not an exception
    """The upstream did not answer as it should.

    untouched: not a byte of a response has come. stale: the connection had served another request before.
    """

    def __init__(self, stream_id: int, refusal: Refusal, *, untouched: bool, stale: bool) -> None:
        """refusal: what is wrong; its detail may name what the upstream did, so it is not for clients."""
        super().__init__(stream_id, refusal.detail, ErrorCode.GENERIC_SERVER_ERROR)
        self.reason: Reason = refusal.reason
        self.untouched = untouched
        self.stale = stale


@dataclass
class GetUpstream(HttpCommand):
    """Get a connection to an endpoint. fresh: not one that was used before."""

    blocking = True
    endpoint: Endpoint
    tls: UpstreamTls | None
    connect_timeout: float
    fresh: bool
    idempotent: bool

    def __hash__(self) -> int:
        """Commands are told apart by identity."""
        return id(self)


@dataclass(frozen=True)
class Reached:
    """What became of GetUpstream. failure: None where `connection` can be used."""

    connection: Server | None
    failure: Reason | None


@dataclass(repr=False)
class GetUpstreamCompleted(events.CommandCompleted):
    """The reply to GetUpstream."""

    command: GetUpstream
    reply: Reached
