"""The spill file: records that wait on disk, in order, for a sink that is away."""

import fcntl
import os
from collections.abc import Sequence

from mitmgate.audit.rotation import open_log
from mitmgate.audit.sink import SinkError
from mitmgate.audit.tail import recover, whole

_SLOTS = 1024
_ADOPTED = 1 << 20  # bytes copied at once


class Spill:
    """A file of lines, appended at its end and sent from its start.

    One process owns it, by flock. Where the name is taken by another worker, the next of `PATH.1`, `PATH.2`, … is
    used; what workers that are gone have left there is taken over. What has been sent is known in memory alone, so
    after a crash records may be sent again: at least once.
    """

    def __init__(self, path: str) -> None:
        """Name the file; `open` opens it."""
        self.pending = 0
        """Records that wait."""
        self._path = path
        self._descriptor = -1
        self._size = 0
        self._sent = 0  # bytes

    def open(self) -> int:
        """Claim a file, with what is in it. Returns the bytes of a torn record that was put aside. Raises OSError."""
        os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
        descriptor, path = self._claim()
        try:
            torn = recover(descriptor, path)
            self._adopt(descriptor, path)
            size = os.fstat(descriptor).st_size
            pending = _lines(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor, self._size, self._sent, self.pending = descriptor, size, 0, pending
        return torn

    @property
    def is_open(self) -> bool:
        """Tell whether the file is claimed."""
        return self._descriptor >= 0

    def append(self, records: Sequence[bytes]) -> None:
        """Add records, durably; all or none. Raises SinkError."""
        data = b"".join([record + b"\n" for record in records])
        at = 0
        try:
            while at < len(data):
                at += os.write(self._descriptor, data[at:] if at else data)
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise SinkError(f"{self._path} could not be written: {error.strerror}") from error
        self._size += len(data)
        self.pending += len(records)

    def read(self, most: int) -> list[bytes]:
        """Return the first records that wait, `most` bytes of them, but at least one."""
        data = os.pread(self._descriptor, most, self._sent)
        end = data.rfind(b"\n")
        while end < 0 and len(data) < self._size - self._sent:
            data += os.pread(self._descriptor, most, self._sent + len(data))
            end = data.rfind(b"\n")
        return data[:end].split(b"\n") if end >= 0 else []

    def sent(self, records: Sequence[bytes]) -> None:
        """Forget the first records: they were sent. The last one's going empties the file. Raises OSError."""
        self._sent += sum(len(record) + 1 for record in records)
        self.pending -= len(records)
        if self._sent >= self._size:
            os.ftruncate(self._descriptor, 0)
            self._sent = self._size = self.pending = 0

    def close(self) -> None:
        """Give the file up, with what is in it. Of a file that was sent in part, all is sent again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _claim(self) -> tuple[int, str]:
        for slot in range(_SLOTS):
            path = f"{self._path}.{slot}" if slot else self._path
            descriptor = _locked(path)
            if descriptor is not None:
                return descriptor, path
        raise OSError("every spill file is taken by another process")

    def _adopt(self, own: int, own_path: str) -> None:
        """Append what dead workers have left in other slots. A crash in between leaves it in both: sent twice."""
        for slot in range(_SLOTS):
            path = f"{self._path}.{slot}" if slot else self._path
            if path == own_path:
                continue
            if slot and not os.path.exists(path):
                break
            other = _locked(path)
            if other is None:
                continue
            try:
                end, at = whole(other, os.fstat(other).st_size), 0
                while at < end:
                    at += os.write(own, os.pread(other, min(_ADOPTED, end - at), at))
                if end:
                    os.fsync(own)
                    os.ftruncate(other, 0)
            finally:
                os.close(other)


def _locked(path: str) -> int | None:
    """Open and lock a file; None where another process has it."""
    descriptor = open_log(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lines(descriptor: int, size: int) -> int:
    return sum(os.pread(descriptor, _ADOPTED, at).count(b"\n") for at in range(0, size, _ADOPTED))
