"""A load from keep-alive clients that retry nothing: what fails is counted."""

import http.client
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

from tests.live.harness_http import request, wait_for
from tests.live.harness_upstream import PATIENCE


class Load:
    """Clients in threads, each with a connection of its own and one request after the other; a context manager.

    ids: what `X-Request-ID` each answer had. failures: what went wrong, each as text.
    """

    def __init__(self, port: int, token: str | None = None, *, target: str = "/public", clients: int = 8) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self.ids: list[str] = []
        self._port, self._token, self._target = port, token, target
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._rounds = [0] * clients
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]

    @property
    def answered(self) -> int:
        """How many requests were answered so far."""
        return sum(self.statuses.values())

    def go_on(self, count: int = 100) -> None:
        """Return when so many more requests were answered."""
        wanted = self.answered + count
        wait_for(lambda: self.answered >= wanted, f"{count} more answers; failures: {self.failures}")

    def go_round(self, count: int = 2) -> None:
        """Return when each client was answered so many times more; what was on its way before has come then."""
        before = list(self._rounds)
        wait_for(
            lambda: all(now >= was + count for now, was in zip(self._rounds, before, strict=True)),
            f"{count} more answers for each client; failures: {self.failures}",
        )

    def _run(self, number: int) -> None:
        link = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        while not self._ending.is_set():
            try:
                answer = request(self._port, "GET", self._target, token=self._token, connection=link)
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failures.append(repr(error))
                link.close()
                time.sleep(0.02)
                continue
            with self._lock:
                self.statuses[answer.status] += 1
                self.ids.append(answer.one("x-request-id") or "")
                self._rounds[number] += 1
        link.close()

    def __enter__(self) -> Self:
        """Start the clients."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Let each client finish its request."""
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
