"""How many decisions a second `replay` makes on one core, and what memory it takes, for a short and a long recording.

Run: .venv/bin/python -m bench.replay_speed [--requests N]... [--rounds N] [--directory DIR] [--profile]

A live gateway records the mixed requests of tests/replay/corpus.py first (about a minute for 50,000); in a DIR of your
own the recordings stay, and are taken again. Each round runs the command in a process of its own on one core. The rates
count whole processes, start included; the last line is without the start: the longest against the shortest.

What memory grows by is the limiter's: every request of this corpus counts under a key of its own (some 350 bytes each).
"""

import argparse
import cProfile
import json
import os
import pstats
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from mitmgate.replay.offline import load_offline
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.run import replay
from tests.replay.corpus import record

CHILD = """
import os, sys, time
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
from mitmgate.cli import main
status = main(sys.argv[1:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time(), int(peak) / 1024, file=sys.stderr)
sys.exit(status)
"""


class Measured(NamedTuple):
    """One run: seconds of CPU, and peak memory in MiB."""

    cpu: float
    peak: float


def recording(directory: Path, count: int) -> Path:
    """Return a directory with traffic.mitm of so many requests and the policy.yaml that they were decided by."""
    made = directory / str(count)
    if not (made / "done").exists():
        made.mkdir(parents=True, exist_ok=True)
        print(f"recording {count:,} requests …", file=sys.stderr, flush=True)
        record(made, count)
        (made / "done").touch()
    return made


def run(made: Path, count: int) -> Measured:
    """Replay once, as a process of its own on one core. It says itself what it took: a parent's memory is not its."""
    command = [sys.executable, "-c", CHILD, "replay", "traffic.mitm", "--policy", "policy.yaml", "--format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons")}
    done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or json.loads(done.stdout)["decided"] != count:
        raise SystemExit(f"{count} requests: {done.stdout[:2000]}{done.stderr[-2000:]}")
    return Measured(*map(float, done.stderr.split()[-2:]))


def profile(made: Path) -> None:
    """Print where the time goes, the dearest functions first."""
    traffic, policy = open_traffic([str(made / "traffic.mitm")]), load_offline(str(made / "policy.yaml"), {})
    profiler = cProfile.Profile()
    profiler.runcall(replay, traffic, policy)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--profile", action="store_true", help="print a profile of the first recording instead")
    given = parser.parse_args()
    sizes = sorted(given.requests or [10_000, 50_000])
    with TemporaryDirectory() as place:
        made = {count: recording(given.directory or Path(place), count) for count in sizes}
        if given.profile:
            profile(made[sizes[0]])
            return
        runs: dict[int, list[Measured]] = {count: [] for count in sizes}
        for _ in range(given.rounds):
            for count in sizes:
                runs[count].append(run(made[count], count))
    print("requests  CPU seconds  decisions/s  peak MiB   (medians; CPU seconds of one core)")
    middle = {count: Measured(*map(statistics.median, zip(*runs[count], strict=True))) for count in sizes}
    for count, (cpu, peak) in middle.items():
        print(f"{count:8,}  {cpu:11.2f}  {count / cpu:11,.0f}  {peak:8.1f}")
    if len(sizes) > 1:
        short, long = middle[sizes[0]], middle[sizes[-1]]
        rate = (sizes[-1] - sizes[0]) / (long.cpu - short.cpu)
        print(f"without the start: {rate:,.0f} decisions/s; memory grows by {long.peak - short.peak:.1f} MiB")


if __name__ == "__main__":
    main()
