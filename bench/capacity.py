"""What a request costs in Redis, and what a connection costs a gateway: commands, bytes, descriptors.

Run: .venv/bin/python bench/capacity.py. Starts a gateway, a Redis and an upstream of its own on 127.0.0.1, and prints
Markdown tables; deploy/capacity.md quotes them. Counts and sizes only: they are the same on a busy machine. Bounded: a
minute or two.
"""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from tests.live.harness import Gateway, mint, policy, route, write_policy
from tests.live.harness_upstream import RecordingUpstream
from tests.redis_server import RedisServer

REQUESTS = 500
CONNECTIONS = 1_000
LIMITS = {
    "a": {"limit": 10_000, "window": "60s", "key": "principal"},
    "b": {"limit": 10_000, "window": "60s", "key": "principal"},
    "c": {"limit": 10_000, "window": "60s", "key": "client_ip"},
}
SETS: tuple[tuple[str, dict[str, Any], list[str]], ...] = (
    ("no limit", {}, []),
    ("one limit of the route", {}, ["a"]),
    ("two limits of the route", {}, ["a", "b"]),
    ("one of the route, one of the client", {"client_limits": ["c"]}, ["a"]),
    ("the same, and audit to a stream", {"client_limits": ["c"], "stream": True}, ["a"]),
)


def cli(redis: RedisServer, *words: str) -> str:
    """Run redis-cli."""
    command = ["redis-cli", "-p", str(redis.port), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def commands(redis: RedisServer) -> dict[str, int]:
    """Return how often each command ran since the statistics were reset; those of a script too."""
    found = re.findall(r"cmdstat_(\S+?):calls=(\d+)", cli(redis, "INFO", "commandstats"))
    return {name: int(calls) for name, calls in found if name not in {"config|resetstat", "info"}}


def received(redis: RedisServer) -> tuple[int, int]:
    """Return the bytes that Redis has read and written."""
    text = cli(redis, "INFO", "stats")
    return tuple(int(n) for n in re.findall(r"total_net_(?:in|out)put_bytes:(\d+)", text))[:2]  # type: ignore[return-value]


@contextlib.contextmanager
def running(directory: Path, members: dict[str, Any], limits: list[str]) -> Iterator[tuple[Gateway, RedisServer]]:
    """Run a gateway that counts in a Redis of its own."""
    directory.mkdir()
    with RecordingUpstream() as upstream, RedisServer(directory) as redis:
        given = {name: value for name, value in members.items() if name != "stream"}
        made = policy(directory, upstream, store={"url": redis.url, "timeout": "2s"}, rate_limits=LIMITS, **given)
        if members.get("stream"):
            made["audit"]["sinks"].append({"redis_stream": "audit", "spill": str(directory / "spill.jsonl")})
        route(made, "users", rate_limits=limits)
        with Gateway(write_policy(directory, made)) as gateway:
            yield gateway, redis


def redis_table(directory: Path) -> None:
    """Print what a request costs in Redis, one request after the other on one connection."""
    print("| limits of a request | Redis is asked | commands in Redis | bytes in | bytes out |")
    print("| --- | --- | --- | --- | --- |")
    for number, (name, members, limits) in enumerate(SETS):
        with running(directory / str(number), members, limits) as (gateway, redis):
            link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
            token = mint()
            assert gateway.get("/api/v1/users", token=token, connection=link).status == 200
            cli(redis, "CONFIG", "RESETSTAT")
            before = received(redis)
            for _ in range(REQUESTS):
                assert gateway.get("/api/v1/users", token=token, connection=link).status == 200
            after, count = received(redis), commands(redis)
            link.close()
        asked = sum(count.get(word, 0) for word in ("evalsha", "xadd"))
        total = sum(calls for word, calls in count.items())
        sizes = [f"{(b - a) / REQUESTS:.0f}" for a, b in zip(before, after, strict=True)]
        print(f"| {name} | {asked / REQUESTS:.2f} | {total / REQUESTS:.1f} | {' | '.join(sizes)} |")


def key_table(directory: Path) -> None:
    """Print what a key of a limit holds in Redis."""
    print("\n| requests that count | bytes of the key |")
    print("| --- | --- |")
    with running(directory / "keys", {}, ["a"]) as (gateway, redis):
        for count in (1, 100, 1_000):
            token = mint(f"user-{count}")
            for _ in range(count):
                assert gateway.get("/api/v1/users", token=token).status == 200
            lasting = [key for key in cli(redis, "KEYS", "*").split() if int(cli(redis, "PTTL", key)) > 5000]
            (key,) = [key for key in lasting if cli(redis, "LLEN", key).strip() == str(count)]
            print(f"| {count:,} | {int(cli(redis, 'MEMORY', 'USAGE', key, 'SAMPLES', '0')):,} |")


def resident(pid: int) -> float:
    """Return the resident memory of a process in KiB."""
    (size,) = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return float(size)


def connection_table(directory: Path) -> None:
    """Print what an idle connection costs a gateway, after a request on each."""
    directory = directory / "connections"
    directory.mkdir()
    with RecordingUpstream() as upstream, Gateway(write_policy(directory, policy(directory, upstream))) as gateway:
        for _ in range(100):
            gateway.get("/public")
        pid = gateway.process.pid

        def descriptors() -> int:
            return len(list(Path(f"/proc/{pid}/fd").iterdir()))

        before, held = (resident(pid), descriptors()), []
        for _ in range(CONNECTIONS):
            link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
            assert gateway.get("/public", connection=link).status == 200
            held.append(link)
        after = (resident(pid), descriptors())
        print("\n| of a gateway process | |\n| --- | --- |")
        print(f"| resident memory before | {before[0] / 1024:.0f} MiB |")
        print(
            f"| resident memory a connection, idle after one request | {(after[0] - before[0]) / CONNECTIONS:.1f} KiB |"
        )
        print(f"| descriptors a connection, idle after one request | {(after[1] - before[1]) / CONNECTIONS:.2f} |")
        for link in held:
            link.close()


def main() -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        redis_table(directory)
        key_table(directory)
        connection_table(directory)
        lines = (directory / "4" / "audit.jsonl").read_bytes().split(b"\n")
        events = [line for line in lines if line and json.loads(line)["event"] == "request"]
        print(f"\nAn audit event of these requests: {sum(map(len, events)) / len(events):.0f} bytes.")


if __name__ == "__main__":
    main()
