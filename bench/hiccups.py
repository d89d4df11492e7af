"""Two gateways, one Redis, one user: what is admitted while answers are late, gateways stand still, or Redis is gone.

Run: .venv/bin/python bench/hiccups.py [SECONDS]. A limit of 10 in 2 s is asked for 120 times a second, half at each
gateway. Starts everything of its own on 127.0.0.1, prints a table, and exits with 1 where too much was admitted.
"""

import http.client
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from tests.late_redis import LateRedis
from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.redis_server import RedisServer

LIMIT: Final = 10
WINDOW: Final = 2.0
RATE: Final = 60
"""Requests a second at each gateway."""
SPARE: Final = 2
"""Admitted beyond the exact number, where nothing is out of order for long."""
LATE: Final = 0.15
SHARE: Final = 0.03
STILL: Final = 0.12
EVERY: Final = 1.0
JITTER: Final = 0.2


@dataclass
class Found:
    """What came of a run. admitted: when, in seconds from its beginning. degraded: decisions without Redis."""

    trouble: str
    seconds: float
    admitted: list[float] = field(default_factory=list)
    asked: int = 0
    degraded: int = 0

    @property
    def exact(self) -> int:
        """What a limit admits in this time that is always asked for."""
        return LIMIT * ceil(self.seconds / WINDOW)

    @property
    def most(self) -> int:
        """The most that was admitted in any window. Answers take their time: JITTER of it is left out."""
        times = sorted(self.admitted)
        return max(sum(at <= other < at + WINDOW - JITTER for other in times) for at in times)


def measure(directory: Path, trouble: str, seconds: float) -> Found:
    """Ask for so long. trouble: none, late, still, or gone (Redis, in the middle)."""
    chance = random.Random(1)
    delay: Callable[[], float] = (lambda: LATE * (chance.random() < SHARE)) if trouble == "late" else lambda: 0.0
    with RedisServer(directory) as redis, LateRedis(redis.port, delay) as between, RecordingUpstream() as upstream:
        limits = {"per-user": {"limit": LIMIT, "window": f"{WINDOW:g}s", "key": "principal"}}
        made = policy(directory, upstream, store={"url": between.url}, rate_limits=limits)
        path = write_policy(directory, made)
        with Gateway(path) as one, Gateway(path) as two:
            found = _ask([one, two], trouble, seconds, redis)
        assert len(upstream.requests) == len(found.admitted)
    events = [json.loads(line) for line in (directory / "audit.jsonl").read_bytes().splitlines()]
    found.degraded = sum(bool(event.get("degraded")) for event in events)
    return found


def _ask(gateways: list[Gateway], trouble: str, seconds: float, redis: RedisServer) -> Found:
    token, ended = mint(), threading.Event()
    lock = threading.Lock()
    began = time.monotonic()
    found = Found(trouble, seconds)

    def client(gateway: Gateway) -> None:
        link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        due = began
        while (now := time.monotonic()) < began + seconds:
            if due > now:
                time.sleep(due - now)
            due += 1 / RATE
            status = gateway.get("/api/v1/users", token=token, connection=link).status
            with lock:
                found.asked += 1
                if status == 200:
                    found.admitted.append(time.monotonic() - began)
        link.close()

    def stand_still() -> None:
        while not ended.wait(EVERY - STILL):
            for gateway in gateways:
                gateway.process.send_signal(signal.SIGSTOP)
            time.sleep(STILL)
            for gateway in gateways:
                gateway.process.send_signal(signal.SIGCONT)

    threads = [threading.Thread(target=client, args=(gateway,)) for gateway in gateways]
    troubler = threading.Thread(target=stand_still) if trouble == "still" else None
    for thread in (*threads, *([troubler] if troubler else [])):
        thread.start()
    if trouble == "gone":
        wait_for(lambda: time.monotonic() > began + seconds / 2, "half of the time", seconds + PATIENCE)
        redis.stop()
    for thread in threads:
        thread.join()
    ended.set()
    if troubler is not None:
        troubler.join()
    return found


def bound(found: Found) -> str:
    """Say what is wrong with a run; nothing where all is well."""
    if found.trouble == "gone":
        return f"{found.most} in one window, not {2 * LIMIT}" if found.most > 2 * LIMIT else ""
    return f"{len(found.admitted)}, not {found.exact + SPARE}" if len(found.admitted) > found.exact + SPARE else ""


def main(seconds: float) -> int:
    """Run each trouble and print what it came to."""
    status = 0
    print(f"{'trouble':8} {'asked':>6} {'admitted':>9} {'exact':>6} {'most in a window':>17} {'without Redis':>14}")
    for trouble in ("none", "late", "still", "gone"):
        with tempfile.TemporaryDirectory() as directory:
            found = measure(Path(directory), trouble, seconds)
        wrong = bound(found)
        status = 1 if wrong else status
        counts = f"{found.asked:6} {len(found.admitted):9} {found.exact:6} {found.most:17} {found.degraded:14}"
        print(f"{trouble:8} {counts} {wrong}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 16.0))
