"""Limits by a claim: what each plan is told and held to, and what explain, replay, coverage, what-if and check say."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import command
from tests.live.harness import SECRET, Gateway, mint, policy, route, write_policy
from tests.live.harness_upstream import RecordingUpstream

TIERS = {"claim": "/org/plan", "values": {"free": 2, "pro": 5, "7": 3}, "default": 1}
PLANS: dict[str, tuple[Any, int]] = {
    "fred": ("free", 2),
    "petra": ("pro", 5),
    "seven": (7, 3),
    "sven": ("7", 3),
    "nobody": (None, 1),
    "liar": (["pro"], 1),
    "shout": ("PRO", 1),
    "tricky": ("default", 1),
    "true": (True, 1),
}


def token(subject: str, plan: Any) -> str:
    return mint(subject, org={} if plan is None else {"plan": plan})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiers")
    with RecordingUpstream() as upstream:
        document = policy(directory, upstream)
        document["rate_limits"]["per-user"] = {"tiers": TIERS, "window": "1h"}
        document["rate_limits"]["all"] = {"limit": 1000, "window": "1h", "key": "route"}
        route(document, "orders", rate_limits=["per-user", "all"])
        path = write_policy(directory, document)
        candidate = {**document, "audit": {"sinks": []}}
        stricter = {"tiers": TIERS | {"values": {"free": 2, "pro": 4, "7": 3}}, "window": "1h"}
        candidate["rate_limits"] = {**document["rate_limits"], "per-user": stricter}
        shadow = write_policy(directory, candidate, "candidate.yaml")
        arguments = ("--record", str(directory / "traffic.mitm"), "--shadow", str(shadow))
        with Gateway(path, arguments=arguments) as gateway:
            for subject, (plan, units) in PLANS.items():
                for number in range(units):
                    # One limit alone, or beside another one: the same units.
                    where = "/api/v1/users/7" if number % 2 else "/api/v1/orders/7"
                    answer = gateway.get(where, token=token(subject, plan))
                    assert answer.status == 200, (subject, number, answer.body)
                    assert answer.one("x-ratelimit-limit") == str(units)
                    assert answer.one("x-ratelimit-remaining") == str(units - number - 1)
                    assert f'"per-user";q={units};w=3600' in (answer.one("ratelimit-policy") or "")
                before = len(upstream.requests)
                assert gateway.get("/api/v1/users/7", token=token(subject, plan)).status == 429
                assert len(upstream.requests) == before
            assert gateway.get("/api/v1/users/7", token=token("fred", "pro")).status == 200, "who pays has room at once"
            assert gateway.get("/api/v1/users/7", token=token("petra", "free")).status == 429
    return directory


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setattr("gc.freeze", lambda: None)


def test_replay_coverage_and_what_if(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("replay", str(made / "traffic.mitm"), "--policy", str(made / "policy.yaml"), "--format", "json")
    status, said = command(capsys, *words, "--coverage")
    report = json.loads(said)
    assert (status, report["decided"], report["compared"]) == (0, 29, 29), "all as it was decided then"
    assert [each["rule"] for each in report["coverage"]["never"] if "tier" in each["rule"]] == []
    _, said = command(capsys, *words, "--what-if", "per-user.tiers.pro=4", "--fail-on", "none")
    limited = {who: line["newly_limited"] for who, line in json.loads(said)["what_if"].items()}
    assert {who for who, count in limited.items() if count} == {"dev/petra"}
    _, said = command(capsys, *words, "--what-if", "per-user.tiers.default=2", "--fail-on", "none")
    freed = {who: line["no_longer_limited"] for who, line in json.loads(said)["what_if"].items()}
    others = {f"dev/{who}" for who, (_, units) in PLANS.items() if units == 1}
    assert {who for who, count in freed.items() if count} == others
    status, said = command(capsys, *words, "--what-if", "per-user.tiers.por=4")
    assert (status, "no tier por; did you mean pro?" in said) == (2, True)


def test_the_shadow_has_tiers_of_its_own(made: Path) -> None:
    events = [json.loads(line) for line in (made / "audit.jsonl").read_text().splitlines()]
    found = [event for event in events if event["event"] == "shadow-difference"]
    assert [(event["user"], event["kind"], event["after"]) for event in found] == [
        ("petra", "tightened", "deny quota-exceeded")
    ]


def test_explain_and_check(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = json.dumps({"sub": "a", "scope": "users.read", "org": {"plan": "pro"}})
    words = ("explain", "--policy", str(made / "policy.yaml"), "--format", "json", "--claims", claims)
    _, said = command(capsys, *words, "GET", "/api/v1/users/7")
    read = next(step["read"] for step in json.loads(said)["stages"] if step["stage"] == "rate-limit")
    assert (read["per-user"]["limit"], read["per-user"]["tier"], read["per-user"]["remaining"]) == (5, "pro", 4)
    status, said = command(capsys, "check", str(made / "policy.yaml"))
    cost = "rate_limits.per-user: the most that a key takes in memory: free 0.4 KB, pro 0.4 KB, 7 0.4 KB, default 0.4"
    assert (status, cost in said) == (0, True), said
    _, said = command(capsys, "check", "--format", "json", str(made / "policy.yaml"))
    costs = {"free": 366, "pro": 390, "7": 374, "default": 358}
    assert json.loads(said)["files"][0]["octets_of_tiers"] == {"per-user": costs}
