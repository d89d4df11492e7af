"""The workflow files: ours, and the one that `init` writes, by GitHub's own schema."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from ruamel.yaml import YAML

from mitmgate.init_command import PIPELINE
from tests.live.harness import ROOT

CI = ROOT / ".github" / "workflows" / "ci.yml"


def test_they_are_valid(tmp_path: Path) -> None:
    (tmp_path / "policy.yml").write_text(PIPELINE)
    (tmp_path / "mistake.yml").write_text(CI.read_text().replace("runs-on", "run-on"))
    check = (Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.github-workflows")
    assert subprocess.run([*check, CI, tmp_path / "policy.yml"], capture_output=True, check=False).returncode == 0
    assert subprocess.run([*check, tmp_path / "mistake.yml"], capture_output=True, check=False).returncode == 1


def test_ci_runs_all_checks_on_every_python_that_is_claimed() -> None:
    job = YAML(typ="safe", pure=True).load(CI.read_text())["jobs"]["checks"]
    assert job["steps"][-1]["run"].endswith(" .ci/run")
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"][0] == oldest
    tried = re.search(r"for candidate in (python3\.\S+ .*) python3;", (ROOT / "run.sh").read_text())
    assert tried is not None
    assert sorted(f"python{version}" for version in job["strategy"]["matrix"]["python"]) == sorted(tried[1].split())
