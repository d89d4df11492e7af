"""JOSE wire forms, read strictly: base64url without padding (RFC 7515, section 2) and JSON objects (RFC 8259).

Every reader returns None for what is not exactly of the form. Two readers that disagree about one token are how
tokens are forged, so nothing is repaired here: no padding, no foreign characters, no second member of one name.
"""

import json
from binascii import Error, a2b_base64
from math import isfinite

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

MAX_DEPTH = 32
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**64 - 1
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_STANDARD = bytes(
    {ord("-"): ord("+"), ord("_"): ord("/")}.get(byte, byte if chr(byte).isascii() and chr(byte).isalnum() else 0)
    for byte in range(256)
)
_PADDING = {0: b"", 2: b"==", 3: b"="}
# The bits of the last character that no octet takes must be zero, or one value could be written in several ways.
_CANONICAL_ENDS = {0: frozenset(_ALPHABET), 2: frozenset(_ALPHABET[::16]), 3: frozenset(_ALPHABET[::4])}


def decode_base64url(text: bytes) -> bytes | None:
    """Decode base64url without padding; None for anything else, also for trailing bits that are not zero."""
    rest = len(text) % 4
    if rest == 1:
        return None
    standard = text.translate(_TO_STANDARD)
    if standard and standard[-1] not in _CANONICAL_ENDS[rest]:
        return None
    try:
        return a2b_base64(standard + _PADDING[rest], strict_mode=True)
    except Error:
        return None


def parse_object(data: bytes) -> dict[str, Json] | None:
    """Parse a JSON object in UTF-8.

    Returns None for anything else, and for what readers take differently: a repeated member, NaN and Infinity,
    numbers out of the range of doubles or of 64 bits, lone surrogates, nesting beyond MAX_DEPTH.
    """
    try:
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate has no UTF-8
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        return None
    return value


def _members(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a repeated member")
    return members


def _integer(digits: str) -> int:
    if len(digits) > 20 or not _MIN_INTEGER <= (value := int(digits)) <= _MAX_INTEGER:
        raise ValueError("an integer beyond 64 bits")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError("a number beyond doubles")
    return value


def _constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _deeper_than(value: Json, limit: int) -> bool:
    level: list[Json] = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
