"""What all tests share: Hypothesis without a deadline, and no skip that stays silent."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# What harnesses assert counts under `python -O` too.
pytest.register_assert_rewrite("tests.live", "tests.protocol", "tests.attack")
settings.register_profile("local", deadline=None)  # a loaded machine is no failure
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, database=None, max_examples=50)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a skipped test; an expected failure is none."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fail a CI run in which a test was skipped: what could not run was not checked."""
    if _skipped and os.environ.get("CI") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the skipped tests last."""
    if _skipped and os.environ.get("CI"):
        terminalreporter.section("skipped, which fails in CI", red=True)
        for name in _skipped:
            terminalreporter.line(name)
