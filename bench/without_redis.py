"""A start, and a worker's restart, while Redis is refused or silent: when it answers, and when limits are exact.

Run: .venv/bin/python bench/without_redis.py [ROUNDS]. Hosts: `serve`, `serve --workers 2`, `web`. Bars: an answer by
each limit's own rule within 3 s of the start, and of the death of all workers; from one window after Redis' return on
no more than the limit in any window, over all processes. A start with Redis there is measured beside them: on a busy
machine the interpreter alone takes seconds. Prints a table, and exits with 1 where a bar is missed.
"""

import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from tests.live.harness import Front, Gateway, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.redis_server import RedisServer
from tests.workers.processes import events, workers

HOSTS: Final[dict[str, tuple[Front, tuple[str, ...]]]] = {
    "serve": ("serve", ()),
    "serve --workers 2": ("serve", ("--workers", "2")),
    "web": ("web", ()),
}
REDIS: Final = ("there", "refused", "silent")
WORDS: Final = ("local", "deny", "allow")
LIMIT: Final = 10
WINDOW: Final = 2.0
JITTER: Final = 0.2
"""Seconds of a window that are left out: an answer takes its time."""
BAR: Final = 3.0
"""Seconds until the first answer."""
ASKERS: Final = 4


@dataclass
class Found:
    """What came of one start. Times are in seconds."""

    host: str
    redis: str
    start: float = 0.0
    restart: float | None = None
    """None: there is no worker to be killed."""
    wrong: list[str] = field(default_factory=list)
    """Answers that no rule of the policy gives."""
    most: dict[str, int] = field(default_factory=dict)
    """By limit: the most that was admitted in a window that began a window after Redis was there, or later."""
    late: int = 0
    """Decisions of that time without Redis, whose answer was late: `allow` admits those beyond its limit."""

    def missed(self) -> list[str]:
        """Say which bars are missed."""
        found = [f"{name} after {late:.1f} s" for name, late in self._times() if late > BAR]
        found += self.wrong[:3]
        return found + [f"{word}: {most} in a window" for word, most in self.most.items() if most > LIMIT]

    def _times(self) -> list[tuple[str, float]]:
        return [("start", self.start)] + ([] if self.restart is None else [("restart", self.restart)])


def measure(directory: Path, host: str, trouble: str, seconds: float = 3 * WINDOW) -> Found:
    """Start a gateway without Redis, end its workers, let Redis come, and ask for so long."""
    found = Found(host, trouble)
    front, arguments = HOSTS[host]
    redis = RedisServer(directory)
    with ExitStack() as stack:
        stack.callback(redis.stop)
        upstream = stack.enter_context(RecordingUpstream())
        hole = stack.enter_context(socket.socket())
        if trouble == "there":
            redis.start()
        if trouble == "silent":
            hole.bind(("127.0.0.1", redis.port))
            hole.listen()
        # What was compiled once is kept, as run.sh does: the first start of all takes longer.
        kept = {"PYTHONDONTWRITEBYTECODE": ""}
        gateway = Gateway(_policy(directory, upstream, redis), host=front, arguments=arguments, environment=kept)
        stack.callback(gateway.kill)
        began = time.monotonic()
        gateway.launch()
        found.start = _answered(gateway, began)
        if trouble == "there":
            return found
        _check_rules(gateway, found)
        if "--workers" in arguments:
            began = time.monotonic()
            for pid in workers(gateway, int(arguments[-1])):
                os.kill(pid, signal.SIGKILL)
            found.restart = _answered(gateway, began)
            _check_rules(gateway, found)
            workers(gateway, int(arguments[-1]))
        hole.close()
        _ask(gateway, redis, seconds, found)
    return found


def _policy(directory: Path, upstream: RecordingUpstream, redis: RedisServer) -> Path:
    made: dict[str, Any] = policy(directory, upstream, store={"url": redis.url})
    made["rate_limits"] |= {
        word: {"limit": LIMIT, "window": f"{WINDOW:g}s", "key": "route", "on_store_failure": word} for word in WORDS
    }
    made["routes"] += [
        {"name": word, "match": {"exact": f"/{word}"}, "upstream": "users", "auth": "none", "rate_limits": [word]}
        for word in WORDS
    ]
    return write_policy(directory, made)


def _answered(gateway: Gateway, began: float) -> float:
    """Ask until there is an answer."""

    def answers() -> bool:
        assert gateway.process.poll() is None, gateway.log
        try:
            return gateway.get("/allow").status == 200
        except OSError:  # refused, or a worker that was killed with the connection in its hands
            return False

    wait_for(answers, "an answer", 60)
    return time.monotonic() - began


def _check_rules(gateway: Gateway, found: Found) -> None:
    for word, rule in (("deny", {"store-unavailable"}), ("allow", {None}), ("local", {None, "quota-exceeded"})):
        reasons = [gateway.get(f"/{word}").reason for _ in range(LIMIT + 2)]
        found.wrong += [f"{word}: {reason}" for reason in reasons if reason not in rule]


def _ask(gateway: Gateway, redis: RedisServer, seconds: float, found: Found) -> None:
    """Ask for everything all the time, while Redis starts and for so long after."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            for word in WORDS:
                gateway.get(f"/{word}")  # a new connection, so that each process has its part

    askers = [threading.Thread(target=ask) for _ in range(ASKERS)]
    for asker in askers:
        asker.start()
    redis.start()
    since = time.time() + WINDOW
    ended.wait(WINDOW + seconds)
    ended.set()
    for asker in askers:
        asker.join(PATIENCE)
    gateway.stop()
    recorded = [event for event in events(gateway.policy_path.with_name("audit.jsonl")) if event.get("route") in WORDS]
    later = [(_seconds(event), event) for event in recorded if _seconds(event) >= since]
    found.late = sum("degraded" in event for _, event in later)
    for word in WORDS:
        mine = [(at, event) for at, event in later if event["route"] == word and event["status"] == 200]
        times = [at for at, event in mine if word != "allow" or "degraded" not in event]
        found.most[word] = max((sum(at <= other < at + WINDOW - JITTER for other in times) for at in times), default=0)
        if later and not times and seconds > WINDOW:
            found.wrong.append(f"{word}: nothing admitted")


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def main(rounds: int) -> int:
    """Run each host and trouble so many times, and print what it came to."""
    status = 0
    print(f"{'host':18} {'Redis':8} {'start':>6} {'restart':>8}  most in a window, exact: {LIMIT}")
    for host, trouble in list(product(HOSTS, REDIS)) * rounds:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            found = measure(Path(directory), host, trouble)
        missed = [] if trouble == "there" else found.missed()
        status = 1 if missed else status
        restart = "-" if found.restart is None else f"{found.restart:.1f} s"
        most = ", ".join(f"{word} {number}" for word, number in found.most.items()) + f" ({found.late} answers late)"
        print(
            f"{host:18} {trouble:8} {found.start:4.1f} s {restart:>8}  {most} {'; '.join(missed)}".rstrip(), flush=True
        )
    return status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
