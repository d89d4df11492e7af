"""mitmproxy's messages out of parts that are known to be well-typed.

mitmproxy checks the type of each part of a message, unless Python runs with -O. The check costs more than the chain,
and for every part that may be None (`utils/typecheck.py`, the Union) it leaves an exception that refers to its own
frame: the whole stack, with the connection's layers and what they have read, then waits for the garbage collector.
"""

import os
import time
from email.utils import formatdate
from typing import Final

from mitmproxy.connection import Client, Server
from mitmproxy.http import Headers, HTTPFlow, Request, RequestData, Response, ResponseData
from mitmproxy.net.http import status_codes

from mitmgate.core.headers import Fields

_IDS: Final = 64
"""Ids of flows that are made at once."""
_ids: Final[list[str]] = []


def flow_id() -> str:
    """Return a random UUID (RFC 9562, section 5.4). The system is asked for many at once: each time takes 4 µs."""
    if not _ids:
        text = os.urandom(16 * _IDS).hex()
        for at in range(0, len(text), 32):
            variant = "89ab"[int(text[at + 16], 16) & 3]
            _ids.append(
                f"{text[at : at + 8]}-{text[at + 8 : at + 12]}-4{text[at + 13 : at + 16]}"
                f"-{variant}{text[at + 17 : at + 20]}-{text[at + 20 : at + 32]}"
            )
    return _ids.pop()


def make_flow(client: Client, server: Server) -> HTTPFlow:
    """Make a live flow, as HTTPFlow's constructor does but for the id."""
    flow = HTTPFlow.__new__(HTTPFlow)
    flow.id = flow_id()
    flow.client_conn = client
    flow.server_conn = server
    flow.live = True
    flow.timestamp_created = time.time()
    flow.intercepted = False
    flow._resume_event = None
    flow._backup = None
    flow.marked = ""
    flow.is_replay = None
    flow.metadata = {}
    flow.comment = ""
    return flow


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


_DATED: Final[list[tuple[int, tuple[bytes, bytes]]]] = [(0, (b"Date", b""))]
"""The second that a Date was last written for, and the field."""


def date_field(now: float) -> tuple[bytes, bytes]:
    """Return the Date field of a moment (Unix seconds)."""
    second = int(now)
    known, field = _DATED[0]
    if known != second:
        field = (b"Date", formatdate(second, usegmt=True).encode("ascii"))
        _DATED[0] = (second, field)
    return field


def make_response(status: int, headers: Headers, content: bytes | None, *, complete: bool = True) -> Response:
    """Make a response. headers: taken as they are. content: as it goes over the wire; None where it is still to come.

    complete: it is whole now, as those that the gateway itself makes, and gets the Date that an origin server with a
    clock gives (RFC 9110, section 6.6.1).
    """
    now = time.time()
    if complete and status >= 200:
        headers.fields = (*headers.fields, date_field(now))
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
