"""Rotated files: `audit.jsonl` becomes `audit.jsonl.1`, which becomes `audit.jsonl.2`, up to `keep` of them.

Others may rotate a log, too: logrotate names files by date, and compresses them. Those are read, and left alone.
"""

import gzip
import os
import re
import stat
import zlib
from errno import EINVAL
from typing import Final, NamedTuple

import orjson

_DATED: Final = re.compile(r"[.-][0-9]{4}-?[0-9]{2}-?[0-9]{2}(?:[T_.-]?[0-9:.-]+)?(?:\.gz)?|\.[0-9]+\.gz")


def open_log(path: str, flags: int) -> int:
    """Open a file that records are appended to, or make it, for its owner alone. Raises OSError.

    Nothing but a regular file keeps a record: a pipe would hold the process up until somebody reads it, or for good.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(EINVAL, "It is no regular file")
    return descriptor


class Rotated(NamedTuple):
    """A rotated file: 1 is the newest."""

    number: int
    path: str


def rotated(path: str) -> list[Rotated]:
    """Return the rotated files of a log, the oldest first."""
    directory, name = os.path.split(path)
    prefix = f"{name}."
    try:
        entries = os.listdir(directory or ".")
    except FileNotFoundError:
        return []
    suffixes = [entry[len(prefix) :] for entry in entries if entry.startswith(prefix)]
    numbers = [int(suffix) for suffix in suffixes if suffix.isascii() and suffix.isdigit() and suffix[0] != "0"]
    return [Rotated(number, f"{path}.{number}") for number in sorted(numbers, reverse=True)]


def segments(path: str) -> list[str]:
    """Return the files that a log went on in before it, rotated by whomever, the oldest first.

    Those that others have named are put in the order of their first records.
    """
    directory, name = os.path.split(path)
    try:
        entries = os.listdir(directory or ".")
    except OSError:
        return []
    own = [old.path for old in rotated(path)]
    dated = [
        os.path.join(directory, entry)
        for entry in entries
        if entry.startswith(name) and _DATED.fullmatch(entry[len(name) :]) and os.path.join(directory, entry) not in own
    ]
    return sorted([*dated, *own], key=_first) if dated else own


def _first(path: str) -> tuple[int, str]:
    """Return the number and the time of a file's first record; one that has none comes first."""
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            event = orjson.loads(file.readline(1 << 20))
            return int(event.get("seq", 0)), str(event.get("time", ""))
    except (OSError, EOFError, zlib.error, ValueError, AttributeError, TypeError):
        return 0, ""


def surplus(path: str, keep: int) -> list[Rotated]:
    """Return the rotated files that have to go when the log is rotated next, the oldest first."""
    files = rotated(path)
    return files[: max(0, len(files) + 1 - keep)]


def rotate(path: str, keep: int) -> None:
    """Rename the log and its rotated files, one number up, and remove those beyond `keep`. Raises OSError.

    A crash in between leaves a gap in the numbers, which the next rotation fills; no file is overwritten.
    """
    for old in surplus(path, keep):
        os.remove(old.path)
    if keep:
        taken = {old.number for old in rotated(path)}
        free = next(number for number in range(1, len(taken) + 2) if number not in taken)
        for number in range(free - 1, 0, -1):
            os.rename(f"{path}.{number}", f"{path}.{number + 1}")
        os.rename(path, f"{path}.1")
    else:
        os.remove(path)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
