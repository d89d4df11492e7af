"""One measurement: load on a process, and what the process and the load itself used meanwhile.

At saturation the load is wrk (as many requests as 32 connections get answered); below it is paced.py, open loop.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.paced import Plan
from bench.processes import Process, pinned
from mitmgate.usage import UserError

HERE = Path(__file__).parent
CONNECTIONS = 32
PATIENCE = 300.0  # seconds for a number of requests, on a busy machine
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"failed":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""
ROTATE = """
local bearers = {%s}
local at = 0
request = function()
  at = at %% #bearers + 1
  wrk.headers["Authorization"] = bearers[at]
  return wrk.format()
end
"""
_H2LOAD = re.compile(r"(?P<good>\d+) succeeded")
NUMBER = """
local number = 0
request = function()
  number = number + 1
  wrk.headers["X-Number"] = number
  return wrk.format()
end
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """The request that is made again and again. bearers: values of Authorization, taken in turn; body: bytes sent.

    numbered: each request has a field that no other has; not together with several bearers. secure: over TLS.
    """

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    bearers: tuple[str, ...] = ()
    body: int = 0
    connections: int = CONNECTIONS
    numbered: bool = False
    secure: bool = False

    def script(self) -> str:
        """Write it for wrk, in Lua."""
        text = REPORT
        if len(self.bearers) > 1:
            text += ROTATE % ",".join(f'"{bearer}"' for bearer in self.bearers)
        elif self.numbered:
            text += NUMBER
        if self.body:
            text += f'wrk.method = "POST"\nwrk.body = string.rep("x", {self.body})\n'
        return text

    def options(self) -> list[str]:
        """Write its headers for wrk."""
        fields = dict(self.headers)
        if self.bearers:
            fields["Authorization"] = self.bearers[0]
        return [word for name, value in fields.items() for word in ("-H", f"{name}: {value}")]

    def requests(self) -> list[str]:
        """Write it out whole, once for each bearer."""
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        lines = [f"Authorization: {bearer}\r\n" for bearer in self.bearers] or [""]
        return [f"GET {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}{line}\r\n" for line in lines]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run showed. p50 and p99 are of latency; below saturation it counts from the intended time.

    cpu_us: CPU microseconds of the measured process and its children a request. core: the share of a core that they
    got; where that is well under 1 at saturation, something else ran there. load_core: the share of a core that the
    load and the upstream used; near 1 they are the bottleneck, not what is measured. late_ms: the median time that the
    paced generator sent after the intended time. rate: requests a second that were intended; 0 at saturation.
    """

    requests_per_second: float
    cpu_us: float
    core: float
    p50_ms: float
    p99_ms: float
    resident_mib: float
    failed: int
    load_core: float
    requests: int
    rate: float = 0.0
    late_ms: float = 0.0
    redis_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Witness:
    """The processes beside the measured one: the upstream, and Redis where there is one."""

    upstream: Process
    redis: Process | None = None

    def read(self) -> tuple[float, float]:
        """Return the CPU seconds of both so far."""
        return self.upstream.cpu_seconds(), self.redis.cpu_seconds() if self.redis else 0.0


def wrk() -> str:
    """Find the load generator."""
    path = shutil.which("wrk")
    if path is None:
        raise UserError("wrk is missing; it makes the load (Debian, Ubuntu: apt install wrk)")
    return path


def saturate(
    target: Process, ask: Ask, seconds: int, cores: Collection[int], directory: Path, beside: Witness
) -> Sample:
    """Load a process with as much as its connections take."""
    script = directory / "ask.lua"
    script.write_text(ask.script())
    command = [wrk(), "-t1", f"-c{ask.connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    command += [*ask.options(), f"http{'s' if ask.secure else ''}://127.0.0.1:{target.port}{ask.path}"]
    before, others, own = target.cpu_seconds(), beside.read(), _children()
    ended = subprocess.run(pinned(command, cores), capture_output=True, text=True, timeout=seconds + 60, check=False)
    used, after, load = target.cpu_seconds() - before, beside.read(), _children() - own
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
        load_core=(load + after[0] - others[0]) / wall,
        requests=requests,
        redis_us=(after[1] - others[1]) * 1e6 / requests,
    )


def streams(target: Process, ask: Ask, each: int, requests: int, cores: Collection[int]) -> float:
    """Load a process with HTTP/2, `each` streams a connection; return its CPU microseconds a request."""
    path = shutil.which("h2load")
    if path is None:
        raise UserError("h2load is missing; it makes the load of HTTP/2 (Debian, Ubuntu: apt install nghttp2-client)")
    command = [path, f"-c{ask.connections}", f"-m{each}", f"-n{requests}", *ask.options()]
    command.append(f"http{'s' if ask.secure else ''}://127.0.0.1:{target.port}{ask.path}")
    before = target.cpu_seconds()
    ended = subprocess.run(pinned(command, cores), capture_output=True, text=True, timeout=PATIENCE, check=False)
    used = target.cpu_seconds() - before
    counted = _H2LOAD.search(ended.stdout)
    if counted is None or int(counted["good"]) != requests:
        raise UserError(f"h2load failed:\n{ended.stdout}{ended.stderr}")
    return used * 1e6 / requests


def generator(plan: Plan, cores: Collection[int]) -> subprocess.Popen[str]:
    """Start the paced generator; its stdout is JSON, read with `communicate`."""
    made = subprocess.Popen(
        pinned([sys.executable, str(HERE / "paced.py")], cores),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if made.stdin is None:
        raise TypeError("a pipe was asked for")
    made.stdin.write(json.dumps(asdict(plan)))
    made.stdin.close()
    made.stdin = None
    return made


def pace(target: Process, ask: Ask, rate: float, seconds: int, cores: Collection[int], beside: Witness) -> Sample:
    """Load a process at a fixed rate, open loop."""
    before, others = target.cpu_seconds(), beside.read()
    running = generator(Plan(target.port, rate, seconds, ask.connections, ask.requests()), cores)
    out, err = running.communicate(timeout=seconds + 60)
    used, after = target.cpu_seconds() - before, beside.read()
    if running.returncode:
        raise UserError(f"the paced generator failed:\n{err}")
    result = json.loads(out)
    answered, wall = max(1, result["answered"]), result["wall"]
    return Sample(
        requests_per_second=answered / wall,
        cpu_us=used * 1e6 / answered,
        core=used / wall,
        p50_ms=result["p50"],
        p99_ms=result["p99"],
        resident_mib=target.resident_mib(),
        failed=sum(result["kinds"].values()),
        load_core=(result["cpu"] + after[0] - others[0]) / wall,
        requests=result["requests"],
        rate=rate,
        late_ms=result["late_p50"],
        redis_us=(after[1] - others[1]) * 1e6 / answered,
    )


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
