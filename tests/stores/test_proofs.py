"""Which DPoP proofs were used: who can't know whether one was takes none."""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest

from mitmgate.core.proof import AHEAD, LONGEST_LIFETIME, REPLAYED, UnverifiedProof
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Proofs
from mitmgate.stores.proofs import UsedProofs
from mitmgate.stores.redis import RedisStore
from tests.live.harness_http import free_port
from tests.redis_server import PATIENCE, RedisServer

RULE = Proofs()
LOCAL = Proofs(on_store_failure="local")


def proof(number: int, issued: float) -> UnverifiedProof:
    return UnverifiedProof("ES256", {}, "A" * 43, b"", b"", str(number), "GET", "/", issued, "x", None)


def here(used: UsedProofs, one: UnverifiedProof, now: float) -> Refusal | None:
    refusal = used.use(one, RULE, now, 0.0)
    assert not isinstance(refusal, Awaitable)
    return refusal


async def asked(used: UsedProofs, one: UnverifiedProof, rule: Proofs = RULE) -> Refusal | None:
    refusal: Any = used.use(one, rule, time.time(), time.perf_counter())
    return await refusal if isinstance(refusal, Awaitable) else refusal  # type: ignore[no-any-return]


def is_unknown(refusal: Refusal | None) -> bool:
    return refusal is not None and refusal.reason is Reason.STORE_UNAVAILABLE


def test_what_was_made_before_the_start_is_not_known() -> None:
    before, used = time.time(), UsedProofs()
    for issued in (before - 1.0, before, before + AHEAD):  # a clock that is ahead has made it before, all the same
        assert is_unknown(here(used, proof(1, issued), before + 1.0))
    fresh = proof(1, time.time() + AHEAD + 0.001)
    assert here(used, fresh, before + 1.0) is None
    assert here(used, fresh, before + 1.0) is REPLAYED


@pytest.mark.parametrize("step", [0.0, 0.01, -0.01])
def test_who_makes_many_proofs_makes_no_used_one_good(step: float) -> None:
    """The oldest are forgotten; what is as old is taken no more. What is newer is: others are not locked out."""
    used, start = UsedProofs(most=100), time.time() + 60.0
    made = [proof(number, start + step * number) for number in range(300)]
    for one in made:
        here(used, one, start)
    for one in made:
        assert here(used, one, start) is not None
    assert here(used, proof(1000, start + 4.0), start) is None
    assert len(used._issued) <= 100


def test_a_longer_lifetime_makes_no_used_proof_good() -> None:
    """What is remembered, and for how long, does not depend on the lifetime that the policy says just now."""
    used, start = UsedProofs(), time.time() + 60.0
    one = proof(1, start)
    assert here(used, one, start) is None
    for number in range(2, 20):
        assert here(used, proof(number, start + 20.0 * number), start + 20.0 * number) is None
        assert here(used, one, start + 20.0 * number) is not None


def test_a_clock_that_is_set_makes_no_used_proof_good() -> None:
    used, start = UsedProofs(), time.time() + 60.0
    one = proof(1, start)
    assert here(used, one, start) is None
    assert here(used, proof(2, start + 7200.0), start + 7200.0) is None
    assert here(used, one, start) is not None


def test_redis_remembers_for_whatever_lifetime_and_tells_since_when(server: RedisServer) -> None:
    asyncio.run(_redis_remembers(server))


async def _redis_remembers(server: RedisServer) -> None:
    store, others = RedisStore(server.url, 5.0), RedisStore(server.url, 5.0)
    await store.start()
    await others.start()
    one, other = UsedProofs(store), UsedProofs(others)
    await one.start()
    first = proof(1, time.time() + AHEAD)
    assert is_unknown(await asked(other, proof(0, time.time() - 1.0))), "before Redis has begun to remember"
    assert await asked(one, first) is None
    assert await asked(other, first) is REPLAYED
    keys = [word for word in server.command("KEYS", "mitmgate:*").split() if b"mitmgate" in word]
    kept = sorted(int(server.command("TTL", key.decode()).strip()[1:]) for key in keys)
    assert LONGEST_LIFETIME < kept[-3] <= kept[-2] <= LONGEST_LIFETIME + AHEAD + 2
    assert kept[-1] > 86400, "since when"
    server.command("FLUSHALL")
    assert await asked(one, first) is REPLAYED, "this process knows it"
    server.command("FLUSHALL")
    assert is_unknown(await asked(other, first))
    assert is_unknown(await asked(other, proof(2, time.time()))), "it may have been used"
    assert await asked(other, proof(3, time.time() + 2 * AHEAD)) is None
    server.stop()
    assert is_unknown(await asked(other, proof(4, time.time() + 2 * AHEAD)))
    server.start()
    async with asyncio.timeout(PATIENCE):
        while not store.available or not others.available:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert is_unknown(await asked(one, proof(6, time.time())))
    await store.close()
    await others.close()


def test_without_redis_each_process_counts_where_the_policy_says_so() -> None:
    asyncio.run(_without_redis())


async def _without_redis() -> None:
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0", 0.1)
    await store.start()
    used = UsedProofs(store)
    await used.start()
    one = proof(1, time.time() + 2 * AHEAD)
    assert is_unknown(await asked(used, one))
    assert is_unknown(await asked(used, proof(2, time.time()), LOCAL)), "used before the start, it may be"
    assert await asked(used, one, LOCAL) is None
    assert await asked(used, one, LOCAL) is REPLAYED
    await store.close()
