"""Rewrite: the request that the upstream gets."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from mitmgate.core import pointer
from mitmgate.core.address import Address, address_text
from mitmgate.core.headers import Fields
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.rewrite import (
    client_fields,
    forwarding_fields,
    header_safe,
    max_forwards,
    percent_encoded,
    upstream_path,
    with_max_forwards,
)
from mitmgate.core.routing import allow_field
from mitmgate.core.rules import Route
from mitmgate.core.template import placeholders
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.keys.assertion import signer_of
from mitmgate.pipeline import warnings
from mitmgate.pipeline.coverage import REACHED, Branch, Rule
from mitmgate.pipeline.exchange import Answer, Exchange
from mitmgate.pipeline.stage import Stage, route_at
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Location, Problem
from mitmgate.policy.snapshot import Snapshot


class Rewrite(Stage):
    """Make exchange.forward: path, Host, the client's clean fields, identity and forwarding fields of the gateway.

    Reads: head, route, endpoint, principal, client. Writes: exchange.forward, which Enforcer alone puts on the flow;
    where the policy has an assertion, it is signed here, for a principal alone.
    Authorization is never forwarded, nor is an identity field that a client sent.
    Denies: 400 upgrade-refused (the route takes no WebSocket); 403 rewrite-refused, where the result would not be
    safe: a path that is no longer canonical, a value that no header field can hold. Answers an OPTIONS that may go no
    further (RFC 9110, section 7.6.2). On failure: stage-error.
    """

    name: ClassVar[str] = "rewrite"
    reportable: ClassVar[bool] = False
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.REWRITE_REFUSED, Reason.UPGRADE_REFUSED, Reason.MAX_FORWARDS)
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.REWRITE_REFUSED: "values that a header field can hold: visible ASCII",
        Reason.UPGRADE_REFUSED: "`websocket: true` on the route, and a well-formed handshake",
    }

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        head, forward = exchange.head, exchange.forward
        return {
            "path": None if head is None else head.path,
            "target": None if forward is None else forward.target,
            "host": None if forward is None else forward.host,
        }

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at, route = route_at(exchange), exchange.route
        if route is None:
            return []
        return [(*at, "rewrite"), ("identity", "forward"), ("upstreams", route.upstream.name, "host")]

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count the header fields that routes set."""
        for index, route in enumerate(loaded.policy.routes):
            for name in route.rewrite.set:
                yield Rule(("routes", index, "rewrite", "set", name), f"header {name}", (REACHED,))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        at, forward = route_at(exchange), exchange.forward
        if not at or forward is None:
            return
        sent = {name.lower() for name, _ in forward.fields}
        for name in exchange.snapshot.policy.routes[int(at[1])].rewrite.set:
            if name.lower().encode("latin-1") in sent:
                yield (*at, "rewrite", "set", name), REACHED

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find paths that look like patterns, and placeholders that no request has a value for."""
        document = loaded.document
        for index, route in enumerate(loaded.policy.routes):
            at: Location = ("routes", index, "rewrite")
            yield from warnings.like_a_pattern(document, (*at, "replace_prefix"), route.rewrite.replace_prefix)
            read = [
                ((*at, "set", header), *placeholder.partition(":")[::2])
                for header, text in route.rewrite.set.items()
                for placeholder in placeholders(text)
            ]
            yield from warnings.like_a_path(document, [(place, name) for place, kind, name in read if kind == "claim"])
            fields = [(place, name) for place, kind, name in read if kind == "header"]
            yield from warnings.removed(document, snapshot, fields)

    def decide(self, exchange: Exchange) -> Step:
        """Put the upstream's request together."""
        head, route, endpoint, client = exchange.head, exchange.route, exchange.endpoint, exchange.client
        if head is None or route is None or endpoint is None or client is None:
            raise ValueError("a stage before this one has not decided")
        hops = max_forwards(head.method, head.headers)
        if hops == 0:
            exchange.answer = Answer(204, allow_field(route.methods))
            return Step(self.name, Outcome.ANSWER, Reason.MAX_FORWARDS)
        if head.upgrade is not None and not route.websocket:
            return self.deny(Reason.UPGRADE_REFUSED, "This route takes no upgrade.")
        path = upstream_path(route, head.path)
        if path is None:
            return self.deny(Reason.REWRITE_REFUSED, "The rewritten path would be ambiguous.")
        received = head.headers.one(b"host") or exchange.request.authority.encode("latin-1")
        if not received:
            raise ValueError("a request without Host is for no service")
        told = _told(exchange, route)
        if told is None:
            return self.deny(Reason.REWRITE_REFUSED, "A value of the identity can't be put into a header field.")
        rule = route.upstream.host
        host = received if rule == "preserve" else (endpoint.address if rule == "upstream" else rule).encode("latin-1")
        fields = (
            (b"Host", host),
            *head.headers.derive(client_fields, exchange.snapshot.client_fields.identity, route.rewrite.remove),
            *told,
            *_forwarding(exchange, client, received),
            *exchange.own_fields,
            *(() if exchange.snapshot.via is None else (exchange.snapshot.via.field(exchange.request.version),)),
            (b"X-Request-ID", exchange.request_id.encode("ascii")),
            (b"traceparent", exchange.traceparent.encode("ascii")),
        )
        if hops is not None:
            fields = with_max_forwards(fields, hops - 1)
        principal, assertion = exchange.principal, exchange.snapshot.forward.assertion
        if principal is not None and assertion is not None:
            bound = path if exchange.check is None else head.path  # a proxy that asks sends what its client sent
            made = signer_of(assertion).assertion(principal, route.upstream.name, head.method, bound, exchange.now)
            fields = (*fields, (assertion.header, made))
            told.append((assertion.header, made))
        if head.upgrade is not None:
            fields = (*fields, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
        target = path if head.query is None else f"{path}?{head.query}"
        to = () if exchange.check is None else (*told, *exchange.own_fields)
        exchange.forward = Forward(head.method, target, host.decode("latin-1"), fields, to)
        return self.admitted


def _told(exchange: Exchange, route: Route) -> list[tuple[bytes, bytes]] | None:
    """Make the fields of identity and of the route; None where one is not safe."""
    principal, names = exchange.principal, exchange.snapshot.forward
    made: list[tuple[bytes, bytes]] = []
    if principal is not None:
        subject, roles = principal.subject, principal.roles
        if names.percent:
            subject, roles = percent_encoded(subject), tuple(map(percent_encoded, roles))
        value = header_safe(subject)
        if value is None:
            return None
        made.append((names.subject, value))
        if names.issuer is not None:
            value = header_safe(principal.issuer)
            if value is None:
                return None
            made.append((names.issuer, value))
        if roles:
            joined = ",".join(roles)
            value = header_safe(joined)
            if value is None or joined.count(",") >= len(roles):
                return None  # one role would be two to the upstream
            made.append((names.roles, value))
    for name, template in route.rewrite.set:
        rendered = template.render(lambda key: _lookup(exchange, key))
        value = None if rendered is None else header_safe(rendered)
        if rendered is not None and value is None:
            return None
        if value is not None:
            made.append((name, value))
    return made


def _forwarding(exchange: Exchange, client: Address, received: bytes) -> Fields:
    host = received if exchange.public_host is None else exchange.public_host.encode("latin-1")
    return forwarding_fields(client, exchange.scheme, host, exchange.public_port)


def _lookup(exchange: Exchange, key: str) -> str | None:
    """Find what a placeholder of a template stands for; None where this request has no such value."""
    value = _value(exchange, key)
    told = key.startswith(("claim:", "subject", "issuer"))
    return percent_encoded(value) if value is not None and told and exchange.snapshot.forward.percent else value


def _value(exchange: Exchange, key: str) -> str | None:
    kind, _, name = key.partition(":")
    principal, head, route, client = exchange.principal, exchange.head, exchange.route, exchange.client
    match kind:
        case "subject":
            return None if principal is None else principal.subject
        case "claim":
            value = None if principal is None else pointer.find(principal.claims, name)
            return value if isinstance(value, str) else str(value) if type(value) is int else None
        case "issuer":
            return None if principal is None else principal.issuer
        case "header":
            return None if head is None else head.headers.text(name)
        case "client_ip":
            return None if client is None else address_text(client)
        case "request_id":
            return exchange.request_id
        case "route":
            return None if route is None else route.name
        case "host":
            return None if head is None else head.host
        case "method":
            return None if head is None else head.method
    return None
