"""A TCP proxy before Redis that holds answers back, each as long as the test says."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.live.harness_http import free_port
from tests.live.harness_upstream import PATIENCE


class LateRedis:
    """The proxy, in a thread of its own; a context manager. `url` takes the place of the server's.

    delay: asked for each answer as it comes from the server; returns seconds. Answers of one connection stay in order.
    """

    def __init__(self, port: int, delay: Callable[[], float] = lambda: 0.0) -> None:
        self.delay = delay
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.late = 0
        """Answers that were held back."""
        self._server = port
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                tasks.add(task)
            with suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection("127.0.0.1", self._server)
                try:
                    await asyncio.gather(self._pass(reader, back, held=False), self._pass(there, writer, held=True))
                finally:
                    back.close()
                    writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", self.port)
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                seconds = self.delay() if held else 0.0
                if seconds:
                    self.late += 1
                    await asyncio.sleep(seconds)
                writer.write(data)
        writer.close()

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        assert self._started.wait(PATIENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop, and close every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        self._loop.close()
