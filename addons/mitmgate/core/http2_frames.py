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

CONTENT: Final = 256
"""Bytes of a DATA frame that is worth its cost; smaller ones are paid for in part."""
CONTROL: Final = 64
"""Bytes of a control frame that cost as much as another frame."""
EARNED: Final = 10.0
"""Frames that come with a request of most clients."""
RESET: Final = 15.0
"""What a request costs that is given up (CVE-2023-44487)."""
REFUSED: Final = 20.0
"""What a request costs that is one too many."""

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
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8


class FrameMeter:
    """Counts the frames of one connection. Bytes may be cut anywhere."""

    __slots__ = ("_at", "_credit", "_ends_head", "_last", "_skip", "_tail", "head_since", "opened")

    def __init__(self) -> None:
        """Begin before the preface."""
        self._skip = len(PREFACE)
        self._tail = b""
        self._credit = BURST
        self._at: float | None = None
        self._last = 0
        self._ends_head = False  # the frame that is coming ends the head
        self.head_since: float | None = None
        """When (as `now` says) a head began that has not ended yet."""
        self.opened = 0
        """Streams that the client has opened."""

    def sent(self, count: int) -> None:
        """Note that so many bytes were sent."""
        self._credit = min(BURST, self._credit + count / BYTES_A_FRAME)

    def spend(self, frames: float) -> bool:
        """Take something off that costs as much as so many frames; False: there was not as much left."""
        self._credit -= frames
        return self._credit >= 0.0

    def feed(self, data: memoryview, now: float) -> str:  # noqa: PLR0912 - one pass over the frames
        """Take bytes. now: seconds, monotonic. Returns what there is too much of, in words; "" where nothing is."""
        if self._at is not None:
            self._credit = min(BURST, self._credit + (now - self._at) * RATE)
        self._at = now
        position, size = self._skip, len(data)
        if self._tail:
            joined = self._tail + bytes(data)
            data, size = memoryview(joined), len(joined)
        if self._ends_head and position <= size:
            self._ends_head, self.head_since = False, None
        while position + _HEAD <= size:
            length = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            kind, flags = data[position + 3], data[position + 4]
            if kind == _HEADERS:
                stream_id = int.from_bytes(data[position + 5 : position + _HEAD]) & 0x7FFFFFFF
                if stream_id > self._last and stream_id & 1:
                    self._last = stream_id
                    self.opened += 1
                    self._credit = min(BURST, self._credit + EARNED)
                if self.head_since is None:
                    self.head_since = now
            position += _HEAD + length
            if kind in {_HEADERS, _CONTINUATION} and flags & _END_HEADERS:
                if position <= size:
                    self.head_since = None
                else:
                    self._ends_head = True
            if kind == _HEADERS:
                continue
            if not self.spend(_price(kind, flags, length)):
                return _NAMES.get(kind, "frames of unknown types")
        if position >= size:
            self._skip, self._tail = position - size, b""
        else:
            self._skip, self._tail = 0, bytes(data[position:])
        return ""


def _price(kind: int, flags: int, length: int) -> float:
    """Say what a frame costs that is no head: nothing where it brings enough of a body, more where it is large."""
    if kind == _DATA:
        if flags & _PADDED or not length:
            return 0.0 if flags & _END_STREAM else 1.0
        return max(0.0, 1.0 - length / CONTENT)
    if kind == _CONTINUATION:
        return 1.0
    if kind == _RESET:
        return RESET
    return 1.0 + length / CONTROL
