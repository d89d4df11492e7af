"""A worker: a gateway process that a supervisor has started, and the link between the two.

The worker inherits a listening socket and one end of a socket pair. Over it, one word a line:

    worker → supervisor     ready, beat, reloaded, rejected
    supervisor → worker     reload, drain, cut

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
    """What a supervisor gives to a worker, as `--worker SLOT:LISTENING:LINK`: its number and two file descriptors."""

    slot: int
    listening: int
    link: int

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read what `__str__` has written. Raises UserError."""
        try:
            slot, listening, link = map(int, text.split(":"))
        except ValueError:
            raise UserError("--worker is for the supervisor's own use") from None
        return cls(slot, listening, link)

    def __str__(self) -> str:
        return f"{self.slot}:{self.listening}:{self.link}"

    def socket(self) -> socket.socket:
        """Take the listening socket over."""
        return _inherited(self.listening)


class Supervised:
    """The worker's end of the link. It is what watches the process (notify.Watching)."""

    def __init__(self, place: Place) -> None:
        """place: what the supervisor gave."""
        self._socket = _inherited(place.link)
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    async def obey(self, commands: Mapping[str, Callable[[], None]]) -> None:
        """Carry out what the supervisor says, from now on. commands: `reload`, `drain` and `cut`."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket)

        async def listen() -> None:
            try:
                while line := await reader.readline():
                    command = commands.get(line.decode("ascii", "replace").strip())
                    if command is not None:  # else: a later version's
                        command()
            except OSError:
                pass
            commands["drain"]()

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


def _inherited(descriptor: int) -> socket.socket:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError:
        raise UserError("--worker is for the supervisor's own use") from None
    os.set_inheritable(descriptor, False)
    taken.setblocking(False)
    return taken
