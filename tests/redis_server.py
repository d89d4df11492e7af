"""A real Redis server for tests: on a free port, and it can be killed, started again, and made to hang."""

import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.live.harness_http import free_port, wait_for

PATIENCE = 60.0


class RedisServer:
    """A redis-server process without persistence; a context manager that has it running."""

    def __init__(self, directory: Path, *options: str, address: str = "127.0.0.1", port: int = 0) -> None:
        """directory: where the server runs and logs. options: further words of its command line. port: 0: any."""
        self.address = address
        self.port = port or free_port()
        self.url = f"redis://{address}:{self.port}/0"
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and return when it answers. What an earlier process held is lost."""
        command = ["redis-server", "--port", str(self.port), "--bind", self.address, "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "no", "--logfile", "redis.log", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self._answers, "redis-server to answer")

    def stop(self) -> None:
        """Kill the process, hung or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """Let the process hang: connections are accepted by the kernel, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on; it then reads what was sent meanwhile."""
        self._signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send one command and return the raw start of its reply (RESP)."""
        with socket.create_connection((self.address, self.port), timeout=PATIENCE) as link:
            link.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
            return link.recv(65536)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "redis-server ended"
        try:
            return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop."""
        self.stop()
