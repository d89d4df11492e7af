"""Opaque tokens at real gateways; a real introspection endpoint (RFC 7662) is slow, silent, lies and restarts."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli import main
from tests.keys.introspection_server import CLIENT, SECRET, IntrospectionServer
from tests.keys.proving import Holder
from tests.live.harness import AUDIENCE, ISSUER, Front, Gateway, mint, policy, write_policy
from tests.live.harness_http import Answered, wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.redis_server import RedisServer

OPAQUE = "https://opaque.example"
ENVIRONMENT = {"INTROSPECTION_SECRET": SECRET}


def policy_with(
    directory: Path, upstream: RecordingUpstream, server: IntrospectionServer, **rule: Any
) -> dict[str, Any]:
    made = policy(directory, upstream)
    asked = {"url": server.url, "client_id": CLIENT, "client_secret_env": "INTROSPECTION_SECRET", "timeout": "5s"}
    made["identity"]["issuers"]["opaque"] = {
        "issuer": OPAQUE,
        "audience": [AUDIENCE],
        "introspection": asked | {"cache": "600s", "refused": "600s"} | rule,
    }
    made["identity"]["default"] = ["dev", "opaque"]
    return made


def id_of(token: str) -> str:
    return f"id-{sha256(token.encode()).hexdigest()[:16]}"


def active(server: IntrospectionServer, token: str, **members: Any) -> str:
    known = {"aud": AUDIENCE, "role": "user", "scope": "users.read", "jti": id_of(token)}
    return server.active(token, **(known | members))


@dataclass
class Side:
    """A gateway, the service behind it and the issuer that it asks."""

    gateway: Gateway
    upstream: RecordingUpstream
    server: IntrospectionServer
    directory: Path

    def get(self, token: str, target: str = "/api/v1/users", **options: Any) -> Answered:
        return self.gateway.get(target, token=token, **options)

    def refused(self, token: str, status: int, reason: str) -> None:
        """Ask, and see that the service saw nothing of it."""
        self.upstream.forget()
        answered = self.get(token)
        assert (answered.status, answered.reason) == (status, reason)
        assert token.encode() not in answered.body
        self.upstream.assert_saw_nothing()


@pytest.fixture(scope="module", params=["serve", "web"])
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    directory, front = tmp_path_factory.mktemp("introspection"), request.param
    with RecordingUpstream() as upstream, IntrospectionServer() as server:
        path = write_policy(directory, policy_with(directory, upstream, server))
        with Gateway(path, host=front, environment=ENVIRONMENT) as gateway:
            yield Side(gateway, upstream, server, directory)


def test_a_token_is_asked_about_once_and_becomes_a_principal(side: Side) -> None:
    token = active(side.server, "opaque-good_1~/+==", iss=OPAQUE, token_type="Bearer", exp=int(time.time()) + 600)
    side.upstream.forget()
    for _ in range(3):
        assert side.get(token).status == 200
    assert side.server.asked.count(token) == 1
    assert side.server.strangers == 0
    seen = side.upstream.last()
    assert seen.one("x-user-id") == "alice"
    assert seen.one("x-user-role") == "user"
    assert seen.one("x-user-issuer") == "opaque"
    assert token.encode() not in seen.raw
    narrow = active(side.server, "narrow", scope="orders.read")
    assert side.get(narrow).reason == "scope-missing"
    assert side.get(mint("bob")).status == 200, "its issuer's JWTs are verified as ever"


def test_what_is_not_good_reaches_nobody(side: Side) -> None:
    server, now = side.server, int(time.time())
    side.refused("nobody-knows-it", 401, "token-inactive")
    side.refused("nobody-knows-it", 401, "token-inactive")
    assert server.asked.count("nobody-knows-it") == 1
    lies: dict[str, dict[str, Any]] = {
        "token-issuer-unknown": {"iss": ISSUER},
        "token-audience-refused": {"aud": "api://other"},
        "token-expired": {"exp": now - 60, "iat": now - 600},
        "token-not-yet-valid": {"nbf": now + 60},
        "token-claim-invalid": {"exp": None},
        "token-type-refused": {"token_type": "refresh_token"},
        "introspection-unavailable": {"active": "true"},
    }
    for number, (reason, members) in enumerate(lies.items()):
        side.refused(active(server, f"lie-{number}", **members), 503 if "unav" in reason else 401, reason)
    odd: tuple[dict[str, Any], ...] = ({"sub": None}, {"sub": 7}, {"aud": None}, {"iat": now + 90}, {"role": {}})
    for number, members in enumerate(odd):
        token = active(server, f"odd-{number}", **members)
        side.upstream.forget()
        assert side.get(token).status == 401
        side.upstream.assert_saw_nothing()
    for number, kind in enumerate((1, None, "yes", {"active": True})):
        side.refused(active(server, f"kind-{number}", active=kind), 503, "introspection-unavailable")
    # A JWT is never shown to anybody: it is verified, or refused.
    before = len(server.asked)
    side.refused(mint(key="x" * 64), 401, "token-signature-invalid")
    side.refused(mint(iss=OPAQUE), 401, "token-algorithm-refused")
    side.refused(mint(iss="https://else.example"), 401, "token-issuer-unknown")
    side.refused("eyJhbGciOiJkaXIifQ.a.b.c.d", 401, "token-malformed")
    side.refused('no"token', 401, "token-malformed")
    assert len(server.asked) == before


def test_an_endpoint_that_fails_admits_nobody_and_is_asked_again(side: Side) -> None:
    server, token = side.server, active(side.server, "asked-in-vain")
    good = json.dumps(server.said[token]).encode()
    failures: tuple[tuple[int, bytes, dict[str, str]], ...] = (
        (200, b"<html>", {}),
        (200, b"", {}),
        (200, b"[true]", {}),
        (200, b'{"active": true, "active": true}', {}),
        (200, good + b" " * 70_000, {}),
        (401, good, {}),
        (500, good, {}),
        (302, good, {"Location": server.url}),
        (204, b"", {}),
        (200, good[:-1], {}),
        (200, good, {"Content-Length": "100000"}),
    )
    for status, body, fields in failures:
        server.status, server.body, server.fields = status, body, fields
        side.refused(token, 503, "introspection-unavailable")
    server.normal()
    assert side.get(token).status == 200, "what failed is not remembered"
    assert token not in side.gateway.log
    assert SECRET not in side.gateway.log


def test_who_comes_meanwhile_waits_for_the_same_answer(side: Side) -> None:
    token = active(side.server, "wanted-by-many")
    side.server.open.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(side.get, token) for _ in range(8)]
        wait_for(lambda: token in side.server.asked, "the issuer to be asked")
        assert side.gateway.get("/public").status == 200, "nobody else waits"
        side.server.normal()
        assert [answered.result().status for answered in asked] == [200] * 8
    assert side.server.asked.count(token) == 1


def test_a_bound_token_needs_its_proof(side: Side) -> None:
    holder = Holder()
    token = active(side.server, "bound-to-a-key", cnf=holder.cnf, token_type="DPoP")
    side.refused(token, 401, "token-proof-missing")
    proof = holder.prove(token, "http://gateway.test/api/v1/users")
    answered = side.gateway.get("/api/v1/users", headers=[("Authorization", f"DPoP {token}"), ("DPoP", proof)])
    assert answered.status == 200
    assert side.server.asked.count(token) == 1


def test_a_silent_endpoint_is_waited_for_a_bounded_time(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with IntrospectionServer() as server:
        path = write_policy(tmp_path, policy_with(tmp_path, upstream, server, timeout="300ms", prefix="op_"))
        token = active(server, "op_silent")
        with Gateway(path, environment=ENVIRONMENT) as gateway:
            server.open.clear()
            answered = gateway.get("/api/v1/users", token=token)
            assert (answered.status, answered.reason) == (503, "introspection-unavailable")
            upstream.assert_saw_nothing()
            port = server.port
            server.normal()
            assert gateway.get("/api/v1/users", token=token).status == 200
            other = active(server, "op_other")
            assert gateway.get("/api/v1/users", token="of-nobody").reason == "token-malformed", "no prefix of anybody"
            said = server.said
            server.close()
            assert gateway.get("/api/v1/users", token=other).reason == "introspection-unavailable"
            assert gateway.get("/api/v1/users", token=token).status == 200, "what was said counts"
            with IntrospectionServer(port=port) as again:
                again.said = said
                assert gateway.get("/api/v1/users", token=other).status == 200
                assert again.asked == ["op_other"]


def test_an_answer_counts_for_a_bounded_time(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with IntrospectionServer() as server:
        path = write_policy(tmp_path, policy_with(tmp_path, upstream, server, cache="100ms", refused="100ms"))
        with Gateway(path, environment=ENVIRONMENT) as gateway:
            token = active(server, "ended-by-its-issuer")
            assert gateway.get("/api/v1/users", token=token).status == 200
            server.said[token] = {"active": False}
            wait_for(lambda: gateway.get("/api/v1/users", token=token).reason == "token-inactive", "the end")
            active(server, token)
            wait_for(lambda: gateway.get("/api/v1/users", token=token).status == 200, "the token to count again")


def revoked(gateway: Gateway, token: str) -> Callable[[], bool]:
    return lambda: gateway.get("/api/v1/users", token=token).reason == "token-revoked"


def test_revocation_counts_in_every_process_and_recordings_replay(
    tmp_path: Path, upstream: RecordingUpstream, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", "another secret, of somewhere else, that is long enough")
    recording = tmp_path / "traffic.mitm"
    with IntrospectionServer() as server, RedisServer(tmp_path) as redis:
        made = policy_with(tmp_path, upstream, server) | {
            "store": {"url": redis.url, "timeout": "5s"},
            "revocation": {},
        }
        one = write_policy(tmp_path, made)
        other = write_policy(tmp_path, made | {"audit": {"sinks": []}}, "other.yaml")
        first, second = (
            active(server, "first-token-of-hers"),
            active(server, "second-token-of-hers", email="a@b.example"),
        )
        with (
            Gateway(one, environment=ENVIRONMENT, arguments=("--record", str(recording))) as gateway,
            Gateway(other, environment=ENVIRONMENT) as beside,
        ):
            for token in (first, second):
                assert gateway.get("/api/v1/users", token=token).status == 200
                assert beside.get("/api/v1/users", token=token).status == 200
            monkeypatch.setenv("INTROSPECTION_SECRET", SECRET)
            monkeypatch.setenv("MITMGATE_TEST_SECRET", gateway.environment["MITMGATE_TEST_SECRET"])
            assert main(["revoke", "--policy", str(one), "--issuer", "opaque", "--token-id", id_of(first)]) == 0
            for each in (gateway, beside):
                wait_for(revoked(each, first), "the end")
                assert each.get("/api/v1/users", token=second).status == 200
            assert main(["revoke", "--policy", str(one), "--issuer", "opaque", "--subject", "alice"]) == 0
            for each in (gateway, beside):
                wait_for(revoked(each, second), "the end")
            assert gateway.get("/api/v1/users", token="unknown-to-all").reason == "token-inactive"
            server.body = b"?"
            assert gateway.get("/api/v1/users", token="cannot-be-told").reason == "introspection-unavailable"
            assert beside.stop() == 0
        asked = len(server.asked)
        content = recording.read_bytes() + (tmp_path / "audit.jsonl").read_bytes()
        for token in (first, second, "unknown-to-all", "cannot-be-told", SECRET, "a@b.example"):
            assert token.encode() not in content
        monkeypatch.delenv("INTROSPECTION_SECRET")
        monkeypatch.setenv("MITMGATE_TEST_SECRET", "another secret, of somewhere else, that is long enough")
        capsys.readouterr()
        assert main(["replay", str(recording), "--policy", str(one), "--format", "json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["decided"] == report["same"] > 5
        decisions = " ".join(report["decisions"])
        assert all(reason in decisions for reason in ("token-inactive", "introspection-unavailable", "token-revoked"))
        # A policy that asks nobody takes none of them; one with another audience neither.
        made["identity"]["issuers"]["opaque"]["audience"] = ["api://other"]
        assert main(["replay", str(recording), "--policy", str(write_policy(tmp_path, made, "third.yaml"))]) == 1
        assert len(server.asked) == asked, "a replay asks nobody"
    assert "token-audience-refused" in capsys.readouterr().out


@pytest.mark.parametrize("front", ["serve"])
def test_mistakes_are_told(tmp_path: Path, front: Front, capsys: pytest.CaptureFixture[str]) -> None:
    with RecordingUpstream() as upstream, IntrospectionServer() as server:
        made = policy_with(tmp_path, upstream, server)
        asked = made["identity"]["issuers"]["opaque"]["introspection"]
        made["identity"]["issuers"]["second"] = {"issuer": "https://second.example", "introspection": dict(asked)}
        made["identity"]["issuers"]["third"] = {"issuer": "https://third.example"}
        asked["url"] = "http://far.example/introspect"
        made["identity"]["issuers"]["second"]["introspection"]["client_secret_env"] = "NOWHERE"
        path = write_policy(tmp_path, made)
        assert main(["check", str(path)]) == 2
    out = capsys.readouterr()
    told = out.out + out.err
    for words in (
        "an opaque token could be opaque's as well",
        "give each a prefix of its own",
        "tokens would go over plain http",
        "add keys, or introspection for an issuer of opaque tokens",
        "the environment variable NOWHERE is not set",
        f"{path}:",
    ):
        assert words in told
