"""What every counter store does, memory and a real Redis alike."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from mitmgate.core.limit import EXACT_LIMIT
from mitmgate.core.window import Take
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.protocol import CounterStore
from tests.redis_server import RedisServer
from tests.stores.asking import NOW, admitted, ask, limit_of, redis_store, take_of

Opened = Callable[[], AbstractAsyncContextManager[CounterStore]]
Contract = Callable[[CounterStore], Awaitable[None]]


@pytest.fixture(params=["memory", "redis"])
def opened(request: pytest.FixtureRequest, shared_server: RedisServer) -> Opened:
    @asynccontextmanager
    async def memory() -> AsyncIterator[CounterStore]:
        store = MemoryStore()
        await store.start()
        yield store
        await store.close()

    return memory if request.param == "memory" else lambda: redis_store(shared_server.url)


def check(opened: Opened, contract: Contract) -> None:
    async def run() -> None:
        async with opened() as store:
            assert store.available
            await contract(store)

    asyncio.run(run())


@pytest.mark.parametrize("units", [1, 2, 100])
def test_the_limit_and_no_more_is_admitted(opened: Opened, units: int) -> None:
    async def contract(store: CounterStore) -> None:
        assert await admitted(store, take_of(limit_of(units)), units + 20) == units

    check(opened, contract)


def tiers_of(free: int, pro: int) -> tuple[Take, Take]:
    """Make the takes of one client whose plan is free now and pro at another time."""
    limit = limit_of(free, widest=max(free, pro), tier="free")
    return take_of(limit), take_of(replace(limit, limit=pro, tier="pro"))


@pytest.mark.parametrize(("free", "pro"), [(3, 5), (3, 3 * EXACT_LIMIT)])
def test_a_clients_tiers_count_the_same_units(opened: Opened, free: int, pro: int) -> None:
    async def contract(store: CounterStore) -> None:
        one, other = tiers_of(free, pro)
        assert await admitted(store, one, free + 2) == free
        assert await admitted(store, other, 1) == 1, "there is more room at once"
        assert await admitted(store, one, 1) == 0
        assert await admitted(store, other, 1) == 1
        (grant,) = await ask(store, other)
        assert (grant.admitted, grant.remaining) == (pro > 5, max(0, pro - free - 3))
        (grant,) = await ask(store, one)
        assert (grant.admitted, grant.remaining) == (False, 0)

    check(opened, contract)


def test_32_clients_that_race_get_the_limit_and_no_more(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        take = take_of(limit_of(100))
        assert sum(await asyncio.gather(*[admitted(store, take, 5) for _ in range(32)])) == 100

    check(opened, contract)


def test_remaining_counts_down_and_a_denial_tells_the_wait(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        take = take_of(limit_of(3))
        assert [(await ask(store, take))[0].remaining for _ in range(3)] == [2, 1, 0]
        grant = (await ask(store, take))[0]
        assert (grant.admitted, grant.remaining, grant.degraded, grant.limit) == (False, 0, False, take.limit)
        assert 50 < grant.retry_after <= 60
        assert 50 < grant.reset <= grant.retry_after

    check(opened, contract)


def test_keys_and_limits_do_not_share(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        one, two = limit_of(1), limit_of(1)
        for take in (take_of(one), take_of(one, "bob"), take_of(two)):
            assert await admitted(store, take, 2) == 1

    check(opened, contract)


def test_a_denied_request_spends_nothing_anywhere(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        wide, narrow = take_of(limit_of(10)), take_of(limit_of(1))
        assert [grant.admitted for grant in await ask(store, wide, narrow)] == [True, True]
        for order in ((wide, narrow), (narrow, wide)):
            grants = {grant.limit: grant for grant in await ask(store, *order)}
            assert (grants[wide.limit].admitted, grants[wide.limit].remaining) == (True, 9)
            assert (grants[narrow.limit].admitted, grants[narrow.limit].remaining) == (False, 0)
        assert await admitted(store, wide, 20) == 9

    check(opened, contract)


async def in_two_steps(store: CounterStore, client: Take, route: Take) -> bool:
    """Take of a client's limit, then of a route's, as ClientQuota and RateLimit do."""
    first = await ask(store, client)
    if not first[0].admitted:
        return False
    await asyncio.sleep(0)
    asked = store.take([route], NOW, [grant for grant in first if grant.spent])
    return (asked if isinstance(asked, list) else await asked)[0].admitted


@pytest.mark.parametrize("units", [5, EXACT_LIMIT * 5])
def test_what_a_later_call_denies_is_given_back(opened: Opened, units: int) -> None:
    async def contract(store: CounterStore) -> None:
        cost = units // 5
        client, route = take_of(limit_of(units, cost=cost)), take_of(limit_of(2))
        assert [await in_two_steps(store, client, route) for _ in range(9)] == [True, True, *[False] * 7]
        assert (await ask(store, client))[0].remaining == 2 * cost
        assert await admitted(store, client, 9) == 2
        assert not await in_two_steps(store, client, take_of(limit_of(9)))

    check(opened, contract)


def test_a_client_that_races_over_two_limits_gets_neither_more_nor_less(opened: Opened) -> None:
    """What is held for a moment may deny others, and is lost for nobody: asked again, all is admitted that fits."""

    async def contract(store: CounterStore) -> None:
        client, routes = take_of(limit_of(40)), [take_of(limit_of(10)) for _ in range(3)]

        async def race(route: Take) -> int:
            return sum([await in_two_steps(store, client, route) for _ in range(8)])

        counts = await asyncio.gather(*[race(routes[at % 3]) for at in range(12)])
        assert sum(counts) == 30
        assert (await ask(store, client))[0].remaining == 9

    check(opened, contract)


def test_a_report_limit_counts_and_keeps_nobody_from_spending(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        enforced, reported = take_of(limit_of(3)), take_of(limit_of(1, mode="report"))
        got = [tuple(grant.admitted for grant in await ask(store, reported, enforced)) for _ in range(4)]
        assert got == [(True, True), (False, True), (False, True), (False, False)]

    check(opened, contract)


def test_a_denied_request_spends_nothing_of_a_report_limit(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        enforced, reported = take_of(limit_of(1)), take_of(limit_of(5, mode="report"))
        assert [(await ask(store, enforced, reported))[1].remaining for _ in range(3)] == [4, 5 - 1, 4]

    check(opened, contract)


def test_a_cost_spends_units(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        limit = limit_of(10, cost=4)
        grants = [(await ask(store, take_of(limit)))[0] for _ in range(3)]
        assert [(grant.admitted, grant.remaining) for grant in grants] == [(True, 6), (True, 2), (False, 2)]
        impossible = (await ask(store, take_of(limit_of(3, cost=4))))[0]
        assert (impossible.admitted, impossible.retry_after) == (False, float("inf"))

    check(opened, contract)


def test_a_limit_that_would_limit_nothing_is_an_error(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        for limit in (limit_of(1, cost=0), limit_of(1, window=0.0), limit_of(1, cost=-1)):
            with pytest.raises(ValueError, match="a cost of"):
                await ask(store, take_of(limit))
        assert await admitted(store, take_of(limit_of(0)), 2) == 0

    check(opened, contract)


def test_one_request_can_not_take_twice_of_one_key(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        take = take_of(limit_of(1))
        with pytest.raises(ValueError, match="twice"):
            await ask(store, take, take)

    check(opened, contract)


def test_a_large_limit_is_never_exceeded(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        limit = limit_of(EXACT_LIMIT + 2, cost=3334)
        grants = [(await ask(store, take_of(limit)))[0] for _ in range(4)]
        assert [grant.admitted for grant in grants] == [True, True, True, False]
        assert [grant.remaining for grant in grants] == [6668, 3334, 0, 0]
        assert 50 < grants[-1].retry_after <= 60 * 1.001

    check(opened, contract)


def test_a_changed_limit_applies_to_what_was_spent(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        limit = limit_of(10)
        assert await admitted(store, take_of(limit), 8) == 8
        tighter = (await ask(store, take_of(replace(limit, limit=5))))[0]
        assert (tighter.admitted, tighter.remaining) == (False, 0)
        assert await admitted(store, take_of(replace(limit, limit=12)), 10) == 4
        # Above the exact limits it is counted in another structure, which starts afresh and is no error.
        assert (await ask(store, take_of(replace(limit, limit=EXACT_LIMIT + 1))))[0].admitted

    check(opened, contract)


def test_any_text_may_be_a_key(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        limit = limit_of(1)
        for who in ("", "\ud800", "a\r\nb", "{x}", "\0", "ü" * 10_000):
            assert await admitted(store, take_of(limit, who), 2) == 1

    check(opened, contract)


def test_nothing_asked_is_nothing_granted(opened: Opened) -> None:
    async def contract(store: CounterStore) -> None:
        assert await ask(store, now=NOW) == []

    check(opened, contract)
