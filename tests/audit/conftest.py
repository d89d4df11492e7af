"""A trail on real files, and a real Redis server."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from mitmgate.audit.settings import AuditSettings
from mitmgate.audit.trail import open_trail
from mitmgate.audit.writer import AuditTrail


def wait_for(holds: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


class RedisServer:
    """A redis-server process that can be killed, stopped and started again with its data."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> "Redis":
        return Redis.from_url(self.url, decode_responses=False)

    def start(self, *options: str) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        arguments += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *options]
        self._process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        with self.client() as client:

            def ready() -> bool:
                with suppress(RedisError, OSError):
                    return bool(client.ping())
                return False

            wait_for(ready, "redis-server answers")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    directory = tmp_path / "redis"
    directory.mkdir()
    server = RedisServer(directory)
    server.start()
    yield server
    server.kill()


Open = Callable[[AuditSettings], AuditTrail]


@pytest.fixture
def trail_of() -> Iterator[Open]:
    """Open and start trails; those that a test leaves open are closed after it."""
    trails: list[AuditTrail] = []

    def make(settings: AuditSettings) -> AuditTrail:
        trail = open_trail(settings)
        trails.append(trail)
        trail.start("sha256:test")
        return trail

    yield make
    for trail in trails:
        trail.close(2.0)
