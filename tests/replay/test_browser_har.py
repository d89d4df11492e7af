"""HARs exported by Chromium's DevTools (made by tests/recordings/export_har.py) replay, each request to its status."""

import json
from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.pipeline.exchange import Exchange
from mitmgate.replay.decision import Decision
from mitmgate.replay.offline import load_offline
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.run import Report, replay
from mitmgate.replay.traffic import Recorded
from tests.live.harness import ROOT, SECRET

RECORDINGS = ROOT / "tests" / "recordings"
STATUS = {reason.code: reason.status for reason in Reason}


class Statuses:
    """The status that the browser saw, and the one of the decision now (run.Observer)."""

    def __init__(self) -> None:
        self.seen_then: list[int | None] = []
        self.decided: list[int] = []
        self.routes: set[str] = set()

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        self.seen_then.append(recorded.response_status)
        self.decided.append(STATUS[decision.reason])
        self.routes.add(decision.route)


def decide(name: str, environ: dict[str, str]) -> tuple[Report, Statuses]:
    statuses = Statuses()
    policy = load_offline(str(RECORDINGS / "browser.yaml"), environ)
    return replay(open_traffic([str(RECORDINGS / name)]), policy, observers=[statuses]), statuses


@pytest.mark.parametrize("name", ["browser.har", "browser-sensitive.har"])
def test_the_files_are_devtools_exports(name: str) -> None:
    log = json.loads((RECORDINGS / name).read_text())["log"]
    assert log["creator"]["name"] == "WebInspector"
    assert len(log["entries"]) == 20


def test_with_sensitive_data_every_request_is_decided_to_the_status_that_the_browser_saw() -> None:
    report, statuses = decide("browser-sensitive.har", {"MITMGATE_TEST_SECRET": SECRET})
    assert (report.decided, dict(report.skipped)) == (19, {"never sent by the browser": 1})
    assert statuses.decided == statuses.seen_then
    assert report.answers == {
        "admit": 8,
        "answer preflight": 1,
        "deny body-too-large": 1,
        "deny credential-missing": 2,
        "deny method-not-allowed": 1,
        "deny no-route": 1,
        "deny preflight-refused": 1,
        "deny quota-exceeded": 2,
        "deny scope-missing": 1,
        "deny token-malformed": 1,
    }
    assert {"page", "users", "orders"} <= statuses.routes


def test_sanitized_the_requests_have_no_credential() -> None:
    report, _ = decide("browser.har", {})
    assert (report.decided, dict(report.skipped)) == (19, {"never sent by the browser": 1})
    assert report.answers["deny credential-missing"] == 16
    assert report.answers["admit"] == 1
    assert any("nothing was compared" in note for note in report.notes)


def test_what_the_cache_answered_is_no_request(tmp_path: Path) -> None:
    document = json.loads((RECORDINGS / "browser.har").read_text())
    document["log"]["entries"][0]["_fromCache"] = "disk"
    (tmp_path / "cached.har").write_text(json.dumps(document))
    kinds = [entry.reason for entry in open_traffic([str(tmp_path / "cached.har")]) if not isinstance(entry, Recorded)]
    assert sorted(kinds) == ["answered by the browser's cache", "never sent by the browser"]
