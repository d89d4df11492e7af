"""An endpoint to which packets are dropped costs a few requests the connect timeout, and no more than that."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.live.harness import Gateway, Host, audit_events, policy, write_policy
from tests.live.harness_http import free_port, wait_for
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.net.black_hole import black_hole

TIMEOUT = 0.6
"""Seconds that a connection may take."""


@dataclass
class World:
    """Routes: /pair (one of its two endpoints is dead), /refusing (the same, but it refuses), /only (the dead one)."""

    gateway: Gateway
    alive: RecordingUpstream
    dead: int
    audit: Path

    def took(self, path: str) -> tuple[int, float]:
        """Return a request's status and seconds."""
        began = time.monotonic()
        return self.gateway.get(path).status, time.monotonic() - began

    def dialling(self) -> int:
        """Count the connections to the dead endpoint that wait for an answer."""
        return sum(1 for line in _sockets() if line.endswith(f":{self.dead:04X} 02")) - self.fillers

    def __post_init__(self) -> None:
        self.fillers = 0
        self.fillers = self.dialling()


def _sockets() -> list[str]:
    """Return remote address and state of every TCP socket of this machine: proc(5)."""
    return [" ".join(line.split()[2:4]) for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def world(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("dead")
    with ExitStack() as stack:
        alive = stack.enter_context(RecordingUpstream())
        alive.reply = Reply(close=True)  # so that every request needs a connection
        dead = stack.enter_context(black_hole("127.0.0.1"))
        never: dict[str, Any] = {"circuit": {"failures": 10_000}, "connect_timeout": f"{TIMEOUT * 1000:.0f}ms"}
        gone, dropped = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{dead}"
        made = policy(directory, alive)
        made["upstreams"] = {
            "pair": {"endpoints": [dropped, alive.url], **never},
            "refusing": {"endpoints": [gone, alive.url], **never},
            "only": {"endpoints": [dropped], **never},
        }
        made["routes"] = [
            {"name": name, "match": {"exact": f"/{name}"}, "upstream": name, "auth": "none"}
            for name in made["upstreams"]
        ]
        gateway = stack.enter_context(Gateway(write_policy(directory, made), host=host))
        yield World(gateway, alive, dead, directory / "audit.jsonl")


def test_a_retry_moves_nobodys_turn(world: World) -> None:
    for _ in range(20):
        assert world.gateway.get("/refusing").status == 200
    events = audit_events(world.audit, 20)
    assert [event.get("retries", 0) for event in events] == [1, 0] * 10
    assert [event.get("cause") for event in events] == ["connect-refused", None] * 10


@pytest.mark.parametrize("at_once", [1, 8])
def test_of_many_requests_few_wait_for_the_dead_one(world: World, at_once: int) -> None:
    """Before: 20 of 40 took the connect timeout."""
    before = len(world.alive.requests)
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(lambda _: world.took("/pair"), range(40)))
    assert {status for status, _ in found} == {200}
    assert len(world.alive.requests) - before == 40
    slow = [seconds for _, seconds in found if seconds >= TIMEOUT]
    assert len(slow) <= 4 + at_once, sorted(slow)


def test_the_only_endpoint_is_asked_by_one_at_a_time(world: World) -> None:
    """Before: each request waited for a connection of its own, and then, since it may be tried again, for another."""
    most, waiting = 0, threading.Event()
    with ThreadPoolExecutor(9) as pool:
        tasks = [pool.submit(world.took, "/only")]
        wait_for(lambda: world.dialling() == 1, "the first connection to be tried")
        waiting.wait(0.4)  # until there is a doubt
        tasks += [pool.submit(world.took, "/only") for _ in range(8)]
        while not all(task.done() for task in tasks):
            most = max(most, world.dialling())
            waiting.wait(0.01)
        assert most <= 2  # one that is given up may be there still when the next is begun
        assert {task.result()[0] for task in tasks} == {504}
        later = [pool.submit(world.took, "/only") for _ in range(8)]  # there is a doubt from the beginning
        while not all(task.done() for task in later):
            most = max(most, world.dialling())
            waiting.wait(0.01)
        assert most <= 2
        assert {task.result()[0] for task in later} == {504}
