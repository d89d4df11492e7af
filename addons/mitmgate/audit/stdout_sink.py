"""The sink for standard output: JSON lines, for whatever collects the output of containers and services."""

import os
import select
from collections.abc import Sequence
from typing import Final

from mitmgate.audit.sink import SinkError

_PATIENCE: Final = 1.0  # seconds that a reader may leave a full pipe alone before that is a failure
_ATOMIC: Final = select.PIPE_BUF


class StdoutAppender:
    """Append records to standard output.

    What is written at once is at most what a pipe takes whole, so that lines of several workers do not mix; only a
    longer line may. It waits for the reader in this thread alone, and says so where that takes long: records then wait
    in the queue.
    """

    name = "stdout"

    def __init__(self, descriptor: int = 1) -> None:
        """descriptor: standard output's."""
        self._descriptor = descriptor
        self._rest = b""  # of a line that went out in part: nothing may come before it

    def open(self) -> None:
        """Do nothing: it is open."""

    def write(self, records: Sequence[bytes]) -> int:
        """Write as many lines as go out at once. Raises SinkError where the reader takes none, or is gone."""
        if self._rest:
            self._finish()
        count, size = 1, len(records[0]) + 1
        while count < len(records) and size + len(records[count]) + 1 <= _ATOMIC:
            size += len(records[count]) + 1
            count += 1
        self._rest = b"\n".join([*records[:count], b""])
        written = self._write()
        if not written:
            self._rest = b""
            raise SinkError("standard output takes nothing: its reader is too slow")
        if self._rest:
            self._finish()
        return count

    def _finish(self) -> None:
        """Write the rest of a line that has begun. Raises SinkError."""
        while self._rest:
            if not self._write():
                raise SinkError("standard output takes nothing: its reader is too slow")

    def _write(self) -> int:
        """Write what there is room for; return how much that was, 0: there was none in time. Raises SinkError."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        try:
            if not poll.poll(_PATIENCE * 1000):
                return 0
            written = os.write(self._descriptor, self._rest[:_ATOMIC])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise SinkError(f"standard output could not be written: {error.strerror}") from error
        self._rest = self._rest[written:]
        return written

    def idle(self) -> float | None:
        """Write the rest of a line."""
        if self._rest:
            self._finish()
        return None

    def close(self) -> None:
        """Leave it open: it is the process's."""
