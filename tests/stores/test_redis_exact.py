"""Redis counts exactly: processes that race, and the Lua script against the model in core."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from mitmgate.core.limit import BUCKETS, EXACT_LIMIT, Limit, ticks
from mitmgate.core.rules import Mode
from mitmgate.core.sliding import Window
from mitmgate.core.window import Grant, Take, denies, new_window, settle
from mitmgate.stores.redis import CLOCK, _grant, command
from tests.redis_server import RedisServer
from tests.stores.asking import limit_of
from tests.stores.hammer import LIMIT, witness_key

ROOT = Path(__file__).parents[2]


def test_two_processes_never_exceed_the_limit_in_any_window(shared_server: RedisServer) -> None:
    seconds = 1.5
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'addons'}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-m", "tests.stores.hammer", shared_server.url, str(seconds)]
    processes = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, cwd=ROOT) for _ in range(2)]
    counts = [int(process.communicate(timeout=30)[0]) for process in processes]
    with Redis.from_url(shared_server.url) as client:
        times = [int(at) for at in client.lrange(witness_key(), 0, -1)]
    limit, window = LIMIT.limit.limit, ticks(LIMIT.limit.window)
    assert min(counts) > 0
    assert len(times) == sum(counts)
    assert all(later - at >= window for at, later in zip(times, times[limit:], strict=False))
    # About as much as fits was let through: how often the two came to hammer is the machine's to say.
    assert len(times) >= limit * int((times[-1] - times[0]) / window) / 2


class Clockwork:
    """The script with a clock that the test sets."""

    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url)
        self.set_back = False
        """Whether the script remembers that its clock was set back."""
        script = files("mitmgate.stores").joinpath("lua/take.lua").read_text()
        assert script.count("redis.call('TIME')") == 1
        self.script = script.replace("redis.call('TIME')", "redis.call('LRANGE', 'clock', 0, 1)")

    def take(
        self,
        takes: Sequence[Take],
        now: int,
        debts: Sequence[int] = (),
        held: Sequence[Grant] = (),
        returned: Sequence[Grant] = (),
    ) -> list[Grant]:
        self.client.delete("clock")
        self.client.rpush("clock", now // 1_000_000, now % 1_000_000)
        if not self.set_back:
            self.client.delete(CLOCK)
        _, _, count, *words = command(takes, debts, held, returned)
        numbers = self.client.eval(self.script, int(count), *words)
        for at in range(int(count)):  # the server's own clock must not expire what is counted by the test's
            self.client.persist(words[at])  # type: ignore[arg-type]
        return [_grant(take, *numbers[5 * at : 5 * at + 5]) for at, take in enumerate(takes)]

    def __enter__(self) -> "Clockwork":
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()


START = 1_763_000_000_000_000
STEPS = st.one_of(
    st.sampled_from([0, 1, 999, 1000, 300_000, 500_000, 999_999, 1_000_000, 1_000_001, 10_000_000]),
    st.integers(0, 600_000),
    st.sampled_from([-1, -1000, -400_000, -900_000]),
)


@pytest.mark.parametrize("scale", [1, EXACT_LIMIT // 3])
def test_the_script_decides_as_core_does(shared_server: RedisServer, scale: int) -> None:
    # Limits and costs change between the questions, as on a reload: only then a wait ends in the middle of the log.
    first, second, other = limit_of(1, 1.0), limit_of(1, 1.0), limit_of(5, 3.0)

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(
            st.tuples(
                STEPS,
                st.integers(4, 8),
                st.integers(1, 3),
                st.sampled_from(["enforce", "report"]),
                st.booleans(),
                st.sampled_from([0, 0, 0, 1, 2]),
                st.sampled_from(["", "held", "returned"]),
            ),
            min_size=8,
            max_size=40,
        ),
    )
    def run(steps: list[tuple[int, int, int, Mode, bool, int, str]]) -> None:
        run_id = os.urandom(8).hex()
        windows: dict[str, Window] = {}
        former: list[tuple[Grant, Grant]] = []  # what was granted last, by the script and by core
        now = latest = START

        def window_of(limit: Limit, key: str) -> Window:
            return windows.setdefault(f"{key}/{limit.width}", new_window(limit))

        def give_back(grants: list[tuple[Grant, Grant]]) -> None:
            for _, grant in grants:
                if grant.spent:
                    window_of(grant.limit, grant.key).give_back(grant.spent, grant.limit.cost)

        for step, units, cost, mode, both, debt, back in steps:
            now = max(now + step, latest - 900_000)  # beyond a second it would take the clock for one that was set back
            latest = max(now, latest)
            changed = replace(first, limit=units * scale, cost=cost * scale, mode=mode)
            limits = [changed, replace(second, limit=units), other] if both else [changed]
            takes = [Take(limit, f"{run_id}{limit.name}") for limit in limits]
            kept = [window_of(take.limit, take.key) for take in takes]
            before = [[one for one, _ in former] if back == kind else [] for kind in ("held", "returned")]
            found = clockwork.take(takes, now, [debt * scale] * len(takes), *before)
            if back == "returned":
                give_back(former)
            for take, window in zip(takes, kept, strict=True):
                window.look(now, take.limit.length, 0)
                if debt:
                    window.spend(now, take.limit.length, debt * scale)
            wanted = settle(takes, kept, now / 1e6)
            for got, want in zip(found, wanted, strict=True):
                assert (got.admitted, got.remaining, bool(got.spent)) == (want.admitted, want.remaining, want.spent > 0)
                assert got.reset == pytest.approx(want.reset, abs=2e-6)
                assert got.retry_after == pytest.approx(want.retry_after, abs=2e-6)
            if back == "held" and denies(wanted):
                give_back(former)
            former = list(zip(found, wanted, strict=True))

    with Clockwork(shared_server.url) as clockwork:
        run()


@pytest.mark.parametrize("units", [4, EXACT_LIMIT * 4])
@pytest.mark.parametrize("full", [True, False])
def test_a_server_whose_clock_is_set_back_counts_on(shared_server: RedisServer, units: int, full: bool) -> None:
    limit = limit_of(units, 60.0, cost=units // 4)
    take, hour = Take(limit, os.urandom(8).hex()), 3_600_000_000
    with Clockwork(shared_server.url) as clockwork:
        clockwork.set_back = True
        clockwork.client.delete(CLOCK)
        for at in range(4 if full else 2):
            assert clockwork.take([take], START + at * 10_000_000)[0].admitted
        now = START + 40_000_000 - hour
        grant = clockwork.take([take], now)[0]
        assert grant.admitted is not full
        assert 0 < grant.reset <= 60.1
        assert grant.retry_after <= 60.1
        for _ in range(8):
            now += 10_000_000
            clockwork.take([take], now)
        assert [clockwork.take([take], now + 61_000_000)[0].admitted for _ in range(5)] == [True] * 4 + [False]
        clockwork.client.delete(CLOCK)


def test_a_large_limit_costs_the_server_little(shared_server: RedisServer) -> None:
    take = Take(limit_of(EXACT_LIMIT * 10, 1.0), "large")
    with Clockwork(shared_server.url) as clockwork:
        for at in range(0, 3_000_000, 997):
            clockwork.take([take], START + at)
        key = command([take])[3]
        assert isinstance(key, bytes)
        assert clockwork.client.llen(key) <= 2 * (BUCKETS + 1) + 1
