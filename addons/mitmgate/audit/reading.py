"""Read an audit file for people: its events, its growth, and their text made safe for a terminal."""

import gzip
import heapq
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import orjson

from mitmgate.audit.refusals import refused_log
from mitmgate.audit.rotation import segments

Members = dict[str, object]


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


def events(path: str) -> Iterator[Members]:
    """Yield the events of a log and its rotated files, with those that it had no room for, the oldest first.

    Raises OSError.
    """
    beside = refused_log(path)
    if not os.path.exists(beside):
        return _events(path)
    # Its own end is also there; the gateway's events stand in the log.
    requests = (event for event in _events(beside) if event.get("event") == "request")
    return heapq.merge(_events(path), requests, key=lambda event: str(event.get("time", "")))


def _events(path: str) -> Iterator[Members]:
    for name in [*segments(path), path]:
        with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
            for line in file:
                event = parse(line)
                if event is not None:
                    yield event


def last_events(path: str, most: int) -> Iterator[Members]:
    """Yield the last events of a log. Raises OSError."""
    yield from deque(events(path), maxlen=most)


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
