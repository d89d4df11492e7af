"""A candidate beside a live gateway: the shadow says of live traffic what replay says of its recording."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mitmgate.replay.canary import Allowance, Drift
from mitmgate.replay.decision import ADMIT, Decision
from mitmgate.replay.differences import Difference, Kind, Tally
from mitmgate.replay.offline import load_offline
from mitmgate.replay.opening import open_traffic
from mitmgate.replay.run import replay
from mitmgate.replay.traffic import Recorded
from mitmgate.stages.exchange import Exchange
from tests.live.harness_http import wait_for
from tests.replay.corpus import record
from tests.replay.mutants import Made, put

COUNT = 1200


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
