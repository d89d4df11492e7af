"""When requests should be sent here: each condition on real processes, and what makes a store's absence bearable."""

import json
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mitmgate.admin.readiness import Condition, denies_without_store, readiness
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from tests.admin.asking import AdminGateway, admin_gateway
from tests.keys.jwks_server import JwksServer
from tests.live.harness import AUDIENCE, policy, route, write_policy
from tests.live.harness_http import free_port, wait_for
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.redis_server import RedisServer

JWK = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "one"}
KEYS = json.dumps({"keys": [JWK]}).encode()
SECRETS = {"MITMGATE_TEST_SECRET": "x" * 64}
DENY = {"limit": 5, "window": "60s", "key": "client_ip", "on_store_failure": "deny"}


def snapshot(directory: Path, **members: Any) -> Snapshot:
    return load_snapshot(write_policy(directory, policy(directory, "http://127.0.0.1:9", **members)), SECRETS)


def test_each_condition_is_named(tmp_path: Path) -> None:
    good = snapshot(tmp_path)
    assert readiness(draining=False, accepting=True, snapshot=good, unusable=[], store_available=True) == ()
    assert readiness(draining=False, accepting=True, snapshot=good, unusable=[], store_available=False) == ()
    missing = readiness(draining=True, accepting=False, snapshot=None, unusable=["corp", "dev"], store_available=False)
    assert [one.condition for one in missing] == [
        Condition.NOT_DRAINING,
        Condition.ACCEPTS,
        Condition.POLICY,
        Condition.KEYS,
    ]
    assert "corp, dev" in missing[-1].detail
    (full,) = readiness(
        draining=False, accepting=True, snapshot=good, unusable=[], store_available=True, audit_admits=False
    )
    assert full.condition is Condition.AUDIT


def test_a_limit_before_authentication_that_denies_denies_all(tmp_path: Path) -> None:
    made = {"rate_limits": {"all": DENY}, "client_limits": ["all"]}
    routes = [{"name": "users", "match": {"prefix": "/"}, "upstream": "users"}]
    assert denies_without_store(snapshot(tmp_path, **made, routes=routes))
    made["rate_limits"] = {"all": DENY | {"mode": "report"}}
    assert not denies_without_store(snapshot(tmp_path, **made, routes=routes))
    made["rate_limits"] = {"all": DENY | {"on_store_failure": "local"}}
    assert not denies_without_store(snapshot(tmp_path, **made, routes=routes))


def test_one_route_that_goes_on_is_worth_being_ready_for(tmp_path: Path) -> None:
    def routes(*limited: bool) -> list[dict[str, Any]]:
        return [
            {
                "name": f"r{at}",
                "match": {"prefix": f"/{at}"},
                "upstream": "users",
                "rate_limits": ["all"] if denies else [],
            }
            for at, denies in enumerate(limited)
        ]

    assert denies_without_store(snapshot(tmp_path, rate_limits={"all": DENY}, routes=routes(True, True)))
    assert not denies_without_store(snapshot(tmp_path, rate_limits={"all": DENY}, routes=routes(True, False)))


@pytest.mark.parametrize(("on_failure", "missing"), [("deny", ["store-answers"]), ("local", []), ("allow", [])])
def test_the_store_goes_and_comes_back(
    tmp_path: Path, upstream: RecordingUpstream, on_failure: str, missing: list[str]
) -> None:
    with RedisServer(tmp_path) as redis:
        made = policy(
            tmp_path,
            upstream,
            store={"url": redis.url, "timeout": "100ms"},
            rate_limits={
                "all": {"limit": 1000, "window": "60s", "key": "client_ip", "on_store_failure": on_failure},
                "per-user": {"limit": 100, "window": "60s", "key": "principal"},
            },
            client_limits=["all"],
        )
        with AdminGateway(tmp_path, made) as gateway:
            assert gateway.missing() == []
            assert gateway.get("/public").status == 200
            redis.stop()
            wait_for(lambda: gateway.get("/public").status == 503 or on_failure != "deny", "the gateway to notice")
            wait_for(lambda: gateway.value("mitmgate_store_available") == 0, "the store to be known as away")
            assert gateway.missing() == missing
            assert gateway.status()["store_available"] is False
            said = gateway.ask("/readyz").body.decode()
            assert str(redis.port) not in said
            outcome = "denied" if on_failure == "deny" else "admitted"
            labels = {"limit": "all", "outcome": outcome, "degraded": "true"}
            assert gateway.value("mitmgate_rate_limit_decisions_total", **labels) > 0
            redis.start()
            wait_for(lambda: gateway.value("mitmgate_store_available") == 1, "the store to be known as back")
            assert gateway.missing() == []


REFUSALS = {
    "out of memory": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "no permission": ("ACL SETUSER default -evalsha", "ACL SETUSER default +@all"),
    "no replicas": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    "a replica": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
}


def denying(directory: Path, upstream: RecordingUpstream, redis: RedisServer) -> dict[str, Any]:
    """Make a policy that denies what can't be counted."""
    limits = {"all": {"limit": 1000, "window": "60s", "key": "client_ip", "on_store_failure": "deny"}}
    limits["per-user"] = {"limit": 100, "window": "60s", "key": "principal"}
    return policy(directory, upstream, store={"url": redis.url}, rate_limits=limits, client_limits=["all"])


def is_ready_but_while(
    gateway: AdminGateway, wrong: str, refuse: Callable[[], object], serve: Callable[[], object]
) -> None:
    wait_for(lambda: gateway.missing() == [], f"the store, before {wrong}", 60)
    refuse()
    wait_for(lambda: gateway.get("/public").status == 503 and gateway.missing() != [], wrong, 60)
    assert gateway.missing() == ["store-answers"], wrong
    assert gateway.value("mitmgate_store_available") == 0
    serve()
    wait_for(lambda: gateway.missing() == [], f"the store, after {wrong}", 60)
    wait_for(lambda: gateway.value("mitmgate_store_available") == 1, f"the store, after {wrong}")
    wait_for(lambda: gateway.get("/public").status == 200, f"a request to pass after {wrong}")


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one", "two"])
def test_a_store_that_refuses_every_command_makes_nobody_ready(
    tmp_path: Path, upstream: RecordingUpstream, workers: tuple[str, ...]
) -> None:
    """Found out by a decision, and, when it counts again, without one: nobody sends requests to who is not ready."""
    with (
        RedisServer(tmp_path) as redis,
        AdminGateway(tmp_path, denying(tmp_path, upstream, redis), arguments=workers) as gateway,
    ):
        for wrong, words in REFUSALS.items():
            refuse, serve = (partial(redis.command, *line.split()) for line in words)
            is_ready_but_while(gateway, wrong, refuse, serve)


SLOT = 2716
"""Of every key that the gateway writes: they carry one hash tag."""


def test_a_cluster_node_that_does_not_serve_the_slot_makes_nobody_ready(
    tmp_path: Path, upstream: RecordingUpstream
) -> None:
    """Two real nodes, of which the gateway is told one: MOVED, ASK and CLUSTERDOWN."""
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    buses = [str(free_port()), str(free_port())]
    here, there = (
        RedisServer(tmp_path, *options, "--cluster-port", bus, "--cluster-config-file", f"{bus}.conf") for bus in buses
    )
    with here, there:
        assert here.command("CLUSTER", "KEYSLOT", "mitmgate:{limits}:") == b":%d\r\n" % SLOT
        here.command("CLUSTER", "ADDSLOTS", str(SLOT), "1")  # a node without a slot becomes a replica
        here.command("CLUSTER", "MEET", "127.0.0.1", str(there.port), buses[1])
        mine, other = (node.command("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in (here, there))

        def sets(*words: str) -> bool:
            return here.command("CLUSTER", "SETSLOT", str(SLOT), *words) == b"+OK\r\n"

        def gives_away() -> None:
            def gives() -> bool:
                here.command("FLUSHALL")  # no slot is given away with keys in it
                return sets("NODE", other)

            wait_for(gives, "the slot to be given away")
            assert here.command("GET", "{limits}").startswith(b"-MOVED")

        def is_moving() -> None:
            sets("MIGRATING", other)
            here.command("FLUSHALL")
            assert here.command("GET", "{limits}").startswith(b"-ASK")

        def drops() -> None:
            here.command("CLUSTER", "DELSLOTS", str(SLOT))
            assert here.command("GET", "{limits}").startswith(b"-CLUSTERDOWN")

        wait_for(lambda: here.command("GET", "{limits}") == b"$-1\r\n", "the node to serve")
        wait_for(lambda: sets("MIGRATING", other) and sets("STABLE"), "the nodes to meet")
        with AdminGateway(tmp_path, denying(tmp_path, upstream, here)) as gateway:
            is_ready_but_while(gateway, "another node's slot", gives_away, lambda: sets("NODE", mine))
            is_ready_but_while(gateway, "a slot that moves", is_moving, lambda: sets("STABLE"))
            is_ready_but_while(gateway, "nobody's slot", drops, lambda: here.command("CLUSTER", "ADDSLOTS", str(SLOT)))


def test_a_store_that_loads_its_data_or_runs_a_script_makes_nobody_ready(
    tmp_path: Path, upstream: RecordingUpstream
) -> None:
    """LOADING and BUSY, until the test says that it is enough."""
    options = ("--enable-debug-command", "local", "--rdbcompression", "no", "--busy-reply-threshold", "1")
    with RedisServer(tmp_path, *options) as redis, ExitStack() as waiting:
        for number in range(200):  # between two keys it answers, once it has read so many bytes
            redis.command("SET", f"key{number}", "x" * 4096)

        def waits_for(*words: str) -> None:
            link = waiting.enter_context(socket.create_connection(("127.0.0.1", redis.port)))
            link.sendall(" ".join(words).encode() + b"\r\n")

        def loads() -> None:
            redis.command("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
            redis.command("CONFIG", "SET", "key-load-delay", "100000")
            waits_for("DEBUG", "RELOAD")
            wait_for(lambda: redis.command("GET", "a").startswith(b"-LOADING"), "Redis to load")

        def runs() -> None:
            waits_for("EVAL", '"while true do end"', "0")
            wait_for(lambda: redis.command("GET", "a").startswith(b"-BUSY"), "Redis to be busy")

        with AdminGateway(tmp_path, denying(tmp_path, upstream, redis)) as gateway:
            enough = partial(redis.command, "CONFIG", "SET", "key-load-delay", "0")
            is_ready_but_while(gateway, "loading", loads, enough)
            is_ready_but_while(gateway, "a script", runs, partial(redis.command, "SCRIPT", "KILL"))


def with_keys_from(made: dict[str, Any], url: str) -> dict[str, Any]:
    made["identity"]["issuers"]["corp"] = {
        "issuer": "https://corp.example",
        "audience": [AUDIENCE],
        "algorithms": ["EdDSA"],
        "keys": {"jwks_url": url, "refresh": "1s", "min_refresh": "1s"},
    }
    return route(made, "orders", auth={"issuers": ["corp"]})


def test_an_issuer_without_keys_is_named_until_they_are_there(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with JwksServer(KEYS) as server:
        server.status = 500
        with AdminGateway(tmp_path, with_keys_from(policy(tmp_path, upstream), server.url)) as gateway:
            assert gateway.missing() == ["keys-can-verify"]
            said = gateway.ask("/readyz").body
            assert b"corp" in said
            assert b"127.0.0.1" not in said
            assert gateway.value("mitmgate_key_set_usable", issuer="corp") == 0
            assert gateway.value("mitmgate_key_set_usable", issuer="dev") == 1
            assert ("mitmgate_key_set_age_seconds", frozenset({("issuer", "corp")})) not in gateway.samples()
            wait_for(
                lambda: gateway.value("mitmgate_key_set_refresh_failures_total", issuer="corp") >= 2, "a second try"
            )
            assert gateway.ask("/livez").status == 200
            server.status = 200
            wait_for(lambda: gateway.missing() == [], "the keys")
            assert 0 <= gateway.value("mitmgate_key_set_age_seconds", issuer="corp") < 60
            server.status = 500
            before = gateway.value("mitmgate_key_set_refresh_failures_total", issuer="corp")
            wait_for(
                lambda: gateway.value("mitmgate_key_set_refresh_failures_total", issuer="corp") > before, "a failure"
            )
            assert gateway.missing() == [], "an outage keeps known keys"


def test_a_rejected_policy_shows_and_changes_nothing(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with admin_gateway(tmp_path, upstream) as gateway:
        before = gateway.status()
        (digest,) = before["policy"]
        assert gateway.value("mitmgate_policy_info", digest=digest) == 1
        broken = policy(tmp_path, upstream, store={"url": "redis://user:wordpass@[broken", "timeout": "1s"})
        write_policy(tmp_path, gateway.with_admin(broken))
        wait_for(lambda: gateway.value("mitmgate_policy_reloads_total", outcome="rejected") == 1, "the rejection")
        after = gateway.status()
        assert (after["policy"], after["policy_since"]) == (before["policy"], before["policy_since"])
        assert "store.url" in after["rejections"][0]["problems"][0]
        page = gateway.ask("/status").body
        assert b"store.url" in page
        assert b"wordpass" not in page
        assert b"wordpass" not in gateway.ask("/status", Accept="application/json").body
        assert gateway.missing() == []
        changed = policy(tmp_path, upstream, endpoints={"health": "/healthy"})
        write_policy(tmp_path, gateway.with_admin(changed))
        wait_for(lambda: gateway.value("mitmgate_policy_reloads_total", outcome="ok") == 1, "the reload")
        (other,) = gateway.status()["policy"]
        assert other != digest
        assert gateway.value("mitmgate_policy_info", digest=other) == 1
        assert gateway.value("mitmgate_policy_info", digest=digest) == 0


def test_a_gateway_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    held = threading.Event()
    with RecordingUpstream(Reply(until=held)) as upstream, admin_gateway(tmp_path, upstream) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as link:
            link.sendall(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_for(lambda: bool(upstream.requests), "the request upstream")
            gateway.process.send_signal(signal.SIGTERM)
            wait_for(lambda: gateway.missing() == ["not-draining", "accepts-connections"], "the drain")
            assert gateway.ask("/livez").status == 200
            assert gateway.value("mitmgate_ready") == 0
            assert gateway.value("mitmgate_connections") == 1
            held.set()
            assert link.recv(100).startswith(b"HTTP/1.1 200")
        assert gateway.process.wait(10) == 0
