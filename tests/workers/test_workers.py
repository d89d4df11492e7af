"""Several workers before one Redis, under load: exact limits, reloads that fail no request, crashes, the end."""

import http.client
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.processes import links
from mitmgate.cli import main
from tests.live.harness import Gateway, mint, policy, policy_file, route, write_policy
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream, Reply
from tests.redis_server import RedisServer
from tests.workers.load import Load
from tests.workers.processes import assert_recorded_once, children, events, workers

CLIENTS = 32


@dataclass
class Running:
    """Two workers that the tests of this file share."""

    gateway: Gateway
    upstream: RecordingUpstream
    directory: Path
    store: dict[str, str]
    admin: int

    @property
    def audit(self) -> Path:
        return self.directory / "audit.jsonl"

    def stopped(self) -> int:
        return sum(event["event"] == "gateway-stopped" for event in events(self.audit))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("workers")
    store = {"url": redis.url, "timeout": "2s"}
    with RecordingUpstream() as upstream:
        admin = free_port()
        path = policy_file(directory, upstream, store=store, admin={"port": admin})
        with Gateway(path, arguments=("--workers", "2")) as gateway:
            assert gateway.stdout.read_text().endswith(", 2 workers\n")
            yield Running(gateway, upstream, directory, store, admin)
    # 3: breaks that the log declares, by the workers that were killed
    assert main(["audit", "verify", str(directory / "audit.jsonl")]) in {0, 3}


def test_a_limit_is_exact_over_the_workers(running: Running) -> None:
    gateway, token = running.gateway, mint("racer")

    def client(_: int) -> list[int]:
        link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        try:
            return [gateway.get("/api/v1/users", token=token, connection=link).status for _ in range(5)]
        finally:
            link.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = Counter(status for got in pool.map(client, range(CLIENTS)) for status in got)
    assert statuses == {200: 100, 429: CLIENTS * 5 - 100}

    def requests() -> list[dict[str, object]]:
        return [event for event in events(running.audit) if event["event"] == "request"]

    wait_for(lambda: len(requests()) >= CLIENTS * 5, "the audit events of both")
    # The trail's ids begin with their process: both have worked.
    assert len({str(event["id"]).partition("-")[0] for event in requests()}) == 2


def test_workers_run_as_their_supervisor_does(running: Running) -> None:
    pids = [running.gateway.process.pid, *workers(running.gateway, 2)]
    assert [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1] for pid in pids] == [b"-O"] * 3


def figures(running: Running, name: str) -> dict[str, float]:
    """Return the samples of a metric by their labels, as the admin listener has them."""
    text = request(running.admin, "GET", "/metrics", host="localhost").body.decode()
    lines = [line.split(" ")[:2] for line in text.split("\n") if line.startswith((f"{name} ", f"{name}{{"))]
    return {labels.removeprefix(name): float(value) for labels, value in lines}


def test_the_admin_listener_speaks_for_all_workers(running: Running) -> None:
    def total() -> float:
        return sum(figures(running, "mitmgate_requests_total").values())

    assert figures(running, "mitmgate_workers") == {"": 2.0}
    assert request(running.admin, "GET", "/readyz", host="localhost").status == 200
    before = total()
    for _ in range(20):  # a connection each: the kernel spreads them
        assert running.gateway.get("/public").status == 200
    wait_for(lambda: total() == before + 20, "the requests to be counted")
    os.kill(workers(running.gateway, 2)[0], signal.SIGTERM)
    wait_for(lambda: "ended unasked with status 0" in running.gateway.log, "a worker's end")
    wait_for(lambda: figures(running, "mitmgate_ready") == {"": 2.0}, "both to be ready")
    assert total() == before + 20


def test_a_reload_of_the_policy_fails_no_request(running: Running) -> None:
    made = policy(running.directory, running.upstream, store=running.store, admin={"port": running.admin})
    with Load(running.gateway.port) as load:
        load.go_on()
        for turn in range(1, 3):
            write_policy(running.directory, route(made, "users", max_body=f"{turn}KiB"))
            running.gateway.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "2 of 2 workers have a new policy" in running.gateway.log, "both workers to say so")
            load.go_on()
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert_recorded_once(running.audit, load)


def test_a_restart_of_every_worker_fails_no_request(running: Running) -> None:
    before = workers(running.gateway, 2)
    stopped = running.stopped()
    with Load(running.gateway.port) as load:
        load.go_on()
        running.gateway.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: "every worker was replaced" in running.gateway.log, "the restart", 60)
        load.go_on()
    assert load.failures == []
    assert set(load.statuses) == {200}
    assert not set(before) & set(workers(running.gateway, 2))
    assert_recorded_once(running.audit, load)
    assert running.stopped() == stopped + 2


def test_a_killed_worker_takes_only_its_own_requests_along(running: Running) -> None:
    clients, port = 8, running.gateway.port
    with Load(port, clients=clients) as load:
        load.go_on()
        # The kernel spreads connections at random, now and then all of them to one worker.
        held, victim = min((len(links(pid, port)), pid) for pid in workers(running.gateway, 2))
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in children(running.gateway.process.pid), "its end")
        workers(running.gateway, 2)
        wait_for(lambda: any(event["event"] == "worker-lost" for event in events(running.audit)), "the record of it")
        load.go_on(200)
    # Each client had one request in flight; those of the other worker, and all later ones, are answered.
    assert held <= clients / 2
    assert len(load.failures) <= held
    assert set(load.statuses) == {200}
    (lost,) = [event for event in events(running.audit) if event["event"] == "worker-lost"]
    assert (lost["pid"], lost["how"]) == (victim, "signal 9")


def test_the_end_under_load(tmp_path: Path, upstream: RecordingUpstream, redis: RedisServer) -> None:
    release = threading.Event()
    upstream.reply = lambda request: Reply(until=release) if request.target.endswith("slow") else Reply()
    path = policy_file(tmp_path, upstream, store={"url": redis.url, "timeout": "2s"})
    token = mint("slow")
    with (
        ThreadPoolExecutor(10) as pool,
        Gateway(path, arguments=("--workers", "2")) as gateway,
        Load(gateway.port) as load,
    ):
        sent = [pool.submit(gateway.get, "/api/v1/users/slow", token=token) for _ in range(10)]
        wait_for(lambda: sum(one.target.endswith("slow") for one in list(upstream.requests)) == 10, "slow requests")
        pids = workers(gateway, 2)
        gateway.process.send_signal(signal.SIGTERM)
        time.sleep(1)  # longer than an idle connection is kept
        assert children(gateway.process.pid) == pids
        release.set()
        assert [one.result(PATIENCE).status for one in sent] == [200] * 10
        assert gateway.process.wait(PATIENCE) == 0
    assert set(load.statuses) == {200}
    assert main(["audit", "verify", str(tmp_path / "audit.jsonl")]) == 0
    assert_recorded_once(tmp_path / "audit.jsonl", load)


def test_workers_without_a_shared_store_are_refused(tmp_path: Path, upstream: RecordingUpstream) -> None:
    gateway = Gateway(policy_file(tmp_path, upstream), arguments=("--workers", "2"))
    with pytest.raises(AssertionError, match="ended with status 2"):
        gateway.start()
    assert "can't share counters in memory" in gateway.log
    assert "store: {url: redis://" in gateway.log
