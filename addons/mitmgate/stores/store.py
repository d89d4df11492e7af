"""Open the counter store that a policy names."""

from collections.abc import Callable

from mitmgate.audit.record import Event
from mitmgate.net.dialler import Dialler
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.protocol import CounterStore


def open_store(
    url: str | None,
    timeout: float = 0.1,
    dialler: Dialler | None = None,
    emit: Callable[[Event], None] | None = None,
) -> CounterStore:
    """Make a store: memory where url is None, else Redis. timeout: seconds a decision waits for Redis.

    dialler: connects to it; None: one of its own. emit: takes audit events.
    """
    if url is None:
        return MemoryStore()
    from mitmgate.stores.redis import RedisStore  # noqa: PLC0415 - redis.asyncio takes 100 ms to import

    return RedisStore(url, timeout, dialler, emit)
