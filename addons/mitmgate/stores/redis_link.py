"""One connection to Redis at a time, for what is asked now and then: lists that processes share."""

import asyncio
from contextlib import suppress

from redis.asyncio import Connection
from redis.exceptions import ResponseError

from mitmgate.net.dialler import Dialler
from mitmgate.stores.redis import connections


class RedisLink:
    """Connects to a server and asks it, each within a time."""

    def __init__(self, url: str, timeout: float, dialler: Dialler | None = None) -> None:
        """url: as of the counter store. timeout: seconds that connecting and each answer may take.

        Raises ValueError for a URL that is none.
        """
        self._pool = connections(url, dialler or Dialler())
        self._timeout = timeout

    async def _connected(self) -> Connection:
        connection: Connection = self._pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        except BaseException:
            with suppress(Exception):
                await connection.disconnect(nowait=True)
            raise
        return connection

    async def _ask(self, connection: Connection, *words: str | bytes | int, within: float | None = None) -> object:
        async with asyncio.timeout(self._timeout if within is None else within):
            await connection.send_command(*words)
            reply: object = await connection.read_response()
        if isinstance(reply, ResponseError):
            raise reply
        return reply
