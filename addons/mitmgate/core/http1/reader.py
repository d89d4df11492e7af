"""Readers of a connection: bytes of any cut in, heads, body bytes and ends of messages out."""

import re
from enum import Enum, auto
from typing import Final

from mitmgate.core.cause import Cause
from mitmgate.core.headers import Fields
from mitmgate.core.http1.body import ChunkedBody, LengthBody
from mitmgate.core.http1.bounds import Bounds
from mitmgate.core.http1.head import TEXT, RequestHead, ResponseHead, parse_line, parse_request, parse_response
from mitmgate.core.http1.known import KnownFields
from mitmgate.core.http1.recorded import SHOWN, asked
from mitmgate.core.http2_frames import PREFACE
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

_HEAD_END: Final = b"\r\n\r\n"
_PREFACE_HEAD: Final = PREFACE.find(_HEAD_END)  # its octets that look like a head
_MAX_INFORMATIONAL: Final = 32
_ORIGIN: Final = re.compile(rb"\norigin:[ \t]*([!-~]*)[ \t]*(?=\r\n)", re.IGNORECASE)


OVERRUN: Final = 32 * 1024
"""Bytes beyond the bound of a head in which its end is waited for, so that a browser, whose Origin comes behind a long
target, may show its 414 or 431. Nothing else of it is looked at."""


class _Mark(Enum):
    END = auto()
    HTTP2 = auto()


END: Final = _Mark.END
"""The message is complete."""
HTTP2: Final = _Mark.HTTP2
"""The connection begins with HTTP/2's preface (RFC 9113, section 3.4), which is kept with all that follows it."""

RequestEvent = RequestHead | bytes | _Mark | Refusal
ResponseEvent = ResponseHead | bytes | _Mark | Refusal
Event = RequestEvent | ResponseEvent


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    DONE = auto()
    FAILED = auto()


_NO_BODY: Final = LengthBody(0)
"""Of a message that has none: it is never fed."""


class RequestReader:
    """Reads requests one after the other.

    After END it keeps what follows (`pending` bytes) until `next` is called: a request is read only when the one
    before it is answered. After a Refusal it reads nothing more.
    """

    __slots__ = ("_body", "_bounds", "_buffer", "_http2", "_known", "_scanned", "_state")

    def __init__(self, bounds: Bounds, known: KnownFields | None = None, *, http2: bool = False) -> None:
        """bounds: head, fields and target are looked at. known: what need not be parsed again.

        http2: the client may begin with HTTP/2's preface.
        """
        self._bounds = bounds
        self._buffer = bytearray()
        self._scanned = 0
        self._state = _State.HEAD
        self._body: LengthBody | ChunkedBody = _NO_BODY
        self._known = known
        self._http2 = http2

    @property
    def pending(self) -> int:
        """The bytes that are kept: a part of a head, or what follows a complete request."""
        return len(self._buffer)

    @property
    def complete(self) -> bool:
        """Whether the current request was read to its end."""
        return self._state is _State.DONE

    @property
    def idle(self) -> bool:
        """Whether not a byte of a request is there."""
        return self._state is _State.HEAD and not self._buffer

    @property
    def trailers(self) -> Fields:
        """The fields that followed the current request's body."""
        return self._body.trailers

    def unfinished(self, reason: Reason, detail: str) -> Refusal:
        """Refuse the part of a head that is there, with what it seems to ask for."""
        if len(self._buffer) > self._bounds.head:
            return self._too_large(self._buffer)._replace(fields=self._origins(self._buffer))
        method, target = asked(bytes(self._buffer[: 4 * SHOWN]))
        return Refusal(reason, detail, method, target, self._origins(self._buffer))

    def feed(self, data: bytes) -> list[RequestEvent]:
        """Take bytes of any cut and return what they complete."""
        if self._state is _State.BODY:
            events: list[RequestEvent] = []
            self._read_body(data, events)
            return events
        if self._state is not _State.HEAD:
            if self._state is _State.DONE:
                self._buffer += data
            return []
        return self._read_head(data)

    def next(self) -> list[RequestEvent]:
        """Go on to the next request; returns what the kept bytes complete."""
        kept = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        self._http2 = False
        self._state = _State.HEAD
        return self._read_head(kept) if kept else []

    def take_pending(self) -> bytes:
        """Hand over the kept bytes: the first of the protocol that the connection was switched to."""
        kept = bytes(self._buffer)
        self._buffer.clear()
        return kept

    def eof(self) -> Refusal | None:
        """Say what is missing when the client sends nothing more; None where it stopped between requests."""
        if self._state is _State.HEAD and self._buffer.strip(b"\r\n"):
            return self.unfinished(Reason.HEAD_MALFORMED, "The connection ended inside the head.")
        if self._state is _State.BODY:
            return Refusal(Reason.BODY_MALFORMED, "The connection ended inside the body.")
        return None

    def _read_head(self, data: bytes) -> list[RequestEvent]:
        buffer = self._buffer
        if buffer:
            buffer += data
            if buffer.find(_HEAD_END, max(0, self._scanned - 3)) < 0:
                return self._incomplete()
            data = bytes(buffer)
        if data.startswith(b"\r\n"):
            self._http2 = False
            data = data[2:]  # RFC 9112, section 2.2: one empty line before a request is ignored
        end = data.find(_HEAD_END)
        if end < 0:
            buffer[:] = data
            return self._incomplete()
        if end == _PREFACE_HEAD and self._http2 and PREFACE.startswith(data[: len(PREFACE)]):
            buffer[:] = data
            if len(data) < len(PREFACE):  # all that it can become
                return []
            self._state = _State.DONE
            return [HTTP2]
        if end > self._bounds.head:
            return self._refuse(self._too_large(data), data)
        buffer.clear()
        head = self._parse(data[:end])
        if isinstance(head, Refusal):
            return self._refuse(head, data[: end + 2])
        events: list[RequestEvent] = [head]
        if head.body == 0:
            self._state = _State.DONE
            self._body = _NO_BODY
            events.append(END)
            buffer += data[end + 4 :]
            return events
        self._state = _State.BODY
        self._body = ChunkedBody(Reason.BODY_MALFORMED) if head.body is None else LengthBody(head.body)
        if len(data) > end + 4:
            self._read_body(data[end + 4 :], events)
        return events

    def _parse(self, raw: bytes) -> RequestHead | Refusal:
        known = self._known
        if known is None:
            return parse_request(raw, self._bounds)
        line, _, fields = raw.partition(b"\r\n")
        before = known.find(fields)
        if before is not None:
            again = parse_line(line, before, self._bounds)
            if again is not None:
                again.headers.come_again()
                return again
        head = parse_request(raw, self._bounds)
        if before is None and isinstance(head, RequestHead):
            known.keep(fields, head)
        return head

    def _read_body(self, data: bytes, events: list[RequestEvent]) -> None:
        body = self._body
        part = body.feed(data)
        if isinstance(part, Refusal):
            self._state = _State.FAILED
            events.append(part)
            return
        if part:
            events.append(part)
        if body.complete:
            self._state = _State.DONE
            self._buffer += body.leftover
            events.append(END)

    def _incomplete(self) -> list[RequestEvent]:
        """Refuse what can't become a head, rather than wait for the rest of it."""
        buffer = self._buffer
        if not buffer:
            return []
        if len(buffer) > self._bounds.head + OVERRUN:
            return self._refuse(self._too_large(buffer), buffer)
        if len(buffer) > self._bounds.head:  # refused when all of it is there: see OVERRUN
            self._scanned = len(buffer)
            return []
        start = max(0, self._scanned - 1)
        fresh = bytes(buffer[start:])
        self._scanned = len(buffer)
        loose = 1 if fresh.endswith(b"\r") else 0
        lines = fresh.count(b"\r\n")
        first = 1 if start and fresh.startswith(b"\n") else 0  # its CR was looked at before
        if (
            fresh.count(b"\n") != lines + first
            or fresh.count(b"\r") != lines + loose
            or fresh.translate(None, TEXT)
            or buffer[0] in b" \t"
        ):
            flaw = "The head holds a control character, or a loose CR or LF."
            return self._refuse(self.unfinished(Reason.HEAD_MALFORMED, flaw), buffer)
        return []

    def _refuse(self, refusal: Refusal, data: bytes | bytearray) -> list[RequestEvent]:
        """Read nothing more."""
        self._state = _State.FAILED
        return [refusal if refusal.fields else refusal._replace(fields=self._origins(data))]

    def _origins(self, data: bytes | bytearray) -> Fields:
        """Find the Origin of a head that is none, so that a browser may show what was wrong."""
        return tuple((b"Origin", bytes(origin)) for origin in _ORIGIN.findall(data, 0, self._bounds.head + OVERRUN))

    def _too_large(self, data: bytes | bytearray) -> Refusal:
        line = data.find(b"\r\n")
        method, target = asked(bytes(data[: 4 * SHOWN]))
        if line < 0 or line > self._bounds.target + 64:
            detail = f"The request target is longer than {self._bounds.target} bytes."
            return Refusal(Reason.TARGET_TOO_LONG, detail, method, target)
        return Refusal(Reason.HEAD_TOO_LARGE, f"The head is larger than {self._bounds.head} bytes.", method, target)


class ResponseReader:
    """Reads the response to one request. Interim responses (1xx) other than 101 are read and dropped."""

    __slots__ = ("_body", "_bounds", "_buffer", "_informational", "_method", "_state", "started")

    started: bool
    """Whether a byte of a response has arrived."""

    def __init__(self, method: bytes, bounds: Bounds) -> None:
        """method: of the request; the response to HEAD has no body."""
        self.started = False
        self._method = method
        self._bounds = bounds
        self._buffer = b""
        self._informational = 0
        self._state = _State.HEAD
        self._body: LengthBody | ChunkedBody = _NO_BODY

    @property
    def pending(self) -> int:
        """The bytes that are kept: a part of a head, or what follows the response."""
        return len(self._buffer)

    @property
    def leftover(self) -> bytes:
        """Return what came after the response: the first bytes of the protocol that a 101 switches to."""
        return self._buffer

    @property
    def trailers(self) -> Fields:
        """Return the fields that followed the body."""
        return self._body.trailers

    def feed(self, data: bytes) -> list[ResponseEvent]:
        """Take bytes of any cut and return what they complete."""
        events: list[ResponseEvent] = []
        self.started = True
        if self._state is _State.BODY:
            self._read_body(data, events)
        elif self._state is _State.HEAD:
            self._read_head(self._buffer + data, events)
        elif self._state is _State.DONE:
            self._buffer += data
        return events

    def eof(self, *, orderly: bool = True) -> list[ResponseEvent]:
        """Take the end of the connection: the end of a body that lasts until then, or a refusal.

        orderly: False where the transport says that it was broken off, by a reset or without TLS' close_notify: then
        nobody knows whether that was all (RFC 9112, sections 8 and 9.8).
        """
        if self._state is _State.BODY:
            if orderly and isinstance(self._body, LengthBody) and self._body.remaining < 0:
                self._state = _State.DONE
                return [END]
            self._state = _State.FAILED
            detail = "The connection ended inside the response's body."
            return [Refusal(Reason.UPSTREAM_CLOSED, detail, cause=Cause.BODY_CUT)]
        if self._state is _State.HEAD:
            self._state = _State.FAILED
            detail = "The connection ended without a response."
            return [Refusal(Reason.UPSTREAM_CLOSED, detail, cause=Cause.CLOSED)]
        return []

    def _read_head(self, data: bytes, events: list[ResponseEvent]) -> None:
        while True:
            end = data.find(_HEAD_END)
            if (end if end >= 0 else len(data)) > self._bounds.response_head:
                self._fail("The head is too large.", events, Cause.HEAD_TOO_LARGE)
                return
            if end < 0:
                self._buffer = data
                if data.translate(None, TEXT) or data.count(b"\n") != data.count(b"\r\n") or not _may_be_http(data):
                    self._fail("The response is not HTTP/1.", events)
                return
            head = parse_response(data[:end], self._method, self._bounds)
            data = data[end + 4 :]
            if isinstance(head, Refusal):
                self._state = _State.FAILED
                events.append(head)
                return
            if head.status >= 200 or head.status == 101:
                break
            self._informational += 1
            if self._informational > _MAX_INFORMATIONAL:
                self._fail("Too many interim responses.", events)
                return
        events.append(head)
        self._buffer = b""
        if head.body == 0:
            self._state = _State.DONE
            self._buffer = data
            events.append(END)
            return
        self._state = _State.BODY
        self._body = ChunkedBody(Reason.UPSTREAM_MALFORMED) if head.body is None else LengthBody(head.body)
        if data:
            self._read_body(data, events)

    def _read_body(self, data: bytes, events: list[ResponseEvent]) -> None:
        body = self._body
        part = body.feed(data)
        if isinstance(part, Refusal):
            self._state = _State.FAILED
            events.append(part._replace(cause=Cause.BODY_MALFORMED))
            return
        if part:
            events.append(part)
        if body.complete:
            self._state = _State.DONE
            self._buffer = body.leftover
            events.append(END)

    def _fail(self, detail: str, events: list[ResponseEvent], cause: Cause = Cause.HEAD_MALFORMED) -> None:
        self._state = _State.FAILED
        events.append(Refusal(Reason.UPSTREAM_MALFORMED, detail, cause=cause))


def _may_be_http(data: bytes) -> bool:
    return data[:7] == b"HTTP/1."[: len(data[:7])]
