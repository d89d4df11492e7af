"""The hash chain: whatever is done to a log, its verification says so, and names the place."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from mitmgate.audit import chain
from mitmgate.audit.chain import GENESIS, START, Head, Link
from mitmgate.audit.opening import AuditSettings, ChainSettings, FileSink
from mitmgate.audit.verification import Report, verify
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
    assert log.verify().problem is None
    return log


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
    assert (report.problem, report.records, report.notes) == (None, 20, [])
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
        assert report.problem is not None, (at, number)
        assert "missing" in report.problem


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

            assert log.mutated(change).problem is not None, (at, number, position)


def test_a_modification_is_named_by_file_and_line(log: Log) -> None:
    def change(lines: list[list[bytes]]) -> None:
        lines[1][2] = lines[1][2].replace(b"alice", b"alicf")

    problem = log.mutated(change).problem
    assert problem is not None
    assert problem.startswith(f"{log.files[1]}:3 was changed")


def test_every_swap_is_detected(log: Log) -> None:
    places = log.places()
    for first, second in pairwise(places):

        def swap(lines: list[list[bytes]], a: tuple[int, int] = first, b: tuple[int, int] = second) -> None:
            lines[a[0]][a[1]], lines[b[0]][b[1]] = lines[b[0]][b[1]], lines[a[0]][a[1]]

        assert log.mutated(swap).problem is not None, (first, second)


def test_every_repetition_and_insertion_is_detected(log: Log) -> None:
    foreign = b'{"event":"request","user":"mallory"}\n'
    for at, number in log.places():
        for put in (log.lines()[at][number], foreign, b"\n"):
            if at == 0 and number == 0 and put != log.lines()[0][0]:
                continue  # before the first: below

            def insert(lines: list[list[bytes]], at: int = at, number: int = number, put: bytes = put) -> None:
                lines[at].insert(number, put)

            assert log.mutated(insert).problem is not None, (at, number, put)

    def append(lines: list[list[bytes]]) -> None:
        lines[-1].append(foreign)

    assert log.mutated(append).problem is not None


def test_every_cut_tail_is_detected(log: Log) -> None:
    places = log.places()
    for keep in range(len(places)):

        def cut(lines: list[list[bytes]], keep: int = keep) -> None:
            for at, number in reversed(places[keep:]):
                del lines[at][number]

        problem = log.mutated(cut).problem
        assert problem is not None, keep
        assert "cut off" in problem


def test_every_cut_beginning_is_detected(log: Log) -> None:
    places = log.places()
    for drop in range(1, len(places)):

        def cut(lines: list[list[bytes]], drop: int = drop) -> None:
            for at, number in reversed(places[:drop]):
                del lines[at][number]

        assert log.mutated(cut).problem is not None, drop


def test_every_missing_file_is_detected(log: Log) -> None:
    for file in log.files[:-1]:
        moved = file.with_name("moved")
        file.rename(moved)
        assert log.verify().problem is not None
        moved.rename(file)


def test_a_cut_tail_stays_visible_after_the_next_start(log: Log, trail_of: Open) -> None:
    lines = log.lines()
    del lines[-1][-2:]
    log.write(lines)
    trail = trail_of(log.settings)
    assert trail.close()
    problem = log.verify().problem
    assert problem is not None
    assert "records 19 to 20 are missing; the gateway noticed at its next start" in problem


def test_a_removed_head_is_detected_also_after_the_next_start(log: Log, trail_of: Open) -> None:
    head = Path(f"{log.path}.head")
    head.unlink()
    problem = log.verify().problem
    assert problem is not None and "head is missing" in problem
    lines = log.lines()
    del lines[-1][-1]
    log.write(lines)
    trail = trail_of(log.settings)
    assert trail.close()
    problem = log.verify().problem
    assert problem is not None and "the head was missing or changed" in problem


def test_a_changed_head_is_detected(log: Log) -> None:
    head = Path(f"{log.path}.head")
    line = head.read_bytes()
    for position in range(len(line) - 1):
        changed = bytearray(line)
        changed[position] ^= 1
        head.write_bytes(bytes(changed))
        assert log.verify().problem is not None, position
    for cut in (b"", line[:50], b"{}", b"[]"):
        head.write_bytes(cut)
        assert log.verify().problem is not None
    head.write_bytes(line)
    assert log.verify().problem is None


def test_a_head_of_another_key_is_detected(log: Log) -> None:
    head = Head(Link(20, "0" * 64), 1, GENESIS)
    chain.write_head(f"{log.path}.head", head, b"another")
    assert log.verify().problem is not None


def test_the_wrong_key_is_told(log: Log) -> None:
    report = verify(str(log.path), [b"wrong"])
    assert report.problem is not None and "another key" in report.problem


def test_a_key_may_be_changed(log: Log, trail_of: Open) -> None:
    new = ChainSettings(b"the new key")
    trail = trail_of(AuditSettings(sinks=log.settings.sinks, chain=new))
    assert trail.close()
    # The old key's head is not believed by the new one's gateway: that is declared, and stays to be explained.
    report = verify(str(log.path), [log.key, new.key])
    assert report.problem is not None and "head was missing or changed" in report.problem


def test_a_copy_without_its_head(log: Log, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(b"".join(line for content in log.lines()[1:] for line in content))
    report = verify(str(copy), [log.key], with_head=False)
    assert report.problem is None
    assert report.records == len([line for content in log.lines()[1:] for line in content])


def test_records_from_before_the_chain(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    plain = AuditSettings(sinks=(FileSink(str(path)),))
    chained = AuditSettings(sinks=(FileSink(str(path)),), chain=ChainSettings(KEY))
    for settings in (plain, chained):
        trail = trail_of(settings)
        assert trail.close()
    assert verify(str(path), [KEY]).problem is None
    trail = trail_of(plain)  # switched off again: a hole in the chain
    assert trail.close()
    assert verify(str(path), [KEY]).problem is not None


def test_a_log_that_grew_beyond_its_head_is_sound(log: Log) -> None:
    """A process that is killed between the two writes leaves this."""
    line = log.path.read_bytes().splitlines()[-1]
    last = chain.read(line)
    assert last is not None
    (record,), _ = chain.link(log.key, Link(last.seq, last.mac), [b'{"event":"request"}'])
    with log.path.open("ab") as file:
        file.write(record + b"\n")
    assert log.verify().problem is None


def test_a_torn_end_is_noted(log: Log) -> None:
    with log.path.open("ab") as file:
        file.write(b'{"event":"req')
    report = log.verify()
    assert report.problem is None
    assert len(report.notes) == 1 and "incomplete" in report.notes[0]


def test_gaps_that_the_log_declares_are_noted(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(AuditSettings(sinks=(FileSink(str(path)),), chain=ChainSettings(KEY)))
    trail.emit({"event": "audit-dropped", "time": "now", "count": 3, "total": 3})
    assert trail.close()
    report = verify(str(path), [KEY])
    assert report.problem is None
    assert report.notes == ["record 2, now: audit-dropped (count=3, total=3)"]


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
    assert log.verify().problem is not None


def test_an_old_copy_with_the_old_head_is_not_detected_and_the_docs_say_so(log: Log, trail_of: Open) -> None:
    """What a chain beside its own log can't show; a second sink can."""
    kept = log.path.parent / "kept"
    kept.mkdir()
    for file in log.path.parent.glob("audit.jsonl*"):
        shutil.copy2(file, kept)
    trail = trail_of(log.settings)
    assert trail.close()
    for file in log.path.parent.glob("audit.jsonl*"):
        file.unlink()
    for file in kept.iterdir():
        shutil.copy2(file, log.path.parent)
    assert log.verify().problem is None
    assert "is not detected" in str(chain.__doc__)


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
