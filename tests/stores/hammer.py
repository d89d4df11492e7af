"""A process that takes of one limit as fast as it can for a while, and prints how often it was admitted.

A second limit, in report mode and too large to be reached, is taken along: its list on the server then holds the
server's time of every admission.
"""

import asyncio
import sys
import time

from mitmgate.core.limit import EXACT_LIMIT, Limit
from mitmgate.core.window import Take
from mitmgate.stores.redis import RedisStore, command

CLIENTS = 8
LIMIT = Take(Limit("hammered", 20, 0.25, ("principal",)), "hammered")
WITNESS = Take(Limit("witness", EXACT_LIMIT, 600.0, ("principal",), mode="report"), "witness")


def witness_key() -> str:
    """Return the key under which the server has the times."""
    key = command([WITNESS])[3]
    assert isinstance(key, bytes)
    return key.decode()


async def main(url: str, seconds: float) -> None:
    """Take with several clients at once."""
    store = RedisStore(url, 5.0)
    await store.start()
    end = time.monotonic() + seconds

    async def client() -> int:
        admitted = 0
        while time.monotonic() < end:
            grants = await store.take([LIMIT, WITNESS], time.time())  # type: ignore[misc]  # available: awaitable
            assert not grants[0].degraded
            admitted += grants[0].admitted
        return admitted

    print(sum(await asyncio.gather(*[client() for _ in range(CLIENTS)])))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
