"""What a client makes an HTTP/2 connection do beside requests: counted from the frames' heads, before they are read.

PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, empty DATA, CONTINUATION and unknown frames cost work, and ask for
nothing (CVE-2019-9511 to 9518, CVE-2023-44487, CVE-2024-27316). A client has so many of them for free, earns some with
time and some with what it is sent, and pays for each.
"""

from typing import Final

BURST: Final = 1000.0
"""Frames that are no request, at once."""
RATE: Final = 100.0
"""Frames that are no request, a second."""
BYTES_A_FRAME: Final = 512
"""Bytes of ours that may be followed by one more: a client says with WINDOW_UPDATE that it has taken them."""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD: Final = 9
_DATA, _HEADERS, _RESET, _CONTINUATION = 0x0, 0x1, 0x3, 0x9
_NAMES: Final = {
    0x0: "empty DATA frames",
    0x2: "PRIORITY frames",
    0x3: "RST_STREAM frames",
    0x4: "SETTINGS frames",
    0x5: "PUSH_PROMISE frames",
    0x6: "PING frames",
    0x7: "GOAWAY frames",
    0x8: "WINDOW_UPDATE frames",
    0x9: "CONTINUATION frames",
}
_END_STREAM, _END_HEADERS = 0x1, 0x4


class FrameMeter:
    """Counts the frames of one connection. Bytes may be cut anywhere."""

    __slots__ = ("_at", "_credit", "_last", "_skip", "_tail", "head_since", "opened")

    def __init__(self) -> None:
        """Begin before the preface."""
        self._skip = len(PREFACE)
        self._tail = b""
        self._credit = BURST
        self._at: float | None = None
        self._last = 0
        self.head_since: float | None = None
        """When (as `now` says) a head began that has not ended yet."""
        self.opened = 0
        """Streams that the client has opened."""

    def sent(self, count: int) -> None:
        """Note that so many bytes were sent."""
        self._credit = min(BURST, self._credit + count / BYTES_A_FRAME)

    def feed(self, data: memoryview, now: float) -> str:
        """Take bytes. now: seconds, monotonic. Returns what there is too much of, in words; "" where nothing is."""
        if self._at is not None:
            self._credit = min(BURST, self._credit + (now - self._at) * RATE)
        self._at = now
        position, size = self._skip, len(data)
        if self._tail:
            joined = self._tail + bytes(data)
            data, size = memoryview(joined), len(joined)
        while position + _HEAD <= size:
            length = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            kind, flags = data[position + 3], data[position + 4]
            if kind == _HEADERS:
                stream_id = int.from_bytes(data[position + 5 : position + _HEAD]) & 0x7FFFFFFF
                if stream_id > self._last and stream_id & 1:
                    self._last = stream_id
                    self.opened += 1
            position += _HEAD + length
            if kind == _HEADERS:
                if not flags & _END_HEADERS:
                    self.head_since = now
                continue
            if kind == _DATA and (length or flags & _END_STREAM):
                continue
            if kind == _CONTINUATION and flags & _END_HEADERS:
                self.head_since = None
            self._credit -= 1.0
            if self._credit < 0.0:
                return _NAMES.get(kind, "frames of unknown types")
        if position >= size:
            self._skip, self._tail = position - size, b""
        else:
            self._skip, self._tail = 0, bytes(data[position:])
        return ""
