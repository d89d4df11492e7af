"""Several workers: their snapshots, brought over a socket pair each and made one report in the supervisor."""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import orjson

from mitmgate.admin.readiness import Condition, Missing
from mitmgate.admin.report import Report, decode, merge, retire

logger = logging.getLogger(__name__)

ANSWER_WITHIN: Final = 1.0
"""Seconds that a worker has to answer. One that does not counts as not ready, with the figures that it last gave."""

Answer = Callable[[Mapping[str, object]], Mapping[str, object]]
"""Answers a question of the status page (console.Console.answer)."""


class Inquire(Protocol):
    """Asks processes for an answer to a question of the status page."""

    async def __call__(
        self, question: Mapping[str, object], process: int | None = None
    ) -> Mapping[int, Mapping[str, object]]:
        """Return the answers by process id. process: the only one to ask, {} where there is none such."""
        ...


_NO_ANSWER: Final[Mapping[str, object]] = {"error": "This worker does not answer."}
_FIGURES: Final = b"?"
_ANSWERED: Final = b'{"answer":'
"""How an answer begins, which figures never do."""
_LENGTH: Final = 4  # bytes before each snapshot, big-endian
_LARGEST: Final = 64 << 20
_SILENT: Final = (Missing(Condition.WORKERS, "A worker does not answer."),)


class Reporter:
    """The worker's end: answers "?" with a snapshot, and sends one more when it ends; a line of JSON is a question."""

    def __init__(self, link: socket.socket, snapshot: Callable[[], bytes], answer: Answer | None = None) -> None:
        """link: one end of a socket pair (AF_UNIX, stream). snapshot: `Metrics.snapshot`. answer: to questions."""
        self._link = link
        self._snapshot = snapshot
        self._question = answer
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
            asked = bytearray()
            while chunk := await reader.read(1 << 16):
                asked += chunk
                for question in questions(asked):
                    if question is None:
                        await self._send(writer)
                    elif self._question is not None:
                        number, told = orjson.loads(question)
                        await _write(writer, orjson.dumps({"answer": number, "told": self._question(told)}))
        except OSError as error:
            logger.warning("no figures can be sent any more: %s", error)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        await _write(writer, self._snapshot())


async def _write(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(len(content).to_bytes(_LENGTH, "big") + content)
    await writer.drain()


def questions(asked: bytearray) -> list[bytes | None]:
    """Take what is whole off what was read: None where figures are asked for, once however often, and lines."""
    found: list[bytes | None] = []
    while asked:
        if asked[:1] == _FIGURES:
            del asked[0]
            if None not in found:
                found.append(None)
            continue
        line, end, rest = asked.partition(b"\n")
        if not end:
            break
        found.append(bytes(line))
        asked[:] = rest
    return found


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

    async def inquire(
        self, question: Mapping[str, object], process: int | None = None
    ) -> Mapping[int, Mapping[str, object]]:
        """Ask all workers at once, or one. Takes at most ANSWER_WITHIN seconds; who says nothing is left out."""
        links = {worker: link for worker, link in self._links.items() if process in {None, worker}}
        answers = await asyncio.gather(*(link.inquire(question) for link in links.values()))
        return {worker: _NO_ANSWER if told is None else told for worker, told in zip(links, answers, strict=True)}


class _Link:
    """A worker's socket and the snapshot that came over it last."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.last: bytes | None = None
        self._writer = writer
        self._arrived = asyncio.Condition()
        self._count = 0
        self._asked = 0
        self._silent = False
        self._answers: dict[int, asyncio.Future[Mapping[str, object]]] = {}
        self._ended = False
        self._reading = asyncio.create_task(self._read(reader), name="snapshots of a worker")

    async def ask(self) -> None:
        """Get a snapshot. Without one in time, the last is kept as that of a worker that is not ready.

        Until such a worker says something, which is what it was asked for, nobody waits for it again.
        """
        before = self._count
        if not self._silent:
            try:
                self._writer.write(b"?")
                async with asyncio.timeout(ANSWER_WITHIN), self._arrived:
                    await self._arrived.wait_for(lambda: self._count > before or self._ended)
            except (TimeoutError, OSError):
                self._silent = True
        if self._count == before and self.last is not None:
            self.last = decode(self.last)._replace(readiness=_SILENT).encode()

    async def inquire(self, question: Mapping[str, object]) -> Mapping[str, object] | None:
        """Get an answer; None: there was none in time."""
        if self._ended or self._silent:
            return None
        self._asked += 1
        number = self._asked
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(orjson.dumps([number, question]) + b"\n")
            async with asyncio.timeout(ANSWER_WITHIN):
                told: Mapping[str, object] = await answer
                return told
        except (TimeoutError, OSError):
            self._silent = True  # nothing more is put into its queue until it says something
            return None
        finally:
            del self._answers[number]

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
                self._silent = False
                if snapshot.startswith(_ANSWERED):
                    told = orjson.loads(snapshot)
                    waiting = self._answers.get(told["answer"])
                    if waiting is not None and not waiting.done():
                        waiting.set_result(told["told"])
                    continue
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
