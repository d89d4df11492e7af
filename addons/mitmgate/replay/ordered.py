"""Recordings in the order in which their requests arrived, read as streams.

A request is written when it has ended, so a file is in the order of ends, not of arrivals: nearly sorted, but for the
few requests that took long. A first pass over the file keeps only the times of the last WINDOW requests, and finds the
stragglers: those that arrived before a request that has left that window. A second pass lets every request through a
window of the same size, and takes the stragglers from where they stand when it is their turn. Memory is that of the
window and of some 150 bytes a straggler, whatever the size of the recording.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import BinaryIO, Final, NamedTuple, Protocol

from mitmgate.replay.traffic import Entry, Recorded, Traffic
from mitmgate.usage import UserError

WINDOW: Final = 1024
"""Requests that may overtake each other without costing memory."""

_BUFFER: Final = 1 << 18


class Format(Protocol):
    """How one kind of file is read."""

    def records(self, file: BinaryIO) -> Iterator[tuple[float | None, bytes]]:
        """Yield each record as it stands, and when its request arrived (Unix seconds; None: it is no request).

        Raises ValueError where the file is not of this kind, before it yields anything.
        """
        ...

    def record(self, file: BinaryIO) -> bytes:
        """Read the record that begins where the file stands."""
        ...

    def entry(self, raw: bytes) -> Entry:
        """Read a record as traffic; never raises for what a record may hold."""
        ...


class _Place(NamedTuple):
    """Where a record stands, in the order of arrival."""

    at: float
    file: int
    offset: int


class Merged:
    """Several recordings as one, such as those of several workers: each is in order, and so is the whole."""

    def __init__(self, name: str, parts: Sequence[Traffic]) -> None:
        """name: of the whole."""
        self.name = name
        self._parts = parts

    def __len__(self) -> int:
        """Count the records of all."""
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Entry]:
        """Yield every record; what is no request comes after the request that it stands behind."""
        for _, _, _, entry in heapq.merge(*map(_timed, count(), self._parts)):
            yield entry


def _timed(part: int, traffic: Traffic) -> Iterator[tuple[float, int, int, Entry]]:
    at = float("-inf")
    for number, entry in enumerate(traffic):
        at = max(at, entry.at) if isinstance(entry, Recorded) else at
        yield at, part, number, entry


class OrderedFiles:
    """The files of one recording as traffic, in the order of arrival. It can be read again and again."""

    def __init__(self, name: str, paths: Iterable[str], form: Format) -> None:
        """name: of the recording. paths: its files, the oldest first. Raises UserError where one can't be read."""
        self.name = name
        self._paths = tuple(paths)
        self._form = form
        self._stragglers: list[_Place] = []
        self._count = 0
        self._index()

    def __len__(self) -> int:
        """Count the records, also those on which nothing can be decided."""
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        """Yield every record: requests as they arrived, anything else where it stands."""
        read = self._form.entry
        window: list[tuple[_Place, bytes]] = []
        late = frozenset(self._stragglers)
        waiting = iter(self._stragglers)
        straggler = next(waiting, None)
        end = _Place(float("inf"), 0, 0)

        def leave(limit: int) -> Iterator[Entry]:
            nonlocal straggler
            while len(window) > limit:
                due, raw = heapq.heappop(window)
                while straggler is not None and straggler < due:
                    yield read(self._at(straggler))
                    straggler = next(waiting, None)
                yield read(raw)

        for place, raw in self._records():
            if place is None:
                yield read(raw)
            elif place not in late:
                heapq.heappush(window, (place, raw))
                yield from leave(WINDOW)
        yield from leave(0)
        while straggler is not None and straggler < end:
            yield read(self._at(straggler))
            straggler = next(waiting, None)

    def _index(self) -> None:
        """Count, and find the stragglers: the same window as above, but of places alone."""
        window: list[_Place] = []
        passed = _Place(float("-inf"), 0, 0)
        for place, _ in self._records():
            self._count += 1
            if place is None:
                continue
            if place < passed:
                self._stragglers.append(place)
                continue
            heapq.heappush(window, place)
            if len(window) > WINDOW:
                passed = heapq.heappop(window)
        self._stragglers.sort()

    def _records(self) -> Iterator[tuple[_Place | None, bytes]]:
        for number, path in enumerate(self._paths):
            offset = 0
            try:
                with open(path, "rb", buffering=_BUFFER) as file:
                    for arrived, raw in self._form.records(file):
                        yield (None if arrived is None else _Place(arrived, number, offset)), raw
                        offset += len(raw)
            except OSError as error:
                raise UserError(f"{path}: can't be read: {(error.strerror or str(error)).lower()}") from error
            except ValueError as error:
                raise UserError(f"{path}: {error}") from error

    def _at(self, place: _Place) -> bytes:
        with open(self._paths[place.file], "rb") as file:
            file.seek(place.offset)
            return self._form.record(file)
