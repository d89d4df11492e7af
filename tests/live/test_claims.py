"""Claims by name and by JSON pointer, and tenants: the service, limits, explain, replay, coverage and learn agree."""

import json
from pathlib import Path
from typing import Any

import pytest

from mitmgate.replay.privacy import Privacy, Veil
from tests.command_line import command
from tests.live.harness import SECRET, Gateway, audit_events, mint, policy, route, write_policy
from tests.live.harness_upstream import RecordingUpstream

ONE, TWO = "https://login.example/one/v2.0", "https://login.example/two/v2.0"
KEYCLOAK: dict[str, Any] = {
    "roles": None,
    "realm_access": {"roles": ["user", "user"]},
    "resource_access": {"orders": {"roles": ["clerk"]}},
    "https://acme.example/groups": ["eu/west"],
    "org": {"id": "org-4711", "a/b": [{"c~d": 7}]},
}


def identity(made: dict[str, Any]) -> dict[str, Any]:
    issuer = made["identity"]["issuers"]["dev"]
    roles = ["role", "/realm_access/roles", "/resource_access/orders/roles", "https://acme.example/groups"]
    issuer |= {
        "issuer": ["https://login.example/{tid}/v2.0", "https://sts.example/{tid}/"],
        "tenants": ["one", "two"],
        "claims": {"roles": roles},
    }
    made["rate_limits"]["per-user"] = {"limit": 2, "window": "1h", "key": "principal"}
    made["rate_limits"]["per-org"] = {"limit": 4, "window": "1h", "key": ["claim:/org/id", "route"]}
    headers = {"X-Org": "{claim:/org/id}-{claim:/org/a~1b/0/c~0d}", "X-None": "{claim:/org/none}"}
    return route(
        made,
        "users",
        require={"claims": {"/org/a~1b/0/c~0d": [7]}, "roles_any": ["clerk"]},
        rate_limits=["per-user", "per-org"],
        rewrite={"set": headers},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record what two tenants' users may do, and what nobody may."""
    directory = tmp_path_factory.mktemp("claims")
    with RecordingUpstream() as upstream:
        path = write_policy(directory, identity(policy(directory, upstream)))
        with Gateway(path, arguments=("--record", str(directory / "traffic.mitm"))) as gateway:

            def status(target: str = "/api/v1/users/7", **claims: Any) -> int:
                return gateway.get(target, token=mint(**(KEYCLOAK | claims))).status

            assert status(iss=ONE, tid="one") == 200
            seen = upstream.last()
            assert (seen.one("x-user-id"), seen.one("x-user-issuer")) == ("alice", "dev/one")
            assert seen.one("x-user-role") == "user,clerk,eu/west"
            assert (seen.one("x-org"), seen.one("x-none")) == ("org-4711-7", None)
            assert status(iss="https://sts.example/one/", tid="one") == 200, "the other spelling is the same issuer"
            assert upstream.last().one("x-user-issuer") == "dev/one"
            assert status(iss=ONE) == 429, "alice of one has used up her two"
            assert status(iss=TWO) == 200, "alice of two is somebody else"
            assert upstream.last().one("x-user-issuer") == "dev/two"
            assert status(iss=TWO, subject="bob") == 200
            assert status(iss=TWO, subject="carol") == 429, "all of an organisation share four"
            assert status(iss=TWO, subject="dave", org=KEYCLOAK["org"] | {"id": "globex"}) == 200
            count = len(upstream.requests)
            for claims in (
                {"iss": TWO, "tid": "one"},
                {"iss": "https://login.example/three/v2.0"},
                {"iss": "https://login.example/{tid}/v2.0"},
                {"iss": "https://login.example/ONE/v2.0"},
                {"iss": "https://login.example/one/v2.0/"},
            ):
                assert status(**claims) == 401
            lacking: list[dict[str, Any]] = [{"a/b": []}, {"a/b": [{"c~d": "7"}]}]
            for org in lacking:
                assert status(iss=ONE, subject="eve", org=org) == 403
            assert status(iss=ONE, subject="eve", resource_access={}) == 403
            assert status(iss=ONE, realm_access={"roles": [{"name": "user"}]}) == 401
            assert len(upstream.requests) == count, "the service saw nothing of these"
    return directory


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setattr("gc.freeze", lambda: None)


def test_who_it_was_is_on_record(made: Path) -> None:
    events = audit_events(made / "audit.jsonl", 16)
    assert [event["issuer"] for event in events if event["status"] == 200] == ["dev/one"] * 2 + ["dev/two"] * 3


def test_a_replay_decides_the_same_and_coverage_counts_it(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", str(made / "policy.yaml"), "--format", "json", "--coverage")
    status, said = command(capsys, "replay", str(made / "traffic.mitm"), *words)
    report = json.loads(said)
    assert (status, report["decided"]) == (0, 16), said[:2000]
    never = {(each["rule"], each["branch"]) for each in report["coverage"]["never"]}
    of_tokens = {rule for rule, _ in never if rule.startswith(("issuer", "claim"))}
    assert of_tokens == set(), "accepted and refused, held, failed and matched: all seen"


def test_learn_finds_where_the_roles_are(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = command(capsys, "learn", str(made / "traffic.mitm"))
    assert status == 0
    assert "claims: {roles: [/realm_access/roles]}" in said.replace('"', ""), said


def test_explain_shows_what_was_read(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = KEYCLOAK | {"iss": TWO, "sub": "alice", "resource_access": {"orders": {"roles": "clerk"}}}
    words = ("explain", "--policy", str(made / "policy.yaml"), "--format", "json", "GET", "/api/v1/users/7")
    status, said = command(capsys, *words, "--claims", json.dumps(claims))
    steps = {step["stage"]: step for step in json.loads(said)["stages"]}
    assert steps["authentication"]["read"]["issuer"] == "dev/two"
    assert steps["authorization"]["read"]["claims"] == {"/org/a~1b/0/c~0d": 7}
    assert (status, json.loads(said)["decision"]) == (0, "admit")


def test_a_claim_within_another_is_hashed_by_its_pointer() -> None:
    claims: dict[str, Any] = {
        "org": {"id": "o-4711", "a/b": {"c": "deep"}, "id/x": "kept"},
        "id": "id",
        "x": ["o-4711"],
    }
    shown, hidden = Veil(Privacy(claims=("/Org/ID", "/org/a~1b"))).claims(claims)
    assert hidden.keys() == {"o-4711", "deep"}
    assert shown == {
        "org": {"id": hidden["o-4711"], "a/b": {"c": hidden["deep"]}, "id/x": "kept"},
        "id": "id",
        "x": [hidden["o-4711"]],
    }
