"""Serialisation: heads and chunks made anew from parts, checked once more on the way out."""

from http import HTTPStatus
from operator import itemgetter
from typing import Final

from mitmgate.core.headers import Fields
from mitmgate.core.http1.head import TARGET, TEXT, TOKEN
from mitmgate.core.http1.names import LOWER

PHRASES: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
"""Reason phrases. An upstream's own are not passed on: they say nothing to a program (RFC 9112, section 4)."""

HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade content-length".split()
)
"""Fields that belong to one connection (RFC 9110, section 7.6.1), or that say how long a message is there."""


_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b" % (status, phrase) for status, phrase in PHRASES.items()}
_METHODS: Final = frozenset(b"GET HEAD POST PUT DELETE OPTIONS PATCH".split())
_LENGTH: Final = b"content-length"


def _marking(allowed: bytes) -> bytes:
    """Make a table for `bytes.translate` that changes a text where it holds an octet that is not allowed."""
    return bytes(octet if octet in allowed else octet ^ 1 for octet in range(256))


_ONE_LINE: Final = _marking(TEXT.replace(b"\r", b"").replace(b"\n", b""))
_ONE_TARGET: Final = _marking(TARGET)

_names: Final = itemgetter(0)
_lower: Final = LOWER.__getitem__


def end_to_end(fields: Fields) -> Fields:
    """Return the fields that are for the other end: without hop-by-hop ones and those that Connection names."""
    if HOP_BY_HOP.isdisjoint(map(_lower, map(_names, fields))):
        return fields
    return tuple(parted(fields)[0])


def parted(fields: Fields) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
    """Return the fields that are for the other end, and apart from them the Content-Length fields."""
    kept: list[tuple[bytes, bytes]] = []
    lengths: list[tuple[bytes, bytes]] = []
    nominated: set[bytes] = set()
    for field in fields:
        lower = LOWER[field[0]]
        if lower not in HOP_BY_HOP:
            kept.append(field)
        elif lower == _LENGTH:
            lengths.append(field)
        elif lower == b"connection":
            nominated.update([token.strip().lower() for token in field[1].split(b",")])
    if nominated:
        kept = [field for field in kept if LOWER[field[0]] not in nominated]
    return kept, lengths


def request_head(method: bytes, target: bytes, fields: Fields) -> bytes | None:
    """Serialise a request's head as HTTP/1.1; None where a part would break out of its place."""
    if method not in _METHODS and TOKEN.fullmatch(method) is None:
        return None
    if not target or target.translate(_ONE_TARGET) != target:
        return None
    return _head(b"%b %b HTTP/1.1" % (method, target), fields)


def response_head(status: int, fields: Fields) -> bytes | None:
    """Serialise a response's head as HTTP/1.1; None where a part would break out of its place."""
    return _head(_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, fields)


def last_chunk(trailers: Fields) -> bytes:
    """Serialise the end of a chunked body with trailers; without them where one would break out of its place."""
    section = _head(b"0", trailers) if trailers else None
    return chunk(b"") if section is None else section


def chunk(data: bytes) -> bytes:
    """Serialise a chunk; of no bytes: the end of the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _head(first: bytes, fields: Fields) -> bytes | None:
    lines = [first, *map(b": ".join, fields)]
    text = b"".join(lines)
    if text.translate(_ONE_LINE) != text:
        return None
    lines += (b"", b"")
    return b"\r\n".join(lines)
