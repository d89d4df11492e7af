"""The start, in every host: connections are accepted when keys are there, or after a while without them."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key
from tests.live.harness import Front, Gateway, mint, policy, policy_file, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.workers.processes import events

FRONTS: dict[str, tuple[Front, tuple[str, ...]]] = {
    "serve": ("serve", ()),
    "worker": ("serve", ("--workers", "1")),
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


@pytest.mark.parametrize("front", FRONTS)
def test_nobody_is_answered_before_the_first_keys_are_there(
    tmp_path: Path, upstream: RecordingUpstream, front: str
) -> None:
    """Also where the first fetch fails: the retry's keys are waited for. `serve` does not even accept."""
    with JwksServer(KEYS) as server:
        server.open.clear()
        server.status = 503
        with launched(with_key_set(tmp_path, upstream, server.url), front) as gateway:
            wait_for(lambda: server.fetches == 1, "the first fetch", 60)
            server.open.set()
            wait_for(lambda: "not fetched" in gateway.log + gateway.stdout.read_text(), "the failure")
            server.status = 200
            if gateway.host == "serve":
                assert not accepts(gateway)
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
