"""Rewrite: the request that the upstream gets."""

from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.rewrite import forwarded_for, header_safe, upstream_fields, upstream_path
from mitmgate.core.verdict import Step
from mitmgate.keys.assertion import signer_of
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.stage import Stage

_CREDENTIALS = frozenset({b"authorization"})


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
        host = self._host(route.upstream.host, received, endpoint.url.partition("://")[2])
        own = self._own_fields(exchange, head.method, path)
        if own is None:
            return self.deny(Reason.REWRITE_REFUSED, "A value of the identity can't be put into a header field.")
        own = (*own, *forwarded_for(client, exchange.scheme, received))
        if head.upgrade is not None:
            own = (*own, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
        fields = upstream_fields(head, host, own, route.rewrite.remove, _is_forwarded)
        target = path if head.query is None else f"{path}?{head.query}"
        exchange.forward = Forward(head.method, target, host.decode("latin-1"), fields)
        return self.admitted

    @staticmethod
    def _host(rule: str, received: bytes, endpoint: str) -> bytes:
        if rule == "preserve":
            return received
        return (endpoint if rule == "upstream" else rule).encode("latin-1")

    def _own_fields(self, exchange: Exchange, method: str, path: str) -> tuple[tuple[bytes, bytes], ...] | None:
        """Make the route's and the identity's fields; None where a value is not safe. method, path: the upstream's."""
        fields = [
            (b"X-Request-ID", exchange.request_id.encode("ascii")),
            (b"traceparent", exchange.traceparent.encode("ascii")),
        ]
        route, principal, names = exchange.route, exchange.principal, exchange.snapshot.forward
        if route is None:
            raise ValueError("no route")
        identity = [] if principal is None else [(names.subject, principal.subject)]
        if principal is not None and principal.roles:
            if any("," in role for role in principal.roles):
                return None  # one role would be two to the upstream
            identity.append((names.roles, ",".join(principal.roles)))
        for name, text in identity:
            value = header_safe(text)
            if value is None:
                return None
            fields.append((name, value))
        if principal is not None and names.assertion is not None:
            made = signer_of(names.assertion).assertion(principal, route.upstream.name, method, path, exchange.now)
            fields.append((names.assertion.header, made))
        for name, template in route.rewrite.set:
            rendered = template.render(lambda key: _lookup(exchange, key))
            value = None if rendered is None else header_safe(rendered)
            if rendered is not None and value is None:
                return None
            if value is not None:
                fields.append((name, value))
        return tuple(fields)


def _is_forwarded(name: bytes) -> bool:
    return name not in _CREDENTIALS


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
