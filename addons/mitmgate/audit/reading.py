"""Read an audit file for people: its events, its growth, and their text made safe for a terminal."""

import gzip
import heapq
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from itertools import chain
from typing import Final

import orjson

from mitmgate.audit.refusals import refused_log
from mitmgate.audit.rotation import segments

Members = dict[str, object]

TELL: Final = 5000
"""Lines after which is told how far reading has come."""


def printable(value: object) -> str:
    """Write a value for a terminal: what is not printable, escape sequences among it, is written out in hex."""
    text = value if isinstance(value, str) else str(value)
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else f"\\u{ord(character):04x}" for character in text)


def parse(line: bytes) -> Members | None:
    """Read a line; None where it is no event."""
    try:
        event = orjson.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def size(path: str) -> int:
    """Return how many bytes there are to read of a log, its rotated files and those that it had no room for."""
    beside = refused_log(path)
    names = [*segments(path), path]
    if os.path.exists(beside):
        names += [*segments(beside), beside]
    return sum(os.path.getsize(name) for name in names if os.path.exists(name))


def events(
    path: str, read: Callable[[int], object] = lambda count: None, *, in_order: bool = True
) -> Iterator[Members]:
    """Yield the events of a log and its rotated files, with those that it had no room for, the oldest first.

    read: told now and then how many bytes were read since. in_order: False: one file after the other, which is faster.
    Raises OSError.
    """
    beside = refused_log(path)
    if not os.path.exists(beside):
        return _events(path, read)
    # Its own end is also there; the gateway's events stand in the log.
    requests = (event for event in _events(beside, read) if event.get("event") == "request")
    if not in_order:
        return chain(_events(path, read), requests)
    return heapq.merge(_events(path, read), requests, key=lambda event: str(event.get("time", "")))


def _events(path: str, read: Callable[[int], object]) -> Iterator[Members]:
    for name in [*segments(path), path]:
        with open(name, "rb") as raw, gzip.open(raw) if name.endswith(".gz") else nullcontext(raw) as file:
            at = 0
            for number, line in enumerate(file, 1):
                event = parse(line)
                if event is not None:
                    yield event
                if number % TELL == 0:
                    now = raw.tell()
                    read(now - at)
                    at = now
            read(raw.tell() - at)


def follow(path: str, wait: Callable[[], bool]) -> Iterator[Members]:
    """Yield the events that are appended from now on to a log, or beside it, over rotation too.

    Ends when `wait`, called at the end of what there is, returns False. Raises OSError.
    """
    with ExitStack() as opened:
        growing = [opened.enter_context(closing(_Growing(path)))]
        beside = refused_log(path)
        if os.path.exists(beside):
            growing.append(opened.enter_context(closing(_Growing(beside))))
        while True:
            if len(growing) == 1 and os.path.exists(beside):
                growing.append(opened.enter_context(closing(_Growing(beside, new=True))))
            found = growing[0].read()
            found += [event for each in growing[1:] for event in each.read() if event.get("event") == "request"]
            yield from found
            if not found and not wait():
                return


class _Growing:
    """A file of lines that is appended to and rotated."""

    def __init__(self, path: str, new: bool = False) -> None:
        """Begin at its end; new: at its beginning. Raises OSError."""
        self._path = path
        self._file = open(path, "rb")  # noqa: SIM115 - it is another file after each rotation
        self._rest = b""
        if not new:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> list[Members]:
        """Return the events that have come since the last call."""
        found = self._lines()
        while _is_another(self._path, self._file.fileno()):
            renewed = open(self._path, "rb")  # noqa: SIM115 - as above
            found += self._lines()  # what was appended between the last read and the rotation
            self._file.close()
            self._file, self._rest = renewed, b""
            found += self._lines()
        return found

    def _lines(self) -> list[Members]:
        found = []
        for line in self._file:
            self._rest += line
            if self._rest.endswith(b"\n"):
                event, self._rest = parse(self._rest), b""
                if event is not None:
                    found.append(event)
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_another(path: str, descriptor: int) -> bool:
    try:
        return not os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
