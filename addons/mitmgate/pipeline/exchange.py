"""The state of one request on its way through the chain, keyed by its flow."""

import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Final, NamedTuple

from mitmproxy.http import HTTPFlow

from mitmgate.core import api_key, certificate
from mitmgate.core.authority import parse_authority
from mitmgate.core.browsers import NOTHING, Carried, Shown
from mitmgate.core.cause import Cause
from mitmgate.core.check import Check
from mitmgate.core.circuit import Permit
from mitmgate.core.cors import Grant as CorsGrant
from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.openapi import BodyCheck, Operation
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward, Head, Request
from mitmgate.core.routing import NoRoute
from mitmgate.core.rules import Endpoint, Route
from mitmgate.core.verdict import Verdict
from mitmgate.core.window import Grant
from mitmgate.policy.snapshot import Snapshot


@dataclass(slots=True)
class Answer:
    """What the gateway itself says: a status, header fields of its own, a body."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


class WebSocketEnd(NamedTuple):
    """How a WebSocket ended. code: RFC 6455, section 7.4.1; 1006: without a close frame. messages: whole ones."""

    code: int
    closed_by: str  # "client", "upstream" or "gateway"
    messages_in: int
    messages_out: int


_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_NONE_READ: Final[Mapping[str, dict[str, object]]] = MappingProxyType({})


@dataclass(slots=True)
class Exchange:
    """What the stages have found out so far. Each member is written by the one stage that its comment names.

    now is Unix seconds at arrival and stays what it is: one request is decided at one time. started is the same moment
    by a clock that nobody sets (seconds, time.perf_counter): limits, circuits and durations count by it.
    """

    snapshot: Snapshot
    request: Request
    request_id: str
    now: float
    started: float
    verdict: Verdict
    client: IPv4Address | IPv6Address | None = None  # Arrival
    scheme: str = "http"  # Arrival: what the client used, as far as a trusted proxy may tell
    traceparent: str = ""  # Arrival
    public_host: str | None = None  # Arrival: what the client asked for (`name[:port]`), where a trusted proxy says so
    public_port: str | None = None  # Arrival: the same
    check: Check | None = None  # Arrival: a proxy asks for a decision on its own request; there is no service to go to
    head: Head | None = None  # Hygiene
    carried: Carried = NOTHING  # Hygiene: credentials that were elsewhere than in Authorization
    route: Route | None = None  # Routing
    no_route: NoRoute | None = None  # Routing
    preflight: bool = False  # Routing: it is a true preflight, and Cors answers it
    cors: CorsGrant | None = None  # Cors
    max_body: int = 0  # SizeLimit: bytes; what the protocol layer holds streamed bodies to
    grants: list[Grant] = field(default_factory=list)  # ClientQuota, RateLimit
    shown: Shown | None = None  # Authentication: what it has looked at; None: at Authorization, if at any
    principal: Principal | None = None  # Authentication
    beside: tuple[Principal, ...] = ()  # Authentication: whom further credentials of the request are of
    challenge: str | None = None  # Authentication, Authorization: the WWW-Authenticate value
    operation: Operation | None = None  # OpenApi
    body_check: BodyCheck | None = None  # OpenApi: what the protocol layer holds the body to
    endpoint: Endpoint | None = None  # CircuitBreaker
    permit: Permit | None = None  # CircuitBreaker; given back once the outcome is known
    judged: bool = False  # CircuitBreaker: the response's head has counted as a success
    retries: int = 0  # CircuitBreaker: how often the request moved to another endpoint
    failed_over: tuple[Reason, ...] = ()  # CircuitBreaker: why the endpoints before this one failed
    settled: tuple[float, ...] = ()  # CircuitBreaker: when (Unix seconds) it knew of each endpoint; replay repeats it
    service_answer: ServiceAnswer | None = None  # DecisionServices; offline it is what was recorded
    own_fields: tuple[tuple[bytes, bytes], ...] = ()  # OwnStage, DecisionServices: towards the service
    own_keys: Mapping[str, str] = _NOTHING  # OwnStage: texts for limits, by "STAGE:KEY"
    response_refused: bool = False  # OwnStage: the service's response must not reach the client
    own_read: Mapping[str, dict[str, object]] = _NONE_READ  # OwnStage, offline: what each has read
    forward: Forward | None = None  # Rewrite
    answer: Answer | None = None  # the stage that answers or denies with more than the problem body
    admitted: bool = False  # Enforcer: the request may be forwarded
    failure: Reason | None = None  # the protocol layer: what went wrong after admission
    failure_detail: str = ""
    cause: Cause | None = None  # the protocol layer: of the last endpoint that failed, also where another one answered
    uploading: bool = False  # the protocol layer: when that happened, the request's body was still on its way
    upstream_seconds: float | None = None  # the protocol layer: the upstream's part, up to its response's head
    body_in: int | None = None  # the protocol layer: bytes of the request body that were read, where they were streamed
    body_out: int | None = None  # the protocol layer: bytes of the response body that were sent, the same
    websocket: WebSocketEnd | None = None  # the protocol layer
    audited: bool = False  # Audit
    counted: bool = False  # the admin listener's Metrics


@dataclass(frozen=True, slots=True)
class Rejection:
    """What the protocol layer found wrong before there was a request to decide on."""

    reason: Reason
    detail: str


_EXCHANGE: Final = "mitmgate_exchange"
_REJECTION: Final = "mitmgate_rejection"
_INGRESS: Final = "mitmgate_ingress"
_LIVE: weakref.WeakSet[HTTPFlow] = weakref.WeakSet()

# An exchange is an attribute of its flow, since every stage and every hook asks for it. What mitmproxy makes of a flow
# (a copy, a saved state) has none of these attributes, and so nothing that was decided.


def exchange_of(flow: HTTPFlow) -> Exchange | None:
    """Return the flow's exchange; None where Arrival has not seen the flow (nothing may be admitted then)."""
    return flow.__dict__.get(_EXCHANGE)


def begin(flow: HTTPFlow, exchange: Exchange) -> None:
    """Attach an exchange to a flow. Called by Arrival alone."""
    flow.__dict__[_EXCHANGE] = exchange
    _LIVE.add(flow)


def forget(flow: HTTPFlow) -> Exchange | None:
    """Detach a flow that has ended from its exchange, which then needs no memory; called where flows are kept."""
    exchange: Exchange | None = flow.__dict__.pop(_EXCHANGE, None)
    _LIVE.discard(flow)
    return exchange


def exchanges() -> list[tuple[HTTPFlow, Exchange]]:
    """Return every flow that still lives, with its exchange."""
    found = [(flow, exchange_of(flow)) for flow in _LIVE]
    return [(flow, exchange) for flow, exchange in found if exchange is not None]


def told_challenge(exchange: Exchange, text: str) -> str:
    """Return a WWW-Authenticate value with where the metadata of the resource is, where the policy publishes it."""
    head = exchange.head
    return text if head is None else exchange.snapshot.resources.challenge(text, asked_host(exchange), head.path)


def asked_host(exchange: Exchange) -> str:
    """Return the host that the client asked for, lower-case and without port: as a trusted proxy says, or in Host."""
    if exchange.public_host is not None:
        public = parse_authority(exchange.public_host)
        return "" if public is None else public[0]
    return "" if exchange.head is None else exchange.head.host


def reports(exchange: Exchange) -> bool:
    """Tell whether the policy, or the route, observes denials instead of enforcing them."""
    return exchange.snapshot.mode == "report" or (exchange.route is not None and exchange.route.mode == "report")


def seconds_left(exchange: Exchange) -> float | None:
    """Return how long all credentials hold that the request was admitted with, a token's leeway included.

    None: it needed none, or denials are only observed.
    """
    principal = exchange.principal
    if principal is None or reports(exchange):
        return None
    leeway = exchange.snapshot.leeway
    until = principal.expires + leeway(principal.issuer)
    for other in exchange.beside:
        until = min(until, other.expires + leeway(other.issuer))
    return max(0.0, until - exchange.now - (time.perf_counter() - exchange.started))


def first_to_end(exchange: Exchange) -> Principal | None:
    """Return whose credential ends first, or has ended, of those that the request was admitted with."""
    principal, leeway = exchange.principal, exchange.snapshot.leeway
    if principal is None:
        return None
    return min((principal, *exchange.beside), key=lambda one: one.expires + leeway(one.issuer))


_EXPIRED: Final[Mapping[str, Reason]] = {
    api_key.ISSUER: Reason.API_KEY_EXPIRED,
    certificate.ISSUER: Reason.CERTIFICATE_EXPIRED,
}


def expired(exchange: Exchange) -> Reason:
    """Say why what a request was admitted with no longer holds, once no seconds are left."""
    principal = first_to_end(exchange)
    return _EXPIRED.get("" if principal is None else principal.issuer, Reason.TOKEN_EXPIRED)


def reject(flow: HTTPFlow, reason: Reason, detail: str) -> None:
    """Mark a flow as refused by the protocol layer; Arrival turns the mark into a final step `protocol`."""
    flow.__dict__[_REJECTION] = Rejection(reason, detail)


def rejection_of(flow: HTTPFlow) -> Rejection | None:
    """Return the protocol layer's mark, if there is one."""
    return flow.__dict__.get(_REJECTION)


def received(flow: HTTPFlow, request: Request) -> None:
    """Keep the ingress snapshot of a flow whose head the protocol layer has parsed itself; Arrival need not again."""
    flow.__dict__[_INGRESS] = request


def taken(flow: HTTPFlow) -> Request | None:
    """Hand over the ingress snapshot that `received` has kept, once."""
    request: Request | None = flow.__dict__.pop(_INGRESS, None)
    return request
