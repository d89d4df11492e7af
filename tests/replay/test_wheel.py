"""The wheel, built and installed without a network: pytest finds the plugin by itself, and the command is there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.live.harness import ROOT

EXAMPLE = ROOT / "policies" / "example-tests"


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as on a machine that has no source tree of ours."""
    ours = {"PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTHONSAFEPATH"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with our wheel, in which the dependencies are those of this one."""
    place = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--no-input")
    offline = ("--quiet", "--no-deps", "--no-index")
    source = place / "source"
    for name in ("addons", "policies", "pyproject.toml", "README.md", "LICENSE"):
        copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copied(ROOT / name, source / name)
    built = run(*pip, "wheel", *offline, "--no-build-isolation", "-w", place, source, cwd=place)
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("mitmgate-*.whl")
    venv.create(place / "venv", with_pip=False)
    python = place / "venv" / "bin" / "python"
    installed = run(*pip, "--python", python, "install", *offline, wheel, cwd=place)
    assert installed.returncode == 0, installed.stderr
    # A .pth of its own directory is read, those in the directory that it names are not: our sources stay out of sight.
    (site,) = (place / "venv" / "lib").glob("python3.*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the example project, as a team has it in a repository of its own."""
    copy = Path(shutil.copytree(EXAMPLE, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__")))
    (copy / "pytest.ini").write_text("[pytest]\n")
    return copy


def test_what_is_installed_is_the_wheel(python: Path, tmp_path: Path) -> None:
    found = run(python, "-c", "import mitmgate; print(mitmgate.__file__)", cwd=tmp_path)
    assert found.stdout.startswith(str(python.parents[1])), found.stdout + found.stderr


@pytest.mark.parametrize("more", [(), ("-p", "mitmgate.replay.pytest_plugin")])
def test_pytest_finds_the_plugin_by_its_entry_point(python: Path, project: Path, more: tuple[str, ...]) -> None:
    """Naming it as well, as a checkout without the wheel has to, does no harm."""
    done = run(python, "-m", "pytest", "-q", *more, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_a_conftest_may_name_the_plugin_too(python: Path, project: Path) -> None:
    (project / "conftest.py").write_text('pytest_plugins = ["mitmgate.replay.pytest_plugin"]\n')
    done = run(python, "-m", "pytest", "-q", cwd=project)
    assert "7 passed" in done.stdout, done.stdout + done.stderr


def test_without_the_entry_point_the_fixtures_are_not_there(python: Path, project: Path) -> None:
    done = run(python, "-m", "pytest", "-q", "-p", "no:mitmgate.replay.pytest_plugin", cwd=project)
    assert done.returncode == 1 and "fixture 'policy_case' not found" in done.stdout


def test_the_command_of_the_wheel_replays(python: Path, project: Path) -> None:
    done = run(python.with_name("mitmgate"), "replay", "traffic.mitm", "--policy", "gateway.yaml", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 decided, 0 skipped" in done.stdout


def test_the_command_of_the_wheel_prints_the_schema_of_policies(python: Path, tmp_path: Path) -> None:
    done = run(python.with_name("mitmgate"), "schema", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, (ROOT / "policies" / "gateway.schema.json").read_text())
