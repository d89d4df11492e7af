"""Decided requests to make events of."""

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from mitmgate.audit.ended import ended, request_event
from mitmgate.audit.record import Event
from mitmgate.audit.redact import Redaction
from mitmgate.audit.settings import Redact
from mitmgate.core.cause import Cause
from mitmgate.core.check import Check
from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.headers import Headers
from mitmgate.core.limit import Limit
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Head, Request
from mitmgate.core.routing import NoRoute
from mitmgate.core.rules import Circuit, Endpoint, Route, Upstream
from mitmgate.core.verdict import Outcome, Step, Verdict
from mitmgate.core.window import Grant

NOW = 1_780_000_000.25
REDACTION = Redaction(Redact())
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXRoYXQtaXMtb25l"
ENDPOINT = Endpoint("http", "127.0.0.1", 9001)
UPSTREAM = Upstream("users", (ENDPOINT,), 2.0, 30.0, 1, "preserve", Circuit())
ROUTE = Route(
    name="users",
    path="/api/v1/users",
    exact=False,
    hosts=(),
    methods=frozenset(),
    upstream=UPSTREAM,
    issuers=("corp",),
    limits=(),
)
ALICE = Principal("alice", "corp", ("admin",), frozenset({"users.read"}), {}, NOW + 60)
REQUEST = Request(
    method="GET",
    target="/api/v1/users/7?page=2&token=hidden",
    version="HTTP/1.1",
    headers=Headers(
        [
            (b"Host", b"api.example"),
            (b"User-Agent", b"curl/8.9.1"),
            (b"Authorization", f"Bearer {JWT}".encode()),
            (b"Cookie", b"session=hidden"),
        ]
    ),
    scheme="http",
    authority="",
    peer="192.0.2.7",
    declared_body=0,
)
HEAD = Head("GET", "/api/v1/users/7", "page=2&token=hidden", "api.example", None, REQUEST.headers, None)


@dataclass(slots=True)
class Facts:
    """What an exchange has, without a flow."""

    request: Request = REQUEST
    request_id: str = "0123456789abcdef0123456789abcdef"
    now: float = NOW
    started: float = 0.0
    verdict: Verdict = field(default_factory=lambda: Verdict("sha256:" + "ab" * 32))
    client: IPv4Address | IPv6Address | None = field(default_factory=lambda: IPv4Address("192.0.2.7"))
    scheme: str = "http"
    traceparent: str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    check: Check | None = None
    head: Head | None = HEAD
    route: Route | None = ROUTE
    no_route: NoRoute | None = None
    grants: list[Grant] = field(default_factory=list)
    principal: Principal | None = ALICE
    endpoint: Endpoint | None = ENDPOINT
    retries: int = 0
    admitted: bool = False
    failure: Reason | None = None
    failure_detail: str = ""
    cause: Cause | None = None
    service_answer: ServiceAnswer | None = None


def grant(name: str, remaining: int, degraded: bool = False) -> Grant:
    return Grant(Limit(name, 100, 60.0, ("principal",)), True, remaining, 1.0, 0.0, degraded)


def admitted() -> Facts:
    facts = Facts(admitted=True, grants=[grant("per-user", 99), grant("per-client", 599)])
    for stage in ("arrival", "hygiene", "routing", "authentication", "authorization", "rate-limit", "rewrite"):
        facts.verdict.record(Step(stage, Outcome.ADMIT, Reason.OK), 1e-6)
    return facts


def denied(reason: Reason = Reason.TOKEN_EXPIRED, detail: str = "The token has expired.") -> Facts:
    facts = Facts(principal=None, endpoint=None)
    facts.verdict.record(Step("arrival", Outcome.ADMIT, Reason.OK))
    facts.verdict.record(Step("authentication", Outcome.DENY, reason, detail))
    return facts


def unread(target: str, *fields: tuple[bytes, bytes], method: str = "GET") -> Facts:
    """A request that Hygiene has refused."""
    request = replace(REQUEST, method=method, target=target, headers=Headers(fields))
    facts = Facts(request=request, head=None, route=None, principal=None, endpoint=None)
    facts.verdict.record(Step("hygiene", Outcome.DENY, Reason.TARGET_INVALID, "The target is not valid."))
    return facts


def event_of(facts: Facts, seconds: float, status: int | None, redaction: Redaction = REDACTION, **more: Any) -> Event:
    return request_event(ended(facts, seconds, status, **more), redaction)
