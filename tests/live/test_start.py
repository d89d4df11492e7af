"""The start, in every host: keys are waited for, and nothing that is away keeps a gateway from its start."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.without_redis import LIMIT as LIMIT_ASKED
from bench.without_redis import measure
from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key
from tests.live.harness import Front, Gateway, mint, policy, policy_file, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.certificates import Authority
from tests.redis_server import RedisServer
from tests.workers.processes import children, events, workers

FRONTS: dict[str, tuple[Front, tuple[str, ...]]] = {
    "serve": ("serve", ()),
    "worker": ("serve", ("--workers", "1")),
    "workers": ("serve", ("--workers", "2")),
    "web": ("web", ()),
    "stock": ("stock", ()),
}
KEY = private_key("ES256")
KEYS = jwk_set(jwk("ES256", KEY, kid="one"))


def token() -> str:
    return mint(key=KEY, algorithm="ES256", headers={"kid": "one"})


def accepts(gateway: Gateway) -> bool:
    try:
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def with_key_set(directory: Path, upstream: RecordingUpstream, url: str) -> Path:
    """Write the policy of live tests with an issuer whose keys are published at `url`."""
    made = policy(directory, upstream)
    made["identity"]["issuers"]["dev"] |= {"algorithms": ["ES256"], "keys": {"jwks_url": url}}
    return write_policy(directory, made)


@contextmanager
def launched(path: Path, front: str) -> Iterator[Gateway]:
    host, arguments = FRONTS[front]
    gateway = Gateway(path, host=host, arguments=arguments)
    gateway.launch()
    try:
        yield gateway
    finally:
        gateway.kill()


@pytest.mark.parametrize("front", ["serve", "web"])
def test_the_policy_is_read_once(tmp_path: Path, upstream: RecordingUpstream, front: str) -> None:
    """From a pipe, as by the shell's <(...), it could not be read again."""
    path = tmp_path / "piped.yaml"
    os.mkfifo(path)
    with launched(path, front) as gateway:
        path.write_bytes(policy_file(tmp_path, upstream).read_bytes())
        gateway.await_start()
        assert gateway.get("/public").status == 200
        assert gateway.stop() == 0


@pytest.mark.parametrize("front", ["serve", "worker", "web"])
def test_the_address_that_is_printed_can_be_pasted(tmp_path: Path, upstream: RecordingUpstream, front: str) -> None:
    """Of a listener that speaks TLS, on an IPv6 address; the README's tests have one without."""
    host, arguments = FRONTS[front]
    authority = Authority(tmp_path)
    certificate, key = authority.issue("::1")
    listen = {"tls": {"certificate": certificate, "key": key}}
    gateway = Gateway(policy_file(tmp_path, upstream, listen=listen), host=host)
    gateway.arguments = (*arguments, "--listen", f"[::1]:{gateway.port}")
    with gateway:
        (url,) = re.findall(rf"(https?://\S+:{gateway.port})\b", gateway.stdout.read_text())
        words = ["curl", "-sf", "--cacert", authority.ca, f"{url}/public"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "upstream says hello"), url


@pytest.mark.parametrize("front", ["serve", "worker", "web"])
def test_what_check_warns_of_is_logged_once(tmp_path: Path, upstream: RecordingUpstream, front: str) -> None:
    host, arguments = FRONTS[front]
    with Gateway(policy_file(tmp_path, upstream), host=host, arguments=arguments) as gateway:
        assert gateway.log.count("public is public: it needs no token [public]") == 1


@pytest.mark.parametrize("front", ["serve", "worker", "web", "stock"])
def test_nobody_is_answered_before_the_first_keys_are_there(
    tmp_path: Path, upstream: RecordingUpstream, front: str
) -> None:
    """`serve` does not even accept, and waits for the retry where the first fetch fails."""
    with JwksServer(KEYS) as server:
        server.open.clear()
        with launched(with_key_set(tmp_path, upstream, server.url), front) as gateway:
            wait_for(lambda: server.fetches == 1, "the first fetch", 60)
            if gateway.host == "serve":
                assert not accepts(gateway)
                server.status = 503
                server.open.set()
                wait_for(lambda: "not fetched" in gateway.log, "the failure")
                server.status = 200
            server.open.set()
            if front == "stock":  # mitmproxy listens before it loads a script, and what it accepts is closed
                said = "mitmgate is listening on"
                wait_for(lambda: said in gateway.log + gateway.stdout.read_text(), "the gateway to listen", 60)
            wait_for(lambda: accepts(gateway), "connections to be accepted", 60)
            answer = gateway.get("/api/v1/users/7", token=token())
            assert (answer.status, answer.reason) == (200, None), gateway.log
            assert upstream.last().target == "/api/v1/users/7"


@pytest.mark.parametrize("front", ["serve", "web"])
def test_without_keys_what_can_be_served_is(tmp_path: Path, upstream: RecordingUpstream, front: str) -> None:
    """After a bounded time; and the keys that come later count."""
    with JwksServer(KEYS) as server:
        server.status = 503
        with launched(with_key_set(tmp_path, upstream, server.url), front) as gateway:
            gateway.await_start()
            assert gateway.get("/public").status == 200
            assert gateway.get("/api/v1/users/7", token=token()).reason == "keys-unavailable"
            assert [seen.target for seen in upstream.requests] == ["/public"]
            server.status = 200
            wait_for(lambda: gateway.get("/api/v1/users/7", token=token()).status == 200, "the keys to count", 60)


@pytest.mark.parametrize("front", ["serve", "worker"])
def test_a_gateway_that_waits_for_keys_ends_on_request(tmp_path: Path, upstream: RecordingUpstream, front: str) -> None:
    """And closes what it opened: the audit file ends in good order."""
    with JwksServer(KEYS) as server:
        server.open.clear()
        with launched(with_key_set(tmp_path, upstream, server.url), front) as gateway:
            wait_for(lambda: server.fetches == 1, "the first fetch", 60)
            assert gateway.stop() == 0
            kinds = [event["event"] for event in events(tmp_path / "audit.jsonl")]
            assert kinds == ["gateway-started", "gateway-stopped"]


LIMIT = 4


def with_redis(directory: Path, upstream: RecordingUpstream, redis: RedisServer) -> Path:
    """Write a policy with one public route for each word of `on_store_failure`, and a Redis stream as audit sink."""
    made = policy(directory, upstream, store={"url": redis.url})
    words = ("local", "deny", "allow")
    made["rate_limits"] |= {
        word: {"limit": LIMIT, "window": "10m", "key": "route", "on_store_failure": word} for word in words
    }
    made["routes"] += [
        {"name": word, "match": {"exact": f"/{word}"}, "upstream": "users", "auth": "none", "rate_limits": [word]}
        for word in words
    ]
    made["audit"]["sinks"].append({"redis_stream": "audit", "spill": str(directory / "spill.jsonl")})
    return write_policy(directory, made)


def answers(gateway: Gateway, path: str, times: int) -> list[str | int]:
    """Ask so often, each time on a connection of its own; return the reasons, and the status where there is none."""
    return [answered.reason or answered.status for answered in (gateway.get(path) for _ in range(times))]


def redis_arrives(gateway: Gateway, redis: RedisServer, processes: int) -> None:
    """Start Redis; from then on the limits are exact again, over all processes."""
    redis.start()
    asked: list[str | int] = []

    def all_count() -> bool:
        asked.extend(answers(gateway, "/deny", 4 * processes))
        return asked[-4 * processes :] == ["quota-exceeded"] * 4 * processes

    wait_for(all_count, "every process to count in Redis", 60)
    assert asked.count(200) == LIMIT
    wait_for(lambda: redis.command("XLEN", "audit").strip() not in {b":0", b":"}, "the spilled records", 60)


@pytest.mark.parametrize(
    ("front", "silent"),
    [("serve", False), ("serve", True), ("workers", True), ("web", True), ("stock", False)],
    ids=lambda value: value if isinstance(value, str) else "silent" if value else "refused",
)
def test_a_redis_that_is_away_keeps_nobody_from_the_start(
    tmp_path: Path, upstream: RecordingUpstream, front: str, silent: bool
) -> None:
    """Each limit does as its policy says, and the audit's stream is spilled; when Redis comes, it counts.

    A worker that is killed meanwhile starts again.
    """
    redis = RedisServer(tmp_path)
    hole = socket.create_server(("127.0.0.1", redis.port)) if silent else socket.socket()
    try:
        with hole, launched(with_redis(tmp_path, upstream, redis), front) as gateway:
            gateway.await_start()
            processes = 1
            if front == "workers":
                processes = 2
                victim = workers(gateway, 2)[0]
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda: len({*children(gateway.process.pid)} - {victim}) == 2, "another worker", 60)
            assert answers(gateway, "/deny", 3) == ["store-unavailable"] * 3
            assert answers(gateway, "/allow", 2 * LIMIT) == [200] * 2 * LIMIT
            found = answers(gateway, "/local", (LIMIT + 2) * processes)
            assert LIMIT <= found.count(200) <= LIMIT * processes
            assert set(found) <= {200, "quota-exceeded"}
            assert len(upstream.requests) == 2 * LIMIT + found.count(200)
            assert gateway.process.poll() is None, gateway.log
            hole.close()
            redis_arrives(gateway, redis, processes)
            assert gateway.process.poll() is None, gateway.log
    finally:
        redis.stop()


def test_one_window_after_redis_has_come_limits_are_exact(tmp_path: Path) -> None:
    """bench/without_redis.py runs the same for longer, in every host, and holds it to its times."""
    found = measure(tmp_path, "serve", "refused", seconds=1)
    assert found.wrong == []
    assert all(most <= LIMIT_ASKED for most in found.most.values()), found


def test_a_rejected_reload_during_the_start_ends_nothing(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with JwksServer(KEYS) as server:
        server.open.clear()
        path = with_key_set(tmp_path, upstream, server.url)
        with launched(path, "serve") as gateway:
            wait_for(lambda: server.fetches == 1, "the first fetch", 60)
            path.write_text("no policy")
            gateway.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "policy rejected" in gateway.log, "the refusal", 60)
            server.open.set()
            gateway.await_start()
            assert gateway.get("/api/v1/users/7", token=token()).status == 200
            assert upstream.last().target == "/api/v1/users/7"
