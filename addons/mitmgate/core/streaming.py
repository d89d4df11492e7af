"""Which bodies stream, and which are held until they are complete and can be looked at."""

from typing import Final, Literal

LARGE: Final = 1024 * 1024
"""Bytes above which `stream: auto` streams a body of known length."""
_MESSAGES: Final = (b"text/event-stream", b"application/grpc")
_LONGEST: Final = max(map(len, _MESSAGES))


def streams(mode: Literal["auto", "always", "never"], length: int | None, *, events: bool = False) -> bool:
    """Tell whether a body streams. mode: the route's `stream`. length: bytes; None: not known."""
    if length == 0 or mode == "never":
        return False
    return mode == "always" or length is None or length > LARGE or events


def is_event_stream(content_type: bytes | None) -> bool:
    """Tell whether a body is a stream of messages, server-sent events or gRPC's: held back they are worth nothing."""
    return content_type is not None and content_type[:_LONGEST].lower().startswith(_MESSAGES)
