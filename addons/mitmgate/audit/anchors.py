"""Anchors: a file elsewhere says now and then, under a key of its own, with which record a log ended.

A chain and its head, both beside the log, can't show that an older log was put back together with its older head. An
anchor names a record that the log must still hold. So the file belongs where whoever can write the log can't.
"""

import os
from collections import deque
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Final, NamedTuple

import orjson

from mitmgate.audit import chain
from mitmgate.audit.chain import START, Link
from mitmgate.audit.event import rfc3339
from mitmgate.audit.rotation import open_log
from mitmgate.audit.settings import AnchorSettings
from mitmgate.usage import UserError

_MOST: Final = 10_000
"""Anchors of one log that are looked at, the latest."""
_LONGEST: Final = 4096  # bytes of a line


class Anchors:
    """Writes the anchors of one log. Used by the thread of its sink alone."""

    def __init__(self, settings: AnchorSettings, log: str) -> None:
        """log: the log's path; anchors have its name alone."""
        self._settings = settings
        self._log = os.path.basename(log)
        self._anchored = START
        self._due = 0.0

    def write(self, end: Link, now: bool = False) -> float | None:
        """Anchor the end of the log, where that is due, or now.

        Returns the seconds until it is; None: there is nothing to anchor. Raises OSError.
        """
        if end == self._anchored:
            return None
        left = self._due - monotonic()
        if left > 0 and not now:
            return left
        members = {"time": rfc3339(time()), "anchor": self._log, "seq": end.seq, "record": end.mac}
        line = chain.sealed(orjson.dumps(members)[:-1], self._settings.key) + b"\n"
        os.makedirs(os.path.dirname(self._settings.path) or ".", mode=0o700, exist_ok=True)
        descriptor = open_log(self._settings.path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(descriptor, line) != len(line):
                os.write(descriptor, b"\n")  # the torn one ends here
                raise OSError("an anchor was written in part")
        finally:
            os.close(descriptor)
        self._anchored, self._due = end, monotonic() + self._settings.every
        return None


class Anchored(NamedTuple):
    """What a file of anchors says of one log: the macs of records by their numbers; what is wrong, with its place."""

    marks: dict[int, str]
    wrong: list[tuple[str, str]]


@dataclass(slots=True)
class _Found:
    latest: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_MOST))
    wrong: list[tuple[str, str]] = field(default_factory=list)


def read(path: str, key: bytes, log: str) -> Anchored:
    """Read the anchors of a log. Raises UserError where the file can't be read."""
    name, found = os.path.basename(log), _Found()
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), 1):
                members = chain.unsealed(line.rstrip(b"\n"), [key])
                if members is None:
                    found.wrong.append((f"{path}:{number}", "is no anchor that this key has signed"))
                    continue
                seq, mac = members.get("seq"), members.get("record")
                if members.get("anchor") == name and isinstance(seq, int) and isinstance(mac, str):
                    found.latest.append((seq, mac))
    except OSError as error:
        raise UserError(f"the anchors {path} can't be read: {error.strerror or error}") from error
    marks: dict[int, str] = {}
    for seq, mac in found.latest:
        marks.setdefault(seq, mac)  # a log that was begun anew is anchored at the same numbers: the first counts
    return Anchored(marks, found.wrong)
