"""The growing end of a chained log: where the next record is linked, and the head file that says so."""

import logging
from time import monotonic

from mitmgate.audit import chain
from mitmgate.audit.chain import EMPTY, START, Head, Link
from mitmgate.audit.rotation import rotated, surplus
from mitmgate.audit.tail import first_line

logger = logging.getLogger(__name__)

MARK = "audit log %s ends with record %d, sha256:%s"
"""How the process log says where a log ends: a place of its own, which whoever puts an old log and its old head back
would have to change, too (verification.marks_in reads it)."""
MARK_EVERY = 600.0  # seconds


class ChainEnd:
    """The head of one log, in memory and in its file. Used under the log's lock alone."""

    def __init__(self, path: str, key: bytes | None) -> None:
        """path: the log's."""
        self.is_old = False
        """The head file could not be written; it names an earlier record than the log has."""
        self._path = path
        self._key = key
        self._head = EMPTY
        self._marked = START
        self._mark_due = 0.0
        # What a line has beside its record: seq (of 20 digits at most), prev, mac.
        self.overhead = len(chain.link(None, Link(10**19, chain.GENESIS), [b"{}"])[0][0])

    def chained(self, records: list[bytes]) -> tuple[list[bytes], Link]:
        """Link records to the end; return them and the end that they make, for `advance` once they are written."""
        return chain.link(self._key, self._head.last, records)

    def advance(self, at: Link) -> None:
        """Take the end that `chained` has made, and write the head; where that fails, `is_old` says so."""
        self._head = Head(at, self._head.first, self._head.first_prev)
        try:
            self.write()
        except OSError:
            self.is_old = True

    def take_up(self, line: bytes) -> dict[str, object]:
        """Find the place where the chain goes on: the log's last line, or the head where that is further.

        In the second case records were lost or cut off; the next record's number and `prev` keep the gap visible. What
        this process has written itself is further than either where an older log was put back under it. Returns what
        `audit-recovered` has to say, nothing where all is well. Raises OSError.
        """
        found: dict[str, object] = {}
        last = chain.read(line)
        at = START if last is None else Link(last.seq, last.mac)
        known = self._head.last
        try:
            head = chain.read_head(f"{self._path}.head", [self._key])
        except ValueError:
            head = None
        if head is None:
            head = Head(at, 1, chain.GENESIS)
            if last is not None:
                found["head_missing"] = True
        end = max(at, head.last, known)  # by their numbers
        if end.seq > max(at.seq, head.last.seq):
            found["rolled_back"] = True
        if at.seq < end.seq:
            missing = end.seq - max(at.seq, head.first - 1)
            if missing:
                found["missing"] = missing
            at = end
        self._head = Head(at, head.first, head.first_prev)
        return found

    def before_rotation(self, keep: int) -> None:
        """Write the head that holds after a rotation. Raises OSError.

        Before anything is removed: a crash in between leaves more records than the head asks for, never fewer.
        """
        last, gone = self._head.last, surplus(self._path, keep)
        if keep == 0:
            self._head = Head(last, last.seq + 1, last.mac)
        elif gone:  # only what is removed here may be missing later: what others have taken away stays to be named
            kept = [old.path for old in rotated(self._path)[len(gone) :]]
            record = chain.read(first_line(kept[0] if kept else self._path))
            if record is not None:
                self._head = Head(last, record.seq, record.prev)
        self.write()

    def mark(self, now: bool = False) -> None:
        """Say in the process log where the log ends: every MARK_EVERY seconds in which it has grown, or now."""
        if self._head.last != self._marked and (now or monotonic() >= self._mark_due):
            self._marked, self._mark_due = self._head.last, monotonic() + MARK_EVERY
            logger.info(MARK, self._path, *self._marked)

    @property
    def last(self) -> Link:
        """The log's last record."""
        return self._head.last

    def write(self) -> None:
        """Write the head file. Raises OSError."""
        chain.write_head(f"{self._path}.head", self._head, self._key)
        self.is_old = False
