"""The pytest plugin: policies tested in a team's own CI, by recorded traffic and by cases.

    def test_traffic(mitmgate_replay):
        mitmgate_replay("traffic.mitm", "gateway.yaml").assert_same()

    def test_orders(policy_case):
        policy = policy_case("gateway.yaml")
        policy.request("GET", "/api/v1/orders/7").claims(sub="alice", scope="orders.read").is_admitted(route="orders")
        policy.request("GET", "/api/v1/orders/7").claims(sub="alice").is_denied("scope-missing")

Paths are relative to the test's own directory. Nothing here needs a network, a secret or the time of day.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # pytest loads this file in every run; mitmproxy is loaded where a test asks for it
    from mitmgate.replay.policy_case import PolicyCase
    from mitmgate.replay.run import Report


class Replayed:
    """What a replay found. `report` has all of it."""

    def __init__(self, report: "Report") -> None:
        """Take a report."""
        self.report = report

    def assert_same(self) -> None:
        """Check that something was decided, and that nothing is decided otherwise."""
        self._assert("any")

    def assert_none_loosened(self) -> None:
        """Check that nothing is let in that was refused."""
        self._assert("loosened")

    def assert_none_tightened(self) -> None:
        """Check that nothing is refused that was let in."""
        self._assert("tightened")

    def _assert(self, fail_on: str) -> None:
        from mitmgate.replay.report_table import as_table  # noqa: PLC0415 - see TYPE_CHECKING above
        from mitmgate.replay.run import FAILING  # noqa: PLC0415

        failing = next(kinds for name, kinds in FAILING.items() if name == fail_on)
        if not self.report.decided or any(self.report.tally.kinds[kind] for kind in failing):
            raise AssertionError("\n" + as_table(self.report))


Replay = Callable[..., Replayed]


@pytest.fixture
def mitmgate_replay(request: pytest.FixtureRequest) -> Replay:
    """Replay recorded traffic with a policy: `mitmgate_replay(traffic, policy, against=None, assume_signed=False)`.

    Compared is with `against`, else with TRAFFIC.expect.yaml where it is there, else with the recorded verdicts.
    """
    from mitmgate.replay.expectations import beside, read_expectations  # noqa: PLC0415 - see TYPE_CHECKING above
    from mitmgate.replay.offline import load_offline  # noqa: PLC0415
    from mitmgate.replay.recording import open_traffic  # noqa: PLC0415
    from mitmgate.replay.run import replay  # noqa: PLC0415

    directory = request.path.parent

    def run(
        traffic: str | Path | Sequence[str | Path],
        policy: str | Path,
        *,
        against: str | Path | None = None,
        assume_signed: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> Replayed:
        files = [traffic] if isinstance(traffic, str | Path) else list(traffic)
        paths = [str(directory / file) for file in files]
        expect = beside(paths[0])
        expected = read_expectations(expect) if against is None and len(paths) == 1 and expect.exists() else None
        report = replay(
            open_traffic(paths),
            load_offline(str(directory / policy), environ or {}),
            against=None if against is None else load_offline(str(directory / against), environ or {}),
            expected=expected,
            compared_with=str(expect),
            assume_signed=assume_signed,
        )
        return Replayed(report)

    return run


@pytest.fixture
def policy_case(request: pytest.FixtureRequest) -> "Callable[..., PolicyCase]":
    """Test a policy by cases: `policy_case("gateway.yaml").request("GET", "/x").claims(sub="a").is_admitted()`."""
    from mitmgate.replay.policy_case import PolicyCase  # noqa: PLC0415 - see TYPE_CHECKING above

    def open_policy(path: str | Path, environ: Mapping[str, str] | None = None) -> PolicyCase:
        return PolicyCase(request.path.parent / path, environ)

    return open_policy
