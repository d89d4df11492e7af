"""Message bodies: of a known length, chunked (RFC 9112, section 7.1), or as long as the connection lasts."""

import re
from typing import ClassVar, Final

from mitmgate.core.headers import Fields
from mitmgate.core.http1.head import TEXT, parse_fields
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

MAX_CHUNK_LINE: Final = 1024
MAX_EXTENSIONS: Final = 16 * 1024  # bytes of chunk extensions in one body: nobody reads them
MAX_TRAILERS: Final = 8 * 1024
MAX_TRAILER_FIELDS: Final = 100

_CRLF: Final = 2
_HEX: Final = b"0123456789abcdefABCDEF"
_CHUNK_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,15})"
    rb"((?:;[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:=(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+|\"(?:[\t !#-\[\]-~]|\\[\t -~])*+\"))?)*+)"
)


class LengthBody:
    """A body of a known number of bytes, or (-1) of all that comes."""

    __slots__ = ("complete", "leftover", "remaining")

    trailers: ClassVar[Fields] = ()
    """Only chunks have any."""
    complete: bool
    leftover: bytes

    def __init__(self, length: int) -> None:
        """length: bytes to come; -1: until the connection closes."""
        self.remaining = length
        self.complete = length == 0
        self.leftover = b""

    def feed(self, data: bytes) -> bytes | Refusal:
        """Take bytes, return those of the body; `leftover` has what follows it."""
        if self.remaining < 0:
            return data
        if len(data) < self.remaining:
            self.remaining -= len(data)
            return data
        data, self.leftover = data[: self.remaining], data[self.remaining :]
        self.remaining = 0
        self.complete = True
        return data


class ChunkedBody:
    """A chunked body: exact CRLF, bounded sizes, extensions checked and ignored, trailers checked and kept apart."""

    __slots__ = ("_buffer", "_chunk", "_extensions", "_in_trailers", "_malformed", "complete", "leftover", "trailers")

    complete: bool
    leftover: bytes
    trailers: Fields
    """Which followed the last chunk."""

    def __init__(self, malformed: Reason) -> None:
        """malformed: the reason of a refusal."""
        self.complete = False
        self.leftover = b""
        self.trailers = ()
        self._buffer = b""
        self._chunk = 0  # bytes of the current chunk and its CRLF that are still to come
        self._extensions = 0
        self._in_trailers = False
        self._malformed = malformed

    def feed(self, data: bytes) -> bytes | Refusal:
        """Take bytes, return the decoded body bytes; `leftover` has what follows the body."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        parts: list[bytes] = []
        at = 0
        while not self.complete:
            if self._in_trailers:
                flaw = self._read_trailers(data[at:])
                if flaw is not None:
                    return self._refuse(flaw)
                break
            taken = self._read_chunk(data, at, parts) if self._chunk else self._read_line(data, at)
            if isinstance(taken, str):
                return self._refuse(taken)
            if taken is None:
                self._buffer = data[at:] if self._chunk <= _CRLF else b""
                break
            at = taken
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_chunk(self, data: bytes, at: int, parts: list[bytes]) -> int | str | None:
        """Read on in a chunk; returns where to go on, None where bytes are missing, a text where it is malformed."""
        if self._chunk > _CRLF:
            part = data[at : at + self._chunk - _CRLF]
            if not part:
                return None
            parts.append(part)
            self._chunk -= len(part)
            return at + len(part)
        end = data[at : at + _CRLF]
        if end != b"\r\n"[: len(end)]:
            return "A chunk does not end where its size says."
        if len(end) < _CRLF:
            return None
        self._chunk = 0
        return at + _CRLF

    def _read_line(self, data: bytes, at: int) -> int | str | None:
        """Read a chunk's first line; the result is as that of `_read_chunk`."""
        end = data.find(b"\r\n", at)
        line = data[at:end] if end >= 0 else data[at:].removesuffix(b"\r")
        if len(line) > MAX_CHUNK_LINE:
            return "A chunk's first line is too long."
        if end < 0:
            hopeless = b"\n" in line or b"\r" in line or line[:1].translate(None, _HEX)
            return "A chunk's first line is malformed." if hopeless else None
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            return "A chunk's first line is malformed."
        self._extensions += len(match[2])
        if self._extensions > MAX_EXTENSIONS:
            return "The body has too many chunk extensions."
        size = int(match[1], 16)
        if size:
            self._chunk = size + _CRLF
        else:
            self._in_trailers = True
        return end + 2

    def _read_trailers(self, data: bytes) -> str | None:
        """Read to the empty line; returns what is wrong."""
        if data.startswith(b"\r\n"):
            self.complete, self.leftover = True, data[2:]
            return None
        end = data.find(b"\r\n\r\n")
        if (end if end >= 0 else len(data)) > MAX_TRAILERS:
            return "The trailers are too large."
        raw = data if end < 0 else data[:end]
        lines = raw.split(b"\r\n")
        loose = 1 if end < 0 and raw.endswith(b"\r") else 0
        if raw.count(b"\n") != len(lines) - 1 or raw.count(b"\r") != len(lines) - 1 + loose:
            return "The trailers hold a CR or an LF that ends no line."
        if raw.translate(None, TEXT):
            return "The trailers hold a control character."
        if end < 0:
            self._buffer = data
            return None
        fields = parse_fields(lines, 0)
        if isinstance(fields, str):
            return "A trailer field is malformed."
        if len(fields.fields) > MAX_TRAILER_FIELDS:
            return "There are too many trailers."
        self.trailers = fields.fields
        self.complete, self.leftover = True, data[end + 4 :]
        return None

    def _refuse(self, detail: str) -> Refusal:
        return Refusal(self._malformed, detail)
