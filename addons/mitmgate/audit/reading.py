"""Read an audit file for people: its events, its growth, and their text made safe for a terminal."""

import os
from collections import deque
from collections.abc import Callable, Iterator

import orjson

from mitmgate.audit.rotation import rotated

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
    """Yield the events of a log and its rotated files, the oldest first. Raises OSError."""
    for name in [*(old.path for old in rotated(path)), path]:
        with open(name, "rb") as file:
            for line in file:
                event = parse(line)
                if event is not None:
                    yield event


def last_events(path: str, most: int) -> Iterator[Members]:
    """Yield the last events of a log. Raises OSError."""
    yield from deque(events(path), maxlen=most)


def follow(path: str, wait: Callable[[], bool]) -> Iterator[Members]:
    """Yield the events that are appended from now on, over rotation too.

    Ends when `wait`, called at the end of what there is, returns False. Raises OSError.
    """
    file = open(path, "rb")  # noqa: SIM115 - it is another file after each rotation
    try:
        file.seek(0, os.SEEK_END)
        rest = b""
        while True:
            read = file.readline()
            rest += read
            if rest.endswith(b"\n"):
                event = parse(rest)
                rest = b""
                if event is not None:
                    yield event
            elif not read:
                if _is_another(path, file.fileno()):
                    renewed = open(path, "rb")  # noqa: SIM115 - as above
                    # What was appended between the last read and the rotation.
                    for line in file:
                        event = parse(rest + line)
                        rest = b""
                        if event is not None:
                            yield event
                    file.close()
                    file = renewed
                elif not wait():
                    return
    finally:
        file.close()


def _is_another(path: str, descriptor: int) -> bool:
    try:
        return not os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
