"""The circuit: every transition, against a naive model, probes and their slots, late answers, clocks and reloads."""

import gc
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mitmgate.core.circuit import TRANSITIONS, Breaker, Event, Outcome, Permit, State
from mitmgate.core.rules import Circuit

RULE = Circuit(failures=3, window=10.0, open_for=30.0, probes=2)
NOW = 1_763_000_000.0


class Model:
    """What the theory of operation says, without generations: permits of an era that is over are simply not known."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.failed: list[float] = []
        self.opened = 0.0
        self.known: dict[int, bool] = {}  # permits of this era by number; True: a probe that is on its way
        self.succeeded = 0

    def enter(self, state: State, now: float) -> None:
        self.state, self.opened, self.failed, self.known, self.succeeded = state, now, [], {}, 0

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
        if outcome is Outcome.FAILURE:
            self.failed = [at for at in self.failed if now - at < rule.window] + [now]
            if probe or len(self.failed) >= rule.failures:
                self.enter(State.OPEN, now)
        elif outcome is Outcome.SUCCESS and probe:
            self.succeeded += 1
            if self.succeeded >= rule.probes:
                self.enter(State.CLOSED, now)


class CircuitMachine(RuleBasedStateMachine):
    """Requests come, end in any order and any way, twice or never, while time and the rule go on."""

    @initialize(failures=st.integers(1, 4), probes=st.integers(1, 3), window=st.sampled_from([10.0, 100.0]))
    def begin(self, failures: int, probes: int, window: float) -> None:
        self.rule = replace(RULE, failures=failures, probes=probes, window=window)
        self.breaker, self.model, self.now = Breaker("e"), Model(), NOW
        self.out: dict[int, Permit] = {}
        self.numbers = 0

    @rule(step=st.sampled_from([0.0, 1.0, 3.0, 9.75, 10.0, 29.75, 30.0, 100.0]))
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

    @precondition(lambda self: self.breaker.state is State.CLOSED)
    @rule()
    def fail_until_open(self) -> None:
        for _ in range(self.rule.failures):
            if self.breaker.state is State.CLOSED:
                self.ask()
                number = max(self.out)
                self.model.settle(self.rule, number, Outcome.FAILURE, self.now)
                self.breaker.settle(self.rule, self.out.pop(number), Outcome.FAILURE, self.now)
        assert self.breaker.state is State.OPEN

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
TestCircuit.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


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


def test_failures_outside_one_window_do_not_open_it() -> None:
    breaker = Breaker("e")
    for at in range(20):
        breaker.settle(RULE, permit_of(breaker), Outcome.FAILURE, NOW + at * RULE.window / 2)
    assert state_of(breaker) is State.CLOSED
    breaker.settle(RULE, permit_of(breaker), Outcome.FAILURE, NOW + 19 * RULE.window / 2)
    assert state_of(breaker) is State.OPEN


def test_successes_and_abandoned_requests_neither_open_it_nor_excuse_failures() -> None:
    breaker = Breaker("e")
    for number in range(RULE.failures):
        assert state_of(breaker) is State.CLOSED
        for outcome in (Outcome.SUCCESS, Outcome.ABANDONED, Outcome.ABANDONED, Outcome.ABANDONED, Outcome.FAILURE):
            breaker.settle(RULE, permit_of(breaker), outcome, NOW + number)
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


def test_a_clock_that_was_set_back_does_not_keep_it_open() -> None:
    breaker = opened()
    assert breaker.acquire(RULE, NOW - 3600) == RULE.open_for
    assert permit_of(breaker, NOW - 3600 + RULE.open_for).probe


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
