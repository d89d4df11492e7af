"""The systemd unit: systemd takes it, it is confined, and its credentials reach the process and nobody else."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mitmgate.host.drain import PATIENCE
from mitmgate.policy.units import parse_duration
from tests.live.harness import ROOT

UNIT = ROOT / "deploy" / "systemd" / "mitmgate.service"
WITH_CREDENTIALS = UNIT.with_name("with-credentials")
DRAIN = PATIENCE  # seconds; what serve's --drain-timeout is where nobody says otherwise


def value(name: str) -> str:
    found: list[str] = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    (only,) = found
    return only


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a directory that looks like a host on which the unit is installed, as far as systemd-analyze looks."""
    for name in ("bin/kill", "opt/mitmgate/deploy/systemd/with-credentials", "opt/mitmgate/.venv/bin/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / name)
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    shutil.copy(UNIT, tmp_path / "etc/systemd/system")
    return tmp_path


def verify(root: Path) -> str:
    words = ["systemd-analyze", "verify", f"--root={root}", "mitmgate.service"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_systemd_takes_the_unit_without_a_word(root: Path) -> None:
    assert verify(root) == ""


def test_systemd_would_tell_of_a_mistake(root: Path) -> None:
    unit = root / "etc/systemd/system/mitmgate.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSytem="))
    assert re.search("Unknown key.*ProtectSytem", verify(root))


def test_the_exposure_is_low() -> None:
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(UNIT)]  # 15: 1.5 of 10
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level for mitmgate.service" in done.stdout


def test_a_stop_takes_longer_than_a_drain() -> None:
    assert parse_duration(value("TimeoutStopSec")) >= DRAIN + 10


def credentials(directory: Path, **given: str) -> dict[str, str]:
    for name, secret in given.items():
        (directory / name).write_text(secret)
    return {**os.environ, "CREDENTIALS_DIRECTORY": str(directory)}


def test_credentials_become_variables_of_the_command(tmp_path: Path) -> None:
    environment = credentials(tmp_path, MITMGATE_AUDIT_KEY="a key = with $signs and 'quotes'\n", MITMGATE_REDIS_URL="r")
    words = [str(WITH_CREDENTIALS), "sh", "-c", 'printf "%s|%s" "$MITMGATE_AUDIT_KEY" "$MITMGATE_REDIS_URL"']
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "a key = with $signs and 'quotes'|r"


def test_without_credentials_nothing_starts(tmp_path: Path) -> None:
    for environment in (credentials(tmp_path), {"PATH": os.environ["PATH"]}):
        done = subprocess.run(
            [str(WITH_CREDENTIALS), "echo", "started"], env=environment, capture_output=True, check=False
        )
        assert done.returncode != 0
        assert done.stdout == b""


def test_the_credentials_of_the_unit_are_what_the_policy_reads() -> None:
    named = set(re.findall(r"^LoadCredential=(\w+):", UNIT.read_text(), re.MULTILINE))
    policy = (ROOT / "deploy" / "haproxy" / "policy.yaml").read_text()
    assert named == {"MITMGATE_AUDIT_KEY", "MITMGATE_REDIS_URL"}
    assert all(name in policy for name in named)
