"""`./run.sh bench`: this gateway beside bare stock mitmdump, in turns, on one core.

Three subjects in front of the same upstream: `stock` (mitmdump in reverse mode, no addon), `host` (the host and its
protocol layer, everything admitted) and `gateway` (serve, the whole chain). In every round each is measured once, so
that whatever else the machine does meets all of them; a ratio is the median of the rounds' own ratios.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench import policy
from bench.load import CONNECTIONS, Sample, measure, wrk
from bench.processes import Process, free_port, started
from mitmgate.usage import UserError

HERE = Path(__file__).parent
MITMDUMP = "from mitmproxy.tools.main import mitmdump; mitmdump()"
KINDS = {"keep-alive": {}, "connection-per-request": {"Connection": "close"}}
type Results = dict[str, dict[str, list[Sample]]]


def run(seconds: int, rounds: int, output: Path | None) -> None:
    """Measure, and print the table. output: also write all samples there, as JSON."""
    wrk()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise UserError("two cores are needed: one for the gateway, one for the load")
    results = _measure(seconds, rounds, cores[0], cores[1])
    ratios = {kind: _ratios(subjects) for kind, subjects in results.items()}
    machine = f"{platform.machine()}, {len(cores)} cores, Python {platform.python_version()}, {platform.system()}"
    _print(results, ratios, machine)
    if output is not None:
        samples = {
            kind: {name: [asdict(sample) for sample in found] for name, found in subjects.items()}
            for kind, subjects in results.items()
        }
        made = {"machine": machine, "connections": CONNECTIONS, "seconds": seconds}
        output.write_text(json.dumps({**made, "ratios": ratios, "samples": samples}, indent=2) + "\n")


def _measure(seconds: int, rounds: int, core: int, other: int) -> Results:
    bearer = {"Authorization": f"Bearer {policy.token()}"}
    environ = {policy.SECRET_NAME: policy.SECRET}
    with tempfile.TemporaryDirectory(prefix="mitmgate-bench-") as made, ExitStack() as stack:
        directory = Path(made)

        def start(label: str, make: Callable[[int], list[str]], on: int = core) -> Process:
            port = free_port()
            return stack.enter_context(started(make(port), port, on, directory / f"{label}.log", environ))

        upstream = start("upstream", lambda port: [str(HERE / "upstream.py"), str(port)], other)
        file = str(policy.write(directory, upstream.port))
        reverse = f"reverse:http://127.0.0.1:{upstream.port}"
        stock = ["-q", "--mode", reverse, "--listen-host", "127.0.0.1", "--set", f"confdir={directory}"]
        serve = ["-O", "-m", "mitmgate", "serve", "--policy", file, "--listen"]
        subjects = {
            "stock": start("stock", lambda port: ["-c", MITMDUMP, *stock, "--listen-port", str(port)]),
            "gateway": start("gateway", lambda port: [*serve, f"127.0.0.1:{port}"]),
            "host": start("host", lambda port: ["-O", str(HERE / "bare_host.py"), file, str(port)]),
        }
        results: Results = {kind: {name: [] for name in subjects} for kind in KINDS}
        for target in subjects.values():  # nobody pays for first times
            measure(target, policy.PATH, bearer, 1, other, directory)
        for _ in range(rounds):
            for kind, headers in KINDS.items():
                for name, target in subjects.items():
                    sample = measure(target, policy.PATH, bearer | headers, seconds, other, directory)
                    results[kind][name].append(sample)
        return results


def _ratios(subjects: dict[str, list[Sample]]) -> dict[str, float]:
    pairs = list(zip(subjects["stock"], subjects["gateway"], subjects["host"], strict=True))
    return {
        "gateway to stock, requests/s": median(g.requests_per_second / s.requests_per_second for s, g, _ in pairs),
        "gateway to stock, CPU a request": median(g.cpu_us / s.cpu_us for s, g, _ in pairs),
        "host to stock, requests/s": median(h.requests_per_second / s.requests_per_second for s, _, h in pairs),
        "the chain, CPU µs a request": median(g.cpu_us - h.cpu_us for _, g, h in pairs),
    }


def _print(results: Results, ratios: dict[str, dict[str, float]], machine: str) -> None:
    console = Console()
    console.print(f"{machine}; {CONNECTIONS} connections at saturation; medians; load average {os.getloadavg()[0]:.1f}")
    for kind, subjects in results.items():
        table = Table(title=kind, title_justify="left")
        for heading in ("", "requests/s", "CPU µs", "core", "p50 ms", "p99 ms", "RSS MiB", "failed"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, samples in subjects.items():
            table.add_row(
                name,
                f"{median(s.requests_per_second for s in samples):,.0f}",
                f"{median(s.cpu_us for s in samples):,.0f}",
                f"{median(s.core for s in samples):.0%}",
                f"{median(s.p50_ms for s in samples):.1f}",
                f"{median(s.p99_ms for s in samples):.1f}",
                f"{samples[-1].resident_mib:.0f}",
                str(sum(s.failed for s in samples)),
            )
        console.print(table)
        for name, value in ratios[kind].items():
            console.print(f"  {name}: {value:.2f}")
