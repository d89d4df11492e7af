"""gRPC over HTTP/2: how the gateway says no in that protocol (grpc.io, "gRPC over HTTP2", Responses)."""

from typing import Final
from urllib.parse import quote

from mitmgate.core.headers import Fields, listed
from mitmgate.core.reason import Reason
from mitmgate.core.request import Request

_PREFIX: Final = b"application/grpc"
# As gRPC clients take HTTP statuses ("http-grpc-status-mapping"), but for 429, which is not "try again at once".
_UNKNOWN, _PERMISSION_DENIED, _EXHAUSTED, _UNIMPLEMENTED, _INTERNAL, _UNAVAILABLE, _UNAUTHENTICATED = (
    2,
    7,
    8,
    12,
    13,
    14,
    16,
)
_STATUS: Final = {
    400: _INTERNAL,
    401: _UNAUTHENTICATED,
    403: _PERMISSION_DENIED,
    404: _UNIMPLEMENTED,
    413: _EXHAUSTED,
    429: _EXHAUSTED,
    502: _UNAVAILABLE,
    503: _UNAVAILABLE,
    504: _UNAVAILABLE,
}
_READABLE: Final = "".join(chr(octet) for octet in range(0x20, 0x7F) if octet != ord("%"))


def is_grpc(content_type: bytes | None) -> bool:
    """Tell whether a message is one of gRPC, not of gRPC-Web: application/grpc, or with a suffix behind a plus."""
    if content_type is None:
        return False
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == _PREFIX or kind.startswith(_PREFIX + b"+")


def is_call(request: Request) -> bool:
    """Tell whether a request is a call by a client of gRPC, which reads a gRPC status and nothing else.

    It says so in more than a Content-Type, which anybody may send to have a denial look like a success to what reads
    HTTP statuses: a browser's fetch, a proxy that asks whether a request may pass, a count of failed attempts. What
    is no POST on HTTP/2 with `te: trailers` (a field that browsers don't let be set) is none. gRPC-Web's clients read
    HTTP statuses.
    """
    headers = request.headers
    return (
        request.version == "HTTP/2.0"
        and request.method == "POST"
        and listed(headers.all(b"te"), b"trailers")
        and is_grpc(headers.one(b"content-type"))
    )


def status_fields(reason: Reason, detail: str, content_type: bytes) -> Fields:
    """Return the fields of a response that has no message but the status ("Trailers-Only"). detail: for the client."""
    message = f"{reason.code}: {detail or reason.title}"
    return (
        (b"Content-Type", content_type),
        (b"grpc-status", b"%d" % _STATUS.get(reason.status, _UNKNOWN)),
        (b"grpc-message", quote(message, safe=_READABLE).encode("ascii")),
    )
