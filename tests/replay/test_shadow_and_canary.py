"""A candidate beside a live gateway: the shadow says of live traffic what replay says of its recording."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.options import Options
from mitmproxy.test.tflow import tflow

from mitmgate.host.gateway import gateway as gateway_addon
from mitmgate.host.master import LeanMaster
from mitmgate.hostoptions import TARGET
from mitmgate.pipeline.exchange import Exchange, begin
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.canary import Allowance, Canary, Drift
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import ADMIT, Decision
from mitmgate.replay.differences import Difference, Kind, Tally
from mitmgate.replay.offline import load_offline
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.run import replay
from mitmgate.replay.shadow import Shadow
from mitmgate.replay.traffic import Recorded
from mitmgate.stages.arrival import ingress
from tests.live.harness import ROOT, SECRET, Gateway, audit_events, mint, policy, policy_file, route, write_policy
from tests.live.harness_http import free_port, wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.replay.corpus import record
from tests.replay.mutants import Made, put

COUNT = 1200


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    """Run a recording upstream that answers 200."""
    with RecordingUpstream() as server:
        yield server


def candidate(made: Made) -> None:
    """Several rules at once: stateless ones, a limit and a circuit."""
    put("routes", "orders", "require", "roles_any", value=["admin"])(made)
    put("rate_limits", "per-user", "limit", value=3)(made)
    put("routes", "tenants", "rewrite", "set", value={"X-Tenant": "{claim:tenant}", "X-More": "y"})(made)
    put("upstreams", "flaky", "circuit", "failures", value=10_000)(made)


class Kinds:
    """The difference of each request by its request id (run.Observer)."""

    def __init__(self) -> None:
        self.labels: dict[str, tuple[str, str]] = {}

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        assert before is not None
        self.labels[recorded.request_id] = before.label, decision.label


def test_the_shadow_says_what_replay_says(tmp_path: Path) -> None:
    words: list[str] = []

    def check_canary(process: subprocess.Popen[bytes], out: Path) -> None:
        """Ask the canary of the same process for the same candidate, and for the policy itself."""
        new = tmp_path / "policy.yaml.new"
        for content, answer in ((tmp_path / "candidate.yaml", "canary: 1000 decided, it"), (None, "accepted")):
            new.write_text((content or tmp_path / "policy.yaml").read_text())
            process.send_signal(signal.SIGUSR1)
            wait_for(lambda answer=answer: answer in out.read_text(), answer)  # type: ignore[misc]  # bound here
        words.append(out.read_text())

    corpus = record(tmp_path, COUNT, candidate, check_canary)
    events: list[dict[str, Any]] = [json.loads(line) for line in Path(f"{corpus.path}.shadow").read_text().splitlines()]
    seen = Kinds()
    report = replay(
        open_traffic([str(corpus.path)]), load_offline(str(tmp_path / "candidate.yaml"), {}), observers=[seen]
    )
    assert report.tally.total == len(events) > 100
    assert {event["kind"] for event in events} == {"tightened", "loosened", "headers"}
    for event in events:
        assert event["event"] == "shadow-difference"
        before, after = seen.labels[event["request_id"]]
        if event["kind"] != "headers":
            assert (event["before"], event["after"]) == (before, after)
    assert all(
        status in {200, 204} for number, status in corpus.statuses.items() if corpus.cases[number].tag == "orders"
    ), "the shadow has no effect"
    assert "it lets in" in words[0] or "it refuses" in words[0]


def drift_of(**kinds: int) -> Drift:
    tally = Tally()
    before, after = Decision("deny", "scope-missing", route="users"), Decision(ADMIT, "ok", route="users")
    for name, count in kinds.items():
        for number in range(count):
            tally.add(f"{name}-{number}", Difference(Kind(name), before.label, after.label), before, after)
    return Drift(1000, tally)


@pytest.mark.parametrize(
    ("drift", "allowed", "refused"),
    [
        (drift_of(), Allowance(), None),
        (drift_of(loosened=1), Allowance(), "it lets in 1 of the last 1000"),
        (drift_of(loosened=1), Allowance(loosened=0.001), None),
        (drift_of(tightened=10), Allowance(), None),
        (drift_of(tightened=11), Allowance(), "it refuses 11 of the last 1000"),
        (drift_of(headers=500), Allowance(), None),
        (Drift(0, Tally()), Allowance(), None),
    ],
)
def test_a_candidate_that_drifts_too_far_is_refused(drift: Drift, allowed: Allowance, refused: str | None) -> None:
    found = drift.refusal(allowed)
    assert found is None if refused is None else refused in (found or "")


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def stricter(directory: Path, upstream: RecordingUpstream) -> dict[str, Any]:
    """A candidate: its own limit, a scope that nobody has, an open route where the policy wants a token."""
    made = policy(directory, upstream)
    made["rate_limits"]["per-user"]["limit"] = 2
    route(made, "orders", require={"scopes_all": ["orders.write"]})
    made["routes"].append({"name": "status", "match": {"exact": "/status"}, "upstream": "users", "auth": "none"})
    return made | {"audit": {"sinks": [{"file": str(directory / "candidate.jsonl")}]}}


def test_serve_shadows_a_candidate_without_effect(tmp_path: Path, upstream: RecordingUpstream) -> None:
    candidate = write_policy(tmp_path, stricter(tmp_path, upstream), "candidate.yaml")
    path = policy_file(tmp_path, upstream)
    with Gateway(path, arguments=("--shadow", str(candidate))) as gateway:
        users = [gateway.get(f"/api/v1/users/{number}", token=mint()) for number in range(4)]
        assert [answered.status for answered in users] == [200] * 4
        assert [answered.one("x-ratelimit-remaining") for answered in users] == ["99", "98", "97", "96"], "spent once"
        assert gateway.get("/api/v1/orders/7", token=mint()).status == 200
        assert gateway.get("/status").status == 401, "what the candidate lets in is refused all the same"
        assert gateway.get("/public").status == 200
        upstream.assert_saw_only(6)
        requests = audit_events(tmp_path / "audit.jsonl", 7)
        wait_for(lambda: len(events(tmp_path / "audit.jsonl", "shadow-difference")) >= 4, "the differences")
    found = events(tmp_path / "audit.jsonl", "shadow-difference")
    assert [(event["kind"], event["before"], event["after"], event["route"]) for event in found] == [
        ("tightened", "admit", "deny quota-exceeded", "users"),
        ("tightened", "admit", "deny quota-exceeded", "users"),
        ("tightened", "admit", "deny scope-missing", "orders"),
        ("loosened", "deny credential-missing", "admit", "status"),
    ]
    assert [event["request_id"] for event in found] == [requests[at]["request_id"] for at in (2, 3, 4, 5)]
    assert found[0]["user"] == "alice" and found[0]["candidate"] != found[0]["policy"] == requests[0]["policy"]
    assert not (tmp_path / "candidate.jsonl").exists(), "the candidate writes no audit of its own"


def test_the_shadow_counts_by_change_and_reason(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """What /metrics reads, on the chain itself."""
    environ = {"MITMGATE_TEST_SECRET": SECRET}
    shadow = Shadow(load_snapshot(write_policy(tmp_path, stricter(tmp_path, upstream)), environ), lambda event: None)
    live = Decider(
        load_snapshot(policy_file(tmp_path, upstream, networks={"deny": ["10.9.9.9"]}), environ), OfflineRing()
    )
    for target, token in (("/status", None), ("/api/v1/orders/7", mint()), ("/api/v1/orders/8", mint()), ("/x", None)):
        flow = tflow()
        flow.request.path, flow.request.content = target, b""
        flow.request.headers.fields = ((b"Host", b"gateway.test"),)
        if token is not None:
            flow.request.headers["Authorization"] = f"Bearer {token}"
        begin(flow, live.decide(Recorded(target, time.time(), ingress(flow))))
        shadow.requestheaders(flow)
    assert (shadow.compared, shadow.failed, shadow.missed) == (4, 0, 0)
    assert shadow.counts == {("loosened", "credential-missing"): 1, ("tightened", "scope-missing"): 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "candidate.yaml:1:1: error: the policy can't be read: no such file"),
        ("version: 1\nroutes: [", "candidate.yaml:2:"),
        ('{"version": 1, "upstreams": {}, "routes": []}', "candidate.yaml:1:"),
    ],
)
def test_a_broken_candidate_is_a_users_mistake(
    tmp_path: Path, upstream: RecordingUpstream, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "candidate.yaml").write_text(content)
    done = serve(policy_file(tmp_path, upstream), "--shadow", str(tmp_path / "candidate.yaml"))
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("mitmgate: ")]  # behind the warnings
    assert said.startswith("mitmgate: --shadow: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def serve(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `serve` where it is expected not to start."""
    return subprocess.run(
        [sys.executable, "-m", "mitmgate", "serve", "--policy", str(path), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--canary-allow", "loosened=1"), "--canary-allow: only with --canary"),
        (("--canary", "9", "--canary-allow", "1"), "loosened=PERCENT or tightened=PERCENT"),
        (("--canary", "9", "--canary-allow", "loosened=101"), "loosened=PERCENT or tightened=PERCENT"),
        (("--canary", "0"), "0 is not in the range"),
        (("--record-sample", "0.1"), "--record-sample: only with --record"),
        (("--record", "x.mitm", "--record-sample", "0"), "must be more than 0 and at most 1"),
        (("--record", "x.mitm", "--record-rotate", "1MB"), "write 1MiB"),
    ],
)
def test_wrong_options_are_a_users_mistake(
    tmp_path: Path, upstream: RecordingUpstream, arguments: tuple[str, ...], message: str
) -> None:
    done = serve(policy_file(tmp_path, upstream), *arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("by", ["file", "signal"])
def test_a_policy_that_loosens_is_refused_by_the_canary(tmp_path: Path, upstream: RecordingUpstream, by: str) -> None:
    def change(made: dict[str, Any]) -> None:
        write_policy(tmp_path, made)
        if by == "signal":
            gateway.process.send_signal(signal.SIGHUP)

    audit = tmp_path / "audit.jsonl"
    with Gateway(policy_file(tmp_path, upstream), arguments=("--canary", "50")) as gateway:
        assert [gateway.get("/api/v1/users/7").status for _ in range(3)] == [401] * 3
        assert [gateway.get("/api/v1/users/7", token=mint()).status for _ in range(60)] == [200] * 60
        assert gateway.get("/api/v1/orders/7").status == 401
        assert gateway.get("/api/v1/orders/7", token=mint()).status == 200
        change(route(policy(tmp_path, upstream), "orders", auth="none", require={}))
        wait_for(lambda: len(events(audit, "policy-rejected")) == 1, "the event of the refusal")
        (problem,) = events(audit, "policy-rejected")[0]["problems"]
        assert "the canary refuses it: it lets in 1 of the last 50 requests" in problem
        assert "deny credential-missing → admit on route orders" in problem
        assert "the canary refuses it: it lets in 1 of the last 50" in gateway.log
        assert gateway.get("/api/v1/orders/8").status == 401, "the old policy is in force"
        change(policy(tmp_path, upstream, networks={"deny": ["127.0.0.0/8"]}))
        wait_for(lambda: len(events(audit, "policy-rejected")) == 2, "the event of the refusal")
        assert "it refuses 48 of the last 50 requests" in str(events(audit, "policy-rejected")[1]["problems"])
        change(route(policy(tmp_path, upstream), "users", require={"scopes_all": ["users.read", "orders.read"]}))
        wait_for(lambda: len(events(audit, "policy-reloaded")) == 1, "a policy that decides the same to be in force")
        assert "canary: 50 requests decided, 0 let in that were refused" in gateway.log


def test_the_canary_allows_what_it_is_told_to(tmp_path: Path, upstream: RecordingUpstream) -> None:
    audit = tmp_path / "audit.jsonl"
    arguments = ("--canary", "100", "--canary-allow", "loosened=20", "--canary-allow", "tightened=0")
    with Gateway(policy_file(tmp_path, upstream), arguments=arguments) as gateway:
        for number in range(9):
            gateway.get(f"/api/v1/orders/{number}", token=mint())
        gateway.get("/api/v1/orders/9")
        write_policy(tmp_path, route(policy(tmp_path, upstream), "orders", auth="none", require={}))
        wait_for(lambda: len(events(audit, "policy-reloaded")) == 1, "the looser policy to be in force")
        assert gateway.get("/api/v1/orders/9").status == 200
        write_policy(tmp_path, policy(tmp_path, upstream))
        wait_for(lambda: len(events(audit, "policy-rejected")) == 1, "what refuses one request to be refused")


def test_the_canarys_memory_is_bounded_in_bytes(tmp_path: Path, upstream: RecordingUpstream) -> None:
    snapshot = load_snapshot(policy_file(tmp_path, upstream), {"MITMGATE_TEST_SECRET": SECRET})
    decider, canary = Decider(snapshot, OfflineRing()), Canary(100_000, most_bytes=1_000_000)
    for number in range(300):
        flow = tflow()
        flow.request.path, flow.request.content = f"/api/v1/users/{number}", b""
        flow.request.headers.fields = ((b"Host", b"gateway.test"), (b"X-Large", b"l" * (10 * number)))
        begin(flow, decider.decide(Recorded(str(number), 1_795_000_000.0 + number, ingress(flow))))
        canary.requestheaders(flow)
        assert canary.bytes <= 1_000_000
    assert 50 < len(canary) < 200
    drift = asyncio.run(canary.check(snapshot, snapshot))
    assert (drift.decided, drift.tally.total) == (len(canary), 0)


def test_a_canary_that_fails_lets_no_policy_through(tmp_path: Path, upstream: RecordingUpstream) -> None:
    class Broken:
        async def __call__(self, candidate: Snapshot, current: Snapshot) -> str | None:
            raise RuntimeError("broken")

    async def reloaded() -> bool:
        host = LeanMaster(Options())
        addon = gateway_addon(str(policy_file(tmp_path, upstream)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MITMGATE_TEST_SECRET", SECRET)
            host.addons.add(addon)
            host.options.update(mode=[f"{TARGET}@127.0.0.1:{free_port()}"])
            addon.approve = Broken()
            policy_file(tmp_path, upstream, networks={"deny": ["10.0.0.0/8"]})
            result = await addon.reload()
        await addon.done()
        return result

    assert asyncio.run(reloaded()) is False
    (rejected,) = events(tmp_path / "audit.jsonl", "policy-rejected")
    assert "it could not be tried on the last requests" in str(rejected["problems"])
