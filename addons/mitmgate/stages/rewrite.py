"""Rewrite: the request that the upstream gets."""

from typing import ClassVar, NamedTuple

from mitmgate.core.address import Address
from mitmgate.core.headers import Fields
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward, Head
from mitmgate.core.rewrite import client_fields, forwarding_fields, header_safe, upstream_path
from mitmgate.core.rules import ForwardIdentity, Route
from mitmgate.core.verdict import Step
from mitmgate.keys.assertion import signer_of
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.stage import Stage

_REPLACED = frozenset({b"host", b"authorization", b"x-request-id", b"traceparent", b"connection", b"upgrade"})
_CHANGING = frozenset({"request_id", "method"})
"""Placeholders of what two requests with the same fields may have another of."""


class _Lasting(NamedTuple):
    """The fields that requests with the same ones get, and all else that they were made of."""

    route: Route
    forward: ForwardIdentity
    principal: Principal | None
    client: Address
    told: tuple[str, str | None, str | None]
    received: bytes
    fields: Fields


class Rewrite(Stage):
    """Make exchange.forward: path, Host, the client's clean fields, identity and forwarding fields of the gateway.

    Reads: head, route, endpoint, principal, client. Writes: exchange.forward, which Enforcer alone puts on the flow;
    where the policy has an assertion, it is signed here, for a principal alone.
    Authorization is never forwarded, nor is an identity field that a client sent.
    Denies: 400 upgrade-refused (the route takes no WebSocket); 403 rewrite-refused, where the result would not be
    safe: a path that is no longer canonical, a value that no header field can hold. On failure: stage-error.
    """

    name: ClassVar[str] = "rewrite"
    reportable: ClassVar[bool] = False

    def decide(self, exchange: Exchange) -> Step:
        """Put the upstream's request together."""
        head, route, endpoint, client = exchange.head, exchange.route, exchange.endpoint, exchange.client
        if head is None or route is None or endpoint is None or client is None:
            raise ValueError("a stage before this one has not decided")
        if head.upgrade is not None and not route.websocket:
            return self.deny(Reason.UPGRADE_REFUSED, "This route takes no upgrade.")
        path = upstream_path(route, head.path)
        if path is None:
            return self.deny(Reason.REWRITE_REFUSED, "The rewritten path would be ambiguous.")
        received = head.headers.one(b"host") or exchange.request.authority.encode("latin-1")
        lasting = self._lasting(exchange, head, route, client, received)
        if lasting is None:
            return self.deny(Reason.REWRITE_REFUSED, "A value of the identity can't be put into a header field.")
        rule = route.upstream.host
        host = received if rule == "preserve" else (endpoint.address if rule == "upstream" else rule).encode("latin-1")
        fields = (
            (b"Host", host),
            *lasting,
            (b"X-Request-ID", exchange.request_id.encode("ascii")),
            (b"traceparent", exchange.traceparent.encode("ascii")),
        )
        principal, assertion = exchange.principal, exchange.snapshot.forward.assertion
        if principal is not None and assertion is not None:
            made = signer_of(assertion).assertion(principal, route.upstream.name, head.method, path, exchange.now)
            fields = (*fields, (assertion.header, made))
        if head.upgrade is not None:
            fields = (*fields, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
        target = path if head.query is None else f"{path}?{head.query}"
        exchange.forward = Forward(head.method, target, host.decode("latin-1"), fields)
        return self.admitted

    def _lasting(self, exchange: Exchange, head: Head, route: Route, client: Address, received: bytes) -> Fields | None:
        """Make the fields that a next request with the same ones gets, too; None where a value is not safe."""
        memo = head.headers.memo
        if memo is None:
            return _fields(exchange, head, route, client, received)
        forward, principal = exchange.snapshot.forward, exchange.principal
        told = exchange.scheme, exchange.public_host, exchange.public_port
        known = memo.get(_Lasting)
        if (
            isinstance(known, _Lasting)
            and known.route is route
            and known.forward is forward
            and known.principal is principal
            and known.client is client
            and known.told == told
            and known.received == received
        ):
            return known.fields
        fields = _fields(exchange, head, route, client, received)
        if fields is not None and _CHANGING.isdisjoint(
            [name for _, template in route.rewrite.set for name in template.placeholders]
        ):
            memo[_Lasting] = _Lasting(route, forward, principal, client, told, received, fields)
        return fields


def _fields(exchange: Exchange, head: Head, route: Route, client: Address, received: bytes) -> Fields | None:
    """Make the client's clean fields, the identity's, the route's, and those of forwarding; None: one is not safe."""
    principal, names = exchange.principal, exchange.snapshot.forward
    made: list[tuple[bytes, bytes]] = []
    identity = [] if principal is None else [(names.subject, principal.subject)]
    if principal is not None and principal.roles:
        if any("," in role for role in principal.roles):
            return None  # one role would be two to the upstream
        identity.append((names.roles, ",".join(principal.roles)))
    for name, text in identity:
        value = header_safe(text)
        if value is None:
            return None
        made.append((name, value))
    for name, template in route.rewrite.set:
        rendered = template.render(lambda key: _lookup(exchange, key))
        value = None if rendered is None else header_safe(rendered)
        if rendered is not None and value is None:
            return None
        if value is not None:
            made.append((name, value))
    host = received if exchange.public_host is None else exchange.public_host.encode("latin-1")
    made += forwarding_fields(client, exchange.scheme, host, exchange.public_port)
    replaced = _REPLACED | route.rewrite.remove | {name.lower() for name, _ in made}
    if names.assertion is not None:
        replaced |= {names.assertion.header.lower()}
    return client_fields(head.headers.fields, replaced) + tuple(made)


def _lookup(exchange: Exchange, key: str) -> str | None:
    """Find what a placeholder of a template stands for; None where this request has no such value."""
    kind, _, name = key.partition(":")
    principal, head, route = exchange.principal, exchange.head, exchange.route
    if kind == "claim":
        value = None if principal is None else principal.claims.get(name)
        return value if isinstance(value, str) else str(value) if type(value) is int else None
    if kind == "header":
        return None if head is None else head.headers.text(name)
    values = {
        "subject": None if principal is None else principal.subject,
        "issuer": None if principal is None else principal.issuer,
        "client_ip": str(exchange.client),
        "request_id": exchange.request_id,
        "route": None if route is None else route.name,
        "host": None if head is None else head.host,
        "method": None if head is None else head.method,
    }
    return values.get(kind)
