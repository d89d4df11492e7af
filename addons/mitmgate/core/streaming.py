"""Which bodies stream, and which are held until they are complete and can be looked at."""

from typing import Final, Literal

LARGE: Final = 1024 * 1024
"""Bytes above which `stream: auto` streams a body of known length."""
_EVENTS: Final = b"text/event-stream"


def streams(mode: Literal["auto", "always", "never"], length: int | None, *, events: bool = False) -> bool:
    """Tell whether a body streams. mode: the route's `stream`. length: bytes; None: not known."""
    if length == 0 or mode == "never":
        return False
    return mode == "always" or length is None or length > LARGE or events


def is_event_stream(content_type: bytes | None) -> bool:
    """Tell whether a response is a stream of server-sent events, which are worth nothing when they are held back."""
    return content_type is not None and content_type[: len(_EVENTS)].lower() == _EVENTS
