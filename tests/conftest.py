"""What all tests share: Hypothesis without a deadline, and no skip that stays silent."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# What harnesses assert counts under `python -O` too.
pytest.register_assert_rewrite("tests.live", "tests.protocol", "tests.attack")
settings.register_profile("local", deadline=None)  # a loaded machine is no failure
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

LONGEST = (
    "bench/test_smoke.py",
    "live/test_start.py",
    "workers/test_workers.py",
    "workers/test_supervisor.py",
    "live/test_readme.py",
    "live/test_reload.py",
    "attack/test_generated.py",
    "protocol/test_http2_memory.py",
    "replay/test_commands.py",
    "replay/test_shadow_and_canary.py",
    "replay/test_zero_differences.py",
    "audit/test_redis_stream.py",
    "live/test_stage_failures.py",
    "admin/test_readiness.py",
    "live/test_proof.py",
    "live/test_tls.py",
    "attack/test_smuggling.py",
    "live/test_revocation.py",
    "live/test_rotation.py",
    "live/test_credentials.py",
    "live/test_api_keys.py",
    "admin/test_counting.py",
    "admin/test_assertion.py",
    "policy/test_fuzz.py",
    "workers/test_optimised.py",
    "workers/test_drain.py",
    "workers/test_signals.py",
    "workers/test_recording.py",
    "mutation/test_quick.py",
    "own/test_tutorial.py",
)
"""Files below tests/ that take longest. CI begins with them, so that its processes are done at about the same time."""

_skipped: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first, each file's together and in their order."""
    places = {f"tests/{name}": at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.location[0], len(places)))


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
