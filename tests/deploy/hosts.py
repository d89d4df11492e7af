"""Hosts of a test's own: network namespaces on two networks, processes in them, and sockets opened from them.

A namespace has interfaces, routes and a loopback of its own, so a client has a real address and a killed host is gone.
Everything is removed at the end; no packet leaves the namespaces, which have no way out.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.live.harness_http import wait_for

PATIENCE = 60.0  # seconds
CANNOT = (
    "network namespaces can't be made here ({words}): the tests of deploy/ need root (CAP_SYS_ADMIN) and iproute2. "
    "They are never skipped: what they check was not checked."
)


def ip(*words: str) -> None:
    """Run iproute2's command; what it says is shown where it fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"


class Host:
    """One host: a namespace, and what runs in it. Made by `Network.host`."""

    def __init__(self, namespace: str, name: str, directory: Path) -> None:
        self.namespace = namespace
        self.name = name
        self.directory = directory / name
        self.directory.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread open sockets on the host; a socket stays where it was opened."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            os.setns(there, os.CLONE_NEWNET)
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
            os.close(there)
            os.close(home)

    def start(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a process on the host; what it says goes to HOST.log."""
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *words],  # ip replaces itself: the pid is the command's
                cwd=self.directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def unplug(self, interface: str = "inside") -> None:
        """Take the host off a network: what is sent to it gets no answer at all."""
        ip("-n", self.namespace, "link", "set", interface, "down")

    def plug(self, interface: str = "inside") -> None:
        """Put it back."""
        ip("-n", self.namespace, "link", "set", interface, "up")

    @property
    def log_path(self) -> Path:
        """Where the words of the host's processes are."""
        return self.directory / f"{self.name}.log"

    @property
    def log(self) -> str:
        """What the host's processes said so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_for_log(self, text: str, process: subprocess.Popen[bytes]) -> None:
        """Return when a process of the host has said something."""

        def said() -> bool:
            assert process.poll() is None, f"{self.name} ended with {process.returncode}:\n{self.log}"
            return text in self.log

        wait_for(said, f"{self.name} to say {text!r}")


class Network:
    """Two networks, `outside` and `inside`, each a bridge in a namespace of its own; a context manager."""

    def __init__(self, directory: Path) -> None:
        """directory: where each host gets a directory, with what its processes write."""
        self._directory = directory
        self._prefix = f"mg{os.getpid()}"
        self._hosts: dict[str, Host] = {}
        self._links = 0

    def __enter__(self) -> Self:
        try:
            ip("netns", "add", self._switch)
        except (AssertionError, OSError) as error:
            raise AssertionError(CANNOT.format(words=error)) from None
        for bridge in ("outside", "inside"):
            self._ip(self._switch, "link", "add", bridge, "type", "bridge")
            self._ip(self._switch, "link", "set", bridge, "up")
        return self

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    @staticmethod
    def _ip(namespace: str, *words: str) -> None:
        ip("-n", namespace, *words)

    def host(self, name: str, **addresses: str | Sequence[str]) -> Host:
        """Make a host. addresses: `outside` and `inside`, each with its prefix length; of several, the first speaks."""
        namespace = f"{self._prefix}-{name}"
        ip("netns", "add", namespace)
        host = self._hosts[name] = Host(namespace, name, self._directory)
        self._ip(namespace, "link", "set", "lo", "up")
        for bridge, given in addresses.items():
            self._links += 1
            port = f"port{self._links}"
            self._ip(self._switch, "link", "add", port, "type", "veth", "peer", "name", bridge, "netns", namespace)
            self._ip(self._switch, "link", "set", port, "master", bridge, "up")
            for address in [given] if isinstance(given, str) else given:
                self._ip(namespace, "address", "add", address, "dev", bridge)
            self._ip(namespace, "link", "set", bridge, "up")
        return host

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for host in self._hosts.values():
            for process in host.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait(PATIENCE)
        for host in self._hosts.values():
            ip("netns", "del", host.namespace)
        ip("netns", "del", self._switch)
