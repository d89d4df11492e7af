"""mitmproxy's messages out of parts that are known to be well-typed.

mitmproxy checks the type of each part of a message, unless Python runs with -O. The check costs more than the chain,
and for every part that may be None (`utils/typecheck.py`, the Union) it leaves an exception that refers to its own
frame: the whole stack, with the connection's layers and what they have read, then waits for the garbage collector.
"""

import time

from mitmproxy.http import Headers, Request, RequestData, Response, ResponseData
from mitmproxy.net.http import status_codes

from mitmgate.core.headers import Fields


class _RequestData(RequestData):
    def __post_init__(self) -> None:
        """Check nothing."""


class _ResponseData(ResponseData):
    def __post_init__(self) -> None:
        """Check nothing."""


def make_request(
    host: str, method: bytes, path: bytes, version: bytes, headers: Headers, scheme: bytes, authority: bytes
) -> Request:
    """Make a request that has not got its body yet, for port 80 of a host."""
    request = Request.__new__(Request)
    request.data = _RequestData(
        http_version=version,
        headers=headers,
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
        host=host,
        port=80,
        method=method,
        scheme=scheme,
        authority=authority,
        path=path,
    )
    return request


def make_response(status: int, headers: Headers, content: bytes | None, *, complete: bool = True) -> Response:
    """Make a response. headers: taken as they are. content: as it goes over the wire; None where it is still to come.

    complete: it is whole now, as those that the gateway itself makes.
    """
    now = time.time()
    response = Response.__new__(Response)
    response.data = _ResponseData(
        http_version=b"HTTP/1.1",
        headers=headers,
        content=content,
        trailers=None,
        timestamp_start=now,
        timestamp_end=now if complete else None,
        status_code=status,
        reason=_PHRASES.get(status, b""),
    )
    return response


_PHRASES = {status: phrase.encode("ascii") for status, phrase in status_codes.RESPONSES.items()}


def headers_of(fields: Fields) -> Headers:
    """Make Headers without the constructor, which looks at every pair and takes keyword arguments: 2 µs a time."""
    made = Headers.__new__(Headers)
    made.fields = fields
    return made
