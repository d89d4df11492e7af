"""Serialisation: heads and chunks made anew from parts, checked once more on the way out."""

from http import HTTPStatus
from typing import Final

from mitmgate.core.headers import Fields
from mitmgate.core.http1.head import TARGET, TEXT, TOKEN

PHRASES: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
"""Reason phrases. An upstream's own are not passed on: they say nothing to a program (RFC 9112, section 4)."""

HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade content-length".split()
)
"""Fields that belong to one connection (RFC 9110, section 7.6.1), or that say how long a message is there."""


def end_to_end(fields: Fields) -> Fields:
    """Return the fields that are for the other end: without hop-by-hop ones and those that Connection names."""
    nominated: set[bytes] = set()
    plain = True
    for name, value in fields:
        lower = name.lower()
        if lower in HOP_BY_HOP:
            plain = False
            if lower == b"connection":
                nominated.update(token.strip().lower() for token in value.split(b","))
    if plain:
        return fields
    return tuple(field for field in fields if (lower := field[0].lower()) not in HOP_BY_HOP and lower not in nominated)


def request_head(method: bytes, target: bytes, fields: Fields) -> bytes | None:
    """Serialise a request's head as HTTP/1.1; None where a part would break out of its place."""
    if TOKEN.fullmatch(method) is None or not target or target.translate(None, TARGET):
        return None
    return _head(b"%b %b HTTP/1.1" % (method, target), fields)


def response_head(status: int, fields: Fields) -> bytes | None:
    """Serialise a response's head as HTTP/1.1; None where a part would break out of its place."""
    return _head(b"HTTP/1.1 %d %b" % (status, PHRASES.get(status, b"")), fields)


def chunk(data: bytes) -> bytes:
    """Serialise a chunk; of no bytes: the end of the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _head(first: bytes, fields: Fields) -> bytes | None:
    lines = [first]
    lines += [b"%b: %b" % field for field in fields]
    lines += (b"", b"")
    raw = b"\r\n".join(lines)
    breaks = len(lines) - 1
    if raw.count(b"\n") != breaks or raw.count(b"\r") != breaks or raw.translate(None, TEXT):
        return None
    return raw
