"""The files that a policy names: read once, bounded, and stamped so that a watcher sees when they change.

What stands in a file's place may be anything: a directory, a device without end, a pipe that nobody writes to. None of
it keeps the reader longer than PATIENCE or gives it more than MAX_BYTES.
"""

import os
import select
import stat
from pathlib import Path
from time import monotonic
from typing import Final

from mitmgate.policy.problem import Stamp

MAX_BYTES = 1 << 20
PATIENCE: Final = 5.0
"""Seconds in which all pipes must have been written and closed, such as the shell's <(...)."""


class UnreadableError(Exception):
    """A file that can't be read; the message is for the policy's author."""


def stamp(path: Path) -> Stamp:
    """Return what changes when a file does, also when an editor renames a new one over it; None: no such file.

    The times of what is no regular file say nothing: a pipe's change with each reader.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    if not stat.S_ISREG(status.st_mode):
        return 0, 0, status.st_ino
    return status.st_mtime_ns, status.st_size, status.st_ino


class Files:
    """Reads files relative to one directory. stamps: every file that was asked for, as it was before it was read."""

    def __init__(self, directory: Path) -> None:
        """Start with nothing read."""
        self.directory = directory
        self.stamps: dict[Path, Stamp] = {}
        self._until = monotonic() + PATIENCE

    def read(self, name: str) -> bytes:
        """Return a file's content; raises UnreadableError with the reason."""
        path = self.directory / name
        # Stamped first: what changes while it is read is seen as a change afterwards.
        self.stamps.setdefault(path, stamp(path))
        return read_bounded(path, self._until)


def read_bounded(path: Path, until: float) -> bytes:
    """Return a file's content; raises UnreadableError with the reason, also for what is no file.

    until: how long a pipe is waited for, on the monotonic clock.
    """
    try:
        # O_NONBLOCK: to open a pipe without a writer would wait for one (open(2)).
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            content = _read(descriptor, until)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UnreadableError(f"can't be read: {reason.lower()}") from error
    if len(content) > MAX_BYTES:
        raise UnreadableError(f"is larger than {MAX_BYTES} bytes")
    return content


def _read(descriptor: int, until: float) -> bytes:
    """Read up to the end, or one byte more than is allowed."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise UnreadableError("is a directory")
    piped = stat.S_ISFIFO(mode)
    if not piped and not stat.S_ISREG(mode):
        raise UnreadableError("is no regular file")
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    content = bytearray()
    while len(content) <= MAX_BYTES:
        if piped and not waiting.poll(max(0.0, until - monotonic()) * 1000):
            raise UnreadableError(f"is a pipe that was not written and closed within {PATIENCE:g} s")
        part = os.read(descriptor, MAX_BYTES + 1 - len(content))
        if not part:
            break
        content += part
    return bytes(content)
