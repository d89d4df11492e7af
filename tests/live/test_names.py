"""Names of services and key sets: each looked up apart, followed when its answer changes, all its addresses tried."""

import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key, private_pem
from tests.live.harness import AUDIENCE, ROOT, SECRET, Gateway, mint, policy, write_policy
from tests.live.harness_http import Answered, wait_for
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.net.black_hole import black_hole
from tests.net.dns_server import HANG, DnsServer
from tests.redis_server import RedisServer

HANGING = 50
"""Names that hang at once."""


@dataclass
class World:
    """A gateway, its name server, and two services on one port of 127.0.0.2 and 127.0.0.3."""

    gateway: Gateway
    dns: DnsServer
    old: RecordingUpstream
    new: RecordingUpstream

    def get(self, name: str, **options: Any) -> Answered:
        return self.gateway.get(f"/{name}", **options)


@pytest.fixture(scope="module", params=["serve", "web"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("names")
    with ExitStack() as stack:
        dns = stack.enter_context(DnsServer(ttl=1))
        old = stack.enter_context(RecordingUpstream(address="127.0.0.2"))
        new = stack.enter_context(RecordingUpstream(port=old.port, address="127.0.0.3"))
        port = old.port
        hole = stack.enter_context(black_hole("127.0.0.9"))
        stack.enter_context(RecordingUpstream(port=hole, address="127.0.0.10"))
        keys = stack.enter_context(JwksServer(_document()))
        key_port = int(keys.url.rpartition(":")[2].partition("/")[0])
        stack.enter_context(black_hole("127.0.0.9", key_port))
        hosts = {name: f"http://{name}.test:{port}" for name in ("steady", "moving", "failing")}
        hosts |= {f"hang{at}": f"http://hang{at}.test:{port}" for at in range(HANGING)}
        hosts |= {"dropping": f"http://dropping.test:{hole}", "localhost": f"http://LOCALHOST:{port}"}
        dns.records |= {name + ".test": ("127.0.0.2",) for name in hosts} | {
            "dropping.test": ("127.0.0.9", "127.0.0.10"),
            "keys.test": ("127.0.0.9", "127.0.0.1"),
        }
        dns.records |= {f"hang{at}.test": HANG for at in range(HANGING)}
        local = stack.enter_context(RecordingUpstream(port=port))
        local.reply = Reply(body=b"localhost")
        made = policy(directory, old, resolver={"nameservers": [f"127.0.0.1:{dns.port}"], "max_stale": "1h"})
        made["upstreams"] = {name: {"endpoints": [url]} for name, url in hosts.items()}
        made["identity"]["issuers"]["dev"] |= {
            "algorithms": ["ES256"],
            "keys": {"jwks_url": f"http://keys.test:{key_port}/jwks.json", "plain_http": True},
        }
        made["routes"] = [
            {"name": name, "match": {"exact": f"/{name}"}, "upstream": name, "auth": "none"} for name in hosts
        ] + [{"name": "closed", "match": {"exact": "/closed"}, "upstream": "steady"}]
        gateway = Gateway(write_policy(directory, made), host=request.param)
        stack.enter_context(gateway)
        yield World(gateway, dns, old, new)


def _document() -> bytes:
    return jwk_set(jwk("ES256", private_key("ES256"), kid="one"))


def test_names_whose_lookup_hangs_take_no_other_upstream_down(world: World) -> None:
    """Before: 112 of 120 requests to the healthy upstream were answered 503, and 8 504."""
    assert world.get("steady").status == 200
    waiting = threading.Event()

    def hang(at: int) -> int:
        waiting.set()
        return world.get(f"hang{at}").status

    with ThreadPoolExecutor(HANGING + 8) as pool:
        hanging = [pool.submit(hang, at) for at in range(HANGING)]
        assert waiting.wait(20)
        wait_for(lambda: sum(world.dns.times(f"hang{at}.test") > 0 for at in range(HANGING)) == HANGING, "the lookups")
        world.dns.records["failing.test"] = ("127.0.0.3",)
        answered = [*pool.map(lambda _: world.get("steady").status, range(60))]
        answered += pool.map(lambda _: world.get("failing").status, range(60))  # a name that is not known yet
        assert answered == [200] * 120
        assert {task.result() for task in hanging} <= {502, 503, 504}


def test_a_steady_load_moves_to_a_changed_address(world: World) -> None:
    """Before: a changed answer was never noticed: 705 of 705 requests in 75 s went to the old address."""
    link = http.client.HTTPConnection("127.0.0.1", world.gateway.port, timeout=20)
    world.old.forget()
    world.new.forget()
    for _ in range(20):
        assert world.get("moving", connection=link).status == 200
    assert len(world.old.requests) == 20
    assert world.old.connections == 1
    world.dns.records["moving.test"] = ("127.0.0.3",)
    asked = world.dns.times("moving.test")

    def moved() -> bool:
        assert world.get("moving", connection=link).status == 200
        return bool(world.new.requests)

    wait_for(moved, "the load to move")
    assert world.dns.times("moving.test") - asked <= 2  # with its TTL of one second, not with every request
    world.old.forget()
    for _ in range(20):
        assert world.get("moving", connection=link).status == 200
    world.old.assert_saw_nothing()
    link.close()


def test_the_last_answer_serves_while_the_name_server_fails(world: World) -> None:
    assert world.get("failing").status == 200
    before = world.dns.records["failing.test"]
    asked = world.dns.times("failing.test")
    try:
        for fault in ("SERVFAIL", HANG):
            world.dns.records["failing.test"] = fault
            # Connections are closed by the service, so that each request has to connect.
            world.new.reply = world.old.reply = Reply(close=True)

            def looked_up() -> bool:
                assert world.get("failing").status == 200
                return world.dns.times("failing.test") > asked  # noqa: B023 - called in this turn alone

            wait_for(looked_up, "a lookup that fails")
            assert world.get("failing").status == 200
            asked = world.dns.times("failing.test")
    finally:
        world.dns.records["failing.test"] = before
        world.new.reply = world.old.reply = Reply()


def test_an_address_that_drops_packets_costs_no_request(world: World) -> None:
    answers = [world.get("dropping") for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5


def test_localhost_and_the_hosts_file_need_no_name_server(world: World) -> None:
    assert world.get("localhost").body == b"localhost"
    assert not [name for name, _ in world.dns.asked if "localhost" in name]


def test_a_key_set_behind_an_address_that_drops_packets(world: World) -> None:
    """The gateway has fetched it at its start: its name has two addresses, of which the first answers nothing."""
    token = mint(key=private_pem(private_key("ES256")), algorithm="ES256", headers={"kid": "one"}, aud=AUDIENCE)
    assert world.get("closed", token=token).status == 200
    assert world.dns.times("keys.test") > 0


def test_redis_is_followed_and_an_address_of_it_that_drops_packets_costs_nothing(tmp_path: Path) -> None:
    """The counters' and the audit stream's connections: at the start, and while requests come, none of them denied."""
    with ExitStack() as stack:
        dns = stack.enter_context(DnsServer(ttl=1))
        (tmp_path / "old").mkdir()
        (tmp_path / "new").mkdir()
        old = stack.enter_context(RedisServer(tmp_path / "old", address="127.0.0.2"))
        new = stack.enter_context(RedisServer(tmp_path / "new", address="127.0.0.3", port=old.port))
        stack.enter_context(black_hole("127.0.0.9", old.port))
        dns.records["redis.test"] = ("127.0.0.9", "127.0.0.2")
        upstream = stack.enter_context(RecordingUpstream())
        made = policy(tmp_path, upstream, resolver={"nameservers": [f"127.0.0.1:{dns.port}"]})
        made["store"] = {"url": f"redis://redis.test:{old.port}/0", "timeout": "2s"}
        made["rate_limits"]["all"] = {"limit": 100_000, "window": "10m", "key": "route", "on_store_failure": "deny"}
        made["audit"]["sinks"].append({"redis_stream": "audit", "spill": str(tmp_path / "spill.jsonl")})
        counted = {"name": "counted", "match": {"exact": "/counted"}, "upstream": "users", "auth": "none"}
        made["routes"].append({**counted, "rate_limits": ["all"]})
        gateway = stack.enter_context(Gateway(write_policy(tmp_path, made)))

        def used(server: RedisServer) -> bool:
            answered = gateway.get("/counted")
            assert answered.status == 200, answered
            return server.command("EXISTS", "audit") == b":1\r\n" and server.command("DBSIZE") > b":1\r\n"

        wait_for(lambda: used(old), "the counters and the stream")
        assert new.command("DBSIZE") == b":0\r\n"
        dns.records["redis.test"] = ("127.0.0.3",)
        wait_for(lambda: used(new), "both to move")
        assert dns.times("redis.test") < 60, "with its TTL of one second, not with every request"


def test_a_wrong_name_server_is_a_message(tmp_path: Path) -> None:
    made = policy(tmp_path, "http://127.0.0.1:1", resolver={"nameservers": ["dns.example:53"]})
    path = write_policy(tmp_path, made)
    command = [sys.executable, "-m", "mitmgate", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=_environment())
    assert done.returncode == 2
    assert "must be the address of a name server" in done.stdout + done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET}
