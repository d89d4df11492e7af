"""What clients are told so that they get a good token: the resource's metadata, and how to authenticate better."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mitmgate.cli import main
from mitmgate.core.proof import ALGORITHMS
from tests.live.harness import ISSUER, SECRET, Gateway, Host, mint, policy, write_policy
from tests.live.harness_upstream import RecordingUpstream

METADATA = "/.well-known/oauth-protected-resource"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[tuple[Gateway, RecordingUpstream]]:
    directory = tmp_path_factory.mktemp(f"step-up-{host}")
    with RecordingUpstream() as upstream:
        made = policy(directory, upstream)
        made["trusted_proxies"] = ["127.0.0.2/32"]
        made["networks"] = {"deny": ["192.0.2.0/24"]}
        made["identity"]["resources"] = [
            {"resource": "https://api.example/api/v1", "scopes": ["users.read"], "name": "Orders"},
            {"resource": "https://api.example/api/v1/users", "documentation": "https://docs.example"},
            {"resource": "https://other.example"},
        ]
        strict = {"acr_values": ["mfa", "hwk"], "max_age": "5m"}
        made["routes"] += [
            {"name": "pay", "match": {"prefix": "/api/v1/pay"}, "upstream": "users", "require": strict},
            {"name": "all", "match": {"prefix": "/.well-known"}, "upstream": "users"},
        ]
        arguments = ("--record", str(directory / "traffic.mitm")) if host == "serve" else ()
        with Gateway(write_policy(directory, made), host=host, arguments=arguments) as gateway:
            yield gateway, upstream


def challenge(gateway: Gateway, path: str, host: str = "api.example", token: str | None = None) -> tuple[int, str]:
    answer = gateway.get(path, token=token, host=host)
    return answer.status, answer.one("www-authenticate") or ""


def test_metadata_is_published(running: tuple[Gateway, RecordingUpstream]) -> None:
    gateway, upstream = running
    before = len(upstream.requests)
    answer = gateway.get(f"{METADATA}/api/v1", host="api.example")
    assert (answer.status, answer.one("content-type")) == (200, "application/json")
    assert json.loads(answer.body) == {
        "resource": "https://api.example/api/v1",
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["users.read"],
        "resource_name": "Orders",
        "dpop_signing_alg_values_supported": list(ALGORITHMS),
    }
    assert gateway.request("HEAD", f"{METADATA}/api/v1", host="API.example:8443").status == 200
    assert json.loads(gateway.get(METADATA, host="other.example").body)["resource"] == "https://other.example"
    for path, host in ((METADATA, "api.example"), (f"{METADATA}/api/v1", "other.example"), (f"{METADATA}/x", "x")):
        assert challenge(gateway, path, host)[0] == 401, "as everything else that is not public"
    assert gateway.request("POST", f"{METADATA}/api/v1", host="api.example", body=b"x").status == 401
    assert len(upstream.requests) == before
    assert gateway.get(f"{METADATA}/x", host="api.example", token=mint()).status == 200, "routed as any path is"


@pytest.mark.parametrize(
    ("path", "asked", "metadata"),
    [
        ("/api/v1/pay/7", "api.example", "https://api.example/.well-known/oauth-protected-resource/api/v1"),
        ("/api/v1/nowhere", "api.example", "https://api.example/.well-known/oauth-protected-resource/api/v1"),
        ("/api/v1/users/7", "api.example", "https://api.example/.well-known/oauth-protected-resource/api/v1/users"),
        ("/nowhere", "other.example", "https://other.example/.well-known/oauth-protected-resource"),
        ("/api/v1/users/7", "unknown.example", None),
        ("/api/v1x", "api.example", None),
    ],
)
def test_challenges_say_where_it_is(
    running: tuple[Gateway, RecordingUpstream], path: str, asked: str, metadata: str | None
) -> None:
    gateway, _ = running
    told = "" if metadata is None else f'resource_metadata="{metadata}"'
    assert challenge(gateway, path, asked) == (401, f"Bearer {told}".strip())
    status, bad = challenge(gateway, path, asked, token=mint(key="x" * 64))
    assert (status, bad.startswith('Bearer error="invalid_token"'), bad.endswith(told)) == (401, True, True)
    if path.startswith("/api/v1/users"):
        status, lacking = challenge(gateway, path, asked, token=mint(scope="x"))
        assert (status, lacking.endswith(told), "insufficient_scope" in lacking) == (403, True, True)


def test_a_user_is_told_to_authenticate_better(running: tuple[Gateway, RecordingUpstream]) -> None:
    gateway, upstream = running
    now = int(time.time())
    good: list[dict[str, Any]] = [{"acr": "mfa", "auth_time": now}, {"acr": "hwk", "auth_time": now - 200}]
    for claims in good:
        assert challenge(gateway, "/api/v1/pay", token=mint(**claims))[0] == 200
    before = len(upstream.requests)
    bad: list[dict[str, Any]] = [
        {},
        {"acr": "mfa"},
        {"auth_time": now},
        {"acr": "pwd", "auth_time": now},
        {"acr": "mfa", "auth_time": now - 400},
        {"acr": "mfa", "auth_time": now + 400},
        {"acr": "mfa", "auth_time": str(now)},
    ]
    for lacking in bad:
        answer = gateway.get("/api/v1/pay", token=mint(**lacking), host="api.example")
        assert (answer.status, json.loads(answer.body)["reason"]) == (401, "authentication-insufficient")
        told = answer.one("www-authenticate") or ""
        assert told.startswith('Bearer error="insufficient_user_authentication", error_description="')
        assert ', acr_values="mfa hwk", max_age="300", resource_metadata="https://api.example/' in told
    assert len(upstream.requests) == before


def test_replay_explain_and_coverage_know_it(
    running: tuple[Gateway, RecordingUpstream], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = running
    if gateway.host != "serve":
        return
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setattr("gc.freeze", lambda: None)
    gateway.stop()
    words = ("--policy", str(gateway.policy_path), "--format", "json")
    status = main(("replay", str(gateway.policy_path.parent / "traffic.mitm"), *words, "--coverage"))
    report = json.loads(capsys.readouterr().out)
    assert (status, report["decided"] > 20) == (0, True)
    never = {(each["rule"], each["branch"]) for each in report["coverage"]["never"]}
    assert not {rule for rule, _ in never if rule.startswith("the authentication")}
    claims = json.dumps({"sub": "alice", "acr": "pwd"})
    main(("explain", *words, "--claims", claims, "GET", "https://api.example/api/v1/pay"))
    told = json.loads(capsys.readouterr().out)
    read = next(step["read"] for step in told["stages"] if step["stage"] == "authorization")
    assert (told["decision"], read["acr"], read["auth_time"]) == ("deny authentication-insufficient", "pwd", None)
    assert read["required"] == {"acr_values": ["mfa", "hwk"], "max_age": 300.0}
