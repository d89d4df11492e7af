"""What is no request and goes on record all the same: circuits, the store, stages that fail or are slow, reloads."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.live.harness import Gateway, mint, policy, route, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import HANG_UP, RecordingUpstream, Reply
from tests.live.test_reload import events
from tests.redis_server import RedisServer

STAGE = '''
from time import sleep
from mitmgate.stage import Facts, Stage, Step

class Odd(Stage):
    """Fail, or take long."""

    sets = ("X-Odd-Stage",)

    def decide(self, facts: Facts) -> Step:
        if facts.headers.get("x-odd") == "fail":
            raise LookupError("secret-of-the-stage")
        if facts.headers.get("x-odd") == "slow":
            sleep(0.05)
        return self.skip()
'''


class Running(NamedTuple):
    gateway: Gateway
    upstream: RecordingUpstream
    redis: RedisServer
    policy: dict[str, Any]

    def wait(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        path = self.gateway.policy_path.with_name("audit.jsonl")
        wait_for(lambda: len(events(path, kind)) >= count, f"{count} events {kind}")
        return events(path, kind)

    def request(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        path = self.gateway.policy_path.with_name("audit.jsonl")
        wait_for(lambda: any(map(holds, events(path, "request"))), "the event of the request")
        return next(filter(holds, events(path, "request")))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("events")
    (folder / "odd.py").write_text(STAGE)
    with RecordingUpstream() as upstream, RedisServer(folder) as redis:
        made = policy(folder, upstream, store={"url": redis.url})
        made["stages"] = {"odd": {"use": "odd.py:Odd", "after": "authorization", "timeout": "10s"}}
        made["upstreams"]["users"]["circuit"] = {"failures": 2, "share": "0%", "open_for": "100ms"}
        with Gateway(write_policy(folder, made)) as gateway:
            yield Running(gateway, upstream, redis, made)


def test_a_circuit_that_opens_and_closes(running: Running) -> None:
    gateway, upstream = running.gateway, running.upstream
    token = mint("alice")
    upstream.reply = HANG_UP
    for _ in range(100):
        if gateway.request("POST", "/api/v1/users", token=token, body=b"").reason == "circuit-open":
            break
    opened = running.wait("circuit")[0]
    assert (opened["state"], opened["upstream"], opened["endpoint"]) == ("open", "users", upstream.url)
    assert opened["why"] == "upstream-closed"
    upstream.reply = Reply()
    wait_for(lambda: gateway.get("/api/v1/users/7", token=token).status == 200, "the circuit to close")
    assert running.wait("circuit", 2)[-1]["state"] == "closed"
    asked = running.request(lambda event: event["request_id"] == opened["request_id"])
    assert asked["reason"] == "upstream-closed"


@pytest.fixture(autouse=True)
def _answering(running: Running) -> Iterator[None]:
    yield
    running.upstream.reply = Reply()


def test_a_store_that_goes_and_comes_back(running: Running) -> None:
    running.redis.stop()
    wait_for(lambda: running.gateway.get("/api/v1/users/7", token=mint("bob")).status == 200, "an answer without Redis")
    lost = running.wait("store-lost")[0]
    assert lost["store"] == f"counter store 127.0.0.1:{running.redis.port}"
    running.redis.start()
    back = running.wait("store-recovered")[0]
    assert back["store"] == lost["store"] and back["seconds"] > 0


def test_a_stage_that_fails_or_is_slow(running: Running) -> None:
    seen = len(running.upstream.requests)
    for _ in range(3):  # one event, not three: it is told again after ten seconds
        answered = running.gateway.get("/public", headers={"X-Odd": "fail"})
        assert answered.reason == "stage-error"
    assert len(running.upstream.requests) == seen
    (failed, *_) = running.wait("stage-failed")
    assert (failed["stage"], failed["error"], failed["count"]) == ("odd", "LookupError", 1)
    assert "secret-of-the-stage" not in json.dumps(failed)
    assert running.gateway.get("/public", headers={"X-Odd": "slow"}).status == 200
    slow = running.wait("stage-slow")[0]
    assert (slow["stage"], slow["count"]) == ("odd", 1)
    assert slow["seconds"] >= 0.05
    asked = running.request(lambda event: event.get("steps_us", {}).get("odd", 0) >= 50_000)
    assert asked["path"] == "/public"


def test_a_reload_says_what_asked_for_it(running: Running) -> None:
    write_policy(running.gateway.policy_path.parent, route(running.policy, "public", networks={"deny": ["10.0.0.0/8"]}))
    assert running.wait("policy-reloaded")[0]["by"] == "a changed file"
    running.gateway.process.send_signal(signal.SIGHUP)
    assert running.wait("policy-reloaded", 2)[-1]["by"] == "a signal"
    write_policy(Path(running.gateway.policy_path).parent, {"version": 2})
    assert running.wait("policy-rejected")[0]["by"] == "a changed file"
