"""A worker: a gateway process that a supervisor has started, and the link between the two.

The worker inherits a listening socket and one end of two socket pairs: one for its figures (admin/workers.py), and the
link. Over that, a few words a line:

    worker → supervisor     ready, beat, reloaded, rejected
    supervisor → worker     reload, drain, cut, lost PID HOW

The end of the stream says that the other one is gone: a worker without a supervisor drains.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mitmgate.usage import UserError

BEAT_EVERY: Final = 2.0
"""Seconds between two signs of life."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a supervisor gives to a worker, as `--worker SLOT:LISTENING:LINK:FIGURES`: a number, file descriptors."""

    slot: int
    listening: int
    link: int
    figures: int

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read what `__str__` has written. Raises UserError."""
        try:
            slot, listening, link, figures = map(int, text.split(":"))
        except ValueError:
            raise UserError("--worker is for the supervisor's own use") from None
        return cls(slot, listening, link, figures)

    def __str__(self) -> str:
        return f"{self.slot}:{self.listening}:{self.link}:{self.figures}"

    def take(self) -> socket.socket:
        """Take the listening socket over."""
        return inherited(self.listening)

    @property
    def address(self) -> tuple[str, int]:
        """The address that the listening socket is bound to."""
        with socket.socket(fileno=os.dup(self.listening)) as bound:
            host, port = bound.getsockname()[:2]
        return host, port


class Supervised:
    """The worker's end of the link. It is what watches the process (notify.Watching)."""

    def __init__(self, place: Place) -> None:
        """place: what the supervisor gave."""
        self._socket = inherited(place.link)
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    async def obey(self, commands: Mapping[str, Callable[[str], None]]) -> None:
        """Carry out what the supervisor says, from now on. commands: by their first word, given the others."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)

        async def listen() -> None:
            try:
                while line := await reader.readline():
                    word, _, rest = line.decode("ascii", "replace").strip().partition(" ")
                    command = commands.get(word)
                    if command is not None:  # else: a later version's
                        command(rest)
            except OSError:
                pass
            commands["drain"]("")

        self._listening = asyncio.create_task(listen(), name="supervisor's words")

    def ready(self, status: str) -> None:
        """Say that requests are accepted."""
        self._say("ready")

    def reloading(self) -> None:
        """Say nothing: who has given the order knows."""

    def reloaded(self, taken: bool, status: str) -> None:
        """Say what came of a reload."""
        self._say("reloaded" if taken else "rejected")

    def stopping(self, status: str) -> None:
        """Say nothing: the supervisor sees the process end."""

    async def beat(self) -> None:
        """Say again and again that the event loop turns; never returns."""
        while True:
            self._say("beat")
            await asyncio.sleep(BEAT_EVERY)

    def _say(self, word: str) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(f"{word}\n".encode())


def inherited(descriptor: int) -> socket.socket:
    """Take over a socket of the supervisor's. Raises UserError where it is none."""
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError:
        raise UserError("--worker is for the supervisor's own use") from None
    os.set_inheritable(descriptor, False)
    taken.setblocking(False)
    return taken
