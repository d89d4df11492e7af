"""Verify a chained log: every record in its place, from the oldest that was kept to the one that the head names."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import BinaryIO

import orjson

from mitmgate.audit import chain
from mitmgate.audit.chain import GENESIS, ChainedRecord, Head, Link
from mitmgate.audit.rotation import rotated
from mitmgate.usage import UserError

_PATIENCE = 5.0  # seconds to wait for the writer's lock
_NOTABLE = frozenset({"audit-dropped", "audit-recovered", "sink-failed"})


@dataclass(slots=True)
class Report:
    """What a verification found.

    records: chained and sound. problem: the first thing that is wrong, with its place, None: nothing. notes: gaps that
    the log itself declares.
    """

    records: int = 0
    files: int = 0
    problem: str | None = None
    notes: list[str] = field(default_factory=list)


class _BrokenError(Exception):
    """Why the log is not sound; the message says where."""


@dataclass(slots=True)
class _Walk:
    """The state of a walk along the chain."""

    keys: Sequence[bytes | None]
    head: Head | None
    report: Report
    at: Link | None = None  # the last sound record
    unchained: int = 0

    def step(self, line: bytes) -> None:
        record = chain.read(line)
        if record is None:
            if self.at is not None:
                raise _BrokenError("is no chained record: it was put in or changed")
            self.unchained += 1
            return
        event = orjson.loads(line)
        if self.at is None:
            self._begin(record)
        elif record.seq != self.at.seq + 1:
            raise _BrokenError(_gap(self.at.seq, record.seq, str(event.get("event"))))
        elif record.prev != self.at.mac:
            raise _BrokenError("does not follow the record before it: one of the two was changed or put in")
        if not chain.matches(self.keys, record.covered, record.mac):
            raise _BrokenError("was changed, or chained with another key")
        self.at = Link(record.seq, record.mac)
        self.report.records += 1
        if event.get("event") in _NOTABLE:
            self._note(event)

    def _begin(self, record: ChainedRecord) -> None:
        head = self.head
        if record.seq == 1:
            if record.prev != GENESIS:
                raise _BrokenError("is the first record, but names one before it")
        elif self.unchained:
            raise _BrokenError(f"is record {record.seq}, but the lines before it are not chained")
        if head is None:
            return
        if record.seq > head.first:
            raise _BrokenError(
                f"is record {record.seq}: records {head.first} to {record.seq - 1} are missing before it"
            )
        if record.seq == head.first and record.prev != head.first_prev:
            raise _BrokenError("is not the record that the head names as the oldest")

    def _note(self, event: dict[str, object]) -> None:
        if event.get("head_missing"):
            raise _BrokenError("says that the head was missing or changed: records before it may have been cut off")
        facts = {key: event[key] for key in event if key not in {"id", "event", "seq", "prev", "mac", "time"}}
        said = ", ".join(f"{name}={value}" for name, value in facts.items())
        self.report.notes.append(f"record {event['seq']}, {event.get('time')}: {event['event']} ({said})")

    def end(self, path: str) -> None:
        """Compare the last record with the head."""
        head, at = self.head, self.at
        if head is None or head.last.seq == 0:
            return
        last = 0 if at is None else at.seq
        if last < head.last.seq and (at is not None or head.first <= head.last.seq):
            raise _BrokenError(f"{path}: the end is cut off: {_span(max(last + 1, head.first), head.last.seq)}")
        if at is not None and at.seq == head.last.seq and at.mac != head.last.mac:
            raise _BrokenError(f"{path}: record {at.seq} is not the one that the head names as the last")


def _span(first: int, last: int) -> str:
    return f"record {first} is missing" if first == last else f"records {first} to {last} are missing"


def _gap(before: int, seq: int, event: str) -> str:
    if seq <= before:
        return f"is record {seq} after record {before}: they were swapped, or one was put in"
    noticed = "; the gateway noticed at its next start" if event == "audit-recovered" else ""
    return f"is record {seq} after record {before}: {_span(before + 1, seq - 1)}{noticed}"


def verify(path: str, keys: Sequence[bytes | None], *, with_head: bool = True) -> Report:
    """Verify a log with its rotated files. keys: those that may have chained it, None: no key.

    with_head=False is for a copy without its head file: a cut beginning or end is then not detected. A log that is
    being written may be verified. Raises UserError where there is nothing to verify.
    """
    report = Report()
    head_path = f"{path}.head"
    files, head = _open(path, head_path if with_head else None, keys, report)
    try:
        report.files = len(files)
        walk = _Walk(keys, head, report)
        if report.problem is None:
            _walk_files(walk, path, files, with_head)
    finally:
        for _, file, _ in files:
            file.close()
    return report


def _walk_files(walk: _Walk, path: str, files: list[tuple[str, BinaryIO, int]], with_head: bool) -> None:
    report = walk.report
    try:
        for name, file, size in files:
            for number, line in enumerate(_lines(file, size), 1):
                try:
                    if not line.endswith(b"\n"):
                        _torn(report, name, name == path)
                        continue
                    walk.step(line[:-1])
                except _BrokenError as error:
                    raise _BrokenError(f"{name}:{number} {error}") from None
        if walk.at is None and walk.head is None:
            raise UserError(f"{path} has no chained records: nothing can be verified")
        if with_head and walk.head is None:
            raise _BrokenError(f"{path}.head is missing: whether the end was cut off can't be said")
        walk.end(path)
    except _BrokenError as error:
        report.problem = str(error)


def _torn(report: Report, name: str, is_last: bool) -> None:
    if not is_last:
        raise _BrokenError("is incomplete")
    report.notes.append(f"{name} ends in an incomplete record: a crash; the next start puts it aside")


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the lines of the first `size` bytes: what is appended meanwhile is not looked at."""
    left = size
    while left > 0:
        line = file.readline(left)
        if not line:
            return
        left -= len(line)
        yield line


def _open(
    path: str, head_path: str | None, keys: Sequence[bytes | None], report: Report
) -> tuple[list[tuple[str, BinaryIO, int]], Head | None]:
    """Open every file of the log at one moment, between two of the writer's batches, and read the head."""
    current = _locked(path)
    try:
        files: list[tuple[str, BinaryIO]] = [(old.path, open(old.path, "rb")) for old in rotated(path)]  # noqa: SIM115 - closed by verify
        files.append((path, current))
        head = None
        if head_path is not None:
            try:
                head = chain.read_head(head_path, keys)
            except ValueError as error:
                report.problem = f"{head_path}: {error}"
        return [(name, file, os.fstat(file.fileno()).st_size) for name, file in files], head
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
