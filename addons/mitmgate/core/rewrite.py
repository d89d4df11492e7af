"""Rewrite: the path and the fields that the upstream gets, checked again after every change."""

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from mitmgate.core.address import address_text
from mitmgate.core.headers import Fields
from mitmgate.core.path import Ambiguous, canonical_path
from mitmgate.core.request import Head
from mitmgate.core.rules import Route

_SAFE_VALUE = re.compile(r"[ -~]*")


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
    again = canonical_path(path)
    if isinstance(again, Ambiguous) or again.text != path:
        return None
    return path


@lru_cache(maxsize=4096)
def header_safe(value: str) -> bytes | None:
    """Encode a value for a header field; None for what is not visible ASCII and spaces, or has spaces at its ends."""
    if _SAFE_VALUE.fullmatch(value) is None or value != value.strip():
        return None
    return value.encode("ascii")


def forwarded_for(client: IPv4Address | IPv6Address, scheme: str, host: bytes) -> Fields:
    """Make the forwarding fields anew: nothing of what the client claimed is left in them."""
    address = address_text(client).encode("ascii")
    return (
        (b"X-Forwarded-For", address),
        (b"X-Forwarded-Proto", scheme.encode("ascii")),
        (b"X-Forwarded-Host", host),
    )


def upstream_fields(
    head: Head, host: bytes, own: Fields, removed: frozenset[bytes], keep: Callable[[bytes], bool]
) -> Fields:
    """Put the upstream's fields together: Host first, then the client's, then the gateway's own.

    own: fields that the gateway sets; a client's field of the same name is replaced. removed: lower-case names that
    the route drops. keep: a last say on a lower-case name (credentials are not kept).
    """
    replaced = {name.lower() for name, _ in own} | removed
    fields = [(b"Host", host)]
    for name, value in head.headers.fields:
        lower = name.lower()
        if lower != b"host" and lower not in replaced and keep(lower):
            fields.append((name, value))
    fields += own
    return tuple(fields)
