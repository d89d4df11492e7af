"""Counters in Redis, shared by every process that names the same server and database.

One Lua script decides all limits of a request in one round trip, by the server's clock, so that processes and hosts
with clocks of their own count alike. Every key carries the same hash tag: on a Redis Cluster all counters live in one
slot, since only there one script may decide over several of them in one step. What a key is made of (subjects,
addresses, header values) never reaches the server, a digest of it does. A server with an eviction policy other than
noeviction may forget counters when its memory is full.
"""

import asyncio
import math
from collections.abc import Awaitable, Sequence
from hashlib import blake2b, sha1
from importlib.resources import files
from time import monotonic
from urllib.parse import urlsplit

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from mitmgate.core.limit import Limit, length_of
from mitmgate.core.sliding import NEVER
from mitmgate.core.window import Grant, Take
from mitmgate.stores.batches import Batches, Words
from mitmgate.stores.fallback import Fallback

CONNECTIONS = 2
"""Each carries all that waits as one batch, which costs less CPU a request than a connection for each."""

FRESH = 0.1
"""Seconds after its last reply in which a connection need not be asked whether it is alive: asking costs as much as a
small batch. That the server has closed it is seen all the same, as far as its FIN has arrived."""

PREFIX = b"mitmgate:{limits}:"

_SCRIPT = files("mitmgate.stores").joinpath("lua/take.lua").read_bytes()
_SHA = sha1(_SCRIPT, usedforsecurity=False).hexdigest()
_LOAD: Words = ("SCRIPT", "LOAD", _SCRIPT)


class RedisStore:
    """A CounterStore in Redis. A decision waits at most `timeout`, then `on_store_failure` of each limit speaks."""

    def __init__(self, url: str, timeout: float = 0.1) -> None:
        """url: redis:// or rediss://; it may hold credentials and is never logged. timeout: seconds.

        Raises ValueError for a URL of another kind. Nothing connects before `start`.
        """
        pool = ConnectionPool.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,  # every wait has a deadline of its own
            socket_connect_timeout=None,
            socket_keepalive=True,
        )
        parts = urlsplit(url)
        name = f"counter store {parts.hostname}:{parts.port or 6379}"
        self._batches = Batches(name, [_RedisLink(pool) for _ in range(CONNECTIONS)], timeout)
        self._fallback = Fallback()

    @property
    def available(self) -> bool:
        """Whether the server is asked, as far as is known."""
        return self._batches.available

    async def start(self) -> None:
        """Connect. Where the server can't be reached, that is logged, and tried again in the background."""
        await self._batches.start()

    async def close(self) -> None:
        """End all tasks and connections. What still waits is decided without the server."""
        await self._batches.close()

    def take(self, takes: Sequence[Take], now: float) -> list[Grant] | Awaitable[list[Grant]]:
        """Ask the server; while it is away, decide at once without it. See `CounterStore.take`."""
        words = command(takes)
        if not self.available:
            return self._fallback.take(takes, now, self._batches.pause)
        return self._grants(self._batches.ask(words), takes, now)

    def take_one(self, limit: Limit, key: str, now: float) -> Grant | None:
        """Say None: the server has to be asked."""
        return None

    async def _grants(self, asked: asyncio.Future[object | None], takes: Sequence[Take], now: float) -> list[Grant]:
        numbers = await asked
        if not isinstance(numbers, list) or len(numbers) != 4 * len(takes):
            return self._fallback.take(takes, now, self._batches.pause)
        return [_grant(take, *numbers[4 * at : 4 * at + 4]) for at, take in enumerate(takes)]


class _RedisLink:
    """One connection, opened when it is needed. Whatever goes wrong on it, cancellation included, closes it."""

    __slots__ = ("_answered", "_connection", "_pool")

    def __init__(self, pool: ConnectionPool) -> None:
        self._answered = -math.inf  # when the last reply came (monotonic)
        self._pool = pool
        self._connection = pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    async def open(self) -> None:
        """Connect and load the script."""
        await self._call([_LOAD])

    async def ask(self, commands: Sequence[Words]) -> list[object]:
        """Send commands in one go; where the server forgot the script, load it and send those again."""
        replies = await self._call(commands)
        forgotten = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if forgotten:
            again = await self._call([_LOAD, *[commands[at] for at in forgotten]])
            for at, reply in zip(forgotten, again[1:], strict=True):
                replies[at] = reply
        return replies

    async def close(self) -> None:
        """Close at once, without waiting for the peer."""
        await self._connection.disconnect(nowait=True)

    async def _call(self, commands: Sequence[Words]) -> list[object]:
        connection = self._connection
        replies: list[object] = []
        try:
            if monotonic() - self._answered > FRESH or connection._reader is None or connection._reader.at_eof():
                await self._pool.ensure_connection(connection)  # replaces one that the server closed while it was idle
            packed = [pack_command(words) for words in commands]  # type: ignore[arg-type]  # its stub takes one word
            await connection.send_packed_command([b"".join(packed)])
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except ReadOnlyError:  # a master that became a replica: only a new connection finds the new master
                    raise
                except ResponseError as error:
                    replies.append(error)
            self._answered = monotonic()
        except BaseException:
            await self.close()
            raise
        return replies


def command(takes: Sequence[Take]) -> Words:
    """Make the command that asks for takes. Raises ValueError where two of them have one key."""
    keys: list[bytes] = []
    arguments: list[int] = []
    for take in takes:
        limit = take.limit
        width = limit.width
        key = take.key if width == 1 else f"{take.key}\0{width}"  # another structure, another key
        keys.append(PREFIX + blake2b(key.encode("utf-8", "surrogatepass"), digest_size=18).hexdigest().encode())
        arguments += (limit.limit, limit.cost, length_of(limit), width, int(limit.mode == "enforce"))
    if len(keys) > 1 and len(set(keys)) < len(keys):
        raise ValueError("one request takes twice of one key")
    return ("EVALSHA", _SHA, len(keys), *keys, *arguments)


def _grant(take: Take, admitted: int, live: int, wait: int, reset: int) -> Grant:
    limit = take.limit
    retry_after = math.inf if wait == NEVER else wait / 1e6
    return Grant(limit, bool(admitted), max(0, limit.limit - live), reset / 1e6, retry_after, False)
