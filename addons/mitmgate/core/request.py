"""The request as it arrived (ingress) and as it will be forwarded."""

from dataclasses import replace

from mitmgate.core.certificate import ClientCertificate
from mitmgate.core.headers import Fields, Headers
from mitmgate.core.path import Oddity
from mitmgate.core.value import value


@value(frozen=True, slots=True)
class Request:
    """The ingress snapshot: what the client sent, before anything was stripped or rewritten.

    method, target and authority are text decoded as ISO-8859-1. target is the request target of the wire
    (origin-form, or absolute-form before Hygiene), query included. authority is HTTP/2's `:authority`, ""
    on HTTP/1. version is "HTTP/1.0", "HTTP/1.1" or "HTTP/2.0". scheme is that of the connection. peer is the
    address of the TCP peer, as text. declared_body is Content-Length in bytes, 0 where there is no body,
    None where the length is not known (chunked). certificate is the verified client certificate's subject,
    thumbprint its SHA-256 in base64url (RFC 8705, section 3.1), names its names.
    """

    method: str
    target: str
    version: str
    headers: Headers
    scheme: str
    authority: str
    peer: str
    declared_body: int | None
    certificate: str | None = None
    thumbprint: str | None = None
    names: ClientCertificate | None = None


@value(frozen=True, slots=True)
class Head:
    """The head after Hygiene: the one reading that routing, authorisation, limits and forwarding share.

    path is canonical (it starts with "/"), still percent-encoded; query is the raw text after "?", or None
    where there is none; host is lower-case without port, "" where an HTTP/1.0 client named none; headers are without
    anything spoofable or hop-by-hop.
    """

    method: str
    path: str
    query: str | None
    host: str
    port: int | None
    headers: Headers
    upgrade: str | None = None  # "websocket" where a well-formed WebSocket handshake was asked for
    odd: frozenset[Oddity] = frozenset()  # what the path holds: only for routes that opted in


@value(frozen=True, slots=True)
class Forward:
    """The request that the upstream gets. Written by Rewrite, put on the flow by Enforcer alone."""

    method: str
    target: str
    host: str  # the Host field's value
    fields: Fields  # complete, Host included
    told: Fields = ()  # of them, those that the gateway alone writes: for the answer to a check

    def to_host(self, host: str) -> "Forward":
        """Name another Host, for an upstream whose endpoints have names of their own."""
        others = tuple(field for field in self.fields if field[0].lower() != b"host")
        return replace(self, host=host, fields=((b"Host", host.encode("ascii")), *others))
