"""A list in a file, one JSON object a line, that processes of one machine share: appended to, under a lock."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

LARGEST: Final = 64 << 20
"""Bytes of a file."""

_LONGEST_LINE: Final = 1 << 15  # bytes; core.revocation and core.api_key bound what it holds


class ListFile:
    """Appends whole lines. What has no end yet, as a crash leaves it, was not acknowledged to anybody."""

    def __init__(self, path: str) -> None:
        """path: absolute."""
        self._path = Path(path)

    def prepare(self) -> None:
        """Make the file where it is not there. Raises OSError."""
        os.close(self.open(os.O_RDWR | os.O_CREAT))

    def open(self, flags: int) -> int:
        """Open it, a regular file. Raises OSError."""
        # O_NONBLOCK: to open a pipe would wait (open(2)).
        descriptor = os.open(self._path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(f"{self._path} is no regular file")
        return descriptor

    def append(self, line: bytes | Callable[[bytes], bytes]) -> None:
        """Append a line, or several, and have them on the disk. Raises OSError.

        A function makes them of what the file holds, under the lock; empty: there is nothing to append.
        """
        while True:
            descriptor = self.open(os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_ino != os.stat(self._path).st_ino:  # it was written anew meanwhile
                    continue
                size = os.fstat(descriptor).st_size
                whole = _whole(descriptor, size)
                if whole < size:  # what a crash has left was not acknowledged to anybody
                    os.ftruncate(descriptor, whole)
                if not isinstance(line, bytes):
                    line = line(read_part(descriptor, 0, whole))
                if not line or self._tidy(descriptor, whole, line):
                    return
                if os.write(descriptor, line + b"\n") <= len(line):
                    # A full disk takes a part, and says so the next time.
                    raise OSError(errno.ENOSPC, "took a part of a line alone")
                os.fsync(descriptor)
                return
            finally:
                os.close(descriptor)

    def _tidy(self, descriptor: int, size: int, line: bytes) -> bool:
        """Write the file anew, the line included, where that is worth while. size: bytes. Called with its lock."""
        return False


def read_part(descriptor: int, offset: int, size: int) -> bytes:
    """Read a part of a file, up to its size. Raises OSError for a size that no list has."""
    if size > LARGEST:
        raise OSError(f"is larger than {LARGEST} bytes")
    parts: list[bytes] = []
    while offset < size:
        part = os.pread(descriptor, size - offset, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _whole(descriptor: int, size: int) -> int:
    """Return how many bytes whole lines have."""
    start = max(0, size - _LONGEST_LINE)
    end = os.pread(descriptor, size - start, start).rfind(b"\n") + 1
    if not end and start:
        raise OSError("does not end with a line")
    return start + end
