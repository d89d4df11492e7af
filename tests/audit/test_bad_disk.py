"""Real gateways on disks that are full or slow, with a real Redis: what is lost, and that the rest mends itself."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.live.harness import ROOT, Gateway, mint, policy, write_policy
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.redis_server import RedisServer

DISK = Path(__file__).with_name("disk")


def on_a_bad_disk(path: Path, *arguments: str, **disk: str) -> Gateway:
    environment = {f"MITMGATE_TEST_{name}": value for name, value in disk.items()}
    # Before the gateway's own folder: Python takes the first sitecustomize that it finds.
    return Gateway(path, arguments=arguments, environment=environment | {"PYTHONPATH": f"{DISK}:{ROOT / 'addons'}"})


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as server:
        yield server


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        yield server


def in_redis(server: RedisServer) -> list[dict[str, Any]]:
    """Return the events of the stream, each once, in the order in which they came first."""
    with Redis.from_url(server.url) as client:
        entries: Any = client.xrange("audit")
    events = [json.loads(fields[b"event"]) for _, fields in entries]
    return list({event["id"]: event for event in events}.values())


def asked(port: int, count: int, path: str = "/api/v1/users/{}", start: int = 0) -> list[int]:
    """Send requests one after the other on one connection, and return their statuses; a lost connection ends it."""
    token, statuses = mint(), list[int]()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        for number in range(start, start + count):
            target = path.format(number)
            head = f"GET {target} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n"
            try:
                client.sendall(head.encode())
                answer = b""
                while b"\r\n\r\n" not in answer:
                    part = client.recv(65536)
                    if not part:
                        return statuses
                    answer += part
                length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                rest = length - len(answer.partition(b"\r\n\r\n")[2])
                while rest > 0:
                    rest -= len(client.recv(65536))
            except ConnectionError:
                return statuses
            statuses.append(int(answer.split(b" ", 2)[1]))
    return statuses


def test_a_full_spill_disk_is_no_deadlock(
    tmp_path: Path, upstream: RecordingUpstream, redis_server: RedisServer
) -> None:
    """Redis goes, the spill file fills up, the queue fills up, Redis comes back: the disk stays full for ever."""
    full = tmp_path / "full"
    full.touch()
    sink = {"redis_stream": "audit", "spill": str(tmp_path / "spill.jsonl")}
    audit = {"sinks": [sink], "queue": 50, "on_full": "deny"}
    made = policy(tmp_path, upstream, audit=audit, store={"url": redis_server.url, "timeout": "1s"})
    made["rate_limits"]["per-user"]["limit"] = 100_000
    made["admin"] = {"port": free_port()}

    def ready() -> int:
        return request(made["admin"]["port"], "GET", "/readyz", host="localhost").status

    disk = {"FILE": "spill.jsonl", "FULL": str(full), "ROOM": "20000"}
    with on_a_bad_disk(write_policy(tmp_path, made), **disk) as gateway:
        assert asked(gateway.port, 20) == [200] * 20
        redis_server.stop()
        during: list[int] = []
        while 503 not in during:
            during += asked(gateway.port, 20, start=1000 + len(during))
            assert len(during) < 5000, "nothing was ever refused"
        admitted = 20 + during.count(200)
        wait_for(lambda: "wait in memory" in gateway.log, "the log to say that the disk is full, too")
        assert ready() == 503
        redis_server.start()
        number, denied = 100_000, during.count(503)

        def goes_on() -> bool:
            nonlocal number, admitted, denied
            number += 1
            (status,) = asked(gateway.port, 1, start=number)
            admitted += status == 200
            denied += status == 503
            return status == 200

        wait_for(lambda: ready() == 200, "it to be ready without a request", 60)
        wait_for(goes_on, "requests to be admitted again", 60)
        after = asked(gateway.port, 100, start=200_000)
        assert after == [200] * 100
        status = gateway.stop()
    events = in_redis(redis_server)
    # A denial, too, owes its record: those that found no place even in the reserve are counted in their place.
    dropped = sum(event["count"] for event in events if event["event"] == "audit-dropped")
    assert dropped == denied - len([event for event in events if event.get("reason") == "audit-unavailable"])
    assert status == (1 if dropped else 0)
    requests = [event for event in events if event["event"] == "request" and event["decision"] == "admit"]
    kinds = [event["event"] for event in events]
    # Redis keeps nothing over its end, so what it had before is gone: of the rest each record is there, and in order.
    paths = [event["path"] for event in requests]
    numbers = [int(path.rpartition("/")[2]) for path in paths]
    assert numbers == sorted(numbers)
    assert len(numbers) == len(set(numbers))
    assert len([number for number in numbers if number >= 1000]) == admitted + 100 - 20
    assert {"sink-failed", "sink-recovered"} <= set(kinds)
    assert kinds[-1] == "gateway-stopped"
    assert (tmp_path / "spill.jsonl").stat().st_size == 0


def test_sink_recovered_finds_a_place_in_a_full_queue(
    tmp_path: Path, upstream: RecordingUpstream, redis_server: RedisServer
) -> None:
    """With `drop` a full queue drops requests, and never what the gateway has to say of itself."""
    full = tmp_path / "full"
    full.touch()
    sink = {"redis_stream": "audit", "spill": str(tmp_path / "spill.jsonl")}
    audit = {"sinks": [sink], "queue": 20, "on_full": "drop"}
    made = policy(tmp_path, upstream, audit=audit, store={"url": redis_server.url, "timeout": "1s"})
    made["rate_limits"]["per-user"]["limit"] = 100_000
    disk = {"FILE": "spill.jsonl", "FULL": str(full), "ROOM": "1"}
    with on_a_bad_disk(write_policy(tmp_path, made), **disk) as gateway:
        redis_server.stop()
        assert set(asked(gateway.port, 200)) == {200}
        redis_server.start()
        wait_for(
            lambda: "sink-recovered" in [event["event"] for event in in_redis(redis_server)],
            "the recovery in Redis",
            60,
        )
        assert gateway.stop() == 1, "records are lost, and the status says so"
    kinds = [event["event"] for event in in_redis(redis_server)]
    assert {"sink-failed", "audit-dropped", "sink-recovered", "gateway-stopped"} <= set(kinds)


def killed_under_load(gateway: Gateway, path: Path, enough: int) -> tuple[int, int]:
    """Kill the gateway while eight clients ask; return how many answers they had, and how many records there are."""
    answers = [0] * 8
    stop = threading.Event()

    def ask(client: int) -> None:
        while not stop.is_set():
            got = len(asked(gateway.port, 50))
            answers[client] += got
            if got < 50:
                return

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for client in clients:
        client.start()
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") > enough, "records in the file", 60)
    os.killpg(gateway.process.pid, signal.SIGKILL)
    stop.set()
    for client in clients:
        client.join(60)
    gateway.process.wait(60)
    return sum(answers), path.read_bytes().count(b'"event":"request"')


def test_a_slow_fsync_keeps_no_records_in_memory(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """With an fsync of 2 s: a gateway that is killed loses what gathers, and not what waits for the disk."""
    made = policy(tmp_path, upstream, audit={"sinks": [{"file": str(tmp_path / "audit.jsonl"), "fsync": "0s"}]})
    made["rate_limits"]["per-user"]["limit"] = 100_000
    with on_a_bad_disk(write_policy(tmp_path, made), FSYNC="2") as gateway:
        answered, written = killed_under_load(gateway, tmp_path / "audit.jsonl", 1500)
    # Those that ended within the last 10 ms, 64 at most, and those that the sink's thread had taken 10 ms before.
    assert answered - written <= 128, f"{answered - written} of {answered} are lost"


@pytest.mark.parametrize("queue", [20])
def test_the_queue_bounds_what_a_killed_gateway_loses_on_a_disk_that_does_not_keep_up(
    tmp_path: Path, upstream: RecordingUpstream, queue: int
) -> None:
    """Each write takes 200 ms: requests wait, and no more than twice `queue` records are ever unwritten."""
    audit = {"sinks": [{"file": str(tmp_path / "audit.jsonl")}], "queue": queue, "on_full": "block"}
    made = policy(tmp_path, upstream, audit=audit)
    made["rate_limits"]["per-user"]["limit"] = 100_000
    disk = {"FILE": "audit.jsonl", "WRITE": "0.2"}
    with on_a_bad_disk(write_policy(tmp_path, made), **disk) as gateway:
        answered, written = killed_under_load(gateway, tmp_path / "audit.jsonl", 100)
    assert answered - written <= 2 * queue, f"{answered - written} of {answered} are lost"
