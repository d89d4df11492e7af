"""A service that fails now and then, and one that is away: what its circuit does to everybody else.

Run: .venv/bin/python bench/rare_failures.py [SECONDS]. 500 requests a second for 20 s; each fails with a probability of
0.17 %. Bars: none is refused; an endpoint that is away opens its circuit after `failures` requests (5). Starts
everything of its own on 127.0.0.1, prints what it saw, and exits with 1 where a bar is missed.
"""

import http.client
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from tests.live.harness import Gateway, policy, write_policy
from tests.live.harness_http import free_port
from tests.live.harness_upstream import PATIENCE, Recorded, RecordingUpstream, Reply

RATE: Final = 500
SHARE: Final = 0.0017
CLIENTS: Final = 8
FAILURES: Final = 5
"""Of a circuit: the default of a policy."""


@dataclass
class Found:
    """What came of a run. answers: how many of each status, or reason. dead: those of an endpoint that is away."""

    seconds: float
    failed: int = 0
    answers: Counter[str | int] = field(default_factory=Counter)
    dead: list[str | int] = field(default_factory=list)

    def missed(self) -> list[str]:
        """Say which bars are missed."""
        refused = {answer: count for answer, count in self.answers.items() if answer not in {200, 500}}
        found = [f"refused: {refused}"] if refused else []
        if self.answers[500] != self.failed:
            found.append(f"{self.answers[500]} failures of {self.failed} arrived")
        if self.dead != ["upstream-unreachable"] * FAILURES + ["circuit-open"] * FAILURES:
            found.append(f"away: {self.dead}")
        return found


def measure(directory: Path, seconds: float, share: float = SHARE) -> Found:
    """Ask a service that fails so often for so long, and then one that is away."""
    found, chance = Found(seconds), random.Random(1)

    def answer(_: Recorded) -> Reply:
        fails = chance.random() < share
        found.failed += fails
        return Reply(500 if fails else 200)

    with RecordingUpstream(answer) as upstream:
        made = policy(directory, upstream)
        made["upstreams"]["away"] = {"endpoints": [f"http://127.0.0.1:{free_port()}"]}
        made["routes"].append({"name": "away", "match": {"exact": "/away"}, "upstream": "away", "auth": "none"})
        with Gateway(write_policy(directory, made)) as gateway:
            _ask(gateway, seconds, found)
            answered = [gateway.get("/away") for _ in range(2 * FAILURES)]
            found.dead = [one.reason or one.status for one in answered]
    return found


def _ask(gateway: Gateway, seconds: float, found: Found) -> None:
    lock, began = threading.Lock(), time.monotonic()

    def client() -> None:
        link, due = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE), began
        while (now := time.monotonic()) < began + seconds:
            if due > now:
                time.sleep(due - now)
            due += CLIENTS / RATE
            answered = gateway.get("/public", connection=link)
            with lock:
                found.answers[answered.reason or answered.status] += 1
        link.close()

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()


def main(seconds: float) -> int:
    """Measure, and print what it came to."""
    with tempfile.TemporaryDirectory() as directory:
        found = measure(Path(directory), seconds)
    asked, missed = sum(found.answers.values()), found.missed()
    print(f"{asked} requests, {asked / seconds:.0f} a second; {found.failed} failed: {dict(found.answers)}")
    print(f"an endpoint that is away: {dict(Counter(found.dead))}")
    print("\n".join(missed) or "nothing was refused; what is away was left alone")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
