"""Verify a chained log: every record in its place, from the oldest that was kept to the one that the head names.

Theory of operation. The walk goes from the first line of the oldest file to the last line of the log, whatever it
meets: a break is noted, with its kind and its place, and the walk takes up the chain behind it, so that no forgery is
covered by an honest gap. A gap is honest where the log itself declares it later: the gateway counts what it misses when
it starts, or when the log is taken away under it, and says so (`audit-recovered`) under the chain's key.
"""

import fcntl
import gzip
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic, sleep
from typing import BinaryIO, NamedTuple, cast

from mitmgate.audit import chain
from mitmgate.audit.chain import GENESIS, ChainedRecord, Head, Link
from mitmgate.audit.reading import TELL
from mitmgate.audit.rotation import segments
from mitmgate.usage import UserError

_ALL = sys.maxsize  # bytes: what is compressed grows no more
_PATIENCE = 5.0  # seconds to wait for the writer's lock
MOST = 100
"""Breaks that are told one by one; all are counted."""

_DECLARING = frozenset({"audit-dropped", "audit-recovered", "worker-lost"})
_OF_ALL = frozenset({"id", "event", "seq", "prev", "mac", "time", "worker", "v"})
_MARK = re.compile(r"audit log (.+?) ends with record ([0-9]{1,20}), sha256:([0-9a-f]{64})")


class Kind(StrEnum):
    """What can be wrong with a log."""

    CHANGED = "changed"  # a record's mac is not that of its bytes, or was made with another key
    UNCHAINED = "unchained"  # a line that is no record of the chain
    REPLACED = "replaced"  # a record that does not follow the one before it
    OUT_OF_ORDER = "out-of-order"  # a record for the second time, or in another's place
    MISSING = "missing"  # records are gone, and nobody says so
    CUT = "cut"  # the end is gone
    HEAD = "head"  # the head file is missing, changed, or of another log
    OLD = "old"  # a mark that is elsewhere names a record that the log has not, or has otherwise: it was put back
    ANCHOR = "anchor"  # a line of the anchors' file that their key has not signed
    BEGINNING = "beginning"  # the oldest files were taken away; the rest is whole
    DECLARED = "declared"  # records are missing, or may be, and the log itself says so


class Break(NamedTuple):
    """One thing that is wrong. place: file and line, or the file. what: a sentence without its subject."""

    kind: Kind
    place: str
    what: str


@dataclass(slots=True)
class Report:
    """What a verification found.

    records: chained and unchanged. breaks: the first MOST, in the order of the log. counts: of all, by kind. last: the
    end of what was walked. time: that of its last record.
    """

    records: int = 0
    files: int = 0
    breaks: list[Break] = field(default_factory=list)
    counts: Counter[Kind] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    last: Link | None = None
    time: str = ""

    def add(self, kind: Kind, place: str, what: str) -> None:
        """Note a break."""
        self.counts[kind] += 1
        if len(self.breaks) < MOST:
            self.breaks.append(Break(kind, place, what))

    @property
    def broken(self) -> bool:
        """Tell whether anything is wrong beside what the log declares itself, and old files that are gone."""
        return bool(self.counts.keys() - {Kind.DECLARED, Kind.BEGINNING})


@dataclass(slots=True)
class _Walk:
    """The state of a walk along the chain."""

    keys: Sequence[bytes | None]
    head: Head | None
    report: Report
    marks: dict[int, str]
    at: Link | None = None  # the furthest record so far
    begun: bool = False
    gaps: list[tuple[int, int, str]] = field(default_factory=list)  # first, last, place; not declared so far

    def step(self, line: bytes, place: str) -> None:
        found = chain.read_event(line)
        if found is None:
            self.report.add(Kind.UNCHAINED, place, "is no chained record: it was put in or changed")
            return
        record, event = found
        sound = chain.matches(self.keys, record.covered, record.mac)
        if not sound:
            self.report.add(Kind.CHANGED, place, "was changed, or chained with another key")
        if self._in_order(record, place):
            self.at = Link(record.seq, record.mac)
        if sound:
            self.report.records += 1
            self._read(event, record, place)

    def _in_order(self, record: ChainedRecord, place: str) -> bool:
        """Look at a record's place; False where the chain is not taken up behind it."""
        at, report = self.at, self.report
        if not self.begun:
            self.begun = True
            self._begin(record, place)
        elif at is not None and record.seq <= at.seq:
            what = f"is record {record.seq} after record {at.seq}: they were swapped, or one was put in"
            report.add(Kind.OUT_OF_ORDER, place, what)
            return False
        elif at is not None and record.seq != at.seq + 1:
            self.gaps.append((at.seq + 1, record.seq - 1, place))
        elif at is not None and record.prev != at.mac:
            what = "does not follow the record before it: one of the two was changed or put in"
            report.add(Kind.REPLACED, place, what)
        return True

    def _begin(self, record: ChainedRecord, place: str) -> None:
        head = self.head
        if record.seq == 1 and record.prev != GENESIS:
            self.report.add(Kind.REPLACED, place, "is the first record, but names one before it")
        if head is None:
            return
        if record.seq > head.first:
            what = f"is record {record.seq}: {_span(head.first, record.seq - 1)} before it"
            self.report.add(Kind.BEGINNING, place, what)
        if record.seq == head.first and record.prev != head.first_prev:
            self.report.add(Kind.HEAD, place, "is not the record that the head names as the oldest")

    def _read(self, event: dict[str, object], record: ChainedRecord, place: str) -> None:
        """Read what a sound record says of the log itself."""
        report = self.report
        report.time = str(event.get("time", ""))
        mark = self.marks.pop(record.seq, None)
        if mark is not None and mark != record.mac:
            report.add(Kind.OLD, place, f"is another record {record.seq} than the one that was marked")
        kind = event.get("event")
        if kind == "sink-failed" or kind in _DECLARING:
            facts = {key: event[key] for key in event if key not in _OF_ALL}
            said = ", ".join(f"{name}={value}" for name, value in facts.items())
            note = f"record {record.seq}, {event.get('time')}: {kind} ({said})"
            if kind == "sink-failed":
                report.notes.append(note)
            elif event.get("head_missing") or event.get("rolled_back"):
                what = "the head was missing or changed" if event.get("head_missing") else "older files were put back"
                report.add(Kind.HEAD, place, f"says that {what}: records before it may have been cut off")
            else:
                self._declare(event, place, note)

    def _declare(self, event: dict[str, object], place: str, note: str) -> None:
        """Take the gap that a record declares out of those that nobody has declared."""
        missing = event.get("missing")
        if isinstance(missing, int):
            match = next((gap for gap in self.gaps if gap[1] - gap[0] + 1 == missing), None)
            if match is not None:
                self.gaps.remove(match)
                note += f"; {_span(*match[:2])}, the gateway noticed at its next start"
        self.report.add(Kind.DECLARED, place, note)

    def end(self, path: str) -> None:
        """Compare the last record with the head, and the marks with what there is."""
        head, at, report = self.head, self.at, self.report
        for first, last, place in self.gaps:
            report.add(Kind.MISSING, place, f"is record {last + 1}: {_span(first, last)} before it")
        report.last = at
        if head is not None and head.last.seq:
            last = 0 if at is None else at.seq
            if last < head.last.seq and (at is not None or head.first <= head.last.seq):
                what = f"the end is cut off: {_span(max(last + 1, head.first), head.last.seq)}"
                report.add(Kind.CUT, path, what)
            if at is not None and at.seq == head.last.seq and at.mac != head.last.mac:
                report.add(Kind.HEAD, path, f"record {at.seq} is not the one that the head names as the last")
        for seq in sorted(self.marks):
            if head is None or seq >= head.first:
                what = f"the log was marked at record {seq}, and has none: it is an older one, put back"
                if at is None or seq > at.seq:
                    what += f"; {_span(1 if at is None else at.seq + 1, seq)}"
                report.add(Kind.OLD, path, what)


def _span(first: int, last: int) -> str:
    return f"record {first} is missing" if first == last else f"records {first} to {last} are missing"


def verify(
    path: str,
    keys: Sequence[bytes | None],
    *,
    with_head: bool = True,
    marks: dict[int, str] | None = None,
    read: Callable[[int], object] = lambda count: None,
) -> Report:
    """Verify a log with its rotated files. keys: those that may have chained it, None: no key.

    with_head=False is for a copy without its head file: a cut beginning or end is then not detected. marks: the macs of
    records that something else than the log remembers. read: told now and then how many bytes of the files were read
    since. A log that is being written may be verified. Raises UserError where there is nothing to verify, or a key is
    needed.
    """
    report = Report()
    head_path = f"{path}.head"
    with ExitStack() as opened:
        files, head = _open(path, head_path if with_head else None, keys, report, opened)
        report.files = len(files)
        walk = _Walk(keys, head, report, dict(marks or {}))
        for name, file, size in files:
            try:
                lines = _lines(file, size) if size == _ALL else _telling(_lines(file, size), read)
                _walk_file(walk, name, lines, last=name == path)
            except (OSError, EOFError, zlib.error) as error:
                report.add(Kind.CHANGED, name, f"can't be read to its end: {error}")
            if size == _ALL:
                read(os.path.getsize(name) if os.path.exists(name) else 0)
        if not walk.begun and head is None and not report.counts[Kind.HEAD] and not marks:
            raise UserError(f"{path} has no chained records: nothing can be verified")
        if with_head and head is None and not report.counts[Kind.HEAD]:
            report.add(Kind.HEAD, head_path, "is missing: whether the end was cut off can't be said")
        if list(keys) == [None] and not report.records and report.counts[Kind.CHANGED] and head is None:
            raise _needs_key(path)
        walk.end(path)
    return report


def _walk_file(walk: _Walk, name: str, lines: Iterator[bytes], last: bool) -> None:
    for number, line in enumerate(lines, 1):
        place = f"{name}:{number}"
        if line.endswith(b"\n"):
            walk.step(line[:-1], place)
        elif last:
            note = f"{name} ends in an incomplete record: a crash; the next start puts it aside"
            walk.report.notes.append(note)
        else:
            walk.report.add(Kind.CHANGED, place, "is incomplete")


def _needs_key(path: str) -> UserError:
    return UserError(f"{path} was chained with a key: give --key-env NAME, the variable that holds it")


def marks_in(text: str, name: str) -> dict[int, str]:
    """Find the marks of a log in a process log. name: of the log's file, without its folder."""
    return {int(seq): mac for path, seq, mac in _MARK.findall(text) if os.path.basename(path) == name}


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the lines of the first `size` bytes: what is appended meanwhile is not looked at."""
    left = size
    while left > 0:
        line = file.readline(left)
        if not line:
            return
        left -= len(line)
        yield line


def _telling(lines: Iterator[bytes], read: Callable[[int], object]) -> Iterator[bytes]:
    """Yield the lines; tell how many bytes they have."""
    count = 0
    for number, line in enumerate(lines, 1):
        yield line
        count += len(line)
        if number % TELL == 0:
            read(count)
            count = 0
    read(count)


def _open(
    path: str, head_path: str | None, keys: Sequence[bytes | None], report: Report, opened: ExitStack
) -> tuple[list[tuple[str, BinaryIO, int]], Head | None]:
    """Open every file of the log at one moment, between two of the writer's batches, and read the head."""
    current = opened.enter_context(_locked(path))
    try:
        files: list[tuple[str, BinaryIO, int]] = []
        for name in segments(path):
            if name.endswith(".gz"):
                files.append((name, cast(BinaryIO, opened.enter_context(gzip.open(name))), _ALL))  # noqa: SIM115 - is one
            else:
                file = opened.enter_context(open(name, "rb"))  # noqa: SIM115 - as above
                files.append((name, file, os.fstat(file.fileno()).st_size))
        files.append((path, current, os.fstat(current.fileno()).st_size))
        head = None
        if head_path is not None:
            if list(keys) == [None] and chain.is_keyed(head_path):
                raise _needs_key(path)
            try:
                head = chain.read_head(head_path, keys)
            except ValueError as error:
                report.add(Kind.HEAD, head_path, str(error))
        return files, head
    finally:
        fcntl.flock(current, fcntl.LOCK_UN)


def _locked(path: str) -> BinaryIO:
    """Open the log and lock out its writer; not a file that has been rotated away meanwhile."""
    deadline = monotonic() + _PATIENCE
    while monotonic() < deadline:
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed by verify
        except FileNotFoundError:
            raise UserError(f"there is no audit file {path}") from None
        except OSError as error:
            raise UserError(f"the audit file {path} can't be read: {error.strerror}") from error
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()
        sleep(0.005)
    raise UserError(f"{path} is locked by another process")
