"""Request ids and trace context: which incoming ones are kept (W3C Trace Context, section 3.2)."""

import re

_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{7,127}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def valid_request_id(value: bytes | None) -> str | None:
    """Return an incoming request id where it is safe to keep: 8 to 128 of letters, digits, dot, dash, underscore."""
    return value.decode("ascii") if value is not None and _REQUEST_ID.fullmatch(value) else None


def valid_traceparent(value: bytes | None) -> str | None:
    """Return a version 00 `traceparent` that is well-formed and not all zeros; None otherwise."""
    return value.decode("ascii") if value is not None and _TRACEPARENT.fullmatch(value) else None


def new_traceparent(random_bits: int) -> str:
    """Make a sampled `traceparent` out of 192 random bits."""
    trace, span = random_bits >> 64 or 1, random_bits & (2**64 - 1) or 1
    return f"00-{trace:032x}-{span:016x}-01"
