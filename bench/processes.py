"""The processes of a measurement: started on free ports, pinned to cores, read from /proc, ended by their own id."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mitmgate.usage import UserError

ROOT = Path(__file__).resolve().parents[1]
TICK = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE = 90.0  # seconds for a process to start; two workers start after their supervisor, on a busy machine
KIB_A_MIB = 1024


class StartError(UserError):
    """A program ended, or did not listen in time; the message has its last words."""

    @property
    def last_word(self) -> str:
        """The last line that it wrote."""
        return str(self).splitlines()[-1]


@dataclass(frozen=True, slots=True)
class Process:
    """A running process and the port that it listens on."""

    pid: int
    port: int

    def tree(self) -> list[int]:
        """Return its id and those of all processes below it, workers for instance."""
        parents = {pid: fields[1] for pid in _pids() if (fields := _stat(pid)) is not None}
        found = [self.pid]
        for parent in found:  # grows while it is walked
            found += [pid for pid, of in parents.items() if int(of) == parent]
        return found

    def cpu_seconds(self) -> float:
        """Return what it and all its children have used so far, user and system, ended children included.

        Running processes are read to the nanosecond from their CPU clocks; children that have ended, in ticks (proc(5),
        fields 16 and 17 of stat).
        """
        used = 0.0
        for pid in self.tree():
            fields = _stat(pid)
            if fields is None:
                continue
            try:
                used += time.clock_gettime(_cpu_clock(pid))
            except OSError:  # it has ended meanwhile
                continue
            used += sum(int(field) for field in fields[13:15]) * TICK
        return used

    def resident_mib(self, member: str = "VmRSS") -> float:
        """Return the resident memory of it and its children in MiB. VmHWM is the peak of each since forget_peak."""
        return sum(_status(pid, member) for pid in self.tree()) / KIB_A_MIB

    def forget_peak(self) -> None:
        """Let VmHWM begin anew."""
        for pid in self.tree():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def descriptors(self) -> int:
        """Return how many descriptors it and its children have open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.tree())

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def _cpu_clock(pid: int) -> int:
    """Return the clock of a process's CPU time, as clock_getcpuclockid(3) makes it on Linux."""
    return ~pid << 3 | 2


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of stat from the third one on; None where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _status(pid: int, member: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{member}:")), 0)


def links(pid: int, port: int) -> set[int]:
    """Return the peers' ports of a process's established IPv4 connections whose own or other end is `port`."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for inode, local, remote in _established():
        if inode in inodes and port in {local, remote}:
            found.add(remote if local == port else local)
    return found


def queued(port: int) -> set[int]:
    """Return the peers' ports of connections to `port` that no process has accepted yet."""
    return {remote for inode, local, remote in _established() if inode == "0" and local == port}


def _established() -> Iterator[tuple[str, int, int]]:
    """Yield inode, local and remote port of every established IPv4 connection (proc(5), /proc/net/tcp)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01":
            yield fields[9], int(fields[1].partition(":")[2], 16), int(fields[2].partition(":")[2], 16)


def free_port() -> int:
    """Find a port on 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def pinned(command: Sequence[str], cores: Iterable[int]) -> list[str]:
    """Return a command that runs on these cores alone, all its threads too."""
    return ["taskset", "-c", ",".join(str(core) for core in sorted(cores)), *command]


@contextmanager
def started(
    command: Sequence[str], port: int, cores: Iterable[int], log: Path, environ: Mapping[str, str], says: str = ""
) -> Iterator[Process]:
    """Run a program on the cores until the block ends; it is entered when the port listens.

    log: where its words go, shown where it fails. says: what it must have said too. Raises StartError.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), **environ}
    with log.open("wb") as words:
        process = subprocess.Popen(
            pinned(command, cores), stdout=words, stderr=subprocess.STDOUT, env=environment, cwd=log.parent
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            if _listens(port) and says in log.read_text(errors="replace"):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip()[-2000:]
                raise StartError(last or f"{command[0]} ended without a word")
            time.sleep(0.05)
        yield Process(process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
