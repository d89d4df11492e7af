"""The end of a file of lines: its last record, and what a crash has left of one."""

import os

_BLOCK = 65_536


def whole(descriptor: int, size: int) -> int:
    """Return the bytes up to and with the last line end: the part that is whole."""
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def last_line(descriptor: int, size: int) -> bytes:
    """Return the last whole line without its end; empty where there is none."""
    end = whole(descriptor, size)
    if end == 0:
        return b""
    start = whole(descriptor, end - 1)
    return os.pread(descriptor, end - 1 - start, start)


def first_line(path: str) -> bytes:
    """Return the first line of a file without its end; empty where there is none."""
    with open(path, "rb") as file:
        return file.readline().rstrip(b"\n")


def recover(descriptor: int, path: str) -> int:
    """Move an incomplete last record into `PATH.torn`, so that the next one starts a line; return its bytes, or 0.

    It is copied before it is cut off: a crash in between leaves it in both places. Writers must be locked out.
    """
    size = os.fstat(descriptor).st_size
    end = whole(descriptor, size)
    torn = size - end
    if torn:
        side = os.open(f"{path}.torn", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            at = end
            while at < size:
                at += os.write(side, os.pread(descriptor, min(_BLOCK, size - at), at))
            os.write(side, b"\n")
            os.fsync(side)
        finally:
            os.close(side)
        os.ftruncate(descriptor, end)
    return torn
