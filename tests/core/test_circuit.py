"""The circuit: every transition, against a naive model, shares, probes and their slots, late answers and reloads."""

import gc
import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mitmgate.core.circuit import FAILED, QUIET, SLICES, TRANSITIONS, Breaker, Event, Outcome, Permit, State
from mitmgate.core.rules import Circuit

RULE = Circuit(failures=3, window=10.0, open_for=30.0, probes=2)
NOW = 1_763_000_000.0


class Model:
    """What the theory of operation says, without generations: permits of an era that is over are simply not known."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.ended: list[tuple[float, Outcome]] = []  # all successes and failures of this era
        self.opened = 0.0
        self.known: dict[int, bool] = {}  # permits of this era by number; True: a probe that is on its way
        self.succeeded = 0

    def enter(self, state: State, now: float) -> None:
        self.state, self.opened, self.ended, self.known, self.succeeded = state, now, [], {}, 0

    def may_pass(self, rule: Circuit, now: float) -> bool:
        if self.state is State.OPEN and now - self.opened >= rule.open_for:
            self.enter(State.HALF_OPEN, now)
        if self.state is State.HALF_OPEN and self.succeeded >= rule.probes:
            self.enter(State.CLOSED, now)
        if self.state is State.HALF_OPEN:
            return sum(self.known.values()) + self.succeeded < rule.probes
        return self.state is State.CLOSED

    def settle(self, rule: Circuit, number: int, outcome: Outcome, now: float) -> None:
        if number not in self.known:
            return
        probe = self.known.pop(number)
        if outcome is Outcome.SUCCESS and probe:
            self.succeeded += 1
            if self.succeeded >= rule.probes:
                self.enter(State.CLOSED, now)
        elif outcome in FAILED and probe:
            self.enter(State.OPEN, now)
        elif outcome is not Outcome.ABANDONED and not probe:
            self.ended.append((now, outcome))
            if outcome in FAILED and self.should_open(rule, now):
                self.enter(State.OPEN, now)

    def should_open(self, rule: Circuit, now: float) -> bool:
        failed = [at for at, outcome in self.ended if outcome in FAILED and now - at < rule.window]
        if len(failed) < rule.failures:
            return False
        good, end, counted = 0.0, 0.0, 0
        for at, outcome in self.ended:
            if outcome is Outcome.SUCCESS:
                if at >= end:
                    end = at + rule.window / SLICES
                good, counted = at, counted + (end > now - rule.window)
        if len(failed) >= rule.share * (len(failed) + counted):
            return True
        last = [outcome for _, outcome in self.ended[-rule.failures :]]
        if set(last) == {Outcome.UNREACHABLE}:
            return True
        usual = rule.window / counted
        return Outcome.SUCCESS not in last and now - good >= QUIET and now - good >= (rule.failures - 1) * usual


class CircuitMachine(RuleBasedStateMachine):
    """Requests come, end in any order and any way, twice or never, while time and the rule go on."""

    @initialize(
        failures=st.integers(1, 4),
        probes=st.integers(1, 3),
        window=st.sampled_from([10.0, 100.0]),
        share=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    )
    def begin(self, failures: int, probes: int, window: float, share: float) -> None:
        self.rule = replace(RULE, failures=failures, probes=probes, window=window, share=share)
        self.breaker, self.model, self.now = Breaker("e"), Model(), NOW
        self.out: dict[int, Permit] = {}
        self.numbers = 0

    @rule(step=st.sampled_from([0.0, 0.125, 0.5, 1.0, 3.0, 9.75, 10.0, 29.75, 30.0, 100.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule()
    def ask(self) -> None:
        got = self.breaker.acquire(self.rule, self.now)
        assert isinstance(got, Permit) == self.model.may_pass(self.rule, self.now)
        if isinstance(got, Permit):
            assert got.probe == (self.model.state is State.HALF_OPEN)
            self.numbers += 1
            self.out[self.numbers] = got
            self.model.known[self.numbers] = got.probe
        else:
            assert got > 0
            if self.model.state is State.OPEN:
                assert got == pytest.approx(self.model.opened + self.rule.open_for - self.now)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), twice=st.booleans())
    def end(self, data: st.DataObject, outcome: Outcome, twice: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.out)))
        permit = self.out.pop(number)
        self.model.settle(self.rule, number, outcome, self.now)
        self.breaker.settle(self.rule, permit, outcome, self.now)
        if twice and permit.probe:
            self.breaker.settle(self.rule, permit, outcome, self.now)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.out)))
        del self.out[number]
        self.model.known.pop(number, None)

    @rule(failures=st.integers(1, 4), probes=st.integers(1, 3))
    def reload(self, failures: int, probes: int) -> None:
        self.rule = replace(self.rule, failures=failures, probes=probes)

    def go(self, outcome: Outcome) -> None:
        self.ask()
        number = max(self.out)
        self.model.settle(self.rule, number, outcome, self.now)
        self.breaker.settle(self.rule, self.out.pop(number), outcome, self.now)

    @precondition(lambda self: self.breaker.state is State.CLOSED)
    @rule(count=st.integers(1, 12), apart=st.sampled_from([0.0, 0.25, 1.0]))
    def succeed(self, count: int, apart: float) -> None:
        for _ in range(count):
            self.go(Outcome.SUCCESS)
            self.now += apart
        assert self.breaker.state is State.CLOSED

    @precondition(lambda self: self.breaker.state is State.CLOSED)
    @rule(kind=st.sampled_from([Outcome.FAILURE, Outcome.UNREACHABLE]), apart=st.sampled_from([0.25, 1.0]))
    def fail_until_open(self, kind: Outcome, apart: float) -> None:
        count = 0
        while self.breaker.state is State.CLOSED:
            self.go(kind)
            self.now += apart if kind is Outcome.FAILURE else 0.0
            count += 1
            # The successes before are out of the window, at the latest; from then on failures are all that there is.
            most = self.rule.failures + self.rule.window * (1 + 1 / SLICES) / apart
            assert count <= most + 1, "an endpoint that only fails opens its circuit"
            assert kind is Outcome.FAILURE or count <= self.rule.failures, "one that is away does so at once"

    @precondition(lambda self: self.breaker.state is State.OPEN)
    @rule(extra=st.integers(0, 3))
    def try_again_when_it_may(self, extra: int) -> None:
        self.now += self.rule.open_for
        for _ in range(self.rule.probes + extra):
            self.ask()

    @invariant()
    def agree(self) -> None:
        assert self.breaker.state == self.model.state
        if self.breaker.state is State.HALF_OPEN:
            probes = [p for p in self.out.values() if p.probe and p.generation == self.breaker.generation]
            assert len(probes) <= 3


TestCircuit = CircuitMachine.TestCase
TestCircuit.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


def state_of(breaker: Breaker) -> State:
    return breaker.state


def permit_of(breaker: Breaker, now: float = NOW, rule: Circuit = RULE) -> Permit:
    permit = breaker.acquire(rule, now)
    assert isinstance(permit, Permit)
    return permit


def opened(now: float = NOW) -> Breaker:
    breaker = Breaker("e")
    for _ in range(RULE.failures):
        breaker.settle(RULE, permit_of(breaker, now), Outcome.FAILURE, now)
    assert state_of(breaker) is State.OPEN
    return breaker


def half_open() -> tuple[Breaker, list[Permit]]:
    breaker = opened()
    return breaker, [permit_of(breaker, NOW + RULE.open_for) for _ in range(RULE.probes)]


def test_the_table_is_complete() -> None:
    assert {state for state, _ in TRANSITIONS} == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert (State.OPEN, Event.PROBES_SUCCEEDED) not in TRANSITIONS, "an open circuit closes through half-open alone"


def rated(breaker: Breaker, rule: Circuit, count: int, failed: frozenset[int], start: float = NOW) -> list[State]:
    """Send 500 requests a second, of which these fail; return the states that they met."""
    met = []
    for number in range(count):
        now = start + number / 500
        permit = breaker.acquire(rule, now)
        met.append(state_of(breaker))
        if isinstance(permit, Permit):
            outcome = Outcome.FAILURE if number in failed else Outcome.SUCCESS
            breaker.settle(rule, permit, outcome, now)
    return met


@pytest.mark.parametrize("seed", range(5))
def test_one_failure_in_600_refuses_nothing_wherever_they_stand(seed: int) -> None:
    chosen = random.Random(seed)
    scattered = frozenset(chosen.sample(range(10_000), 17))
    begin = chosen.randrange(1000, 9000)
    together = frozenset(range(begin, begin + 17))  # one client, which sends them at once
    for failed in (scattered, together):
        assert set(rated(Breaker("e"), Circuit(), 10_000, failed)) == {State.CLOSED}
        opened = rated(Breaker("e"), Circuit(share=0.0), 10_000, failed)
        assert opened.count(State.OPEN) > 0, "the rule before"


def test_an_endpoint_that_dies_under_load_opens_it_as_before() -> None:
    breaker, end = Breaker("e"), NOW + 20
    rated(breaker, Circuit(), 10_000, frozenset())
    for number in range(5):
        assert state_of(breaker) is State.CLOSED
        breaker.settle(Circuit(), permit_of(breaker, end, Circuit()), Outcome.UNREACHABLE, end + number / 500)
    assert state_of(breaker) is State.OPEN


def test_an_endpoint_that_answers_nothing_but_errors_opens_it_within_a_second() -> None:
    breaker = Breaker("e")
    rated(breaker, Circuit(), 10_000, frozenset())
    met = rated(breaker, Circuit(), 1000, frozenset(range(1000)), NOW + 20)
    assert met.index(State.OPEN) == pytest.approx(500, abs=2)
    slow = Breaker("e")
    for number in range(30):  # one request a second
        slow.settle(RULE, permit_of(slow, NOW + number), Outcome.SUCCESS, NOW + number)
    for number in range(30, 30 + RULE.failures):
        assert state_of(slow) is State.CLOSED
        slow.settle(RULE, permit_of(slow, NOW + number), Outcome.FAILURE, NOW + number)
    assert state_of(slow) is State.OPEN


def test_a_response_that_breaks_off_is_no_success_any_more() -> None:
    breaker, rule = Breaker("e"), replace(RULE, share=1.0)
    for _ in range(RULE.failures):
        assert state_of(breaker) is State.CLOSED
        permit = permit_of(breaker, NOW, rule)
        breaker.settle(rule, permit, Outcome.SUCCESS, NOW)
        breaker.withdraw(permit)
        breaker.settle(rule, permit, Outcome.FAILURE, NOW)
    assert state_of(breaker) is State.OPEN


def test_what_is_taken_back_is_a_success_of_the_same_era_and_no_more_than_there_are() -> None:
    breaker, rule = Breaker("e"), replace(RULE, share=0.5)
    early = permit_of(breaker, NOW, rule)
    breaker.withdraw(early)  # of none
    for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
        breaker.settle(rule, permit_of(breaker, NOW, rule), outcome, NOW)
    for _ in range(3):
        breaker.withdraw(early)
    assert breaker.share(rule, NOW) == 1.0, "no fewer than none"
    breaker.settle(rule, permit_of(breaker, NOW, rule), Outcome.SUCCESS, NOW)
    assert breaker.share(rule, NOW) == 0.5
    breaker, probes = half_open()
    late = replace(probes[0], generation=0)
    for probe in probes:
        breaker.settle(RULE, probe, Outcome.SUCCESS, NOW + 30)
    for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
        breaker.settle(RULE, permit_of(breaker, NOW + 30), outcome, NOW + 30)
    breaker.withdraw(late)
    assert breaker.share(RULE, NOW + 30) == 0.5, "a request of before says nothing of now"


def test_a_quiet_time_is_one_of_failures_alone() -> None:
    breaker, rule = Breaker("e"), replace(RULE, window=100.0)
    for number in range(100):
        breaker.settle(rule, permit_of(breaker, NOW, rule), Outcome.SUCCESS, NOW + number / 10)
    end = NOW + 10
    for outcome in (*[Outcome.FAILURE] * (RULE.failures - 1), Outcome.SUCCESS):
        breaker.settle(rule, permit_of(breaker, end, rule), outcome, end)
    later = end + 50
    breaker.settle(rule, permit_of(breaker, later, rule), Outcome.FAILURE, later)
    assert state_of(breaker) is State.CLOSED, "one failure since the last success"
    for _ in range(RULE.failures - 1):
        breaker.settle(rule, permit_of(breaker, later, rule), Outcome.FAILURE, later)
    assert state_of(breaker) is State.OPEN


def test_it_tells_its_share_of_failures() -> None:
    breaker = Breaker("e")
    assert breaker.share(RULE, NOW) == 0.0
    for outcome in (Outcome.SUCCESS, Outcome.FAILURE, Outcome.ABANDONED, Outcome.SUCCESS, Outcome.SUCCESS):
        breaker.settle(RULE, permit_of(breaker), outcome, NOW)
    assert breaker.share(RULE, NOW + 1) == 0.25
    assert breaker.share(RULE, NOW + RULE.window) == 0.0


def test_failures_outside_one_window_do_not_open_it() -> None:
    breaker = Breaker("e")
    for at in range(20):
        breaker.settle(RULE, permit_of(breaker), Outcome.FAILURE, NOW + at * RULE.window / 2)
    assert state_of(breaker) is State.CLOSED
    breaker.settle(RULE, permit_of(breaker), Outcome.FAILURE, NOW + 19 * RULE.window / 2)
    assert state_of(breaker) is State.OPEN


def test_abandoned_requests_neither_open_it_nor_excuse_failures() -> None:
    breaker = Breaker("e")
    for number in range(RULE.failures):
        assert state_of(breaker) is State.CLOSED
        for outcome in (Outcome.SUCCESS, Outcome.ABANDONED, Outcome.ABANDONED, Outcome.ABANDONED, Outcome.FAILURE):
            breaker.settle(RULE, permit_of(breaker), outcome, NOW + number)
    assert state_of(breaker) is State.OPEN, "half of those that said anything failed"


def test_without_a_share_failures_alone_count() -> None:
    breaker, rule = Breaker("e"), replace(RULE, share=0.0)
    for number in range(RULE.failures):
        assert state_of(breaker) is State.CLOSED
        for outcome in (Outcome.SUCCESS, Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE):
            breaker.settle(rule, permit_of(breaker, NOW, rule), outcome, NOW + number)
    assert state_of(breaker) is State.OPEN


def test_it_says_how_long_it_stays_open() -> None:
    breaker = opened()
    assert breaker.acquire(RULE, NOW) == RULE.open_for
    assert breaker.acquire(RULE, NOW + 29.5) == 0.5
    assert permit_of(breaker, NOW + 30).probe


def test_exactly_the_probes_pass_and_then_it_closes() -> None:
    breaker, probes = half_open()
    assert not isinstance(breaker.acquire(RULE, NOW + 30), Permit)
    breaker.settle(RULE, probes[0], Outcome.SUCCESS, NOW + 30)
    assert not isinstance(breaker.acquire(RULE, NOW + 30), Permit), "one more would be one more than the probes allowed"
    breaker.settle(RULE, probes[1], Outcome.SUCCESS, NOW + 30)
    assert state_of(breaker) is State.CLOSED
    assert not permit_of(breaker, NOW + 30).probe


def test_a_failed_probe_opens_it_for_the_whole_time_again() -> None:
    breaker, probes = half_open()
    breaker.settle(RULE, probes[0], Outcome.FAILURE, NOW + 31)
    assert breaker.acquire(RULE, NOW + 31) == RULE.open_for
    breaker.settle(RULE, probes[1], Outcome.SUCCESS, NOW + 32)
    assert state_of(breaker) is State.OPEN, "the other probe's answer came too late"


@pytest.mark.parametrize("way", ["abandoned", "forgotten"])
def test_a_slot_always_returns(way: str) -> None:
    breaker, probes = half_open()
    if way == "abandoned":
        breaker.settle(RULE, probes.pop(), Outcome.ABANDONED, NOW + 30)
    else:
        probes.pop()
        gc.collect()
    again = permit_of(breaker, NOW + 30)
    assert again.probe
    assert not isinstance(breaker.acquire(RULE, NOW + 30), Permit)


def test_a_probe_given_back_twice_is_one_success() -> None:
    breaker, probes = half_open()
    for _ in range(2):
        breaker.settle(RULE, probes[0], Outcome.SUCCESS, NOW + 30)
    assert state_of(breaker) is State.HALF_OPEN


def test_probes_of_an_earlier_time_take_no_slot() -> None:
    breaker, probes = half_open()
    breaker.settle(RULE, probes[0], Outcome.FAILURE, NOW + 30)
    assert len([permit_of(breaker, NOW + 60) for _ in range(RULE.probes)]) == RULE.probes


def test_failures_before_it_opened_do_not_count_when_it_has_closed() -> None:
    rule = replace(RULE, window=1000.0)
    breaker, probes = half_open()
    for probe in probes:
        breaker.settle(rule, probe, Outcome.SUCCESS, NOW + 31)
    breaker.settle(rule, permit_of(breaker, NOW + 31), Outcome.FAILURE, NOW + 31)
    assert state_of(breaker) is State.CLOSED


def test_a_probe_given_back_twice_makes_no_second_slot() -> None:
    breaker, probes = half_open()
    for _ in range(2):
        breaker.settle(RULE, probes[0], Outcome.ABANDONED, NOW + 30)
    held = permit_of(breaker, NOW + 30)
    assert held.probe
    assert not isinstance(breaker.acquire(RULE, NOW + 30), Permit)


def test_late_answers_of_an_earlier_time_change_nothing() -> None:
    breaker = Breaker("e")
    late = [permit_of(breaker) for _ in range(10)]
    for permit in late[:3]:
        breaker.settle(RULE, permit, Outcome.FAILURE, NOW)
    probes = [permit_of(breaker, NOW + 30) for _ in range(2)]
    for permit in late[3:]:
        breaker.settle(RULE, permit, Outcome.FAILURE, NOW + 30)
    assert state_of(breaker) is State.HALF_OPEN
    for probe in probes:
        breaker.settle(RULE, probe, Outcome.SUCCESS, NOW + 30)
    assert state_of(breaker) is State.CLOSED


def test_a_request_that_arrived_before_it_opened_does_not_shorten_the_time() -> None:
    breaker = opened()
    assert breaker.acquire(RULE, NOW - 5) == RULE.open_for + 5
    assert breaker.acquire(RULE, NOW + RULE.open_for - 1) == 1


def test_a_reload_that_asks_for_fewer_probes_can_close_it() -> None:
    breaker, probes = half_open()
    breaker.settle(RULE, probes[0], Outcome.SUCCESS, NOW + 30)
    breaker.settle(RULE, probes[1], Outcome.ABANDONED, NOW + 30)
    assert not permit_of(breaker, NOW + 30, replace(RULE, probes=1)).probe
    assert state_of(breaker) is State.CLOSED


@pytest.mark.parametrize("state", list(State))
def test_reset_closes_whatever_the_state_and_earlier_permits_change_nothing(state: State) -> None:
    rule, breaker = Circuit(failures=1, share=0.0, window=10.0, open_for=5.0, probes=1), Breaker("a")
    before = breaker.acquire(rule, 0.0)
    assert isinstance(before, Permit)
    if state is not State.CLOSED:
        breaker.settle(rule, before, Outcome.FAILURE, 0.0)
    if state is State.HALF_OPEN:
        probe = breaker.acquire(rule, 5.0)
        assert isinstance(probe, Permit)
        before = probe
    assert state_of(breaker) is state
    breaker.reset()
    assert state_of(breaker) is State.CLOSED
    breaker.settle(rule, before, Outcome.FAILURE, 6.0)
    assert state_of(breaker) is State.CLOSED
    after = breaker.acquire(rule, 6.0)
    assert isinstance(after, Permit)
    assert not after.probe
    breaker.settle(rule, after, Outcome.FAILURE, 6.0)
    assert state_of(breaker) is State.OPEN
