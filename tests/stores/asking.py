"""Limits and questions that the store tests share."""

import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from mitmgate.core.limit import Limit
from mitmgate.core.window import Grant, Take
from mitmgate.stores.protocol import CounterStore
from mitmgate.stores.redis import RedisStore

NOW = 1_763_000_000.25
_NUMBERS = itertools.count()

PATIENT = 5.0
"""Seconds that tests let a healthy server take: a busy machine is no failure."""


def limit_of(units: int, window: float = 60.0, **members: object) -> Limit:
    """Make a limit of its own name, so that no test shares a counter with another."""
    return replace(Limit(f"limit-{next(_NUMBERS)}", units, window, ("principal",)), **members)  # type: ignore[arg-type]


def take_of(limit: Limit, who: str = "alice") -> Take:
    """Make the take of one client."""
    return Take(limit, f"{limit.name}\0{who}")


async def ask(store: CounterStore, *takes: Take, now: float = NOW) -> list[Grant]:
    """Take as the stages do, whether the store is synchronous or not."""
    if len(takes) == 1:
        grant = store.take_one(takes[0].limit, takes[0].key, now)
        if grant is not None:
            return [grant]
    asked = store.take(takes, now)
    return asked if isinstance(asked, list) else await asked


async def admitted(store: CounterStore, take: Take, times: int, now: float = NOW) -> int:
    """Take so many times, one after the other; return how often there was room."""
    return sum([(await ask(store, take, now=now))[0].admitted for _ in range(times)])


@asynccontextmanager
async def redis_store(url: str, patience: float = PATIENT) -> AsyncIterator[RedisStore]:
    """Have a started store."""
    store = RedisStore(url, patience)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def messages(records: Sequence[logging.LogRecord]) -> str:
    """Join what was logged."""
    return "\n".join(record.getMessage() for record in records)
