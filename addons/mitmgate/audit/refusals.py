"""Refused requests in a log: a flood of them must not push the admitted ones out.

Anybody can make the gateway refuse requests, as many as he likes; only who has a token makes it admit any. So refused
requests may take as much of a log as everything else does, and an eighth of a file beyond that. Further ones go to a
log of their own beside it, `audit.refused.jsonl` for `audit.jsonl`, with a chain and a rotation of its own. Each
process counts what it writes; a log that several write may have an eighth more for each.
"""

import os
from collections.abc import Callable, Sequence
from typing import Final

_SHARE: Final = 8
_SMALL: Final = 16 * 1024  # bytes


def room(size: int, whole: int, small: int = _SMALL) -> int:
    """Say what refused requests may take of a log beside as much as all others: an eighth of a file, or of a stream.

    whole: the size of the log with all rotated files. A log of a few kilobytes, whose eighth holds no record, gives a
    quarter of it.
    """
    return max(size // _SHARE, min(small, whole // 4))


def is_refusal(record: bytes) -> bool:
    """Tell whether a record is of a request that was not admitted. What a client writes has no plain quotes in it."""
    return b'"decision":"admit"' not in record and b'"decision":"' in record  # most are found admitted at once


def refused_log(path: str) -> str:
    """Name the log of refused requests that find no room in another."""
    base, extension = os.path.splitext(path)
    return f"{base}.refused{extension}"


class Share:
    """What refused requests may still take of a log."""

    __slots__ = ("_left", "_most", "_size", "moved")

    def __init__(self, most: int, size: Callable[[bytes], int]) -> None:
        """most: what they may take beyond as much as all others. size: measures a record, in the unit of `most`."""
        self.moved = False
        """Whether the last one was moved."""
        self._most = self._left = most
        self._size = size

    def moves(self, records: Sequence[bytes]) -> list[bool]:
        """Say of each record whether it goes to the log of refused requests; nothing is counted yet."""
        return self._walk(records)[0]

    def count(self, records: Sequence[bytes]) -> None:
        """Count records that were written where `moves` said."""
        moved, self._left = self._walk(records)
        if moved:
            self.moved = moved[-1] or (self.moved and self._left < self._most)

    def _walk(self, records: Sequence[bytes]) -> tuple[list[bool], int]:
        left, moved = self._left, []
        for record in records:
            size = self._size(record)
            if not is_refusal(record):
                left = min(self._most, left + size)
                moved.append(False)
            elif left >= size:
                left -= size
                moved.append(False)
            else:
                moved.append(True)
        return moved, left
