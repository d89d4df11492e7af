"""One measurement: wrk against a process, and what the process used meanwhile."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Process
from mitmgate.usage import UserError

CONNECTIONS = 32
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"failed":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run showed. p50 and p99 are of latency.

    cpu_us: CPU microseconds of the measured process a request. core: the share of the core that it got; where that is
    well under 1, something else ran there, and requests a second say little.
    """

    requests_per_second: float
    cpu_us: float
    core: float
    p50_ms: float
    p99_ms: float
    resident_mib: float
    failed: int


def wrk() -> str:
    """Find the load generator."""
    path = shutil.which("wrk")
    if path is None:
        raise UserError("wrk is missing; it makes the load (Debian, Ubuntu: apt install wrk)")
    return path


def measure(target: Process, path: str, headers: Mapping[str, str], seconds: int, core: int, directory: Path) -> Sample:
    """Load a process at saturation with 32 connections from another core."""
    script = directory / "report.lua"
    script.write_text(REPORT)
    command = ["taskset", "-c", str(core), wrk(), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script)]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    before = target.cpu_seconds()
    ended = subprocess.run(
        [*command, f"http://127.0.0.1:{target.port}{path}"],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        check=False,
    )
    used = target.cpu_seconds() - before
    line = next((line for line in ended.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise UserError(f"wrk failed:\n{ended.stdout}{ended.stderr}")
    result = json.loads(line.removeprefix("RESULT "))
    requests, wall = max(1, result["requests"]), result["microseconds"] / 1e6
    return Sample(
        requests_per_second=requests / wall,
        cpu_us=used * 1e6 / requests,
        core=used / wall,
        p50_ms=result["p50"] / 1000,
        p99_ms=result["p99"] / 1000,
        resident_mib=target.resident_mib(),
        failed=result["failed"],
    )
