"""SizeLimit: a declared length at once; for one that is not declared, the bound that the body is held to."""

from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.size_limit import SizeLimit
from tests.stages.exchanges import (
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    routed,
    said,
    snapshot_of,
)

TEN_MIB = 10 << 20


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def sized(snapshot: Snapshot, length: int | None, path: str) -> Exchange:
    field = (b"Transfer-Encoding", b"chunked") if length is None else (b"Content-Length", b"%d" % length)
    return routed(snapshot, "POST", path, [field])


@pytest.mark.parametrize(
    ("path", "length", "bound", "admits"),
    [
        ("/users/7", 0, 10, True),
        ("/users/7", 10, 10, True),
        ("/users/7", 11, 10, False),
        ("/users/7", 10**17, 10, False),
        ("/users/7", None, 10, True),
        ("/near", 11, TEN_MIB, True),
        ("/near", TEN_MIB + 1, TEN_MIB, False),
        ("/nowhere", TEN_MIB, TEN_MIB, True),
        ("/nowhere", TEN_MIB + 1, TEN_MIB, False),
    ],
)
def test_admits_or_denies(snapshot: Snapshot, path: str, length: int | None, bound: int, admits: bool) -> None:
    made = sized(snapshot, length, path)
    expected = (Outcome.ADMIT, Reason.OK) if admits else (Outcome.DENY, Reason.BODY_TOO_LARGE)
    assert said(SizeLimit(), made) == expected
    assert made.max_body == bound
    if not admits:
        assert_refused(snapshot, made, Reason.BODY_TOO_LARGE)


@pytest.mark.parametrize(("mode", "path"), [("report", "/users/7"), ("enforce", "/trial")])
def test_report_mode_observes(tmp_path: Path, mode: str, path: str) -> None:
    made = sized(snapshot_of(tmp_path, mode), 11, path)
    assert said(SizeLimit(), made) == (Outcome.OBSERVE, Reason.BODY_TOO_LARGE)
    assert made.verdict.final is None


def test_already_denied(snapshot: Snapshot) -> None:
    made = sized(snapshot, 11, "/users/7")
    assert_leaves_decided_alone(SizeLimit(), made)
    assert made.max_body == 0


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(SizeLimit, snapshot, routed(snapshot), monkeypatch)
