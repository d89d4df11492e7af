"""Rotated files: `audit.jsonl` becomes `audit.jsonl.1`, which becomes `audit.jsonl.2`, up to `keep` of them."""

import os
from typing import NamedTuple


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


def surplus(path: str, keep: int) -> list[Rotated]:
    """Return the rotated files that have to go when the log is rotated next, the oldest first."""
    files = rotated(path)
    return files[: max(0, len(files) + 1 - keep)]


def oldest(path: str, keep: int) -> str | None:
    """Return the file that will hold the oldest record after the next rotation, named as it is now; None: none will."""
    if keep == 0:
        return None
    kept = rotated(path)[len(surplus(path, keep)) :]
    return kept[0].path if kept else path


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
