"""A worker as its supervisor sees it: a process, the link to it, and what it said last."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from mitmgate.host.worker import Place

logger = logging.getLogger(__name__)

START_PATIENCE: Final = 60.0
"""Seconds that a worker may take until it is ready."""
SILENCE: Final = 30.0
"""Seconds without a sign of life after which a worker counts as hung, and is killed."""


def command_line() -> list[str]:
    """Return the words that start this program again, with the interpreter's flags (-O); its code is read anew."""
    return [sys.executable, *sys.orig_argv[1:]]


class Child:
    """One worker process. Whatever it does or sends, nothing here raises."""

    def __init__(self, slot: int, process: asyncio.subprocess.Process, figures: socket.socket) -> None:
        """Made by `start_child`."""
        self.figures = figures
        """Our end of the socket pair for its figures; whoever reads them closes it."""
        self.pid = process.pid
        self.slot = slot
        self.since = time.monotonic()
        self.dismissed = False
        """It was told to end: its end is no failure."""
        self.ready = False
        self._process = process
        self._heard = self.since
        self._news = asyncio.Event()
        self._reloads: list[bool] = []
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def attach(self, link: socket.socket) -> None:
        """Take our end of the link."""
        reader, self._writer = await asyncio.open_unix_connection(sock=link)
        self._tasks = [asyncio.create_task(self._listen(reader)), asyncio.create_task(self._doubt())]

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    async def ended(self) -> int:
        """Wait for the end; return the exit status, negative for a signal."""
        status = await self._process.wait()
        for task in self._tasks:
            task.cancel()
        if self._writer is not None:
            self._writer.close()
        self._news.set()
        return status

    async def started(self) -> bool:
        """Wait until it is ready; False where it has ended, or takes too long and is killed."""
        try:
            async with asyncio.timeout(START_PATIENCE):
                while not self.ready and self.status is None:
                    await self._next()
        except TimeoutError:
            logger.error("worker %d (process %d) is not ready after %g s", self.slot, self.pid, START_PATIENCE)
            self.kill()
        return self.ready and self.status is None

    async def reload(self, patience: float) -> bool:
        """Have it load the policy again; True where a new one is in force."""
        self._reloads.clear()
        self._say("reload")
        try:
            async with asyncio.timeout(patience):
                while not self._reloads and self.status is None:
                    await self._next()
        except TimeoutError:
            return False
        return bool(self._reloads) and self._reloads[-1]

    def drain(self) -> None:
        """Have it end in good order. One that is not ready has nothing to finish."""
        self.dismissed = True
        if self.ready:
            self._say("drain")
        else:
            self._signal(signal.SIGTERM)

    def cut(self) -> None:
        """Have it end now; its audit records are written still."""
        self.dismissed = True
        self._say("cut")

    def kill(self) -> None:
        """End the process."""
        self._signal(signal.SIGKILL)

    def report_lost(self, pid: int, how: str) -> None:
        """Have it write into the audit trail that another worker has crashed, and its records may be missing."""
        self._say(f"lost {pid} {how}")

    async def _next(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._heard = time.monotonic()
                word = line.decode("ascii", "replace").strip()
                if word == "ready":
                    self.ready = True
                elif word in {"reloaded", "rejected"}:
                    self._reloads.append(word == "reloaded")
                else:  # a beat, or a later version's
                    continue
                self._news.set()
        except (OSError, ValueError):
            pass  # the process ends, or says what is no line: its silence will tell

    async def _doubt(self) -> None:
        """Kill a worker that gives no sign of life."""
        while True:
            await asyncio.sleep(SILENCE / 4)
            if self.ready and time.monotonic() - self._heard > SILENCE:
                logger.error("worker %d (process %d) hangs; it is killed", self.slot, self.pid)
                self.kill()

    def _say(self, words: str) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(f"{words}\n".encode())

    def _signal(self, number: signal.Signals) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


async def start_child(slot: int, listening: socket.socket, command: Sequence[str]) -> Child:
    """Start a worker on a listening socket. command: see `command_line`.

    It gets a process group of its own: Ctrl-C on a terminal is the supervisor's to hand on. Raises OSError.
    """
    here, there = socket.socketpair()
    figures, reporting = socket.socketpair()
    with there, reporting:
        place = Place(slot, listening.fileno(), there.fileno(), reporting.fileno())
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--worker",
                str(place),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(place.listening, place.link, place.figures),
                process_group=0,
            )
        except BaseException:
            here.close()
            figures.close()
            raise
    child = Child(slot, process, figures)
    await child.attach(here)
    return child
