"""A strict HTTP/1.1 reader and writer without I/O: bytes in, values out, and never an exception for bad input.

It serves both sides of the gateway: `RequestReader` reads what clients send, `ResponseReader` what upstreams answer,
and the writer serialises anew from parsed parts. What two implementations could read differently is a `Refusal`
(RFC 9112, sections 2.2, 3.2, 5, 6.3, 7.1 and 11.2).
"""

from mitmgate.core.http1.bounds import Bounds
from mitmgate.core.http1.head import RequestHead, ResponseHead
from mitmgate.core.http1.reader import END, Event, RequestReader, ResponseReader
from mitmgate.core.http1.writer import chunk, request_head, response_head

__all__ = [
    "END",
    "Bounds",
    "Event",
    "RequestHead",
    "RequestReader",
    "ResponseHead",
    "ResponseReader",
    "chunk",
    "request_head",
    "response_head",
]
