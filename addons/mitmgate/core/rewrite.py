"""Rewrite: the path and the fields that the upstream gets, checked again after every change."""

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mitmgate.core.address import address_text
from mitmgate.core.headers import Fields, Headers
from mitmgate.core.path import Ambiguous, canonical_path, is_plain
from mitmgate.core.rules import Route

_NUMBER = re.compile(rb"[0-9]{1,9}")
_SAFE_VALUE = re.compile(r"[ -~]*")
_UNSAFE = re.compile(r"[^!-~]|[%,]")
_REMEMBERED: Final = 256
"""Characters of a value that is remembered: clients choose some of them."""


def upstream_path(route: Route, path: str) -> str | None:
    """Apply strip_prefix or replace_prefix to a canonical path.

    Returns None where the result is not canonical: a rewrite must not make what Hygiene would have refused.
    """
    rewrite = route.rewrite
    prefix = route.path.rstrip("/")
    if rewrite.strip_prefix:
        path = path[len(prefix) :] or "/"
    elif rewrite.replace_prefix is not None:
        path = rewrite.replace_prefix.rstrip("/") + path[len(prefix) :] or "/"
    else:
        return path
    if is_plain(path):
        return path
    again = canonical_path(path)
    if isinstance(again, Ambiguous) or again.text != path or not again.odd <= route.odd:
        return None
    return path


def header_safe(value: str) -> bytes | None:
    """Encode a value for a header field; None for what is not visible ASCII and spaces, or has spaces at its ends."""
    return _header_safe(value) if len(value) <= _REMEMBERED else _header_safe.__wrapped__(value)


@lru_cache(maxsize=4096)
def _header_safe(value: str) -> bytes | None:
    if _SAFE_VALUE.fullmatch(value) is None or value != value.strip():
        return None
    return value.encode("ascii")


def percent_encoded(value: str) -> str:
    """Write a text in visible ASCII without commas; whoever percent-decodes it as UTF-8 has the text again."""
    return _UNSAFE.sub(_encode, value) if _UNSAFE.search(value) is not None else value


def _encode(match: re.Match[str]) -> str:
    return "".join(f"%{octet:02X}" for octet in match[0].encode("utf-8"))


def forwarding_fields(client: IPv4Address | IPv6Address, scheme: str, host: bytes, port: str | None) -> Fields:
    """Make the forwarding fields anew: nothing of what the client claimed is left in them.

    port: where a trusted proxy has told it; otherwise it is in `host`, or the scheme's own.
    """
    address = address_text(client).encode("ascii")
    fields = (
        (b"X-Forwarded-For", address),
        (b"X-Forwarded-Proto", scheme.encode("ascii")),
        (b"X-Forwarded-Host", host),
    )
    return fields if port is None else (*fields, (b"X-Forwarded-Port", port.encode("ascii")))


REPLACED = frozenset(
    b"host authorization dpop x-request-id traceparent connection upgrade "
    b"x-forwarded-for x-forwarded-proto x-forwarded-host x-forwarded-port".split()
)
"""What the gateway sets anew, or keeps for itself, on every route."""


def max_forwards(method: str, headers: Headers) -> int | None:
    """Return over how many more intermediaries an OPTIONS may go (RFC 9110, section 7.6.2); None: it does not say."""
    if method != "OPTIONS":
        return None
    value = headers.one(b"max-forwards")
    return int(value) if value is not None and _NUMBER.fullmatch(value) else None


def with_max_forwards(fields: Fields, hops: int) -> Fields:
    """Put another Max-Forwards into a request."""
    return (*(field for field in fields if field[0].lower() != b"max-forwards"), (b"Max-Forwards", b"%d" % hops))


def client_fields(headers: Headers, identity: frozenset[bytes], removed: frozenset[bytes]) -> Fields:
    """Keep the client's fields that go on.

    identity: lower-case names that carry identity, which no client sets. removed: those that the route drops or sets.
    """
    return tuple(
        [
            field
            for field in headers.fields
            if (lower := field[0].lower()) not in REPLACED and lower not in identity and lower not in removed
        ]
    )
