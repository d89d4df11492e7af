"""Checks: requests by which a proxy asks for a decision on a request that it holds (forward authentication).

Each kind of proxy asks at a path of its own, and describes the original request in fields of its own:

| asks | at | with |
| --- | --- | --- |
| nginx, `auth_request` | /decide/nginx | X-Original-Method, X-Original-URL (or -URI, and X-Forwarded-Proto, -Host) |
| Caddy, `forward_auth` | /decide/caddy | X-Forwarded-Method, -Proto, -Host, -Uri |
| Traefik, ForwardAuth | /decide/traefik | X-Forwarded-Method, -Proto, -Host, -Uri |
| Envoy, ext_authz over HTTP | /decide/envoy and the path | X-Forwarded-Proto, method and Host of the check |

X-Forwarded-For says who the client is. None of these has a default: what a proxy forgot to set its clients could set,
and a configuration that forgets it must fail for everybody. What is said twice must be said alike.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import Final, NamedTuple

from mitmgate.core.address import CidrSet, address_text
from mitmgate.core.authority import parse_authority
from mitmgate.core.forwarding import SCHEMES, entries, walk
from mitmgate.core.headers import Fields, Headers
from mitmgate.core.request import Request

PREFIX: Final = "/decide/"
"""Where checks go; what is behind it names the kind of proxy."""

_METHOD: Final = b"x-original-method", b"x-forwarded-method"
_URL: Final = b"x-original-url"
_TARGET: Final = b"x-original-uri", b"x-forwarded-uri"
_SCHEME: Final = b"x-forwarded-proto"
_HOST: Final = b"x-forwarded-host"
_CLIENT: Final = b"x-forwarded-for"
_LENGTH: Final = b"x-original-content-length"
_ABSOLUTE: Final = re.compile(r"(https?)://([^/?#@\\]+)(/.*)", re.DOTALL)
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_PORTS: Final = {"http": 80, "https": 443}
_OF_CHECK: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"x-request-id"})
_DESCRIPTION: Final = b"x-forwarded", b"x-original-"


class Kind(StrEnum):
    """What asks, as its path names it."""

    NGINX = "nginx"
    CADDY = "caddy"
    TRAEFIK = "traefik"
    ENVOY = "envoy"


class Check(NamedTuple):
    """That a request came to a listener which only decides. peer: whoever is connected to it, as text.

    kind: of the proxy, by the path that was asked at; None where that is none: nothing may be admitted then.
    """

    kind: Kind | None
    peer: str


class Original(NamedTuple):
    """A request as its proxy describes it. authority: `host[:port]`, without the scheme's own port."""

    method: str
    scheme: str
    authority: str
    target: str


def kind_of(target: str) -> Kind | None:
    """Say what asks, by the target of its check; None: it is no check. A query says nothing: Caddy adds one."""
    path = target.partition("?")[0]
    if path.startswith(f"{PREFIX}{Kind.ENVOY}/"):
        return Kind.ENVOY
    name = path.removeprefix(PREFIX)
    return Kind(name) if name != path and name in _WHOLE else None


_WHOLE: Final = frozenset({Kind.NGINX, Kind.CADDY, Kind.TRAEFIK})
"""Kinds that ask at one exact path."""


def original_request(check: Request, kind: Kind, trusted: CidrSet) -> Request:
    """Return the request that a check is about, as its client sent it. kind: of the check.

    trusted: proxies, over whose entries X-Forwarded-For is walked. peer is the client's address, and nothing of the
    check's connection is left: its certificate is the proxy's. Raises ValueError, with what is wrong.
    """
    headers = check.headers
    method, scheme, authority, target = described(check, kind)
    client, _ = walk(entries(headers, _CLIENT) if _needed(headers, _CLIENT) else [], trusted)
    if client is None:
        raise ValueError("X-Forwarded-For gives no address of a client")
    length = _one(headers, _LENGTH)
    if length and _DIGITS.fullmatch(length) is None:
        raise ValueError("X-Original-Content-Length is no length")
    kept = tuple(field for field in without_description(headers) if field[0].lower() not in _OF_CHECK)
    fields: Fields = ((b"Host", authority.encode("latin-1")), *kept)
    if length:
        fields = (*fields, (b"Content-Length", length.encode("ascii")))
    return replace(
        check,
        method=method,
        target=target,
        version="HTTP/1.1",
        headers=Headers(fields),
        scheme=scheme,
        authority="",
        peer=address_text(client),
        declared_body=int(length) if length else 0,
        certificate=None,
        thumbprint=None,
        names=None,
    )


def without_description(headers: Headers) -> Fields:
    """Leave out what describes the original request, which may hold credentials in its query."""
    return tuple(field for field in headers.fields if not field[0].lower().startswith(_DESCRIPTION))


def described(check: Request, kind: Kind) -> Original:
    """Read what a check says of the original request. Raises ValueError where it is not said, or not in one way."""
    headers = check.headers
    absolute = _absolute(headers)
    if kind is Kind.ENVOY:
        target = check.target.removeprefix(f"{PREFIX}{Kind.ENVOY}")
        said = Original(check.method, _scheme(headers), _own_authority(check), target)
    elif kind is not Kind.NGINX:
        method, target = _needed(headers, _METHOD[1]), _needed(headers, _TARGET[1])
        said = Original(method, _scheme(headers), _needed(headers, _HOST), target)
    elif absolute is not None:
        said = Original(_needed(headers, _METHOD[0]), *absolute)
    else:
        method, target = _needed(headers, _METHOD[0]), _needed(headers, _TARGET[0])
        said = Original(method, _scheme(headers), _needed(headers, _HOST), target)
    for name, agrees in _agreement(headers, absolute, said):
        if not agrees:
            raise ValueError(f"{_written(name)} says something else than the rest of the check")
    return said._replace(authority=said.authority.removesuffix(f":{_PORTS[said.scheme]}"))


def _agreement(headers: Headers, absolute: tuple[str, str, str] | None, said: Original) -> Iterator[tuple[bytes, bool]]:
    """Tell of each field that a proxy could mean whether it says the same; a client's own may have come through."""
    for names, value in ((_METHOD, said.method), (_TARGET, said.target)):
        for name in names:
            yield name, _one(headers, name) in {None, value}
    if _SCHEME in headers:
        yield _SCHEME, _scheme(headers) == said.scheme
    if _HOST in headers:
        yield _HOST, _alike(_needed(headers, _HOST), said.authority, said.scheme)
    if absolute is not None:
        scheme, authority, target = absolute
        yield _URL, (scheme, target) == (said.scheme, said.target) and _alike(authority, said.authority, scheme)


def _absolute(headers: Headers) -> tuple[str, str, str] | None:
    """Split X-Original-URL into scheme, authority and target."""
    url = _one(headers, _URL)
    match = None if url is None else _ABSOLUTE.fullmatch(url)
    if url is not None and match is None:
        raise ValueError("X-Original-URL is no absolute URL of http or https")
    return None if match is None else (match[1], match[2], match[3])


def _own_authority(check: Request) -> str:
    """Return the host that the check itself asks for; HTTP/2 says it in `:authority`, and may repeat it in Host."""
    hosts = {host.decode("latin-1") for host in check.headers.all(b"host")} | {check.authority}
    hosts.discard("")
    if len(hosts) != 1 or len(check.headers.all(b"host")) > 1:
        raise ValueError("the check has no Host, or several")
    return hosts.pop()


def _alike(one: str, other: str, scheme: str) -> bool:
    """Tell whether two authorities are one host; a port that only one of them has is the scheme's own, or unsaid."""
    if one == other:
        return True
    left, right = parse_authority(one), parse_authority(other)
    if left is None or right is None or left[0] != right[0]:
        return False
    return None in {left[1], right[1]} or (left[1] or _PORTS[scheme]) == (right[1] or _PORTS[scheme])


def _scheme(headers: Headers) -> str:
    scheme = SCHEMES.get(_needed(headers, _SCHEME).lower())
    if scheme is None:
        raise ValueError("X-Forwarded-Proto is neither http nor https")
    return scheme


def _needed(headers: Headers, name: bytes) -> str:
    value = _one(headers, name)
    if not value:
        raise ValueError(f"{_written(name)} is missing")
    return value


def _one(headers: Headers, name: bytes) -> str | None:
    values = headers.all(name)
    if len(values) > 1:
        raise ValueError(f"{_written(name)} is repeated")
    return values[0].decode("latin-1") if values else None


def _written(name: bytes) -> str:
    """Write a name as documentation does."""
    return name.decode("ascii").title().replace("-Url", "-URL").replace("Original-Uri", "Original-URI")
