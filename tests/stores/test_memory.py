"""The memory store: races in virtual time, times out of order, expiry, floods of keys."""

import asyncio
import random

import pytest

from mitmgate.core.window import Grant
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.protocol import CounterStore
from tests.stores.asking import NOW, limit_of, take_of


def one(store: MemoryStore, *takes: object, now: float = NOW) -> Grant:
    return store.take(takes, now)[0]  # type: ignore[arg-type]  # Takes


def test_it_is_a_counter_store_and_never_waits() -> None:
    store: CounterStore = MemoryStore()
    assert isinstance(store.take([take_of(limit_of(1))], NOW), list)


def test_32_racing_clients_in_virtual_time_get_the_limit_in_any_window() -> None:
    store, take = MemoryStore(), take_of(limit_of(100, 60.0))
    admitted: list[float] = []
    chance = random.Random(32)

    async def client() -> None:
        now = NOW
        for _ in range(150):
            now += chance.random() * 4
            await asyncio.sleep(0)  # let the others in
            if one(store, take, now=now).admitted:
                admitted.append(now)

    async def race() -> None:
        await asyncio.gather(*[client() for _ in range(32)])

    asyncio.run(race())
    assert len(admitted) > 200
    # Clients' clocks differ, so what counts is the time at which the store decided: the latest that it had seen.
    decided = [max(admitted[: at + 1]) for at in range(len(admitted))]
    assert all(later - at >= 60.0 - 1e-6 for at, later in zip(decided, decided[100:], strict=False))


def test_a_request_that_arrived_earlier_is_decided_at_the_time_of_a_later_one() -> None:
    store, take = MemoryStore(), take_of(limit_of(1, 60.0))
    assert one(store, take).admitted
    full = take_of(limit_of(0))
    assert not one(store, take, full, now=NOW + 59).admitted  # looks, and spends nothing
    one(store, full, now=NOW + 60)  # time goes on: the unit has ended
    assert one(store, take, now=NOW + 59.998).admitted
    grant = one(store, take, now=NOW + 59.998)
    assert not grant.admitted
    assert grant.retry_after == pytest.approx(60.002), "counted from the asker's own time"
    assert not one(store, take, now=NOW + 119.99).admitted, "it was spent at NOW + 60"
    assert one(store, take, now=NOW + 59.998 + grant.retry_after).admitted


def test_denied_requests_leave_no_keys() -> None:
    store, full = MemoryStore(), take_of(limit_of(0))
    for number in range(1000):
        one(store, take_of(limit_of(5), str(number)), full)
    assert len(store) == 0


def test_keys_expire_as_others_come() -> None:
    store, limit, slow = MemoryStore(), limit_of(5, 10.0), limit_of(5, 3600.0)
    one(store, take_of(slow, "slow"))
    for number in range(20_000):
        one(store, take_of(limit, str(number)), now=NOW + number * 0.01)
    # 1,000 keys come in a window; the one of a longer window is not in the way.
    assert len(store) <= 2_100
    assert store.forgotten == 0
    assert one(store, take_of(slow, "slow"), now=NOW + 200).remaining == 3


def test_a_flood_of_keys_never_frees_a_key_at_its_limit() -> None:
    store = MemoryStore(keys=100)
    limit = limit_of(3)
    victims = [take_of(limit, f"full-{number}") for number in range(50)]
    for victim in victims:
        for _ in range(3):
            assert one(store, victim).admitted
    flood = random.Random(7)
    for number in range(5_000):
        one(store, take_of(limit, f"flood-{number}"))
        for _ in range(flood.choice([0, 1, 3])):  # second requests, so that these are no easier to forget
            one(store, take_of(limit, f"flood-{number - flood.randrange(20)}"))
        assert len(store) <= 100
    assert store.forgotten > 4_000
    assert not any(one(store, victim).admitted for victim in victims)


def test_a_key_at_its_limit_is_kept_rather_than_a_later_one_with_room() -> None:
    store, limit = MemoryStore(keys=3), limit_of(3)
    for who, requests in (("full", 3), ("one", 2), ("two", 2), ("new", 1)):
        for _ in range(requests):
            assert one(store, take_of(limit, who)).admitted
    assert not one(store, take_of(limit, "full")).admitted
    assert store.forgotten == 1


def test_a_flood_of_single_requests_frees_no_key_that_had_more() -> None:
    store, limit = MemoryStore(keys=50), limit_of(10)
    for _ in range(2):
        one(store, take_of(limit, "regular"))
    for number in range(1_000):
        one(store, take_of(limit, str(number)))
    assert one(store, take_of(limit, "regular")).remaining == 7


def test_where_every_key_is_at_its_limit_it_still_stays_bounded() -> None:
    store = MemoryStore(keys=10)
    for number in range(1_000):
        assert one(store, take_of(limit_of(1), str(number))).admitted
        assert len(store) <= 10
    assert not one(store, take_of(limit_of(0))).admitted


def test_a_key_at_its_limit_comes_back_when_its_units_have_ended() -> None:
    store, take = MemoryStore(keys=10), take_of(limit_of(2, 1.0))
    for second in range(5):
        assert [one(store, take, now=NOW + second * 1.5).admitted for _ in range(3)] == [True, True, False]
    assert len(store) == 1


def test_a_store_without_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="room"):
        MemoryStore(keys=0)
