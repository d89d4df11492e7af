"""The request that is on its way over an upstream connection: framed once, and counted as it is written.

A body that is shorter or longer than its head declares makes the next request on the connection begin inside it, or its
own end another request (RFC 9112, section 11.2). Whoever sends on an upstream connection does it through this, so that
no caller's mistake can leave one in that state: it is used again only where `complete` says so.
"""

from typing import Final

from mitmgate.core.headers import Fields
from mitmgate.core.http1.framing import frame_request
from mitmgate.core.http1.writer import chunk, last_chunk, request_head

_CHUNKED: Final = -1
_OVER: Final = -2  # no byte of a body may be written: it was, or what came was not what the head declared
_WHOLE: Final = (0, _CHUNKED)
_TRAILERS: Final = ((b"TE", b"trailers"), (b"Connection", b"TE"))  # RFC 9110, section 10.1.4
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class OutgoingRequest:
    """What of a connection's current request was written. Each connection has one, for one request after the other."""

    __slots__ = ("_left", "complete")

    complete: bool
    """Whether the head, exactly the body that it declares, and its end were written."""

    def __init__(self) -> None:
        """Begin without a request: none is incomplete."""
        self.complete = True
        self._left = _OVER

    def begin(
        self,
        method: bytes,
        target: bytes,
        fields: Fields,
        length: int | None,
        *,
        upgrade: bool = False,
        takes_trailers: bool = False,
        announced: bytes = b"",
    ) -> bytes | None:
        """Return the head to write. length: of the body; None: it is sent in chunks.

        None where the head can't be written safely, or the request before was not complete. upgrade: hop-by-hop fields
        are kept, since they ask for another protocol; such a request has no body. takes_trailers: the client does.
        announced: trailers that may follow the body, which then is sent in chunks (RFC 9112, section 7.1.2).
        """
        if announced:
            length = None
        whole, self.complete, self._left = self.complete, False, _OVER
        if not whole or (length is not None and length < 0):
            return None
        if not upgrade:
            fields = frame_request(method, fields, length)
            if takes_trailers:
                fields += _TRAILERS
            if announced:
                fields += ((b"Trailer", announced),)
        elif length == 0:
            fields = tuple(field for field in fields if field[0].lower() not in _FRAMING)
        else:
            return None
        head = request_head(method, target, fields)
        if head is not None:
            self._left = _CHUNKED if length is None else length
        return head

    def body(self, data: bytes) -> bytes | None:
        """Return what to write for a part of the body; None where that is more than was declared."""
        left = self._left
        if left == _CHUNKED:
            return chunk(data) if data else b""
        if len(data) <= left:
            self._left = left - len(data)
            return data
        self.complete, self._left = False, _OVER
        return None

    def end(self, trailers: Fields = ()) -> bytes | None:
        """Return what to write at the end of the body; None where less than what was declared came before it.

        trailers: only behind chunks; a body of a declared length has none.
        """
        left, self._left = self._left, _OVER
        self.complete = left in _WHOLE
        if not self.complete:
            return None
        return b"" if left == 0 else last_chunk(trailers)
