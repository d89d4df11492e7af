"""The command line: lazy commands, one message for a user's mistake, and run.sh on a machine without Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import mitmgate.cli
from mitmgate.cli import COMMANDS, Entry, group, main
from mitmgate.usage import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_its_help_works(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(group)
    assert isinstance(group.get_command(context, name), click.Command)
    assert main([name, "--help"]) == 0
    assert "Usage: mitmgate" in capsys.readouterr().out


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from mitmgate.cli import main; main(['--help']);"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('mitmproxy', 'pydantic', 'redis', 'rich')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "addons")},
    )
    assert done.stdout.rstrip().endswith("[]")
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "expected"), [(["chekc"], "did you mean 'check'?"), (["zzz"], "commands: demo,"), (["serve"], "--policy")]
)
def test_a_mistake_is_one_message_and_status_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_a_user_error_from_any_layer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "broken", Entry(f"{__name__}:broken", "Raise."))
    assert main(["broken", "user"]) == 2
    assert capsys.readouterr().err == "mitmgate: port 8080 is in use\n"
    assert main(["broken", "interrupt"]) == 130
    assert main(["broken", "three"]) == 3
    assert main(["broken", "exit"]) == 4


@click.command()
@click.argument("kind")
def broken(kind: str) -> int:
    """Fail in the way that is asked for."""
    if kind == "user":
        raise UserError("port 8080 is in use")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "exit":
        click.get_current_context().exit(4)
    return 3


def test_without_a_command_the_demo_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(mitmgate.cli, "group", type("Group", (), {"main": lambda self, args, **_: seen.append(args)})())
    main([])
    main(["--port", "9000"])
    main(["--help"])
    assert seen == [["demo"], ["demo", "--port", "9000"], ["--help"]]


def copy_of_run_sh(directory: Path) -> Path:
    shutil.copy(ROOT / "run.sh", directory)
    shutil.copytree(ROOT / ".lock", directory / ".lock")
    return directory / "run.sh"


def test_run_sh_says_what_is_missing_where_no_python_runs(tmp_path: Path) -> None:
    script = copy_of_run_sh(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "cmp", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    for shim in ("python3.14", "python3"):  # as a version manager's: on PATH, and not running
        (tools / shim).write_text("#!/bin/sh\nexit 127\n")
        (tools / shim).chmod(0o755)
    environment = {"PATH": str(tools), "HOME": str(tmp_path)}
    done = subprocess.run([str(script), "--version"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "no Python >= 3.12" in done.stderr
    named = subprocess.run(
        [str(script), "--version"],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHON": "/nowhere/python"},
    )
    assert named.returncode == 2
    assert "PYTHON=/nowhere/python" in named.stderr
    assert not (tmp_path / ".venv").exists()
