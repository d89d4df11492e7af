"""Request ids and trace context: which incoming ones are kept (W3C Trace Context, section 3.2)."""

import re
from collections.abc import Callable

_EACH = 16 + 24  # bytes: a request id, a trace id and a span id
_POOL = _EACH * 64
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{7,127}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def valid_request_id(value: bytes | None) -> str | None:
    """Return an incoming request id where it is safe to keep: 8 to 128 of letters, digits, dot, dash, underscore."""
    return value.decode("ascii") if value is not None and _REQUEST_ID.fullmatch(value) else None


def valid_traceparent(value: bytes | None) -> str | None:
    """Return a version 00 `traceparent` that is well-formed and not all zeros; None otherwise."""
    return value.decode("ascii") if value is not None and _TRACEPARENT.fullmatch(value) else None


class Identifiers:
    """Makes request ids of 128 random bits, which nobody can guess, and traces; asks the system for many at once."""

    __slots__ = ("_at", "_pool", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        """random: returns so many random bytes, such as os.urandom."""
        self._random = random
        self._pool = b""
        self._at = 0

    def __call__(self) -> tuple[str, str]:
        """Return an id of 32 hexadecimal digits, and a sampled `traceparent` with a trace and a span of its own.

        The all-zero ids that the format forbids come once in 2**64 calls.
        """
        at = self._at
        if at >= len(self._pool):
            self._pool, at = self._random(_POOL), 0
        self._at = end = at + _EACH
        text = self._pool[at:end].hex()
        return text[:32], f"00-{text[32:64]}-{text[64:]}-01"
