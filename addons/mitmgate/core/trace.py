"""Request ids and trace context: which incoming ones are kept (W3C Trace Context, section 3.2)."""

import re
from collections.abc import Callable

_POOL = 16 * 64  # bytes
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{7,127}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def valid_request_id(value: bytes | None) -> str | None:
    """Return an incoming request id where it is safe to keep: 8 to 128 of letters, digits, dot, dash, underscore."""
    return value.decode("ascii") if value is not None and _REQUEST_ID.fullmatch(value) else None


def valid_traceparent(value: bytes | None) -> str | None:
    """Return a version 00 `traceparent` that is well-formed and not all zeros; None otherwise."""
    return value.decode("ascii") if value is not None and _TRACEPARENT.fullmatch(value) else None


class RequestIds:
    """Makes request ids of 128 random bits, which nobody can guess; the system is asked for many at a time."""

    __slots__ = ("_at", "_pool", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        """random: returns so many random bytes, such as os.urandom."""
        self._random = random
        self._pool = b""
        self._at = 0

    def __call__(self) -> str:
        """Return an id of 32 hexadecimal digits."""
        at = self._at
        if at >= len(self._pool):
            self._pool, at = self._random(_POOL), 0
        self._at = at + 16
        return self._pool[at : at + 16].hex()


def new_traceparent(random_bits: int) -> str:
    """Make a sampled `traceparent` out of 192 random bits."""
    trace, span = random_bits >> 64 or 1, random_bits & (2**64 - 1) or 1
    return f"00-{trace:032x}-{span:016x}-01"
