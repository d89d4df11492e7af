"""`mitmgate audit`: exit statuses, places, and nothing that a terminal would obey."""

import contextlib
import csv
import gzip
import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from mitmgate.audit.commands import audit
from mitmgate.audit.reading import events, follow, printable, size
from mitmgate.audit.trail import AuditSettings, ChainSettings, FileSink
from mitmgate.audit.verification import verify as verify_log
from mitmgate.usage import UserError
from tests.audit.conftest import Open
from tests.audit.facts import admitted, denied, event_of, unread

KEY = "a key of thirty-two bytes or more"


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments], env=environment)


@pytest.fixture
def log(tmp_path: Path, trail_of: Open) -> Path:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(AuditSettings(sinks=(FileSink(str(path), rotate=3000),), chain=ChainSettings(KEY.encode())))
    for facts, status in ((admitted(), 200), (denied(), 401), (unread("/\x1b[2J\x07\u202e?a=1", method="G\nT"), 400)):
        trail.emit(event_of(facts, 0.001, status))
    assert trail.close()
    assert Path(f"{path}.1").exists()
    return path


def test_verify_a_sound_log(log: Path) -> None:
    result = run("verify", log, "--key-env", "K", K=KEY)
    assert result.exit_code == 0
    assert result.output.startswith("OK: 5 sound records in 2 files, up to record 5 of 20")


def test_verify_names_every_broken_record(log: Path) -> None:
    rotated = Path(f"{log}.1")
    rotated.write_bytes(b'{"forged":1}\n' + rotated.read_bytes().replace(b'"alice"', b'"mallo"'))
    result = run("verify", log, "--key-env", "K", K=KEY)
    assert result.exit_code == 1
    unchained, changed, verdict = result.output.splitlines()
    assert unchained == f"unchained: {rotated}:1: is no chained record: it was put in or changed"
    assert changed == f"changed: {rotated}:3: was changed, or chained with another key"
    assert verdict.startswith("BROKEN (unchained 1, changed 1): 4 sound records in 2 files, up to record 5")


def test_each_verdict_has_a_status(log: Path, trail_of: Open) -> None:
    def status(*more: str) -> int:
        return run("verify", log, "--key-env", "K", *more, K=KEY).exit_code

    assert status() == 0
    settings = AuditSettings(sinks=(FileSink(str(log), rotate=3000),), chain=ChainSettings(KEY.encode()))
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert status() == 1  # cut, and nobody says so yet
    assert trail_of(settings).close()
    assert (status(), status("--accept", "declared"), status("--accept", "beginning")) == (3, 0, 3)
    kept = Path(f"{log}.1").read_bytes()
    Path(f"{log}.1").unlink()
    assert (status(), status("--accept", "beginning"), status("--accept", "declared")) == (4, 3, 4)
    assert status("--accept", "beginning", "--accept", "declared") == 0
    Path(f"{log}.1").write_bytes(kept.replace(b'"alice"', b'"mallo"'))
    assert status("--accept", "declared", "--accept", "beginning") == 1


def test_verify_with_the_marks_of_a_process_log(log: Path, tmp_path: Path) -> None:
    marks = tmp_path / "gateway.log"
    line = f"audit log {log} ends with record 9, sha256:{'0' * 64}"
    marks.write_text(f'{{"event": "{line}", "level": "info"}}\n')
    result = run("verify", log, "--key-env", "K", "--marks", marks, K=KEY)
    assert result.exit_code == 1
    assert "old: " in result.output and "is an older one, put back" in result.output
    missing = run("verify", log, "--key-env", "K", "--marks", tmp_path / "none", K=KEY)
    assert isinstance(missing.exception, UserError)


def test_verify_and_show_take_the_log_of_refused_requests_along(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(AuditSettings(sinks=(FileSink(str(path), rotate=20_000),), chain=ChainSettings(KEY.encode())))
    for number in range(200):
        trail.emit({"event": "request", "decision": "deny", "outcome": "denied", "path": f"/{number}/", "status": 401})
    assert trail.close()
    beside = tmp_path / "audit.refused.jsonl"
    result = run("verify", path, "--key-env", "K", K=KEY)
    assert result.exit_code == 0
    assert [line.partition(": ")[0] for line in result.output.splitlines()] == [str(path), str(beside)]
    shown = run("tail", path, "-n", "1000").output
    assert [f"/{number}/ " in shown for number in range(200)] == [True] * 200
    assert shown.count("gateway-stopped") == 1
    beside.write_bytes(beside.read_bytes().replace(b"/199/", b"/198/"))
    assert run("verify", path, "--key-env", "K", K=KEY).exit_code == 1


def test_verify_without_the_key(log: Path) -> None:
    for _ in range(2):
        result = run("verify", log)
        assert isinstance(result.exception, UserError)
        assert "chained with a key: give --key-env NAME" in str(result.exception)
        Path(f"{log}.head").unlink(missing_ok=True)  # nothing but the records tells then
    missing = run("verify", log, "--key-env", "NOT_SET_ANYWHERE")
    assert isinstance(missing.exception, UserError)
    assert "NOT_SET_ANYWHERE" in str(missing.exception)


def test_verify_with_an_earlier_key_too(log: Path) -> None:
    assert run("verify", log, "--key-env", "NEW", "--key-env", "OLD", NEW="new", OLD=KEY).exit_code == 0


def test_verify_an_unkeyed_log_says_what_that_is_worth(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    assert trail_of(AuditSettings(sinks=(FileSink(str(path)),), chain=ChainSettings())).close()
    result = run("verify", path)
    assert (result.exit_code, "can forge it" in result.output) == (0, True)


def test_verify_a_copy(log: Path) -> None:
    Path(f"{log}.head").unlink()
    assert run("verify", log, "--key-env", "K", K=KEY).exit_code == 1
    assert run("verify", log, "--key-env", "K", "--without-head", K=KEY).exit_code == 0


@pytest.mark.parametrize("command", ["verify", "tail", "show"])
def test_a_file_that_is_not_there(tmp_path: Path, command: str) -> None:
    result = run(command, tmp_path / "none.jsonl")
    assert isinstance(result.exception, UserError)
    assert "none.jsonl" in str(result.exception)


def test_the_command_line_gives_2_for_a_users_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mitmgate.cli import main

    assert main(["audit", "verify", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no audit file" in capsys.readouterr().err


def test_the_command_line_gives_1_for_a_broken_log(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mitmgate.cli import main

    with log.open("ab") as file:
        file.write(b"{}\n")
    monkeypatch.setenv("K", KEY)
    assert main(["audit", "verify", str(log), "--key-env", "K"]) == 1
    assert "BROKEN (" in capsys.readouterr().out


def test_tail(log: Path) -> None:
    result = run("tail", log)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == 5
    assert "GET /api/v1/users/7?page=2&token=[redacted]" in lines[1]
    assert "200 proxied" in lines[1] and "alice" in lines[1]
    assert "401 denied" in lines[2] and "token-expired" in lines[2]
    assert "gateway-stopped" in lines[4]
    assert len(run("tail", log, "-n", "2").output.splitlines()) == 2
    assert run("tail", log, "-n", "0").output == ""


@pytest.mark.parametrize("command", ["tail", "show"])
def test_a_terminal_gets_no_control_character(log: Path, command: str) -> None:
    output = run(command, log).output
    assert all(character.isprintable() or character == "\n" for character in output)
    one = run("show", log, "--status", 400).output
    assert "\\u001b[2J" in one and "\\u202e" in one and "G\\u000aT" in one


def test_brackets_are_text_not_markup(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(orjson.dumps({"event": "request", "outcome": "denied", "path": "/[red]x[/red]"}) + b"\n")
    assert "/[red]x[/red]" in run("tail", path).output
    assert "/[red]x[/red]" in run("show", path).output


@pytest.mark.parametrize(
    ("option", "value", "count"),
    [
        ("--user", "alice", 1),
        ("--user", "bob", 0),
        ("--reason", "token-expired", 1),
        ("--status", 401, 1),
        ("--request-id", "0123456789abcdef0123456789abcdef", 3),
    ],
)
def test_show_finds(log: Path, option: str, value: object, count: int) -> None:
    result = run("show", log, option, value, COLUMNS="250")
    assert result.exit_code == 0
    expected = {0: "No event matches.", 1: "duration_ms", 3: "request id"}
    assert expected[count] in result.output


def test_show_the_last(log: Path) -> None:
    assert "gateway-stopped" in run("show", log, "--last", 1).output
    assert "alice" not in run("show", log, "--last", 1).output


def test_show_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"nonsense\n[1]\n")
    assert "no events" in run("show", path).output


def test_following_goes_over_rotation(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"number":0}\n')
    waits = iter(range(1000))

    def append(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    def append_and_rotate(data: bytes) -> None:
        append(data)
        path.rename(f"{path}.1")

    steps: Iterator[tuple[Callable[[bytes], object], bytes]] = iter(
        [
            (append, b'{"number":1}\n{"numb'),
            (append, b'er":2}\nnonsense\n'),
            (append, b'{"number":3}\n'),
            (append_and_rotate, b'{"number":4}\n'),
            (path.write_bytes, b'{"number":5}\n'),
        ]
    )

    def wait() -> bool:
        next(waits)
        step = next(steps, None)
        if step is None:
            return False
        write, data = step
        write(data)
        return True

    assert [event["number"] for event in follow(str(path), wait)] == [1, 2, 3, 4, 5]


def test_tail_follows_a_log_that_is_written(tmp_path: Path, trail_of: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(AuditSettings(sinks=(FileSink(str(path), rotate=5000, keep=100),)))
    assert trail.flush()
    done = threading.Event()

    def write() -> None:
        for number in range(200):
            trail.emit({"event": "request", "outcome": "proxied", "path": f"/{number}/", "status": 200})
            if number % 10 == 0:
                trail.flush()
        trail.close()
        done.set()

    quiet = iter(range(3))

    def wait() -> bool:
        return not done.wait(0.002) or next(quiet, None) is not None

    monkeypatch.setattr("mitmgate.audit.commands._wait", wait)
    thread = threading.Thread(target=write)
    thread.start()
    output = run("tail", path, "-n", 0, "-f").output
    thread.join()
    assert "/199/" in output and "gateway-stopped" in output
    assert len(list(events(str(path)))) == 202


def test_printable() -> None:
    assert printable("plain é [x]") == "plain é [x]"
    assert printable("a\x1b\n\u2028") == "a\\u001b\\u000a\\u2028"
    assert printable(7) == "7"


def test_the_cause_of_a_failure_is_shown_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    event = {"event": "request", "outcome": "failed", "reason": "upstream-unreachable", "cause": "certificate-expired"}
    path.write_bytes(orjson.dumps(event) + b"\n")
    assert "upstream-unreachable (certificate-expired)" in run("tail", path).output


def test_verify_tells_how_far_it_has_come(log: Path) -> None:
    packed = Path(f"{log}.2.gz")
    packed.write_bytes(gzip.compress(Path(f"{log}.1").read_bytes()))
    Path(f"{log}.1").unlink()
    told: list[int] = []
    report = verify_log(str(log), [KEY.encode()], read=told.append)
    assert (report.broken, report.records, report.files) == (False, 5, 2)
    assert sum(told) == size(str(log)) == packed.stat().st_size + log.stat().st_size


def test_long_commands_show_a_bar_on_a_terminal(log: Path) -> None:
    own, other = pty.openpty()
    environment = {"K": KEY, "TERM": "xterm", "COLUMNS": "100", "PATH": "/usr/bin:/bin"}
    with open(log, "ab") as file:
        file.write(b" " * (51 << 20) + b"\n")  # enough to be worth a bar; no event
    command = [sys.executable, "-m", "mitmgate", "audit", "verify", str(log), "--key-env", "K"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=other) as process:
        os.close(other)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(own, 65536):
                shown += chunk
        output = b"" if process.stdout is None else process.stdout.read()
    os.close(own)
    assert process.wait(60) == 1
    assert b"BROKEN (unchained 1)" in output
    assert b"verifying" in shown and b"MB" in shown


def test_an_event_is_found_by_its_id_and_a_user_as_a_principal(log: Path) -> None:
    (found,) = [event for event in events(str(log)) if event.get("user") == "alice"]
    by_id = run("show", log, "--id", found["id"], "--format", "json").output.splitlines()
    assert [orjson.loads(line) for line in by_id] == [found]
    assert run("show", log, "--principal", "alice", "--format", "json").output.splitlines() == by_id
    assert run("tail", log, "--user", "alice", "--format", "json").output.splitlines() == by_id


def test_stats_as_csv(log: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("stats", log, "--format", "csv").output)))
    figures = {(row["figure"], row["name"]): row["value"] for row in rows}
    assert figures["", "requests"] == "3"
    assert figures["outcome top", "denied"] == "2"
    assert figures["user top", "alice"] == "1"
