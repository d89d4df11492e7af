"""One event as one line: JSON in ASCII, bounded, without anything that could forge or split a record."""

import json
import math

import orjson

from mitmgate.audit.redact import may_hold_jwt, without_jwts

Event = dict[str, object]

LONGEST = 2048
"""Characters of one value; what is longer is cut and says so."""

_MOST = 128  # members of a list or an object


def render(event: Event) -> bytes:
    """Serialise an event without its line end. Never raises for what an event may hold.

    The result is ASCII: U+2028, U+2029, U+0085, bidirectional overrides and every other character at which some
    reader might break a line or be misled are written as JSON escapes (RFC 8259, section 7).
    """
    try:
        record = orjson.dumps(event)
    except TypeError:  # lone surrogates, integers beyond 64 bits, foreign types
        record = b""
    if not record or len(record) > LONGEST or not record.isascii() or may_hold_jwt(record):
        return json.dumps(_plain(event), separators=(",", ":"), allow_nan=False).encode("ascii")
    return record


def _text(text: str) -> str:
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates are not UTF-8
    text = without_jwts(text)  # before the cut: half a token is not recognised as one
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}[cut: {len(text)} characters]"


def _plain(value: object) -> object:
    """Turn a value into what JSON can say, and bound it."""
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return _text(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, dict):
        return {_text(str(key)): _plain(member) for key, member in list(value.items())[:_MOST]}
    if isinstance(value, list | tuple | set | frozenset):
        rest = [f"[cut: {len(value)} members]"] if len(value) > _MOST else []
        return [_plain(member) for member in list(value)[:_MOST]] + rest
    return f"[{type(value).__name__}]"
