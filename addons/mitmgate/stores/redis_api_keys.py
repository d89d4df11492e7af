"""The list of API keys in Redis, which every process that names the same database looks at again and again."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast

from redis.asyncio import Connection

from mitmgate.net.dialler import Dialler
from mitmgate.stores.redis_link import RedisLink
from mitmgate.stores.shared_list import FRESH

LIST: Final = "mitmgate:{api-keys}"


class KeyList(RedisLink):
    """A list of Redis, appended to. A look asks for its length and its last line, which a change changes."""

    def __init__(self, url: str, timeout: float, dialler: Dialler | None = None) -> None:
        """url: as of the counter store. timeout: seconds that connecting and each answer may take, and FRESH at least.

        Raises ValueError for a URL that is none.
        """
        super().__init__(url, max(FRESH, timeout), dialler)
        self._connection: Connection | None = None

    async def news(self, version: object) -> tuple[object, list[bytes]] | None:
        """Return length and last line, and all lines, where it is another list than it was."""
        if self._connection is None:
            self._connection = await self._connected()
        connection = self._connection
        try:
            now = await self._ask(connection, "LLEN", LIST), await self._ask(connection, "LINDEX", LIST, -1)
            if now == version:
                return None
            lines = cast(list[bytes], await self._ask(connection, "LRANGE", LIST, 0, -1))
        except BaseException:
            await self.close()
            raise
        return (len(lines), lines[-1] if lines else None), lines

    async def add(self, lines: Sequence[bytes]) -> None:
        """Append lines. Whether they outlive the server is the server's (its appendonly)."""
        connection = await self._connected()
        try:
            await self._ask(connection, "RPUSH", LIST, *lines)
        finally:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                await connection.disconnect(nowait=True)
