"""Redis fails in every way that a test can arrange: bounded waits, the declared policy, recovery, no secret told."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from redis import Redis

from mitmgate.stores.redis import CONNECTIONS, RedisStore, command
from tests.late_redis import LateRedis
from tests.live.harness_http import free_port
from tests.redis_server import RedisServer
from tests.stores.asking import NOW, admitted, ask, limit_of, messages, redis_store, take_of

SHORT = 0.2
"""Seconds that decisions may wait in these tests."""
SLACK = 15.0
"""Seconds that a busy machine may add."""


async def until(condition: Callable[[], bool], patience: float = 10.0) -> None:
    """Wait for a condition of this process."""
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 - the condition is the server's, and no event of ours
            await asyncio.sleep(0.01)


def run(work: Coroutine[None, None, None]) -> None:
    asyncio.run(work)


async def lose(store: RedisStore) -> None:
    """Let the store discover that its server is away."""
    await ask(store, take_of(limit_of(1)))
    await until(lambda: not store.available)


def test_each_limit_does_as_its_policy_says(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            server.stop()
            await lose(store)
            local, allow = take_of(limit_of(2)), take_of(limit_of(1, on_store_failure="allow"))
            deny = take_of(limit_of(5, on_store_failure="deny"))
            assert await admitted(store, local, 5) == 2
            assert await admitted(store, allow, 5) == 5
            assert await admitted(store, deny, 5) == 0
            grants = [(await ask(store, take))[0] for take in (local, allow, deny)]
            assert all(grant.degraded for grant in grants)
            assert 0 < grants[2].retry_after < 10

    run(work())


def test_what_another_limit_denies_spends_nothing_locally(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            server.stop()
            await lose(store)
            local, deny = take_of(limit_of(2)), take_of(limit_of(5, on_store_failure="deny"))
            for _ in range(4):
                assert [grant.admitted for grant in await ask(store, local, deny)] == [True, False]
            assert await admitted(store, local, 5) == 2
            reported = take_of(limit_of(5, on_store_failure="deny", mode="report"))
            other = take_of(limit_of(2))
            for left in (1, 0):
                grants = await ask(store, other, reported)
                assert (grants[0].admitted, grants[0].remaining, grants[1].admitted) == (True, left, False)

    run(work())


def test_a_server_that_hangs_delays_those_alone_that_discover_it(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url, SHORT) as store:
            take = take_of(limit_of(1000))
            await until(lambda: store.available)
            server.pause()
            started = time.monotonic()
            first = await asyncio.gather(*[ask(store, take) for _ in range(100)])
            assert time.monotonic() - started < SHORT + SLACK
            assert all(grants[0].degraded and grants[0].admitted for grants in first)
            while store.available:  # each connection finds out for itself
                assert (await ask(store, take))[0].degraded
            assert time.monotonic() - started < CONNECTIONS * SHORT + SLACK
            for _ in range(100):
                assert isinstance(store.take([take], NOW), list), "nobody waits any more"
            server.resume()
            await until(lambda: store.available)
            assert not (await ask(store, take))[0].degraded

    run(work())


def test_questions_behind_a_hung_batch_wait_no_longer_than_it(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url, SHORT) as store:
            await ask(store, take_of(limit_of(1)))
            server.pause()
            take = take_of(limit_of(1000))

            async def late(delay: float) -> float:
                await asyncio.sleep(delay)
                started = time.monotonic()
                await ask(store, take)
                return time.monotonic() - started

            waits = await asyncio.gather(*[late(at * SHORT / 20) for at in range(20)])
            assert max(waits) < SHORT + SLACK

    run(work())


def test_killed_and_started_again_it_counts_exactly_again(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            take = take_of(limit_of(10))
            assert await admitted(store, take, 4) == 4
            server.stop()
            await lose(store)
            assert (await ask(store, take))[0].degraded
            server.start()
            await until(lambda: store.available)
            async with redis_store(server.url) as other:
                both = await asyncio.gather(admitted(store, take, 15), admitted(other, take, 15))
            assert sum(both) == 10 - 1, "what was admitted without it is owed to it"

    run(work())


def test_a_server_that_is_away_at_the_start_is_found_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer(tmp_path)

    async def work() -> None:
        async with redis_store(server.url) as store:
            assert not store.available
            assert (await ask(store, take_of(limit_of(1))))[0].degraded
            server.start()
            await until(lambda: store.available)
            assert not (await ask(store, take_of(limit_of(1))))[0].degraded

    try:
        with caplog.at_level(logging.WARNING):
            run(work())
    finally:
        server.stop()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"], "one line each: away, back"


def test_what_is_asked_before_the_start_is_counted_by_the_server(server: RedisServer) -> None:
    async def work() -> None:
        store, take = RedisStore(server.url, 5.0), take_of(limit_of(3))
        counts = await asyncio.gather(admitted(store, take, 3), store.start(), admitted(store, take, 3))
        assert (counts[0] or 0) + (counts[2] or 0) == 3
        assert not (await ask(store, take))[0].degraded
        await store.close()

    run(work())


def test_local_windows_begin_with_what_redis_had_counted(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store, redis_store(server.url) as other:
            take = take_of(limit_of(10))
            assert await admitted(other, take, 3) == 3
            assert await admitted(store, take, 4) == 4
            server.stop()
            await lose(store)
            await lose(other)
            assert await admitted(store, take, 9) == 3, "it knows of all seven"
            assert await admitted(other, take, 9) == 7, "it knows of its own three"

    run(work())


def test_what_was_admitted_without_redis_is_told_to_it(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url, SHORT) as store, redis_store(server.url) as other:
            take = take_of(limit_of(10))
            assert await admitted(store, take, 4) == 4
            server.pause()
            while store.available:
                await ask(store, take_of(limit_of(1)))
            assert await admitted(store, take, 9) == 6
            server.resume()
            await until(lambda: store.available)
            assert not (await ask(store, take))[0].admitted
            assert (await ask(other, take))[0].remaining == 0
            assert await admitted(other, take, 3) == 0

    run(work())


def test_a_late_answer_is_no_outage(server: RedisServer) -> None:
    """It is learnt: the process counts as if it had come in time, and the other connection is used meanwhile."""

    async def work() -> None:
        with LateRedis(server.port) as between:
            async with redis_store(between.url, SHORT) as store, redis_store(server.url) as other:
                take, far = take_of(limit_of(10)), take_of(limit_of(10))
                assert await admitted(store, take, 4) == 4
                assert await admitted(other, far, 10) == 10
                assert not (await ask(store, far))[0].admitted
                delays = iter([2 * SHORT])
                between.delay = lambda: next(delays, 0.0)
                late = (await ask(store, take))[0]
                assert (late.admitted, late.degraded, late.remaining) == (True, True, 5)
                assert store.available
                prompt = (await ask(store, take))[0]
                assert (prompt.admitted, prompt.degraded) == (True, False)
                await asyncio.sleep(2 * SHORT)  # the late answer comes
                assert await admitted(store, take, 9) == 4
                delays = iter([2 * SHORT])
                late = (await ask(store, far))[0]
                assert (late.admitted, late.degraded) == (False, True), "others have used it up, as far as is known"
                assert await admitted(other, take, 3) == 0

    run(work())


def test_a_process_that_stood_still_looks_at_what_has_come(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url, SHORT) as store:
            take = take_of(limit_of(100))
            for lag in range(4):
                asked = [asyncio.create_task(ask(store, take)) for _ in range(5)]
                for _ in range(lag):  # nothing is sent yet, or all is on its way
                    await asyncio.sleep(0)
                time.sleep(1.5 * SHORT)  # noqa: ASYNC251 - the whole process stands still
                grants = [grants[0] for grants in await asyncio.gather(*asked)]
                assert not any(grant.degraded for grant in grants)

    run(work())


def test_a_connection_that_stays_silent_is_closed(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        with LateRedis(server.port) as between:
            async with redis_store(between.url, SHORT / 4) as store:
                take = take_of(limit_of(100))
                assert await admitted(store, take, 4) == 4
                delays = iter([60.0])
                between.delay = lambda: next(delays, 0.0)
                assert (await ask(store, take))[0].degraded
                exact = 0
                async with asyncio.timeout(60):
                    while "without an answer" not in caplog.text:
                        exact += not (await ask(store, take))[0].degraded
                        await asyncio.sleep(0.01)
                assert exact, "the other one answers"
                assert store.available
                assert "away" not in caplog.text

    run(work())


def test_a_server_that_is_always_late_counts_all_the_same(server: RedisServer) -> None:
    """Two processes, each decision made without the answer: they keep near to the limit together."""

    async def work() -> None:
        with LateRedis(server.port, lambda: 0.15) as between:
            async with redis_store(between.url, 0.05) as one, redis_store(between.url, 0.05) as two:
                take, counts = take_of(limit_of(10, 2.0)), [0, 0]
                started = asyncio.get_running_loop().time()

                async def client(number: int, store: RedisStore) -> None:
                    while (now := asyncio.get_running_loop().time()) < started + 8.0:
                        counts[number] += (await ask(store, take, now=now))[0].admitted
                        await asyncio.sleep(0.015)

                await asyncio.gather(client(0, one), client(1, two))
                assert min(counts) > 0
                assert sum(counts) <= 20 + 3 * 13, "twice the limit at first, then about the limit in each window"

    run(work())


def test_local_counters_outlive_an_outage(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            take = take_of(limit_of(2))
            for expected in (2, 0):
                server.stop()
                await lose(store)
                assert await admitted(store, take, 3) == expected
                server.start()
                await until(lambda: store.available)

    run(work())


def test_cancelled_requests_poison_no_connection(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            await ask(store, take_of(limit_of(1)))
            for _ in range(10):
                server.pause()
                asked = [asyncio.create_task(ask(store, take_of(limit_of(7)))) for _ in range(CONNECTIONS * 3)]
                await asyncio.sleep(0.01)  # some are on their way, some are queued
                for task in asked[::2]:
                    task.cancel()
                server.resume()
                results = await asyncio.gather(*asked, return_exceptions=True)
                for result in results[1::2]:
                    assert isinstance(result, list)
                    assert (result[0].remaining, result[0].degraded) == (6, False)
                for units in (11, 22, 33):  # each reply is the asker's own
                    assert (await ask(store, take_of(limit_of(units))))[0].remaining == units - 1

    run(work())


def test_a_forgotten_script_is_loaded_again(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            take = take_of(limit_of(5))
            for left in (4, 3):
                grant = (await ask(store, take))[0]
                assert (grant.remaining, grant.degraded) == (left, False)
                assert server.command("SCRIPT", "FLUSH").startswith(b"+OK")

    run(work())


def test_a_connection_closed_while_idle_is_replaced(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            for _ in range(3):
                assert not (await ask(store, take_of(limit_of(1))))[0].degraded
                server.command("CLIENT", "KILL", "TYPE", "normal")
                await asyncio.sleep(0.05)  # for the end to arrive

    run(work())


def test_a_refusal_is_no_outage(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            take = take_of(limit_of(2))
            server.command("CONFIG", "SET", "maxmemory", "1")
            assert await admitted(store, take, 4) == 2
            assert (await ask(store, take))[0].degraded
            assert not store.available, "ready is who can count"
            server.command("CONFIG", "SET", "maxmemory", "0")
            await until(lambda: store.available)  # without another request
            assert not (await ask(store, take))[0].degraded

    with caplog.at_level(logging.WARNING):
        run(work())
    assert messages(caplog.records).count("refuses") == 1, "said once, not for every request"


def test_a_replica_is_left_for_a_new_connection(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            server.command("REPLICAOF", "127.0.0.1", "1")
            assert (await ask(store, take_of(limit_of(1))))[0].degraded
            assert not store.available
            server.command("REPLICAOF", "NO", "ONE")

            await until(lambda: store.available)
            assert not (await ask(store, take_of(limit_of(1))))[0].degraded

    run(work())


def test_counters_expire_by_themselves(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            takes = [take_of(limit_of(5, 0.2)), take_of(limit_of(50_000, 0.2))]
            await ask(store, *takes)
            with Redis.from_url(server.url) as client:
                key = command(takes[:1])[3]
                assert isinstance(key, bytes)
                assert 0 < client.pttl(key) <= 202
                await until(lambda: client.dbsize() == 0)

    run(work())


def test_a_cluster_takes_all_limits_of_a_request_at_once(tmp_path: Path) -> None:
    async def work(url: str) -> None:
        async with redis_store(url) as store:
            takes = [take_of(limit_of(2), who) for who in ("alice", "192.0.2.1", "acme")]
            assert [(await ask(store, *takes))[0].admitted for _ in range(3)] == [True, True, False]
            assert not (await ask(store, *takes))[0].degraded

    # Without a port of its own the cluster's bus would take the server's plus 10,000, which may be too high.
    with RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as server:
        assert server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383").startswith(b"+OK")
        deadline = time.monotonic() + 10
        while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
            assert time.monotonic() < deadline
        run(work(server.url))


def test_a_password_works_and_is_never_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer(tmp_path, "--requirepass", "s3cret-word") as server:
        right = server.url.replace("//", "//:s3cret-word@")
        wrong = server.url.replace("//", "//:wr0ng-word@")

        async def work() -> None:
            async with redis_store(right) as store:
                assert not (await ask(store, take_of(limit_of(1))))[0].degraded
                server.stop()
                await lose(store)
            server.start()
            async with redis_store(wrong) as store:
                assert not store.available
            async with redis_store(server.url) as store:
                assert not store.available

        with caplog.at_level(logging.DEBUG):
            run(work())
    everything = messages(caplog.records) + "".join(str(record.exc_info) for record in caplog.records)
    assert "away" in everything
    assert "s3cret" not in everything
    assert "wr0ng" not in everything


def test_closing_answers_who_waits(server: RedisServer) -> None:
    async def work() -> None:
        async with redis_store(server.url) as store:
            await ask(store, take_of(limit_of(1)))
            server.pause()
            asked = [asyncio.create_task(ask(store, take_of(limit_of(1)))) for _ in range(5)]
            await asyncio.sleep(0)
        assert all(grants[0].degraded for grants in await asyncio.gather(*asked))

    run(work())


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="URL"):
        RedisStore("http://127.0.0.1:6379/0")
