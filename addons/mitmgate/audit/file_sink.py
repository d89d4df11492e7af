"""The file sink: JSON lines that survive rotation, crashes, full disks and other processes writing the same file.

Refused requests that would push admitted ones out go to a log of their own beside it (refusals.py).

Each batch is one critical section under an exclusive lock of the file (flock), so that several worker processes may
share a log, its rotation and its chain: open or reopen, look whether anybody else has written, rotate, append, write
the head. A batch that could only be written in part is taken back.
"""

import fcntl
import gzip
import logging
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EDQUOT, EIO, ENOSPC
from time import monotonic, sleep, time

import orjson

from mitmgate.audit.anchors import Anchors
from mitmgate.audit.chain_end import ChainEnd
from mitmgate.audit.event import anchors_failed, anchors_recovered, audit_recovered, refusals_moved
from mitmgate.audit.refusals import Share, refused_log
from mitmgate.audit.rotation import open_log, rotate, segments
from mitmgate.audit.settings import ChainSettings, FileSink
from mitmgate.audit.sink import Emit, SinkError
from mitmgate.audit.tail import last_line, recover
from mitmgate.usage import UserError

logger = logging.getLogger(__name__)

_SYNC_LOOK = 0.1  # seconds between two looks at a sync that is under way
_ANCHOR_RETRY = 5.0  # seconds
_LOCK_PATIENCE = 2.0  # seconds; a worker that is stopped while it holds the lock must not stop the others for ever
_FOLLOWING = ("sink-failed", "sink-recovered", "refusals-moved", "anchors-failed", "anchors-recovered")
_BEHIND_SEAL = tuple(f'"event":"{kind}"'.encode() for kind in _FOLLOWING)
_PASSING = frozenset({ENOSPC, EDQUOT, EIO})  # what may have passed by the next try


class _Sync:
    """One fsync, in a thread of its own: a disk that takes long for it must not keep records in memory meanwhile."""

    def __init__(self, descriptor: int) -> None:
        """Begin. descriptor: is duplicated, so that it may be closed."""
        self.done = threading.Event()
        self.error: OSError | None = None
        self._descriptor = os.dup(descriptor)
        threading.Thread(target=self._run, name="audit fsync", daemon=True).start()

    def _run(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self.error = error
        finally:
            os.close(self._descriptor)
            self.done.set()


class FileAppender:
    """Append records to a file, rotate it, chain it, make it durable.

    A missing directory is made with mode 0700, files with 0600. A file that was renamed or removed (logrotate) is
    opened anew.
    """

    def __init__(
        self, settings: FileSink, chained: ChainSettings | None, emit: Emit, share: Share | None = None
    ) -> None:
        """emit: where `audit-recovered` goes. share: of refused requests; None: they may take the whole log."""
        self.name = f"file:{os.path.basename(settings.path)}"
        self._settings = settings
        self._path = settings.path
        self._chain = None if chained is None else ChainEnd(settings.path, chained.key)
        anchors = None if chained is None else chained.anchors
        self._anchors = None if anchors is None else Anchors(anchors, settings.path)
        self._unanchored = False  # the last anchor could not be written
        self._emit = emit
        self._descriptor = -1
        self._presence = -1
        self._size = -1  # of the file when this process last saw it; -1: never
        self._unsynced = False
        self._synced = monotonic()
        self._syncing: _Sync | None = None
        self._overhead = 1 if self._chain is None else 1 + self._chain.overhead
        self._share = share
        self._refused: FileAppender | None = None
        if share is not None:
            beside = replace(settings, path=refused_log(settings.path))
            self._refused = FileAppender(beside, chained, emit)

    def open(self) -> None:
        """Open the file, recover what a crash has left. Raises UserError where it can't be written at all."""
        try:
            self._open()
        except SinkError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno not in _PASSING:
                raise UserError(f"the audit file {self._path} can't be written: {cause.strerror}") from error

    def write(self, records: Sequence[bytes]) -> int:
        """Append as many records as the file has room for before it has to be rotated, or as go to one file."""
        share, refused = self._share, self._refused
        if share is None or refused is None:
            return self._write(records)
        moves = share.moves(records)
        if not moves[0]:
            count = self._write(records[: moves.index(True)] if True in moves else records)
            seals = list(filter(_is_seal, records[:count])) if refused.is_open else []
            if seals:  # so that its next start finds it whole
                with suppress(SinkError):
                    refused.write(seals)
        else:
            count = refused.write(records[: moves.index(False)] if False in moves else records)
            if not share.moved:
                logger.warning("refused requests are more than %s has room for: they go to %s", self.name, refused.name)
                self._emit(refusals_moved(time(), self.name, os.path.basename(refused_log(self._path))))
        share.count(records[:count])
        return count

    @property
    def is_open(self) -> bool:
        """Tell whether the file is open."""
        return self._presence >= 0

    def _write(self, records: Sequence[bytes]) -> int:
        if self._presence < 0:
            self._open()
        while True:
            with self._locked():
                self._catch_up()
                if not self._is_full(records[0]):
                    return self._append(records)
                self._rotate()

    def idle(self) -> float | None:
        """Make durable what was written, when it is time; say when it will be time."""
        pauses = [self._anchor(), self._idle()]
        if self._refused is not None and self._refused.is_open:
            pauses.append(self._refused.idle())
        return min([pause for pause in pauses if pause is not None], default=None)

    def _anchor(self, now: bool = False) -> float | None:
        """Anchor the log's end, where it is time. Records are written whether that works or not."""
        if self._anchors is None or self._chain is None:
            return None
        try:
            pause = self._anchors.write(self._chain.last, now)
        except OSError as error:
            if not self._unanchored:
                self._unanchored = True
                logger.error("the end of %s could not be anchored: %s", self.name, error.strerror or error)
                self._emit(anchors_failed(time(), self.name, error.strerror or str(error)))
            return _ANCHOR_RETRY
        if pause is None and self._unanchored:
            self._unanchored = False
            self._emit(anchors_recovered(time(), self.name))
        return pause

    def _idle(self) -> float | None:
        if self._chain is not None:
            self._chain.mark()
        if self._chain is not None and self._chain.is_old:
            with self._locked():
                self._catch_up()
                with self._telling("sealed"):
                    self._chain.write()
        if self._syncing is not None:
            if not self._syncing.done.is_set():
                return _SYNC_LOOK
            self._finish_sync()
        if not self._unsynced:
            return None
        left = self._synced + self._settings.fsync - monotonic()
        if left > 0:
            return left
        self._unsynced = False
        self._syncing = _Sync(self._descriptor)
        return _SYNC_LOOK

    def close(self) -> None:
        """Make durable what was written, close the file."""
        if self._refused is not None:
            self._refused.close()
        if self._chain is not None:
            self._chain.mark(now=True)
            self._anchor(now=True)
        if self._descriptor >= 0:
            self._sync()
            os.close(self._descriptor)
            self._descriptor = -1
        if self._presence >= 0:
            os.close(self._presence)
            self._presence = -1

    def _finish_sync(self) -> None:
        """Wait for the sync that is under way. Raises SinkError where it failed; it is then to be done again."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.done.wait()
            self._synced = monotonic()
            if syncing.error is not None:
                self._unsynced = True
                with self._telling("synced"):
                    raise syncing.error

    def _sync(self) -> None:
        self._finish_sync()
        if self._unsynced:
            with self._telling("synced"):
                os.fsync(self._descriptor)
            self._unsynced = False
            self._synced = monotonic()

    def _open(self) -> None:
        with self._telling("opened"):
            os.makedirs(os.path.dirname(self._path) or ".", mode=0o700, exist_ok=True)
            presence = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._telling("opened"):
                alone = _lock(presence)
                with self._locked():
                    self._catch_up(alone)
                fcntl.flock(presence, fcntl.LOCK_SH)
        except BaseException:
            os.close(presence)
            raise
        self._presence = presence

    @contextmanager
    def _telling(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SinkError(f"{self._path} could not be {done}: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the file that has the log's name now."""
        patience = monotonic() + _LOCK_PATIENCE
        while True:
            self._reopen()
            descriptor = self._descriptor
            pause = 0.001
            while not _lock(descriptor):
                if monotonic() > patience:
                    raise SinkError(f"{self._path} is locked by another process")
                sleep(pause)
                pause = min(pause * 2, 0.05)
            if self._is_current():
                break
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _is_current(self) -> bool:
        if self._descriptor < 0:
            return False
        try:
            named = os.stat(self._path)
        except OSError:
            return False
        held = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def _reopen(self) -> None:
        """Open the log where it is not open, or its name is another file's or nobody's."""
        if self._is_current():
            return
        with self._telling("opened"):
            descriptor = open_log(self._path, os.O_RDWR | os.O_APPEND)
        if self._descriptor >= 0:
            self._sync()
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = -1

    def _catch_up(self, alone: bool = False) -> None:
        """See what the file holds, where that is not what this process has left there. alone: nobody else writes it."""
        with self._telling("read"):
            size = os.fstat(self._descriptor).st_size
            if size == self._size:
                return
            found: dict[str, object] = {}
            torn = recover(self._descriptor, self._path)
            if torn:
                found["torn_bytes"] = torn
            size -= torn
            last = self._last_record(size)
            if alone and last and not self._is_sealed(last, size):
                found["unclean"] = True
            if self._chain is not None:
                found |= self._chain.take_up(last)
            self._size = size
        if found:
            self._emit(audit_recovered(time(), self.name, **found))

    def _last_record(self, size: int) -> bytes:
        line = last_line(self._descriptor, size)
        if line:
            return line
        for old in reversed(segments(self._path)):
            if old.endswith(".gz"):
                try:
                    with gzip.open(old) as packed:
                        last = deque(packed, maxlen=1)
                except (OSError, EOFError, zlib.error):  # damaged: what it ended with the chain's head alone can tell
                    return b""
                if last:
                    return last.pop().rstrip(b"\n")
                continue
            with open(old, "rb") as file:
                line = last_line(file.fileno(), os.fstat(file.fileno()).st_size)
            if line:
                return line
        return b""

    def _is_sealed(self, last: bytes, size: int) -> bool:
        """Tell whether a process ended in good order: behind its seal stands only what came of writing it."""
        while not _is_seal(last):
            if size <= 0 or not any(kind in last for kind in _BEHIND_SEAL):
                return False
            size -= len(last) + 1
            last = last_line(self._descriptor, size)
        return True

    def _is_full(self, record: bytes) -> bool:
        return self._size > 0 and self._size + len(record) + self._overhead > self._settings.rotate

    def _rotate(self) -> None:
        """Rotate; the next lock is that of the new file."""
        with self._telling("rotated"):
            self._sync()
            if self._chain is not None:
                self._chain.before_rotation(self._settings.keep)
                self._chain.mark(now=True)
                self._anchor(now=True)
            rotate(self._path, self._settings.keep)

    def _append(self, records: Sequence[bytes]) -> int:
        """Write a batch in one piece, then the head. Returns how many records it took."""
        room = self._settings.rotate - self._size
        lines: list[bytes] = []
        for record in records:
            room -= len(record) + self._overhead
            if room < 0 and lines:
                break
            lines.append(record)
        count = len(lines)
        if self._chain is None:
            self._append_lines(lines)
        else:
            lines, end = self._chain.chained(lines)
            self._append_lines(lines)
            self._chain.advance(end)
        return count

    def _append_lines(self, lines: list[bytes]) -> None:
        """Append lines; all or none."""
        data = b"\n".join([*lines, b""])
        start, at = self._size, 0
        try:
            while at < len(data):
                at += os.write(self._descriptor, data[at:] if at else data)
        except OSError as error:
            if at:
                with self._telling("restored"):
                    os.ftruncate(self._descriptor, start)
            raise SinkError(f"{self._path} could not be written: {error.strerror}") from error
        self._size = start + len(data)
        self._unsynced = True


def _lock(descriptor: int) -> bool:
    """Take an exclusive lock if nobody has one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_seal(line: bytes) -> bool:
    if b"gateway-stopped" not in line:
        return False
    try:
        event = orjson.loads(line)
    except ValueError:
        return False
    return isinstance(event, dict) and event.get("event") == "gateway-stopped"
