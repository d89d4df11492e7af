"""Several workers: their snapshots, brought over a socket pair each and made one report in the supervisor."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

from mitmgate.admin.readiness import Condition, Missing
from mitmgate.admin.report import Report, decode, merge, retire

logger = logging.getLogger(__name__)

ANSWER_WITHIN: Final = 1.0
"""Seconds that a worker has to answer. One that does not counts as not ready, with the figures that it last gave."""

_LENGTH: Final = 4  # bytes before each snapshot, big-endian
_LARGEST: Final = 64 << 20
_SILENT: Final = (Missing(Condition.WORKERS, "A worker does not answer."),)


class Reporter:
    """The worker's end: answers bytes that come with a snapshot, and sends one more when it ends."""

    def __init__(self, link: socket.socket, snapshot: Callable[[], bytes]) -> None:
        """link: one end of a socket pair (AF_UNIX, stream). snapshot: `Metrics.snapshot`."""
        self._link = link
        self._snapshot = snapshot
        self._answering: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        """Answer from now on, with a running loop."""
        self._link.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=self._link)
        self._answering = asyncio.create_task(self._answer(reader, self._writer), name="snapshots")

    async def close(self) -> None:
        """Send the last snapshot, after everything has been counted, and end."""
        if self._answering is None or self._writer is None:
            return
        self._answering.cancel()
        await asyncio.gather(self._answering, return_exceptions=True)
        try:
            await self._send(self._writer)
        except OSError as error:
            logger.warning("the last figures of this worker could not be sent: %s", error)
        self._writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(64):
                await self._send(writer)
        except OSError as error:
            logger.warning("no figures can be sent any more: %s", error)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        snapshot = self._snapshot()
        writer.write(len(snapshot).to_bytes(_LENGTH, "big") + snapshot)
        await writer.drain()


class Workers:
    """The supervisor's end: asks every worker, keeps what each said last, and what those that ended have counted."""

    def __init__(self) -> None:
        """Start without a worker."""
        self._links: dict[int, _Link] = {}
        self._retired: bytes | None = None

    async def add(self, worker: int, link: socket.socket) -> None:
        """Take a worker's socket. worker: its process id."""
        link.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=link, limit=1 << 20)
        self._links[worker] = _Link(reader, writer)

    async def remove(self, worker: int) -> None:
        """Take leave of a worker whose process has ended; its totals stay."""
        link = self._links.get(worker)
        if link is None:
            return
        await link.close()
        # In one step, so that no report in between misses its totals.
        if self._links.get(worker) is link:
            del self._links[worker]
            if link.last is not None:
                self._retired = retire(link.last, self._retired)

    async def report(self) -> Report:
        """Ask all workers at once, and merge what they say. Takes at most ANSWER_WITHIN seconds."""
        await asyncio.gather(*(link.ask() for link in self._links.values()))
        # Those that are left: who has gone meanwhile is among the retired.
        return merge([link.last for link in self._links.values() if link.last is not None], self._retired)


class _Link:
    """A worker's socket and the snapshot that came over it last."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.last: bytes | None = None
        self._writer = writer
        self._arrived = asyncio.Condition()
        self._count = 0
        self._ended = False
        self._reading = asyncio.create_task(self._read(reader), name="snapshots of a worker")

    async def ask(self) -> None:
        """Get a snapshot. Without one in time, the last is kept as that of a worker that is not ready."""
        before = self._count
        try:
            self._writer.write(b"?")
            async with asyncio.timeout(ANSWER_WITHIN), self._arrived:
                await self._arrived.wait_for(lambda: self._count > before or self._ended)
        except (TimeoutError, OSError):
            pass
        if self._count == before and self.last is not None:
            self.last = decode(self.last)._replace(readiness=_SILENT).encode()

    async def close(self) -> None:
        """Read what is still there, and let go of the socket."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await asyncio.shield(self._reading)
        except TimeoutError:
            self._reading.cancel()
        self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
                if length > _LARGEST:
                    raise ValueError(f"a snapshot of {length} bytes")
                snapshot = await reader.readexactly(length)
                decode(snapshot)  # what can't be read must not take the place of what can
                self.last = snapshot
                self._count += 1
                async with self._arrived:
                    self._arrived.notify_all()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the worker has ended
        except (ValueError, KeyError, TypeError) as error:
            logger.error("a worker sent figures that can't be read: %r", error)
        finally:
            self._ended = True
            async with self._arrived:
                self._arrived.notify_all()
