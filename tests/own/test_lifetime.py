"""Stages of the operator's own in a gateway that is watched, reloaded, recorded and shadowed, and in its replay."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli import main
from tests.live.harness import ROOT, Gateway, policy, write_policy
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.live.test_reload import events

BROWSER = {"User-Agent": "Firefox/140"}
LYNX = {"User-Agent": "Lynx/2.9"}


class Guarded:
    """A gateway with the example before `/public`, one worker under a supervisor; its policy can be written again."""

    def __init__(self, directory: Path, upstream: RecordingUpstream) -> None:
        self.directory = directory
        self.upstream = upstream
        self.admin = free_port()
        (directory / "stages").mkdir()
        self.code = directory / "stages/bot_guard.py"
        self.code.write_text((ROOT / "docs/examples/bot_guard.py").read_text())
        self.path = self.write(deny=["curl/*"])
        self.candidate = write_policy(directory, self.made(deny=["curl/*", "lynx/*"]), "candidate.yaml")
        arguments = ("--workers", "1", "--record", str(directory / "traffic.mitm"), "--shadow", str(self.candidate))
        self.gateway = Gateway(self.path, arguments=(*arguments, "--canary", "50", "--canary-allow", "tightened=60"))

    def made(self, **options: Any) -> dict[str, Any]:
        entry = {"use": "stages/bot_guard.py:BotGuard", "after": "network-access", "slow": "10s"}
        return policy(self.directory, self.upstream, stages={"bot-guard": entry | options}, admin={"port": self.admin})

    def write(self, **options: Any) -> Path:
        return write_policy(self.directory, self.made(**options))

    def rejected(self, count: int) -> list[dict[str, Any]]:
        """Have the policy read again, and return the events of all rejections so far."""
        audit = self.directory / "audit.jsonl"
        wait_for(lambda: len(events(audit, "policy-rejected")) >= count, f"{count} rejections")
        return events(audit, "policy-rejected")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with RecordingUpstream() as upstream:
        made = Guarded(tmp_path_factory.mktemp("guarded"), upstream)
        with made.gateway:
            yield made


def test_its_time_and_its_decisions_are_metrics(guarded: Guarded) -> None:
    gateway = guarded.gateway
    assert [gateway.get("/public", headers={"User-Agent": agent}).status for agent in ("curl/8", "Lynx/2")] == [
        403,
        200,
    ]

    def text() -> str:
        return request(guarded.admin, "GET", "/metrics", host="localhost").body.decode()

    counted = 'mitmgate_own_stage_duration_seconds_count{stage="bot-guard"} 2'
    wait_for(lambda: counted in text(), "both to be counted")
    found = text()
    assert 'reason="bot-refused",route="public",status="403"' in found
    assert 'mitmgate_decisions_total{outcome="deny",stage="bot-guard"} 1' in found
    wait_for(lambda: "mitmgate_shadow_differences_total{" in text(), "the shadow to have seen Lynx")
    assert 'reason="bot-refused"' in next(line for line in text().split("\n") if "shadow_differences_total{" in line)


def test_a_reload_brings_options_and_no_code(guarded: Guarded) -> None:
    """A policy that needs other code than runs is refused as a whole; the one in force, and its code, go on."""
    gateway, code = guarded.gateway, guarded.code.read_text()
    guarded.code.write_text(code.replace("403", "451"))
    guarded.write(deny=[])
    (first,) = guarded.rejected(1)
    assert "stages.bot-guard.use: its file has changed, and code is loaded once, at start" in str(first["problems"])
    assert gateway.get("/public", headers={"User-Agent": "curl/8"}).status == 403

    guarded.code.write_text(code)
    made = guarded.made(deny=[])
    write_policy(guarded.directory, made | {"stages": {}})
    assert "the stage bot-guard runs and is missing here" in str(guarded.rejected(2)[1]["problems"])
    made["stages"]["second"] = {"use": "stages/bot_guard.py:BotGuard", "after": "bot-guard"}
    write_policy(guarded.directory, made)
    assert "second is not what runs" in str(guarded.rejected(3)[2]["problems"])
    guarded.write(after="routing")
    assert "it runs after network-access" in str(guarded.rejected(4)[3]["problems"])
    assert gateway.get("/public", headers={"User-Agent": "curl/8"}).status == 403

    assert gateway.get("/public", headers=LYNX).status == 200
    guarded.write(deny=["curl/*", "lynx/*"])
    gateway.process.send_signal(signal.SIGHUP)
    wait_for(lambda: gateway.get("/public", headers=LYNX).status == 403, "the new options to decide")


def test_the_canary_asks_it(guarded: Guarded) -> None:
    """Everybody is refused by the candidate: far more than may be."""
    rejections = len(events(guarded.directory / "audit.jsonl", "policy-rejected"))
    for _ in range(20):
        guarded.gateway.get("/public", headers=BROWSER)
    guarded.write(deny=["*"])
    said = str(guarded.rejected(rejections + 1)[-1]["problems"])
    assert "the canary refuses it" in said
    assert "deny bot-refused on route public" in said
    assert guarded.gateway.get("/public", headers=BROWSER).status == 200


def test_its_traffic_is_replayed(
    guarded: Guarded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of this file: it ends the gateway, so that the recording is whole."""
    monkeypatch.chdir(guarded.directory)

    def mitmgate(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    guarded.gateway.stop()
    guarded.write(deny=["curl/*"])
    words = ["replay", "traffic.mitm", "--policy", "policy.yaml", "--coverage", "--format", "json", "--fail-on", "none"]
    report = json.loads(mitmgate(*words))
    branches = {(row["rule"], row["branch"]) for row in report["coverage"]["never"]}
    assert ("stage bot-guard", "agent-missing") in branches
    assert not {("stage bot-guard", "bot-refused"), ("stage bot-guard", "went-on")} & branches
    # Two policies were in force while it was recorded; by the second, other requests are refused than by the first.
    same = json.loads(mitmgate(*words[:2], "--policy", "policy.yaml", "--against", "policy.yaml", "--format", "json"))
    assert same["decided"] == report["decided"] > 25
    explained = mitmgate(
        *("explain", "--policy", "policy.yaml", "GET", "http://gateway.test/public", "--header", "User-Agent: curl/8")
    )
    assert "deny     bot-guard bot-refused: This service is for people." in explained
    assert 'read     headers: {"user-agent": "curl/8"}' in explained
    assert "change   a User-Agent that no pattern of deny matches: policy.yaml:" in explained
