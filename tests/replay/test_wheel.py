"""The wheel, built and installed without a network: pytest finds the plugin by itself, and the command is there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mitmgate import __version__
from tests.live.harness import ROOT, SECRET
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE

EXAMPLE = ROOT / "policies" / "example-tests"


def strangers() -> dict[str, str]:
    """Return the variables of a machine that has no source tree of ours."""
    ours = {"PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTHONSAFEPATH"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def run(*words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as on a machine that has no source tree of ours."""
    environment = {**strangers(), **variables}
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


def test_the_shell_completes_commands(python: Path, tmp_path: Path) -> None:
    command = python.with_name("mitmgate")
    asked = {"_MITMGATE_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    assert run(command, cwd=tmp_path, COMP_WORDS="mitmgate ser", **asked).stdout == "plain,serve\n"
    assert "_mitmgate_completion" in run(command, cwd=tmp_path, _MITMGATE_COMPLETE="bash_source").stdout
    assert run(command, "--version", cwd=tmp_path).stdout == f"mitmgate, version {__version__}\n"


@pytest.fixture(scope="module")
def begun(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that `init` has made."""
    place = tmp_path_factory.mktemp("begun")
    done = run(python.with_name("mitmgate"), "init", "new", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "cd new\n" in done.stdout
    return place / "new"


def test_the_pipeline_of_a_new_folder_passes(python: Path, begun: Path) -> None:
    """The steps as the file has them; only installing is left out, which the fixture has done."""
    workflow = YAML(typ="safe", pure=True).load((begun / ".github" / "workflows" / "policy.yml").read_text())
    job = workflow["jobs"]["policy"]
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps[0] == f"pip install pytest ./wheels/mitmgate-{__version__}-py3-none-any.whl"
    said = ""
    for line in steps[1:]:
        words = line.split()
        words = [str(python), "-m", "mitmgate", *words[1:]] if words[0] == "mitmgate" else [str(python), "-m", *words]
        done = run(*words, cwd=begun, **job["env"])
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said += done.stdout
    assert "1 acknowledged warning" in said and "3 passed" in said


def test_a_new_folder_serves(python: Path, begun: Path) -> None:
    port = free_port()
    words = [str(python.with_name("mitmgate")), "serve", "--policy", "gateway.yaml", "--listen", f"127.0.0.1:{port}"]
    variables = {"MITMGATE_DEV_SECRET": SECRET}
    with (begun / "log").open("wb") as out:
        process = subprocess.Popen(words, cwd=begun, env={**strangers(), **variables}, stdout=out, stderr=out)

    def healthy() -> bool:
        assert process.poll() is None, (begun / "log").read_text()
        try:
            return request(port, "GET", "/health").status == 200
        except OSError:
            return False

    try:
        wait_for(healthy, "the gateway to be healthy")
        assert request(port, "GET", "/api/v1/orders/7").status == 401
        minted = ("token", "--policy", "gateway.yaml", "--sub", "bob")
        token = run(python.with_name("mitmgate"), *minted, cwd=begun, **variables).stdout.strip()
        assert request(port, "GET", "/api/v1/orders/7", token=token).status == 403
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_a_new_folder_writes_over_nothing(python: Path, begun: Path) -> None:
    before = (begun / "gateway.yaml").read_bytes()
    (begun / "test_gateway.py").unlink()
    done = run(python.with_name("mitmgate"), "init", cwd=begun)
    assert (done.returncode, done.stderr) == (2, "mitmgate: init .: gateway.yaml is there already\n")
    assert (begun / "gateway.yaml").read_bytes() == before and not (begun / "test_gateway.py").exists()
