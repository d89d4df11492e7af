"""The list of revocations in Redis: a stream, which every process that names the same database follows."""

import heapq
import time
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final, cast

from redis.asyncio import Connection

from mitmgate.core.revocation import Revocation, written
from mitmgate.net.dialler import Dialler
from mitmgate.stores.redis_link import RedisLink
from mitmgate.stores.revocations import EVERY, MOST, Learner, ListFullError, missing
from mitmgate.stores.shared_list import FRESH

STREAM: Final = "mitmgate:{revocations}"
PART: Final = 1000
"""Entries that are asked for at once."""
FORGOTTEN: Final = 60.0
"""Seconds after its end at which an entry is deleted: clocks of processes differ."""

_FIRST: Final = b"0-0"
_FIELD: Final = b"revocation"

Entry = tuple[bytes, bytes]
"""Its id, and the line."""


class RevocationStream(RedisLink):
    """A list in a stream of Redis. An entry is deleted when what it is about is over, by whichever process sees it.

    A server that comes back without what it had is told again by the processes that know it.
    """

    def __init__(self, url: str, timeout: float, dialler: Dialler | None = None) -> None:
        """url: as of the counter store. timeout: seconds that connecting and each answer may take, and FRESH at least.

        Raises ValueError for a URL that is none.
        """
        super().__init__(url, max(FRESH, timeout), dialler)

    async def follow(self, learner: Learner) -> None:
        """Read the stream, and wait for what comes."""
        connection = await self._connected()
        try:
            ends: list[tuple[float, bytes]] = []  # a heap: when it may be deleted, its id
            asked = perf_counter()
            entries = await self._all(connection)
            _schedule(ends, entries, learner.heard([line for _, line in entries], asked))
            await self._tell(connection, entries, learner)
            last = entries[-1][0] if entries else _FIRST
            while True:
                asked = perf_counter()
                news = await self._read(connection, last, wait=EVERY)
                _schedule(ends, news, learner.heard([line for _, line in news], asked))
                last = news[-1][0] if news else last
                over: list[bytes] = []
                while ends and ends[0][0] <= time.time() and len(over) < PART:
                    over.append(heapq.heappop(ends)[1])
                if over:
                    await self._ask(connection, "XDEL", STREAM, *over)
        finally:
            await connection.disconnect(nowait=True)

    async def add(self, revocation: Revocation) -> None:
        """Append an entry. Whether it outlives the server is the server's (its appendonly)."""
        connection = await self._connected()
        try:
            if cast(int, await self._ask(connection, "XLEN", STREAM)) >= MOST:
                raise ListFullError
            await self._ask(connection, "XADD", STREAM, "*", _FIELD, written(revocation))
        finally:
            await connection.disconnect(nowait=True)

    async def lines(self) -> list[bytes]:
        """Return every entry."""
        connection = await self._connected()
        try:
            return [line for _, line in await self._all(connection)]
        finally:
            await connection.disconnect(nowait=True)

    async def _all(self, connection: Connection) -> list[Entry]:
        entries: list[Entry] = []
        last = _FIRST
        while part := await self._read(connection, last):
            entries += part
            last = part[-1][0]
        return entries

    async def _read(self, connection: Connection, last: bytes, wait: float = 0.0) -> list[Entry]:
        blocking = ("BLOCK", int(wait * 1000)) if wait else ()
        reply = await self._ask(
            connection, "XREAD", "COUNT", PART, *blocking, "STREAMS", STREAM, last, within=wait + self._timeout
        )
        if reply is None:
            return []
        ((_, items),) = cast(Any, reply)
        return [(id_, dict(zip(fields[::2], fields[1::2], strict=True)).get(_FIELD, b"")) for id_, fields in items]

    async def _tell(self, connection: Connection, entries: Sequence[Entry], learner: Learner) -> None:
        """Add what the server does not have: it came back with less than it had."""
        for revocation in missing([line for _, line in entries], learner.known()):
            await self._ask(connection, "XADD", STREAM, "*", _FIELD, written(revocation))


def _schedule(ends: list[tuple[float, bytes]], entries: Sequence[Entry], until: Sequence[float | None]) -> None:
    for (id_, _), end in zip(entries, until, strict=True):
        if end is not None:
            heapq.heappush(ends, (end + FORGOTTEN, id_))
