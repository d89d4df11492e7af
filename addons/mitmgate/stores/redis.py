"""Counters in Redis, shared by every process that names the same server and database.

One Lua script decides all limits of a request in one round trip, by the server's clock, so that processes and hosts
with clocks of their own count alike. Every key carries the same hash tag: on a Redis Cluster all counters live in one
slot, since only there one script may decide over several of them in one step. What a key is made of (subjects,
addresses, header values) never reaches the server, a digest of it does. A server with an eviction policy other than
noeviction may forget counters when its memory is full.
"""

import asyncio
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from hashlib import blake2b, sha1
from importlib.resources import files
from itertools import repeat
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from hiredis import pack_command
from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from mitmgate.audit.record import Event
from mitmgate.core.limit import EXACT_LIMIT, Limit, length_of
from mitmgate.core.sliding import NEVER
from mitmgate.core.window import Grant, Take, check, denies
from mitmgate.net.dialler import Dialler, peer_of
from mitmgate.net.tls_files import require_files
from mitmgate.stores.batches import Batches, Words
from mitmgate.stores.fallback import Fallback

logger = logging.getLogger(__name__)

CONNECTIONS = 2
"""Each carries all that waits as one batch, which costs less CPU a request than a connection for each."""

FRESH = 0.1
"""Seconds after its last reply in which a connection need not be asked whether it is alive: asking costs as much as a
small batch. That the server has closed it is seen all the same, as far as its FIN has arrived."""

MOST_RETURNED = 16
"""Grants that one question may give back for others."""

PREFIX = b"mitmgate:{limits}:"
CLOCK = PREFIX + b"clock"
"""What the script adds to the server's time of day, where that was set back."""

_SCRIPT = files("mitmgate.stores").joinpath("lua/take.lua").read_bytes()
_SHA = sha1(_SCRIPT, usedforsecurity=False).hexdigest()
_LOAD: Words = ("SCRIPT", "LOAD", _SCRIPT)


class RedisStore:
    """A CounterStore in Redis. A decision waits about `timeout`, then `on_store_failure` of each limit speaks."""

    def __init__(
        self,
        url: str,
        timeout: float = 0.1,
        dialler: Dialler | None = None,
        emit: Callable[[Event], None] | None = None,
    ) -> None:
        """url: redis:// or rediss://; it may hold credentials and is never logged. timeout: seconds.

        dialler: connects; None: one of its own. emit: takes audit events. Raises ValueError for a URL of another kind.
        Nothing connects before `start`.
        """
        pool = connections(url, dialler or Dialler())
        parts = urlsplit(url)
        name = f"counter store {parts.hostname}:{parts.port or 6379}"
        probe = command([Take(Limit("probe", EXACT_LIMIT, 1.0, ()), "")])
        self._batches = Batches(name, [_RedisLink(pool) for _ in range(CONNECTIONS)], timeout, probe, emit)
        self._fallback = Fallback()

    @property
    def available(self) -> bool:
        """Whether the server counts, as far as the last decisions found."""
        return self._batches.available and not self._batches.refused

    async def start(self) -> None:
        """Connect. Where the server can't be reached, that is logged, and tried again in the background."""
        await self._batches.start()

    async def close(self) -> None:
        """End all tasks and connections. What still waits is decided without the server."""
        await self._batches.close()

    def take(
        self, takes: Sequence[Take], now: float, held: Sequence[Grant] = ()
    ) -> list[Grant] | Awaitable[list[Grant]]:
        """Ask the server; while it is away, decide at once without it. See `CounterStore.take`."""
        batches, fallback = self._batches, self._fallback
        if not batches.available:
            check(takes)
            return fallback.decide(takes, now, batches.pause, held, shared=batches.slow)
        question = _Question(fallback, takes, now, held)
        return self._grants(question, batches.ask(question.words, question.late))

    def take_one(self, limit: Limit, key: str, now: float) -> Grant | None:
        """Say None: the server has to be asked."""
        return None

    async def _grants(self, question: "_Question", reply: asyncio.Future[object | None]) -> list[Grant]:
        numbers = await reply
        if isinstance(numbers, list) and len(numbers) == 5 * len(question.takes):
            return question.answered(numbers)
        return question.unanswered(self._batches)


def connections(url: str, dialler: Dialler) -> ConnectionPool:
    """Make the pool that connections to a server come from; nothing connects. Raises ValueError for a URL of no server.

    None of them bounds its waits itself.
    """
    pool = ConnectionPool.from_url(
        url,
        dialler=dialler,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,  # every wait has a deadline of its own
        socket_connect_timeout=None,
        socket_keepalive=True,
    )
    pool.connection_class = _DialledTls if issubclass(pool.connection_class, SSLConnection) else _Dialled
    return pool


class _Question:
    """What the server is asked about one request, and what this process learns of it, in time or not."""

    __slots__ = ("_debts", "_decided", "_fallback", "_held", "_now", "_told", "returned", "takes", "words")

    def __init__(self, fallback: Fallback, takes: Sequence[Take], now: float, held: Sequence[Grant]) -> None:
        """Raises ValueError for takes that can't be asked together."""
        check(takes)
        self.takes = takes
        self._fallback = fallback
        self._now = now
        self._held = held
        self._debts = fallback.debts(takes, now)
        self._decided: list[Grant] | None = None  # without the answer
        self._told: tuple[object | None] | None = None  # the answer that came before that, or that there is none
        returns = fallback.returns
        self.returned = [returns.popleft() for _ in range(min(len(returns), MOST_RETURNED))]
        self.words = command(takes, self._debts, held, self.returned)

    def answered(self, numbers: Sequence[int]) -> list[Grant]:
        """Make grants of the answer."""
        grants = [_grant(take, *numbers[5 * at : 5 * at + 5]) for at, take in enumerate(self.takes)]
        self._learn(grants, numbers, spent=True)
        if self._held and denies(grants):
            for grant in self._held:
                self._fallback.give_back(grant, self._now)
        return grants

    def unanswered(self, batches: Batches) -> list[Grant]:
        """Decide without the answer."""
        self._decided = decided = self._fallback.decide(
            self.takes, self._now, batches.pause, self._held, asked=True, shared=batches.slow
        )
        if self._told is not None:
            self._reconcile(decided, *self._told)
        return decided

    def late(self, reply: object | None) -> None:
        """Take an answer that came too late, or None: there is none, and nobody knows whether the server counted."""
        if self._decided is None:
            self._told = (reply,)
        else:
            self._reconcile(self._decided, reply)

    def _reconcile(self, decided: Sequence[Grant], reply: object | None) -> None:
        fallback, takes = self._fallback, self.takes
        if not isinstance(reply, list) or len(reply) != 5 * len(takes):
            for take, debt, grant in zip(takes, self._debts, decided, strict=True):
                fallback.owe(take.limit, take.key, debt + (take.limit.cost if grant.spent else 0))
            return
        grants = [_grant(take, *reply[5 * at : 5 * at + 5]) for at, take in enumerate(takes)]
        for take, here, there in zip(takes, decided, grants, strict=True):
            if here.spent and not there.spent:
                fallback.owe(take.limit, take.key, take.limit.cost)
            elif there.spent and denies(decided):
                fallback.returns.append(there)
        self._learn(grants, reply, spent=False)
        if denies(grants):  # the server took back what was held; the request may have gone on all the same
            for grant in self._held:
                if denies(decided):
                    fallback.give_back(grant, self._now)
                elif grant.spent and not grant.degraded:
                    fallback.owe(grant.limit, grant.key, grant.limit.cost)

    def _learn(self, grants: Sequence[Grant], numbers: Sequence[int], *, spent: bool) -> None:
        for take, grant, live in zip(self.takes, grants, numbers[1::5], strict=True):
            if take.limit.on_store_failure == "local":
                self._fallback.learn(take, self._now, live, take.limit.cost if spent and grant.spent else 0)


class _Dialled(Connection):
    """A connection whose server is resolved and dialled as everything else is."""

    def __init__(self, *, dialler: Dialler, **kwargs: Any) -> None:
        self.peer: str | None = None
        self._dialler = dialler
        self._socket: socket.socket | None = None
        super().__init__(**kwargs)

    @property
    def elsewhere(self) -> bool:
        """Whether the name of the server has other addresses now than the one that this is connected to."""
        return self.peer is not None and not self._dialler.answers(self.host, self.peer)

    async def _connect(self) -> None:
        self._socket = await self._dialler.connect(self.host, self.port)
        self.peer = peer_of(self._socket)
        await super()._connect()  # type: ignore[no-untyped-call]

    def _connection_arguments(self) -> dict[str, Any]:
        return {"sock": self._socket}


class _DialledTls(SSLConnection, _Dialled):
    """The same, for rediss://. The files that the URL names are read for each connection, and not on the event loop."""

    async def _connect(self) -> None:
        await asyncio.to_thread(self._read_files)
        await super()._connect()

    def _read_files(self) -> None:
        """Have TLS made of what the files say now. What can't be used leaves what was, where there was something.

        One that was given up, as it took too long, may still run beside another: what was is never taken away.
        """
        tls = self.ssl_context
        fresh = copy(tls)
        fresh.context = None
        try:
            require_files(tls.ca_certs, tls.certfile, tls.keyfile)
            tls.context = fresh.get()
        except (OSError, ValueError) as error:
            if tls.context is None:
                raise
            logger.warning("the TLS files of the counter store can't be used, those before stay in use: %s", error)

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self.host}


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
            if connection.elsewhere:
                await self.close()
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


def command(
    takes: Sequence[Take], debts: Sequence[int] = (), held: Sequence[Grant] = (), returned: Sequence[Grant] = ()
) -> Words:
    """Make the command that asks for takes. debts: units of each that are counted first. held: see `CounterStore.take`.

    Of `held` those are given back that the server has spent. returned: given back in any case.
    """
    keys: list[bytes] = []
    back = [grant for grant in returned if grant.spent]
    arguments: list[int] = [len(takes), len(back)]
    for take, debt in zip(takes, debts or repeat(0), strict=False):
        limit = take.limit
        keys.append(_key(limit, take.key))
        arguments += (limit.limit, limit.cost, length_of(limit), limit.width, int(limit.mode == "enforce"), debt)
    for grant in (*back, *(grant for grant in held if grant.spent and not grant.degraded)):
        keys.append(_key(grant.limit, grant.key))
        arguments += (grant.spent, grant.limit.cost, grant.limit.width)
    return ("EVALSHA", _SHA, len(keys) + 1, *keys, CLOCK, *arguments)


def _key(limit: Limit, key: str) -> bytes:
    if limit.width > 1:
        key = f"{key}\0{limit.width}"  # another structure, another key
    return PREFIX + blake2b(key.encode("utf-8", "surrogatepass"), digest_size=18).hexdigest().encode()


def _grant(take: Take, admitted: int, live: int, wait: int, reset: int, spent: int) -> Grant:
    limit = take.limit
    retry_after = math.inf if wait == NEVER else wait / 1e6
    remaining = max(0, limit.limit - live)
    return Grant(limit, bool(admitted), remaining, reset / 1e6, retry_after, False, take.key, spent)
