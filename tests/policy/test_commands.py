"""`mitmgate check`: output and exit status."""

import json
from pathlib import Path

import pytest

from mitmgate.cli import main

POLICIES = Path(__file__).parents[2] / "policies"
CLEAN = """\
version: 1
identity:
  issuers:
    corp:
      issuer: https://corp.example
      audience: api
      algorithms: ES256
      keys: {jwks_url: "https://corp.example/"}
      max_lifetime: 1h
upstreams: {users: {endpoints: ["http://127.0.0.1:9001"]}}
rate_limits: {per-user: {limit: 5, window: 1s}}
routes: [{name: users, match: {prefix: /users}, upstream: users, rate_limits: per-user}]
audit: {sinks: [{file: a.jsonl}], chain: {key_env: MITMGATE_AUDIT_KEY}}
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITMGATE_DEV_SECRET", "s" * 32)
    monkeypatch.setenv("MITMGATE_AUDIT_KEY", "k" * 32)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    path = tmp_path / "clean.yaml"
    path.write_text(CLEAN)
    return path


@pytest.fixture
def warned(tmp_path: Path) -> Path:
    path = tmp_path / "warned.yaml"
    path.write_text(CLEAN + "mode: report\n")
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.yaml"
    path.write_text(CLEAN.replace("upstream: users", "upstream: usres"))
    return path


def test_a_clean_policy(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--strict", str(clean)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{clean}: ok, 1 route, 1 upstream, sha256:")
    assert line.count("\n") == 1


def test_warnings(warned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(warned)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert (
        first == f"{warned}:14:7: warning: mode: report admits what it only records; nothing is enforced [report-mode]"
    )
    assert second.startswith(f"{warned}: ok, ")
    assert main(["check", "--strict", str(warned)]) == 1


def test_errors_win_over_warnings_and_every_file_is_checked(
    clean: Path, warned: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--strict", str(broken), str(warned), str(clean)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{broken}:12:59: error: routes[0].upstream: no upstream has this name (found 'usres'; did you mean users?)"
    )
    assert f"{broken}: ok" not in "\n".join(lines)
    assert lines[-1].startswith(f"{clean}: ok")


def test_json(broken: Path, warned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "json", str(broken), str(warned)]) == 2
    bad, good = json.loads(capsys.readouterr().out)["files"]
    assert (bad["file"], bad["valid"], "digest" in bad) == (str(broken), False, False)
    assert bad["problems"] == [
        {
            "file": str(broken),
            "line": 12,
            "column": 59,
            "severity": "error",
            "path": "routes[0].upstream",
            "message": "no upstream has this name",
            "found": "'usres'",
            "hint": "did you mean users?",
        }
    ]
    assert (good["valid"], good["routes"], good["upstreams"]) == (True, 1, 1)
    assert [(problem["severity"], problem["code"]) for problem in good["problems"]] == [("warning", "report-mode")]


def test_acknowledged_warnings_pass_a_strict_pipeline(warned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warned.write_text(warned.read_text() + "acknowledge: {report-mode: a week of looking}\n")
    assert main(["check", "--strict", str(warned)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{warned}: ok, 1 route, 1 upstream, sha256:")
    assert line.endswith(", 1 acknowledged warning")
    assert main(["check", "--strict", "--format", "json", str(warned)]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["problems"] == []
    ((code, reason),) = [(meant["code"], meant["reason"]) for meant in file["acknowledged"]]
    assert (code, reason) == ("report-mode", "a week of looking")


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml:1:1: error: the policy can't be read: no such file" in capsys.readouterr().out


def test_no_file_at_all() -> None:
    assert main(["check"]) == 2


def test_our_own_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--strict", str(POLICIES / "production.yaml")]) == 0
    assert main(["check", "--strict", str(POLICIES / "demo.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The demo has a public route and no key for its audit chain, and says so.
    assert [line.rpartition(", ")[2] for line in lines if "demo.yaml" in line] == ["2 acknowledged warnings"]
