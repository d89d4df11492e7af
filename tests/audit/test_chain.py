"""The hash chain: whatever is done to a log, its verification says so, and names the place."""

import gzip
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from mitmgate.audit import chain
from mitmgate.audit.chain import GENESIS, START, Head, Link
from mitmgate.audit.reading import events
from mitmgate.audit.trail import AuditSettings, ChainSettings, FileSink
from mitmgate.audit.verification import Kind, Report, marks_in, verify
from mitmgate.usage import UserError
from tests.audit.conftest import Open

KEY = b"a key of thirty-two bytes or more"
KEYS = [KEY, None]
IDS = ["keyed", "unkeyed"]


@pytest.fixture(params=KEYS, ids=IDS)
def log(request: pytest.FixtureRequest, tmp_path: Path, trail_of: Open) -> "Log":
    """A sound log of some twenty records in three files, written in two runs."""
    path = tmp_path / "audit.jsonl"
    log = Log(path, request.param)
    for start in (0, 8):
        trail = trail_of(log.settings)
        for number in range(start, start + 8):
            trail.emit({"event": "request", "number": number, "user": "alice"})
        assert trail.close()
    assert problem_of(log.verify()) == ""
    return log


def problem_of(report: Report) -> str:
    """Return the first break that the log does not declare itself; "" where there is none."""
    return next((f"{at.place} {at.what}" for at in report.breaks if at.kind is not Kind.DECLARED), "")


def kinds(report: Report) -> dict[str, int]:
    return {kind.value: count for kind, count in report.counts.items()}


class Log:
    def __init__(self, path: Path, key: bytes | None) -> None:
        self.path = path
        self.key = key
        self.settings = AuditSettings(sinks=(FileSink(str(path), rotate=1500, keep=10),), chain=ChainSettings(key))

    @property
    def files(self) -> list[Path]:
        names = [Path(f"{self.path}.{number}") for number in range(10, 0, -1)]
        return [name for name in [*names, self.path] if name.exists()]

    def verify(self) -> Report:
        return verify(str(self.path), [self.key])

    def lines(self) -> list[list[bytes]]:
        return [file.read_bytes().splitlines(keepends=True) for file in self.files]

    def write(self, lines: list[list[bytes]]) -> None:
        for file, content in zip(self.files, lines, strict=True):
            file.write_bytes(b"".join(content))

    def mutated(self, mutate: Callable[[list[list[bytes]]], None]) -> Report:
        """Verify a mutation of the log, then restore it."""
        before = self.lines()
        after = [list(content) for content in before]
        mutate(after)
        self.write(after)
        report = self.verify()
        self.write(before)
        return report

    def places(self) -> list[tuple[int, int]]:
        return [(at, number) for at, content in enumerate(self.lines()) for number in range(len(content))]


def test_a_sound_log(log: Log) -> None:
    report = log.verify()
    assert (problem_of(report), report.records, report.notes) == ("", 20, [])
    assert report.files == len(log.files) >= 3
    events = [json.loads(line) for content in log.lines() for line in content]
    assert [event["seq"] for event in events] == list(range(1, 21))
    assert events[0]["prev"] == GENESIS
    assert [event["prev"] for event in events[1:]] == [event["mac"] for event in events[:-1]]


def test_every_removal_is_detected(log: Log) -> None:
    for at, number in log.places():

        def remove(lines: list[list[bytes]], at: int = at, number: int = number) -> None:
            del lines[at][number]

        report = log.mutated(remove)
        assert problem_of(report) != "", (at, number)
        assert "missing" in problem_of(report)


def test_every_modification_is_detected(log: Log) -> None:
    for at, number in log.places():
        line = log.lines()[at][number]
        for position in range(0, len(line) - 1, 7):
            changed = bytearray(line)
            changed[position] ^= 1

            def change(
                lines: list[list[bytes]], at: int = at, number: int = number, to: bytes = bytes(changed)
            ) -> None:
                lines[at][number] = to

            assert problem_of(log.mutated(change)) != "", (at, number, position)


def test_a_modification_is_named_by_file_and_line(log: Log) -> None:
    def change(lines: list[list[bytes]]) -> None:
        lines[1][2] = lines[1][2].replace(b"alice", b"alicf")

    problem = problem_of(log.mutated(change))
    assert problem != ""
    assert problem.startswith(f"{log.files[1]}:3 was changed")


def test_every_swap_is_detected(log: Log) -> None:
    places = log.places()
    for first, second in pairwise(places):

        def swap(lines: list[list[bytes]], a: tuple[int, int] = first, b: tuple[int, int] = second) -> None:
            lines[a[0]][a[1]], lines[b[0]][b[1]] = lines[b[0]][b[1]], lines[a[0]][a[1]]

        assert problem_of(log.mutated(swap)) != "", (first, second)


def test_every_repetition_and_insertion_is_detected(log: Log) -> None:
    foreign = b'{"event":"request","user":"mallory"}\n'
    for at, number in log.places():
        for put in (log.lines()[at][number], foreign, b"\n"):

            def insert(lines: list[list[bytes]], at: int = at, number: int = number, put: bytes = put) -> None:
                lines[at].insert(number, put)

            assert problem_of(log.mutated(insert)) != "", (at, number, put)

    def append(lines: list[list[bytes]]) -> None:
        lines[-1].append(foreign)

    assert problem_of(log.mutated(append)) != ""


def test_every_cut_tail_is_detected(log: Log) -> None:
    places = log.places()
    for keep in range(len(places)):

        def cut(lines: list[list[bytes]], keep: int = keep) -> None:
            for at, number in reversed(places[keep:]):
                del lines[at][number]

        problem = problem_of(log.mutated(cut))
        assert problem != "", keep
        assert "cut off" in problem


def test_every_cut_beginning_is_detected(log: Log) -> None:
    places = log.places()
    for drop in range(1, len(places)):

        def cut(lines: list[list[bytes]], drop: int = drop) -> None:
            for at, number in reversed(places[:drop]):
                del lines[at][number]

        assert problem_of(log.mutated(cut)) != "", drop


def test_every_missing_file_is_detected(log: Log) -> None:
    for file in log.files[:-1]:
        moved = file.with_name("moved")
        file.rename(moved)
        assert problem_of(log.verify()) != ""
        moved.rename(file)


def test_a_cut_tail_is_declared_by_the_next_start(log: Log, trail_of: Open) -> None:
    lines = log.lines()
    del lines[-1][-2:]
    log.write(lines)
    trail = trail_of(log.settings)
    assert trail.close()
    report = log.verify()
    assert not report.broken
    (declared,) = [at.what for at in report.breaks]
    assert "records 19 to 20 are missing, the gateway noticed at its next start" in declared


def test_a_removed_head_is_detected_also_after_the_next_start(log: Log, trail_of: Open) -> None:
    head = Path(f"{log.path}.head")
    head.unlink()
    problem = problem_of(log.verify())
    assert problem != "" and "head is missing" in problem
    lines = log.lines()
    del lines[-1][-1]
    log.write(lines)
    trail = trail_of(log.settings)
    assert trail.close()
    problem = problem_of(log.verify())
    assert problem != "" and "the head was missing or changed" in problem


def test_a_changed_head_is_detected(log: Log) -> None:
    head = Path(f"{log.path}.head")
    line = head.read_bytes()
    for position in range(len(line) - 1):
        changed = bytearray(line)
        changed[position] ^= 1
        head.write_bytes(bytes(changed))
        assert problem_of(log.verify()) != "", position
    for cut in (b"", line[:50], b"{}", b"[]"):
        head.write_bytes(cut)
        assert problem_of(log.verify()) != ""
    head.write_bytes(line)
    assert problem_of(log.verify()) == ""


def test_a_head_of_another_key_is_detected(log: Log) -> None:
    head = Head(Link(20, "0" * 64), 1, GENESIS)
    chain.write_head(f"{log.path}.head", head, b"another")
    if log.key is None:
        with pytest.raises(UserError, match="chained with a key: give --key-env"):
            log.verify()
    else:
        assert problem_of(log.verify()) != ""


def test_the_wrong_key_is_told(log: Log) -> None:
    report = verify(str(log.path), [b"wrong"])
    assert problem_of(report) != "" and "another key" in problem_of(report)


def test_a_key_may_be_changed(log: Log, trail_of: Open) -> None:
    new = ChainSettings(b"the new key")
    trail = trail_of(AuditSettings(sinks=log.settings.sinks, chain=new))
    assert trail.close()
    # The old key's head is not believed by the new one's gateway: that is declared, and stays to be explained.
    report = verify(str(log.path), [log.key, new.key])
    assert problem_of(report) != "" and "head was missing or changed" in problem_of(report)


def test_a_copy_without_its_head(log: Log, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(b"".join(line for content in log.lines()[1:] for line in content))
    report = verify(str(copy), [log.key], with_head=False)
    assert problem_of(report) == ""
    assert report.records == len([line for content in log.lines()[1:] for line in content])


def test_records_from_before_the_chain(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    plain = AuditSettings(sinks=(FileSink(str(path)),))
    chained = AuditSettings(sinks=(FileSink(str(path)),), chain=ChainSettings(KEY))
    for settings in (plain, chained):
        trail = trail_of(settings)
        assert trail.close()
    # Anybody can have written them: that they were there before the chain was can't be shown.
    assert kinds(verify(str(path), [KEY]))["unchained"] == 2
    trail = trail_of(plain)  # switched off again: a hole in the chain
    assert trail.close()
    assert kinds(verify(str(path), [KEY]))["unchained"] == 4


def test_a_log_that_grew_beyond_its_head_is_sound(log: Log) -> None:
    """A process that is killed between the two writes leaves this."""
    line = log.path.read_bytes().splitlines()[-1]
    last = chain.read(line)
    assert last is not None
    (record,), _ = chain.link(log.key, Link(last.seq, last.mac), [b'{"event":"request"}'])
    with log.path.open("ab") as file:
        file.write(record + b"\n")
    assert problem_of(log.verify()) == ""


def test_a_torn_end_is_noted(log: Log) -> None:
    with log.path.open("ab") as file:
        file.write(b'{"event":"req')
    report = log.verify()
    assert problem_of(report) == ""
    assert len(report.notes) == 1 and "incomplete" in report.notes[0]


def test_gaps_that_the_log_declares_are_noted(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(AuditSettings(sinks=(FileSink(str(path)),), chain=ChainSettings(KEY)))
    trail.emit({"event": "audit-dropped", "time": "now", "count": 3, "total": 3})
    assert trail.close()
    report = verify(str(path), [KEY])
    assert problem_of(report) == ""
    assert [(at.kind, at.what) for at in report.breaks] == [
        (Kind.DECLARED, "record 2, now: audit-dropped (count=3, total=3)")
    ]
    assert not report.broken


def test_nothing_to_verify(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with pytest.raises(UserError, match="there is no audit file"):
        verify(str(path), [KEY])
    path.write_bytes(b'{"event":"request"}\n')
    with pytest.raises(UserError, match="no chained records"):
        verify(str(path), [KEY])


def test_a_log_whose_chain_was_stripped(log: Log) -> None:
    for file in log.files:
        stripped = [
            {name: value for name, value in json.loads(line).items() if name not in {"seq", "prev", "mac"}}
            for line in file.read_bytes().splitlines()
        ]
        file.write_text("".join(json.dumps(event) + "\n" for event in stripped))
    assert problem_of(log.verify()) != ""


def copied(log: Log, name: str) -> Path:
    folder = log.path.parent / name
    folder.mkdir()
    for file in log.path.parent.glob("audit.jsonl*"):
        shutil.copy2(file, folder)
    return folder


def put_back(log: Log, folder: Path) -> None:
    for file in log.path.parent.glob("audit.jsonl*"):
        file.unlink()
    for file in folder.iterdir():
        shutil.copy2(file, log.path.parent)


def test_an_old_copy_with_the_old_head_is_told_by_the_process_log(
    log: Log, trail_of: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """What a chain beside its own log can't show: a mark that is kept elsewhere can."""
    kept = copied(log, "kept")
    caplog.set_level("INFO", "mitmgate")
    trail = trail_of(log.settings)
    assert trail.close()
    marks = marks_in(caplog.text, "audit.jsonl")
    assert max(marks) == 22
    assert problem_of(verify(str(log.path), [log.key], marks=marks)) == ""
    put_back(log, kept)
    assert problem_of(log.verify()) == "", "by itself it is whole"
    assert "is not detected by these two alone" in str(chain.__doc__)
    report = verify(str(log.path), [log.key], marks=marks)
    assert report.broken and kinds(report)["old"] == sum(seq > 20 for seq in marks)  # a rotation may mark 20
    assert "is an older one, put back" in problem_of(report)
    # Grown again, it is another record 22 than the one that was marked.
    trail = trail_of(log.settings)
    trail.emit({"event": "request", "user": "mallory"})
    assert trail.close()
    report = verify(str(log.path), [log.key], marks=marks)
    assert kinds(report)["old"] >= 1
    assert not any(marks_in(caplog.text, name) for name in ("other.jsonl", "jsonl"))


def test_an_old_copy_that_is_put_back_under_a_gateway_that_runs_is_told(log: Log, trail_of: Open) -> None:
    kept = copied(log, "kept")
    trail = trail_of(log.settings)
    for number in range(4):
        trail.emit({"event": "request", "number": number})
    assert trail.flush()
    put_back(log, kept)
    trail.emit({"event": "request", "number": 5})
    assert trail.close()
    report = log.verify()
    assert report.broken
    assert "older files were put back" in problem_of(report)


def test_the_walk_goes_on_behind_a_break(log: Log, trail_of: Open) -> None:
    """An honest gap covers no forgery behind it, and each break is named with its place."""
    lines = log.lines()
    del lines[-1][-1:]
    log.write(lines)
    trail = trail_of(log.settings)  # declares the gap
    for number in range(10):
        trail.emit({"event": "request", "number": number, "user": "bob"})
    assert trail.close()
    assert kinds(log.verify()) == {"declared": 1}
    lines = log.lines()
    lines[0].insert(0, b'{"event":"request","user":"mallory"}\n')  # before record 1
    lines[1][0] = lines[1][0].replace(b"alice", b"alicf")
    lines[-1].insert(1, b'{"event":"request","user":"mallory"}\n')
    del lines[-2][1]
    lines[-2].append(lines[0][1])
    log.write(lines)
    report = log.verify()
    assert kinds(report) == {"unchained": 2, "changed": 1, "declared": 1, "out-of-order": 1, "missing": 1}
    assert next(at.place for at in report.breaks if at.kind is Kind.UNCHAINED) == f"{log.files[0]}:1"
    assert report.broken
    assert report.last is not None and report.last.seq == 33


def test_a_thousand_breaks_are_counted_and_a_hundred_named(log: Log) -> None:
    with log.path.open("ab") as file:
        file.write(b"{}\n" * 1000)
    report = log.verify()
    assert kinds(report) == {"unchained": 1000}
    assert len(report.breaks) == 100


def test_old_files_that_are_gone_are_named_until_they_would_be_gone_anyway(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    settings = AuditSettings(sinks=(FileSink(str(path), rotate=1500, keep=3),), chain=ChainSettings(KEY))
    trail = trail_of(settings)
    number = 0

    def files() -> list[Path]:
        return sorted(tmp_path.glob("audit.jsonl.[0-9]*"))

    def write_until(count: int) -> None:
        nonlocal number
        while len(files()) < count:
            number += 1
            trail.emit({"event": "request", "number": number, "user": "alice"})
            assert trail.flush()

    write_until(2)
    (tmp_path / "audit.jsonl.2").unlink()
    assert kinds(verify(str(path), [KEY])) == {"beginning": 1}
    write_until(2)  # rotated once more: that must not hide it
    report = verify(str(path), [KEY])
    assert kinds(report) == {"beginning": 1} and not report.broken
    assert "are missing before it" in report.breaks[0].what
    write_until(3)
    first = files()[-1].read_bytes()
    while files()[-1].read_bytes() == first:  # now the gateway itself removes the oldest
        number += 1
        trail.emit({"event": "request", "number": number})
        assert trail.flush()
    assert kinds(verify(str(path), [KEY])) == {}


@pytest.mark.parametrize("name", ["audit.jsonl-20261130", "audit.jsonl.2026-11-30", "audit.jsonl-20261130.gz"])
@pytest.mark.parametrize("running", [True, False], ids=["under the gateway", "between two starts"])
def test_a_log_that_is_rotated_by_date_is_whole(tmp_path: Path, trail_of: Open, name: str, running: bool) -> None:
    """As logrotate does it: the file gets another name, and is compressed; the chain goes on in a new one."""
    path = tmp_path / "audit.jsonl"
    settings = AuditSettings(sinks=(FileSink(str(path)),), chain=ChainSettings(KEY))
    trail = trail_of(settings)
    for number in range(5):
        trail.emit({"event": "request", "number": number})
    assert trail.flush()
    if not running:
        assert trail.close()
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    else:
        path.rename(tmp_path / name)
    if not running:
        trail = trail_of(settings)
    for number in range(5):
        trail.emit({"event": "request", "number": number})
    assert trail.close()
    report = verify(str(path), [KEY])
    assert kinds(report) == {}, report.breaks
    assert report.files == 2
    assert len(list(events(str(path)))) == report.records
    (tmp_path / name).unlink()
    assert kinds(verify(str(path), [KEY])) == {"beginning": 1}


def test_a_file_from_the_middle_that_is_gone_is_a_break(log: Log) -> None:
    log.files[1].unlink()
    report = log.verify()
    assert report.broken and kinds(report) == {"missing": 1}


def test_links() -> None:
    (line,), first = chain.link(KEY, START, [b'{"a":1}'])
    assert line.startswith(b'{"a":1,"seq":1,"prev":"' + GENESIS.encode())
    record = chain.read(line)
    assert record is not None
    assert (record.seq, record.prev, record.mac) == (1, GENESIS, first.mac)
    assert chain.matches([None, KEY], record.covered, record.mac)
    assert not chain.matches([None], record.covered, record.mac)
    assert not chain.matches([KEY], record.covered, "é" * 64)
    for other in (b"", b"{}", b"[]", b"nonsense", line[:-1], line + b" ", line.replace(b'"seq":1', b'"seq":"1"')):
        assert chain.read(other) is None


def test_the_key_comes_from_the_environment() -> None:
    assert chain.key_from_env("K", "secret") == b"secret"
    for value in (None, ""):
        with pytest.raises(UserError, match="environment variable K"):
            chain.key_from_env("K", value)
