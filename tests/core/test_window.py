"""Sliding windows: against a naive model, at the boundary, with clocks that run backwards, in all-or-none calls."""

import copy
import math
import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mitmgate.core.limit import BUCKETS, EXACT_LIMIT, Limit, ticks
from mitmgate.core.sliding import BucketedWindow, Elsewhere, SlidingLog, Window
from mitmgate.core.window import Grant, Take, check, denies, given_back, new_window, settle

START = 1_763_000_000.0
SECOND = 1_000_000


def limit_of(units: int, window: float = 1.0, **members: object) -> Limit:
    return replace(Limit("l", units, window, ("principal",)), **members)  # type: ignore[arg-type]


def one(limit: Limit, window: Window, now: float, *, spend: bool = True) -> Grant:
    """Settle one limit; the short way, on a copy, must do the same or nothing."""
    twin = copy.deepcopy(window) if spend else None
    grant = settle([Take(limit, "k")], [window], now, spend=spend)[0]
    if twin is not None:
        left = twin.pass_one(ticks(now), limit.length, limit.spare)
        assert bool(left) == (limit.cost == 1 and grant.admitted and grant.remaining > 0)
        if left:
            assert left / 1e6 == grant.reset
            assert state(twin) == state(window)
    return grant


def state(window: Window) -> dict[str, object]:
    return {name: getattr(window, name) for name in type(window).__dict__["__slots__"]}


class Naive:
    """The units admitted, in ticks, asked in the slowest and plainest way; what has ended once is gone."""

    def __init__(self) -> None:
        self.units: list[int] = []

    def counting(self, now: int, window: int) -> int:
        held = max([now, *self.units])
        self.units = [at for at in self.units if at > held - window]
        return len(self.units)

    def spend(self, now: int, cost: int) -> None:
        self.units += [max([now, *self.units])] * cost

    def give_back(self, at: int, cost: int) -> None:
        for unit in [unit for unit in self.units if unit == at][:cost]:
            self.units.remove(unit)


STEPS = st.one_of(
    st.integers(0, 400_000),
    st.sampled_from([0, 1, SECOND - 1, SECOND, SECOND + 1, 3 * SECOND]),
    st.sampled_from([-1, -300_000, -2 * SECOND]),
)


class LogMachine(RuleBasedStateMachine):
    """SlidingLog decides as the naive model, whatever the clock does and however limit and cost change."""

    @initialize(units=st.integers(1, 8))
    def begin(self, units: int) -> None:
        self.limit = limit_of(units)
        self.window, self.naive, self.now = SlidingLog(), Naive(), ticks(START)
        self.spent: list[tuple[int, int]] = []

    @rule(step=STEPS, cost=st.integers(1, 3))
    def take(self, step: int, cost: int) -> None:
        self.now += step
        limit = replace(self.limit, cost=cost)
        fits = self.naive.counting(self.now, SECOND) + cost <= limit.limit
        grant = one(limit, self.window, self.now / 1e6)
        assert grant.admitted == fits
        assert bool(grant.spent) == fits
        if fits:
            self.naive.spend(self.now, cost)
            self.spent.append((grant.spent, cost))
        left = limit.limit - self.naive.counting(self.now, SECOND)
        assert grant.remaining == max(0, left)
        assert (grant.reset > 0) == (left < limit.limit)
        if not fits:
            self.honest(limit, grant)

    def honest(self, limit: Limit, grant: Grant) -> None:
        """Waiting as long as it says is enough, and one microsecond less is not."""
        if limit.cost > limit.limit:
            assert grant.retry_after == math.inf
            return
        assert 0 < grant.reset <= grant.retry_after + 1e-6
        later = self.now / 1e6 + grant.retry_after
        assert one(limit, copy.deepcopy(self.window), later).admitted
        earlier = (self.now + round(grant.retry_after * 1e6) - 2) / 1e6
        if earlier >= self.now / 1e6:
            assert not one(limit, copy.deepcopy(self.window), earlier).admitted

    @precondition(lambda self: self.spent)
    @rule(back=st.integers(0, 3))
    def give_back(self, back: int) -> None:
        self.naive.counting(self.now, SECOND)
        one(self.limit, self.window, self.now / 1e6, spend=False)
        spent = self.spent.pop(max(0, len(self.spent) - 1 - back))
        self.naive.give_back(*spent)
        self.window.give_back(*spent)
        assert self.window.live == len(self.naive.units)

    @rule(units=st.integers(1, 8))
    def reload(self, units: int) -> None:
        self.limit = limit_of(units)

    @rule(step=st.sampled_from([0, 1, SECOND]))
    def look(self, step: int) -> None:
        self.now += step
        one(self.limit, self.window, self.now / 1e6, spend=False)
        assert self.window.live == self.naive.counting(self.now, SECOND)

    @precondition(lambda self: bool(self.naive.units))
    @invariant()
    def ends(self) -> None:
        assert self.window.until >= max(self.naive.units) + SECOND


class BucketMachine(RuleBasedStateMachine):
    """BucketedWindow never admits what the exact window would not; it holds a unit one bucket longer at most."""

    WIDTH = 10_000

    @initialize(units=st.integers(1, 12))
    def begin(self, units: int) -> None:
        self.limit = limit_of(units)
        self.window, self.now = BucketedWindow(self.WIDTH), ticks(START)
        self.exact, self.longer = Naive(), Naive()
        self.spent: list[tuple[int, int, int]] = []

    @rule(step=st.one_of(STEPS, st.integers(0, 25_000)), cost=st.integers(1, 3))
    def take(self, step: int, cost: int) -> None:
        self.now += step
        limit = replace(self.limit, cost=cost)
        grant = one(limit, self.window, self.now / 1e6)
        room = limit.limit - cost
        if self.exact.counting(self.now, SECOND) > room:
            assert not grant.admitted, "more than the limit"
        if self.longer.counting(self.now, SECOND + self.WIDTH) <= room:
            assert grant.admitted, "stricter than documented"
        if grant.admitted:
            self.exact.spend(self.now, cost)
            self.longer.spend(self.now, cost)
            self.spent.append((max(self.exact.units), grant.spent, cost))
        elif cost <= limit.limit:
            later = self.now / 1e6 + grant.retry_after
            assert one(limit, copy.deepcopy(self.window), later).admitted
            assert grant.reset <= grant.retry_after + 1e-6
        assert grant.remaining <= max(0, limit.limit - self.exact.counting(self.now, SECOND))

    @precondition(lambda self: self.spent)
    @rule()
    def give_back(self) -> None:
        at, spent, cost = self.spent.pop()
        self.exact.give_back(at, cost)
        self.longer.give_back(at, cost)
        self.window.give_back(spent, cost)

    @rule(units=st.integers(1, 12))
    def reload(self, units: int) -> None:
        self.limit = limit_of(units)


TestLog = LogMachine.TestCase
TestBuckets = BucketMachine.TestCase
TestLog.settings = TestBuckets.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_window_is_half_open() -> None:
    window = SlidingLog()
    assert one(limit_of(1, 60.0), window, START).admitted
    assert not one(limit_of(1, 60.0), window, START + 60 - 1e-6).admitted
    assert one(limit_of(1, 60.0), window, START + 60).admitted


@pytest.mark.parametrize("units", [1, 7, 100])
def test_any_window_of_a_random_run_has_at_most_the_limit(units: int) -> None:
    chance = random.Random(units)
    window, admitted, now = SlidingLog(), [], ticks(START)
    for _ in range(5_000):
        now += chance.choice([0, 1, 100, 5_000, 50_000])
        if one(limit_of(units), window, now / 1e6).admitted:
            admitted.append(now)
    assert len(admitted) > units
    assert all(later - at >= SECOND for at, later in zip(admitted, admitted[units:], strict=False))


def test_waiting_as_told_succeeds_in_spite_of_rounding() -> None:
    chance = random.Random(1)
    for _ in range(3_000):
        limit = limit_of(1, chance.choice([0.1, 0.7, 60.0, 3600.0]))
        window, now = SlidingLog(), START + chance.random() * 1000
        one(limit, window, now)
        now += chance.random() * limit.window * 0.99
        told = one(limit, window, now).retry_after
        assert one(limit, window, now + told).admitted


def test_denied_requests_spend_nothing() -> None:
    window = SlidingLog()
    for at in range(100):
        assert one(limit_of(1), window, START + at * 0.0099).admitted == (at == 0)
    assert one(limit_of(1), window, START + 1).admitted


def test_an_enforced_limit_without_room_keeps_all_from_spending() -> None:
    takes = [Take(limit_of(5), "a"), Take(limit_of(1), "b"), Take(limit_of(9, mode="report"), "c")]
    windows = [new_window(take.limit) for take in takes]
    assert [grant.remaining for grant in settle(takes, windows, START)] == [4, 0, 8]
    grants = settle(takes, windows, START)
    assert [(grant.admitted, grant.remaining) for grant in grants] == [(True, 4), (False, 0), (True, 8)]
    assert denies(grants)


def test_a_report_limit_without_room_spends_nothing_itself_and_stops_nobody() -> None:
    takes = [Take(limit_of(5), "a"), Take(limit_of(1, mode="report"), "b")]
    windows = [new_window(take.limit) for take in takes]
    settle(takes, windows, START)
    grants = settle(takes, windows, START)
    assert [(grant.admitted, grant.remaining) for grant in grants] == [(True, 3), (False, 0)]
    assert not denies(grants)
    assert windows[1].live == 1


@pytest.mark.parametrize("wrong", [{"cost": 0}, {"cost": -1}, {"window": 0.0}, {"window": -1.0}, {"window": 1e-9}])
def test_what_would_limit_nothing_is_an_error(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a cost of"):
        one(limit_of(1, **wrong), SlidingLog(), START)


@pytest.mark.parametrize("now", [math.nan, math.inf])
def test_a_clock_without_a_time_is_an_error(now: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        one(limit_of(1), SlidingLog(), now)


def test_a_limit_of_nothing_admits_nothing() -> None:
    grant = one(limit_of(0), SlidingLog(), START)
    assert (grant.admitted, grant.remaining, grant.retry_after) == (False, 0, math.inf)


def test_large_limits_are_bucketed_and_small_ones_are_not() -> None:
    assert isinstance(new_window(limit_of(EXACT_LIMIT)), SlidingLog)
    large = new_window(limit_of(EXACT_LIMIT + 1, 60.0))
    assert isinstance(large, BucketedWindow)
    assert large.width == limit_of(EXACT_LIMIT + 1, 60.0).width == 60 * SECOND // BUCKETS
    assert limit_of(EXACT_LIMIT + 1, 1e-5).width == 1


def test_steady_load_loses_no_more_than_documented() -> None:
    limit = limit_of(EXACT_LIMIT * 2)
    window = new_window(limit)
    admitted = sum(one(limit, window, START + at / 40_000).admitted for at in range(120_000))
    assert limit.limit * 3 * (1 - 1.5 / BUCKETS) <= admitted <= limit.limit * 3


def test_memory_stays_within_what_is_promised() -> None:
    exact, large = SlidingLog(), BucketedWindow(1000)
    for at in range(30_000):
        one(limit_of(100), exact, START + at * 0.00993)
        one(limit_of(20_000), large, START + at * 0.0001)
    assert len(exact._times) <= 100 * 1.25 + 64
    assert len(large._ends) <= BUCKETS * 1.25 + 64
    one(limit_of(100), exact, START + 10_000)
    assert len(exact._times) == 1


def test_units_whose_bucket_is_gone_are_taken_out_of_no_other() -> None:
    """Else whoever was refused late would make room that nobody had given."""
    window, length = BucketedWindow(10), 100
    early = window.spend(1000, length, 3)
    window.look(1000 + 2 * length, length, 0)
    window.spend(1000 + 2 * length, length, 2)
    before = state(window)
    window.give_back(early, 3)
    assert state(window) == before
    again = BucketedWindow(10)
    first, second = again.spend(1000, length, 3), again.spend(1010, length, 2)
    assert (first, second) == (1009, 1019)
    again.give_back(first - 10, 1)
    assert again.live == 5, "there is no such bucket"
    again.give_back(second + 1, 1)
    assert again.live == 5, "nor one after the last"
    again.give_back(first, 1)
    assert again.live == 4
    again.give_back(1000, 9)
    assert again.live == 2, "no more than it holds"


def away(limit: Limit, elsewhere: Elsewhere, count: int, now: float = START, *, shared: bool = False) -> list[Grant]:
    """Ask so often in a window that counts here while the store that is shared can't be asked."""
    window = new_window(limit)
    window.elsewhere = elsewhere
    return [settle([Take(limit, "k")], [window], now, shared=shared)[0] for _ in range(count)]


@pytest.mark.parametrize("units", [10, EXACT_LIMIT + 10])
def test_what_others_had_spent_counts_until_its_window_is_over(units: int) -> None:
    limit, seen = limit_of(units), ticks(START)
    for later, left in ((0.0, 4), (0.999999, 4), (1.0, units)):
        grants = away(limit, Elsewhere(seen, units - 4), 5, START + later)
        admitted = [grant.admitted for grant in grants]
        assert admitted == [number < left for number in range(5)]
        assert grants[0].remaining == left - 1
        if left == 4:
            assert grants[-1].retry_after == pytest.approx(1.0 - later, abs=1e-5), "when the others' units end"


def test_of_what_is_shared_those_who_took_it_keep_their_part() -> None:
    limit = limit_of(10)
    for mine, theirs, left in ((1, 1, 5), (3, 1, 7), (1, 3, 2), (0, 5, 1), (5, 0, 10)):
        grants = away(limit, Elsewhere(ticks(START), 0, mine, theirs), 11, shared=True)
        assert sum(grant.admitted for grant in grants) == left
    alone = away(limit, Elsewhere(ticks(START), 0, 1, 1), 11)
    assert sum(grant.admitted for grant in alone) == 10, "it is not shared"
    both = away(limit, Elsewhere(ticks(START), 8, 1, 1), 11, shared=True)
    assert sum(grant.admitted for grant in both) == 2, "the larger of the two"


def test_a_cost_above_the_limit_never_fits_whatever_others_do() -> None:
    (grant,) = away(limit_of(3, cost=4), Elsewhere(ticks(START), 1), 1)
    assert (grant.admitted, grant.retry_after) == (False, math.inf)


def test_what_is_given_back_is_told() -> None:
    limit = limit_of(10, cost=2)
    grants = away(limit, Elsewhere(), 2)
    given_back(grants[1])
    assert (grants[1].remaining, grants[1].spent) == (8, 0)
    assert grants[1].reset > 0
    given_back(grants[1])
    assert grants[1].remaining == 8, "once"
    (first,) = away(limit, Elsewhere(), 1)
    given_back(first)
    assert (first.remaining, first.reset) == (10, 0.0)


def test_one_request_takes_once_of_a_key() -> None:
    limit = limit_of(10)
    check([Take(limit, "a"), Take(limit, "b")])
    check([Take(limit, "a")])
    with pytest.raises(ValueError, match="twice"):
        check([Take(limit, "a"), Take(limit, "a")])
    for bad in (limit_of(10, window=0.0), limit_of(10, window=-1.0), limit_of(10, cost=0)):
        with pytest.raises(ValueError, match="limit l"):
            check([Take(bad, "a")])
