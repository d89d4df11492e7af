"""The processes of a measurement: started on free ports, pinned to a core, read from /proc, ended by their own id."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mitmgate.usage import UserError

ROOT = Path(__file__).resolve().parents[1]
TICK = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE = 20.0  # seconds for a process to listen
KIB_A_MIB = 1024


@dataclass(frozen=True, slots=True)
class Process:
    """A running process and the port that it listens on."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Return what it has used so far, user and system (proc(5), fields 14 and 15 of stat)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK

    def resident_mib(self) -> float:
        """Return its resident memory in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / KIB_A_MIB


def free_port() -> int:
    """Find a port on 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(command: Sequence[str], port: int, core: int, log: Path, environ: Mapping[str, str]) -> Iterator[Process]:
    """Run a Python program on one core until the block ends. log: where its words go, shown where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), **environ}
    with log.open("wb") as words:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=words, stderr=subprocess.STDOUT, env=environment, cwd=log.parent
        )
    try:
        os.sched_setaffinity(process.pid, {core})
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UserError(f"{' '.join(command)} did not start:\n{log.read_text()}") from None
                time.sleep(0.05)
        yield Process(process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
