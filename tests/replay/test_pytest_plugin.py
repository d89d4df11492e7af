"""The pytest plugin, as a team uses it: the example project passes, and what is wrong is said with its reasons."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.harness import ROOT

EXAMPLE = ROOT / "policies" / "example-tests"


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "mitmgate.replay.pytest_plugin", "-p", "no:cacheprovider", "."],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT / "addons"), "PYTEST_ADDOPTS": " ".join(arguments)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the example project, to be broken."""
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_the_example_project_passes(project: Path) -> None:
    done = run_pytest(project)
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout


def test_a_policy_that_changed_fails_with_an_explanation(project: Path) -> None:
    policy = project / "gateway.yaml"
    policy.write_text(policy.read_text().replace("[orders.read]", "[orders.write]"))
    done = run_pytest(project)
    assert done.returncode == 1
    assert "expected admit, found deny scope-missing" in done.stdout
    assert "the token needs the scope orders.write" in done.stdout
    assert "tightened  admit" in done.stdout, "the recorded traffic is shown as a table"
    assert "4 failed" in done.stdout or "5 failed" in done.stdout, done.stdout[-400:]


def test_a_policy_that_is_wrong_fails_with_its_place(project: Path) -> None:
    policy = project / "gateway.yaml"
    policy.write_text(policy.read_text().replace("upstream: orders", "upstream: order"))
    done = run_pytest(project, "-k", "test_reading_orders")
    assert done.returncode == 1
    assert "did you mean orders?" in done.stdout and "gateway.yaml:18" in done.stdout


def test_the_plugin_alone_loads_nothing_of_mitmproxy() -> None:
    code = "import sys, mitmgate.replay.pytest_plugin; assert 'mitmproxy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT / "addons")}, check=True)
