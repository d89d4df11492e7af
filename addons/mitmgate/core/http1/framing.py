"""Framing: how the other side is told where a message's body ends (RFC 9112, section 6).

Both ways that a message can take through the gateway, mitmproxy's layers and the fast lane, frame it here.
"""

from typing import Final, NamedTuple

from mitmgate.core.headers import Fields
from mitmgate.core.http1.writer import end_to_end, parted, response_head

BODILESS: Final = frozenset({204, 304})
"""Statuses of responses that have no body (RFC 9110, sections 15.3.5 and 15.4.5)."""
CLOSE: Final = ((b"Connection", b"close"),)
UNSENDABLE: Final = response_head(502, ((b"Content-Length", b"0"), *CLOSE)) or b""
"""What is sent in place of a response that an addon has made unsendable: nothing of it leaves."""

_CHUNKED: Final = (b"Transfer-Encoding", b"chunked")
_WITH_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})


class ResponseFraming(NamedTuple):
    """fields: complete but for `Connection`. Of chunked, until_close and bodiless at most one is true."""

    fields: Fields
    chunked: bool
    until_close: bool
    bodiless: bool


def frame_response(status: int, fields: Fields, length: int | None, method: bytes, version: str) -> ResponseFraming:
    """Frame a response. length: bytes of its body; None: not known. method, version: of the request that it answers."""
    kept, lengths = parted(fields)
    chunked = until_close = False
    bodiless = method == b"HEAD" or status in BODILESS
    if bodiless:
        if status != 204:  # what the body would have: a statement about the content, not about this message
            kept += lengths[:1]
    elif length is not None:
        kept.append((b"Content-Length", b"%d" % length))
    elif version == "HTTP/1.1":
        chunked = True
        kept.append(_CHUNKED)
    else:
        until_close = True
    return ResponseFraming(tuple(kept), chunked, until_close, bodiless)


def frame_request(method: bytes, fields: Fields, length: int | None) -> Fields:
    """Frame a request. length: bytes of its body; None: not known, it is sent in chunks."""
    kept = end_to_end(fields)
    if length is None:
        return (*kept, _CHUNKED)
    if length or method in _WITH_CONTENT:
        return (*kept, (b"Content-Length", b"%d" % length))
    return kept


def received_fields(status: int, fields: Fields) -> Fields:
    """Take hop-by-hop fields out of an upstream's response; Content-Length stays, as a statement about the content."""
    kept, lengths = parted(fields)
    return tuple(kept) if status == 204 else (*kept, *lengths)
