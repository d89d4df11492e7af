"""What the tests of processes look at: child processes, audit records by request, a real notify socket."""

import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.live.harness import Gateway
from tests.live.harness_http import wait_for
from tests.workers.load import Load


def children(pid: int) -> list[int]:
    """Return the processes whose parent this is, as /proc has it; those that have ended are left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                # proc(5): "pid (comm) state ppid …", and comm may hold anything.
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == pid and state != "Z":
                found.append(int(entry))
    return sorted(found)


def workers(gateway: Gateway, count: int) -> list[int]:
    """Wait until the supervisor has so many workers, and return their process ids."""
    wait_for(lambda: len(children(gateway.process.pid)) == count, f"{count} workers")
    return children(gateway.process.pid)


def events(path: Path) -> list[dict[str, Any]]:
    """Return every event of an audit file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def assert_recorded_once(path: Path, load: Load) -> None:
    """Check that every request that was answered has exactly one record. It may take a moment to be written."""

    def missing() -> Iterable[str]:
        seen = Counter(event.get("request_id") for event in events(path))
        return [one for one in load.ids if seen[one] != 1]

    wait_for(lambda: not missing(), "one record for each request", 10)
    assert len(set(load.ids)) == len(load.ids) == load.answered


class NotifySocket:
    """A service manager's end of sd_notify: a datagram socket whose messages are kept; a context manager."""

    def __init__(self, address: str) -> None:
        """address: a path, or a name after "@" (the abstract namespace)."""
        self.address = address
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._receive, daemon=True)

    def _receive(self) -> None:
        while data := self._socket.recv(65536):
            self.messages.append(dict(line.split("=", 1) for line in data.decode().split("\n")))

    def wait(self, name: str, count: int = 1) -> list[dict[str, str]]:
        """Wait for messages that say `name`."""
        wait_for(lambda: len(self.all(name)) >= count, f"{count} times {name}; so far {self.messages}")
        return self.all(name)

    def all(self, name: str) -> list[dict[str, str]]:
        """Return the messages that say `name` so far."""
        return [message for message in list(self.messages) if name in message]

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """End the thread with an empty datagram."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()
