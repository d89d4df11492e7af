"""Counters in Redis, shared by every process that names the same server.

One Lua script decides all limits of a call in one round trip, by the server's clock, so that processes and hosts with
clocks of their own count alike. All keys carry one hash tag: on a Redis Cluster they live in one slot, which is what
makes a decision over several limits one atomic step.
"""

import asyncio
import logging
from collections.abc import Sequence
from hashlib import blake2b
from importlib.resources import files
from time import monotonic

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from mitmgate.core.window import NEVER, Grant, Take, bucket_width, ticks
from mitmgate.stores.memory import MemoryStore

logger = logging.getLogger(__name__)

CONNECTIONS = 32
BACK_OFF = 0.5
"""Seconds for which a server that failed is not asked again: not every request waits for the timeout."""

PREFIX = "mitmgate:{limits}:"


class RedisStore:
    """A counter store in Redis. While the server is away, each limit's `on_store_failure` decides.

    The time of a decision is bounded by `timeout`, waiting for a connection included. After a failure requests are
    decided without Redis for BACK_OFF seconds, then one of them asks again.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """url: redis:// or rediss://, maybe with credentials, so it is never logged. timeout: seconds."""
        self._timeout = timeout
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        self._client = Redis(connection_pool=self._pool)
        self._script = self._client.register_script(files("mitmgate.stores").joinpath("lua/take.lua").read_text())
        self._local = MemoryStore()
        self._away_until = 0.0
        self._away = False

    async def take(self, takes: Sequence[Take], now: float) -> Sequence[Grant]:
        """Decide in one round trip. `now` serves the local fallback alone."""
        moment = monotonic()
        if moment < self._away_until:
            return self._without(takes, now)
        if self._away:
            self._away_until = moment + BACK_OFF  # this request asks; those that come meanwhile do not
        try:
            async with asyncio.timeout(self._timeout):
                answer = await self._script(keys=[_key(take) for take in takes], args=_arguments(takes))
            grants = [_grant(take, *answer[4 * at : 4 * at + 4]) for at, take in enumerate(takes)]
        except (RedisError, OSError, TimeoutError, ValueError, TypeError) as error:
            self._failed(error)
            return self._without(takes, now)
        if self._away:
            self._away = False
            self._away_until = 0.0
            logger.warning("the counter store answers again")
        return grants

    def _failed(self, error: Exception) -> None:
        self._away_until = monotonic() + BACK_OFF
        if not self._away:
            self._away = True
            logger.error("the counter store does not answer (%s); limits are decided as on_store_failure says", type(error).__name__)

    def _without(self, takes: Sequence[Take], now: float) -> Sequence[Grant]:
        """Decide as each limit's on_store_failure says."""
        blocked = any(take.limit.on_store_failure == "deny" and take.limit.mode == "enforce" for take in takes)
        local = [take for take in takes if take.limit.on_store_failure == "local"]
        counted = iter(self._local.take(local, now) if not blocked else self._local.look(local, now))
        grants = []
        for take in takes:
            limit = take.limit
            if limit.on_store_failure == "local":
                grant = next(counted)
                grant.degraded = True
                grants.append(grant)
            elif limit.on_store_failure == "allow":
                grants.append(Grant(limit, True, limit.limit, 0.0, 0.0, True))
            else:
                grants.append(Grant(limit, False, 0, BACK_OFF, BACK_OFF, True))
        return grants

    async def start(self) -> None:
        """Ask the server once, so that a wrong address is in the log before the first request."""
        try:
            async with asyncio.timeout(max(self._timeout, 1.0)):
                await self._client.ping()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._pool.disconnect()


def _key(take: Take) -> str:
    """Name the key: a digest, since claims and headers of any length and content may be in it."""
    return PREFIX + blake2b(take.key.encode("utf-8", "surrogatepass"), digest_size=18).hexdigest()


def _arguments(takes: Sequence[Take]) -> list[int]:
    arguments: list[int] = []
    for take in takes:
        limit = take.limit
        arguments += (limit.limit, limit.cost, ticks(limit.window), bucket_width(limit), int(limit.mode == "enforce"))
    return arguments


def _grant(take: Take, admitted: int, live: int, wait: int, reset: int) -> Grant:
    limit = take.limit
    retry = float("inf") if wait == NEVER else wait / 1e6
    return Grant(limit, bool(admitted), max(0, limit.limit - live), max(0.0, reset / 1e6), retry, False)
