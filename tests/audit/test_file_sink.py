"""The file sink, on real files: rotation, crashes, full disks, other processes."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mitmgate.audit.rotation import rotated
from mitmgate.audit.trail import AuditSettings, ChainSettings, FileSink, open_trail
from mitmgate.audit.verification import verify
from mitmgate.audit.writer import AuditTrail
from mitmgate.usage import UserError
from tests.audit.conftest import Open, wait_for

ROOT = Path(__file__).parents[2]
PADDING = "x" * 150


def emit(trail: AuditTrail, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        trail.emit({"event": "request", "number": number, "padding": PADDING})


def events_of(path: Path) -> list[dict[str, Any]]:
    """Every event of a log and its rotated files, in order; every line must be one."""
    files = [*(Path(old.path) for old in rotated(str(path))), path]
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def numbers_of(path: Path) -> list[int]:
    return [event["number"] for event in events_of(path) if event["event"] == "request"]


def kinds_of(path: Path) -> list[str]:
    return [event["event"] for event in events_of(path)]


def settings(path: Path, chain: ChainSettings | None = None, **more: Any) -> AuditSettings:
    return AuditSettings(sinks=(FileSink(str(path), **more),), chain=chain)


def test_json_lines_with_start_and_seal(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "made" / "here" / "audit.jsonl"
    trail = trail_of(settings(path))
    emit(trail, 100)
    assert trail.close()
    assert numbers_of(path) == list(range(100))
    assert kinds_of(path)[0] == "gateway-started"
    assert kinds_of(path)[-1] == "gateway-stopped"


def test_nobody_else_may_read_it(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "made" / "audit.jsonl"
    trail = trail_of(settings(path, ChainSettings(), rotate=5000))
    emit(trail, 100)
    assert trail.close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("chain", [None, ChainSettings(), ChainSettings(b"k" * 32)])
def test_rotation_under_load_loses_nothing(tmp_path: Path, trail_of: Open, chain: ChainSettings | None) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(settings(path, chain, rotate=50_000, keep=100))
    for start in range(0, 6000, 1000):
        emit(trail, 1000, start)
        assert trail.flush()
    assert trail.close()
    assert numbers_of(path) == list(range(6000))
    files = rotated(str(path))
    assert len(files) > 20
    assert all(Path(old.path).stat().st_size <= 50_000 for old in files)
    if chain is not None:
        assert not verify(str(path), [chain.key]).broken


@pytest.mark.parametrize("keep", [0, 1, 3])
@pytest.mark.parametrize("chain", [None, ChainSettings(b"k" * 32)])
def test_as_many_files_as_the_policy_keeps(
    tmp_path: Path, trail_of: Open, chain: ChainSettings | None, keep: int
) -> None:
    path = tmp_path / "audit.jsonl"
    for start in (0, 1000):
        trail = trail_of(settings(path, chain, rotate=20_000, keep=keep))
        emit(trail, 1000, start)
        assert trail.close()
    assert [old.number for old in rotated(str(path))] == list(range(keep, 0, -1))
    kept = numbers_of(path)
    assert kept == list(range(kept[0], 2000))
    assert "audit-recovered" not in kinds_of(path)
    if chain is not None:
        report = verify(str(path), [chain.key])
        assert not report.counts and report.files == keep + 1


def test_a_record_larger_than_a_file_is_written(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(settings(path, rotate=100, keep=50))
    emit(trail, 5)
    assert trail.close()
    assert numbers_of(path) == list(range(5))


def test_a_gap_in_the_numbers_is_filled(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(settings(path, rotate=20_000, keep=50))
    emit(trail, 500)
    assert trail.close()
    files = rotated(str(path))
    os.rename(f"{path}.1", f"{path}.{files[0].number + 10}")  # what a crash between two renames leaves is less
    before = len(files)
    trail = trail_of(settings(path, rotate=20_000, keep=50))
    emit(trail, 150, 500)
    assert trail.close()
    assert len(rotated(str(path))) > before
    assert sorted(numbers_of(path)) == list(range(650))


def test_logrotate_may_rename_it(tmp_path: Path, trail_of: Open) -> None:
    path, moved = tmp_path / "audit.jsonl", tmp_path / "moved"
    trail = trail_of(settings(path))
    emit(trail, 10)
    assert trail.flush()
    path.rename(moved)
    emit(trail, 10, 10)
    assert trail.close()
    assert numbers_of(moved) == list(range(10))
    assert numbers_of(path) == list(range(10, 20))


def test_it_may_be_removed_with_its_directory(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "made" / "audit.jsonl"
    trail = trail_of(settings(path))
    emit(trail, 10)
    assert trail.flush()
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    emit(trail, 10, 10)
    wait_for(lambda: trail.states()[0].failing, "the sink fails")
    path.parent.mkdir()
    assert trail.close()
    assert numbers_of(path) == list(range(10, 20))
    assert {"sink-failed", "sink-recovered"} <= set(kinds_of(path))


@pytest.mark.parametrize("chain", [None, ChainSettings(), ChainSettings(b"k" * 32)])
@pytest.mark.parametrize("torn", [1, 20, 99])
def test_a_torn_record_is_put_aside(tmp_path: Path, trail_of: Open, chain: ChainSettings | None, torn: int) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(settings(path, chain))
    emit(trail, 10)
    assert trail.close()
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"time":"2026-05-28T20:26:40.250Z","event":"request","user":"alice","x":"' + b"y" * 100)
        file.truncate(len(whole) + torn)
    trail = trail_of(settings(path, chain))
    emit(trail, 10, 10)
    assert trail.close()
    assert path.read_bytes().startswith(whole)
    assert numbers_of(path) == list(range(20))
    (recovered,) = [event for event in events_of(path) if event["event"] == "audit-recovered"]
    assert recovered["torn_bytes"] == torn
    assert (tmp_path / "audit.jsonl.torn").read_bytes().startswith(b'{"time"'[:torn])
    if chain is not None:
        assert not verify(str(path), [chain.key]).broken


def test_a_file_of_nothing_but_a_torn_record(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"\0" * 200_000)
    trail = trail_of(settings(path, ChainSettings()))
    emit(trail, 3)
    assert trail.close()
    assert numbers_of(path) == [0, 1, 2]
    assert (tmp_path / "audit.jsonl.torn").stat().st_size == 200_001


@pytest.mark.parametrize("make", ["directory", "below a file", "pipe", "device"])
def test_what_only_the_user_can_put_right(tmp_path: Path, make: str) -> None:
    path = tmp_path / "audit.jsonl"
    if make == "directory":
        path.mkdir()
    elif make == "pipe":
        os.mkfifo(path)
    elif make == "device":
        path.symlink_to("/dev/full")
    else:
        path.write_text("")
        path = path / "audit.jsonl"
    with pytest.raises(UserError, match=r"audit\.jsonl can't be written: "):
        open_trail(settings(path)).start()


WRITER = """
    import resource, sys
    from mitmgate.audit.trail import AuditSettings, ChainSettings, FileSink, open_trail

    path, chained, rotate, start, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    trail = open_trail(AuditSettings(
        sinks=(FileSink(path, rotate=rotate, keep=1000, fsync=0.0),),
        chain=ChainSettings(b"k" * 32) if chained == "chained" else None,
        queue=1_000_000,
    ))
"""
FOREVER = """
    trail.start()
    number = start
    while number < count:
        for _ in range(500):
            trail.emit({"event": "request", "number": number, "padding": "x" * 150})
            number += 1
        trail.flush()
        print(number, flush=True)
    print("end" if trail.close() else "lost", flush=True)
"""
FULL = """
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    trail.start()
    for number in range(500):
        trail.emit({"event": "request", "number": number, "padding": "x" * 150})
    while not trail.states()[0].failing:
        trail.flush(0.01)
    print("failing", flush=True)
    sys.stdin.readline()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert trail.flush()
    trail.close()
"""


def writer(path: Path, body: str, *arguments: object) -> "subprocess.Popen[str]":
    code = textwrap.dedent(WRITER) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "addons")},
    )


@pytest.mark.parametrize("chained", ["plain", "chained"])
def test_kill_9_leaves_whole_records_and_the_next_start_says_so(tmp_path: Path, trail_of: Open, chained: str) -> None:
    path = tmp_path / "audit.jsonl"
    process = writer(path, FOREVER, chained, 200_000, 0, 10_000_000)
    assert process.stdout is not None
    flushed = 0
    for _ in range(8):
        flushed = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    chain = ChainSettings(b"k" * 32) if chained == "chained" else None
    trail = trail_of(settings(path, chain, rotate=200_000, keep=1000))
    assert trail.close()
    numbers = numbers_of(path)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= flushed
    (recovered,) = [event for event in events_of(path) if event["event"] == "audit-recovered"]
    assert recovered["unclean"] is True
    assert "missing" not in recovered
    if chain is not None:
        assert not verify(str(path), [chain.key]).broken


def test_a_full_disk_is_declared_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    process = writer(path, FULL, "chained", 10_000_000, 0, 0)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "failing\n"
    assert path.read_bytes()[-1:] == b"\n" or path.stat().st_size == 0  # a part of a batch was taken back
    _, errors = process.communicate("go on\n", timeout=20)
    assert process.returncode == 0, errors
    assert errors.count("failed") == 1
    assert numbers_of(path) == list(range(500))
    assert {"sink-failed", "sink-recovered"} <= set(kinds_of(path))
    assert not verify(str(path), [b"k" * 32]).broken


@pytest.mark.parametrize("chained", ["plain", "chained"])
def test_several_processes_share_a_log_its_rotation_and_its_chain(tmp_path: Path, chained: str) -> None:
    path = tmp_path / "audit.jsonl"
    processes = [writer(path, FOREVER, chained, 100_000, start, start + 4000) for start in (0, 100_000, 200_000)]
    for process in processes:
        printed, errors = process.communicate(timeout=60)
        assert printed.endswith("end\n"), errors
    numbers = numbers_of(path)
    assert sorted(numbers) == [start + number for start in (0, 100_000, 200_000) for number in range(4000)]
    for start in (0, 100_000, 200_000):
        assert [n for n in numbers if start <= n < start + 4000] == list(range(start, start + 4000))
    assert len(rotated(str(path))) > 10
    assert "audit-recovered" not in kinds_of(path)
    if chained == "chained":
        assert not verify(str(path), [b"k" * 32]).broken


def test_a_worker_that_is_killed_does_not_harm_the_others(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    victim = writer(path, FOREVER, "chained", 100_000, 0, 10_000_000)
    other = writer(path, FOREVER, "chained", 100_000, 100_000_000, 100_005_000)
    assert victim.stdout is not None
    for _ in range(4):
        victim.stdout.readline()
    victim.kill()
    victim.communicate(timeout=10)
    printed, errors = other.communicate(timeout=60)
    assert printed.endswith("end\n"), errors
    assert [n for n in numbers_of(path) if n >= 100_000_000] == list(range(100_000_000, 100_005_000))
    assert not verify(str(path), [b"k" * 32]).broken
