"""tnetstrings, the encoding of mitmproxy's flow files, read without building what nobody asks for.

mitmproxy's own reader builds every value of a flow, about 200 µs of them. A replay needs a fifth of those, so a mapping
is split into spans first, and only the spans that are wanted are read.
"""

from math import isfinite
from typing import BinaryIO, Final

Value = None | bool | int | float | str | bytes | list["Value"] | dict[str, "Value"]
Span = tuple[int, int, int]
"""Where a value's data begins and ends, and its type tag."""

_LONGEST_PREFIX = 12
LARGEST: Final = 1 << 30
"""Bytes of a record; room for as many as a record says that it has is made before they are read."""

BYTES, TEXT, INTEGER, FLOAT, BOOLEAN, NULL, LIST, MAPPING = b",;#^!~]}"


class DamagedError(ValueError):
    """Bytes that are no tnetstring."""


def dumps(value: object) -> bytes:
    """Encode a value: None, bool, int, float, str, bytes, lists, tuples and dicts of these.

    mitmproxy's own writer gives the same, but for the order of members, which means nothing, in twice the time.
    Raises ValueError for anything else.
    """
    if type(value) is str:
        data = value.encode("utf-8")
        return b"%d:%b;" % (len(data), data)
    if type(value) is bytes:
        return b"%d:%b," % (len(value), value)
    if value is None:
        return b"0:~"
    if type(value) is float:
        data = repr(value).encode("ascii")
        return b"%d:%b^" % (len(data), data)
    if type(value) is bool:
        return b"4:true!" if value else b"5:false!"
    if type(value) is int:
        data = b"%d" % value
        return b"%d:%b#" % (len(data), data)
    if isinstance(value, list | tuple):
        data = b"".join([dumps(item) for item in value])
        return b"%d:%b]" % (len(data), data)
    if isinstance(value, dict):
        data = b"".join([dumps(part) for item in value.items() for part in item])
        return b"%d:%b}" % (len(data), data)
    raise ValueError(f"{type(value).__name__} can't be written to a flow file")


def read_record(file: BinaryIO) -> bytes | None:
    """Read one whole tnetstring from a file, prefix and tag included; None at the end of the file.

    Raises DamagedError for anything else, a record that was cut short included.
    """
    prefix = bytearray()
    while True:
        byte = file.read(1)
        if not byte:
            if prefix:
                raise DamagedError("cut short")
            return None
        prefix += byte
        if byte == b":":
            break
        if not byte.isdigit() or len(prefix) > _LONGEST_PREFIX:
            raise DamagedError("no length")
    if len(prefix) == 1:
        raise DamagedError("no length")
    length = int(prefix[:-1])
    if length > LARGEST:
        raise DamagedError("too large")
    data = file.read(length + 1)
    if len(data) != length + 1:
        raise DamagedError("cut short")
    return bytes(prefix) + data


def span_of(raw: bytes, at: int = 0) -> Span:
    """Return the span of the value that begins at an offset. Raises DamagedError."""
    try:
        colon = raw.index(b":", at, at + _LONGEST_PREFIX + 1)
        start = colon + 1
        end = start + int(raw[at:colon])
        return start, end, raw[end]
    except (ValueError, IndexError) as error:
        raise DamagedError("no tnetstring") from error


def members(raw: bytes, span: Span) -> dict[bytes, Span]:
    """Split a mapping into its keys and the spans of their values. Raises DamagedError where it is none."""
    at, end, tag = span
    if tag != MAPPING:
        raise DamagedError("no mapping")
    found: dict[bytes, Span] = {}
    index = raw.index
    try:
        while at < end:
            colon = index(b":", at)
            start = colon + 1
            stop = start + int(raw[at:colon])
            key = raw[start:stop]
            at = stop + 1
            colon = index(b":", at)
            start = colon + 1
            stop = start + int(raw[at:colon])
            found[key] = start, stop, raw[stop]
            at = stop + 1
    except (ValueError, IndexError) as error:
        raise DamagedError("no mapping") from error
    return found


def find(raw: bytes, span: Span, key: bytes) -> Span | None:
    """Find one member of a mapping, and read no further; None where there is none. Raises DamagedError."""
    at, end, tag = span
    if tag != MAPPING:
        return None
    index = raw.index
    try:
        while at < end:
            colon = index(b":", at)
            start = colon + 1
            stop = start + int(raw[at:colon])
            found = raw[start:stop] == key
            at = stop + 1
            colon = index(b":", at)
            start = colon + 1
            stop = start + int(raw[at:colon])
            if found:
                return start, stop, raw[stop]
            at = stop + 1
    except (ValueError, IndexError) as error:
        raise DamagedError("no mapping") from error
    return None


def value(raw: bytes, span: Span) -> Value:
    """Build a value. Raises DamagedError."""
    start, end, tag = span
    if tag in (TEXT, BYTES):
        data = raw[start:end]
        return data if tag == BYTES else _text(data)
    if tag == NULL:
        return None
    try:
        if tag == INTEGER:
            return int(raw[start:end])
        if tag == FLOAT:
            return float(raw[start:end])
    except ValueError as error:
        raise DamagedError("no number") from error
    if tag == BOOLEAN:
        return raw[start:end] == b"true"
    if tag == LIST:
        return items(raw, span)
    if tag == MAPPING:
        return {_text(key): value(raw, inner) for key, inner in members(raw, span).items()}
    raise DamagedError("an unknown type")


def text(raw: bytes, span: Span) -> str:
    """Read a text. Raises DamagedError where it is none."""
    start, end, tag = span
    if tag != TEXT:
        raise DamagedError("no text")
    return _text(raw[start:end])


def text_or_none(raw: bytes, span: Span) -> str | None:
    """Read a text; None where it is anything else."""
    return _text(raw[span[0] : span[1]]) if span[2] == TEXT else None


def number(raw: bytes, span: Span) -> float:
    """Read a number; 0 where it is none. Raises DamagedError and OverflowError for an infinite one."""
    found = value(raw, span)
    if not isinstance(found, int | float):
        return 0.0
    if not isfinite(found):
        raise DamagedError("no number of a recording")
    return float(found)


def items(raw: bytes, span: Span) -> list[Value]:
    """Build the items of a list. Raises DamagedError where it is none."""
    at, end, tag = span
    if tag != LIST:
        raise DamagedError("no list")
    found: list[Value] = []
    while at < end:
        inner = span_of(raw, at)
        found.append(value(raw, inner))
        at = inner[1] + 1
    return found


def pairs(raw: bytes, span: Span) -> list[tuple[bytes, bytes]]:
    """Build a list of pairs of text or bytes, as header fields are kept; text as ISO-8859-1. Raises DamagedError."""
    at, end, tag = span
    if tag != LIST:
        raise DamagedError("no list")
    found: list[tuple[bytes, bytes]] = []
    index = raw.index
    try:
        while at < end:
            colon = index(b":", at)
            stop = colon + 1 + int(raw[at:colon])
            inner = index(b":", colon + 1)
            first = inner + 1 + int(raw[colon + 1 : inner])
            name, name_tag = raw[inner + 1 : first], raw[first]
            inner = index(b":", first + 1)
            second = inner + 1 + int(raw[first + 1 : inner])
            content, content_tag = raw[inner + 1 : second], raw[second]
            if name_tag == TEXT:
                name = name if name.isascii() else name.decode("utf-8").encode("latin-1")
            if content_tag == TEXT and not content.isascii():
                content = content.decode("utf-8").encode("latin-1")
            found.append((name, content))
            at = stop + 1
    except (ValueError, IndexError) as error:
        raise DamagedError("no list of pairs") from error
    return found


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError("no UTF-8") from error
