"""Hygiene: from the head that arrived to the one head that everything after it reads.

Refuses what different servers could read differently, and strips what a client must not be able to say (see
client_fields.py): hop-by-hop fields, identity and forwarding fields, and those that override the path or the method.
"""

import re
from typing import NamedTuple

from mitmgate.core.api_key import in_text
from mitmgate.core.authority import parse_authority
from mitmgate.core.client_fields import FRAMING, ClientFields, Disposition
from mitmgate.core.headers import Headers
from mitmgate.core.path import Ambiguous, Oddity, canonical_path, is_plain, query_is_plain
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Head, Request
from mitmgate.core.websocket import asks, is_handshake

_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")

_USUAL = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_SINGLE = frozenset(
    b"host authorization content-type content-length expect origin sec-websocket-key "
    b"sec-websocket-version access-control-request-method traceparent content-encoding".split()
)
_PLAIN_CONNECTION = frozenset({b"keep-alive", b"Keep-Alive", b"close"})
_NEVER_NOMINATED = FRAMING | frozenset(
    b"host authorization cookie content-type content-encoding expect origin sec-fetch-site sec-fetch-mode".split()
)


_NOTHING_ODD: frozenset[Oddity] = frozenset()
_NO_HOST = Refusal(Reason.HOST_INVALID, "Exactly one Host is required.")
_TWO_HOSTS = Refusal(Reason.HOST_INVALID, "Exactly one Host is required; there are several.")
_INVALID_HOST = Refusal(Reason.HOST_INVALID, "Host is not a valid host and port.")


class Screened(NamedTuple):
    """What a head's fields came to, whatever the request line. size: octets. host: what Host says.

    kept: what goes on, or why nothing does.
    """

    size: int
    host: tuple[str, int | None] | Refusal
    kept: Headers | Refusal


def screen(headers: Headers, rules: ClientFields) -> Screened:
    """Look at the fields. rules: the policy's."""
    size = 0
    for name, value in headers.fields:
        size += len(name) + len(value) + 4
    kept = _kept_fields(headers, rules)
    if headers.again and isinstance(kept, Headers):
        kept.come_again()
    return Screened(size, _named_host(headers), kept)


def clean(request: Request, screened: Screened, max_target: int = 8192) -> Head | Refusal:
    """Read a request once and for all, or say why it can't be read.

    screened: its fields. max_target: octets; RFC 9112, section 3, asks for at least 8000.
    """
    if request.method not in _USUAL and (
        _METHOD.fullmatch(request.method) is None or request.method in {"CONNECT", "TRACE"}
    ):
        return Refusal(Reason.METHOD_INVALID, "The method is not one that this gateway forwards.")
    if len(request.target) > max_target:
        return Refusal(Reason.TARGET_TOO_LONG, f"The request target is longer than {max_target} bytes.")
    authority = _authority(request, screened.host) if request.authority else screened.host
    if isinstance(authority, Refusal):
        if authority is not _NO_HOST or request.version != "HTTP/1.0":
            return authority
        authority = "", None  # Endpoints answers such a request, or refuses it
    raw_path, mark, query = request.target.partition("?")
    if mark and not query_is_plain(query):
        return Refusal(Reason.TARGET_INVALID, "The query holds a character that must be percent-encoded.")
    if not raw_path.startswith("/"):
        return Refusal(Reason.TARGET_INVALID, "The request target must be a path that starts with a slash.")
    odd = _NOTHING_ODD
    if not is_plain(raw_path):
        path = canonical_path(raw_path)
        if isinstance(path, Ambiguous):
            return Refusal(Reason.PATH_AMBIGUOUS, path.detail)
        raw_path, odd = path
    kept = screened.kept
    if isinstance(kept, Refusal):
        return kept
    upgrade = None
    if asks(request.version, request.headers):
        if not is_handshake(request.method, request.headers, request.declared_body):
            return Refusal(Reason.UPGRADE_REFUSED, "The WebSocket handshake is not well-formed.")
        upgrade = "websocket"
    return Head(request.method, raw_path, query if mark else None, authority[0], authority[1], kept, upgrade, odd)


def _named_host(headers: Headers) -> tuple[str, int | None] | Refusal:
    """Read Host."""
    hosts = headers.all(b"host")
    if len(hosts) != 1:
        return _TWO_HOSTS if hosts else _NO_HOST
    return parse_authority(hosts[0].decode("latin-1")) or _INVALID_HOST


def _authority(request: Request, named: tuple[str, int | None] | Refusal) -> tuple[str, int | None] | Refusal:
    """Find the one host that Host, an absolute-form target and HTTP/2's :authority agree on. named: what Host says."""
    hosts = request.headers.all(b"host")
    if hosts and isinstance(named, Refusal):
        return named
    parsed = parse_authority(request.authority)
    if not hosts:
        # RFC 9112, section 3.2: also in absolute-form, HTTP/1.1 has Host. HTTP/2 and HTTP/1.0 need not.
        return named if request.version == "HTTP/1.1" else parsed or _INVALID_HOST
    if hosts[0].decode("latin-1") != request.authority and parsed != named:
        return Refusal(Reason.HOST_INVALID, "Host and the request target name different hosts.")
    return named


def _kept_fields(headers: Headers, rules: ClientFields) -> Headers | Refusal:
    """Drop what must not go on; refuse malformed and repeated fields."""
    nominated = _nominated(headers)
    if isinstance(nominated, Refusal):
        return nominated
    kept: list[tuple[bytes, bytes]] = []
    hides_keys = rules.hides_keys
    index: dict[bytes, list[bytes]] = {}
    for name, value in headers.fields:
        lower = name.lower()
        decided = rules.disposition(lower)
        if decided is Disposition.REFUSE:
            return Refusal(Reason.HEADER_INVALID, "A field name is not a token.")
        if _BAD_VALUE.search(value) is not None:
            return Refusal(Reason.HEADER_INVALID, "A field value holds a control character.")
        if lower in _SINGLE and len(headers.all(lower)) > 1:
            return Refusal(Reason.HEADER_REPEATED, "A field that may occur once is repeated.")
        if decided is Disposition.KEEP and lower not in nominated:
            if hides_keys and b"mgk_" in value and lower != b"authorization" and in_text(value.decode("latin-1")):
                if lower == b"host":
                    return _INVALID_HOST
                continue
            kept.append((name, value))
            if lower in index:
                index[lower].append(value)
            else:
                index[lower] = [value]
    return Headers(tuple(kept), index)


def _nominated(headers: Headers) -> frozenset[bytes] | Refusal:
    """Return the names that `Connection` declares hop-by-hop; never one that the request's meaning hangs on."""
    values = headers.all(b"connection")
    if not values or (len(values) == 1 and values[0] in _PLAIN_CONNECTION):
        return frozenset()
    names = frozenset(map(bytes.strip, b",".join(values).lower().split(b","))) - {b""}
    if names & _NEVER_NOMINATED:
        return Refusal(Reason.HEADER_INVALID, "Connection names a field that is not hop-by-hop.")
    return names
