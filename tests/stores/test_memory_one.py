"""The short way through the memory store: it grants, keeps and forgets what the long way does, or does nothing."""

import copy
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mitmgate.core.limit import EXACT_LIMIT, Limit
from mitmgate.core.window import Grant, Take
from mitmgate.stores.memory import MemoryStore
from tests.stores.asking import NOW, limit_of, take_of

KEYS = 4  # so few that keys are forgotten


def kept(store: MemoryStore) -> list[list[tuple[str, object]]]:
    """Everything that a store remembers, in its order."""
    return [
        [(key, [getattr(window, name) for name in type(window).__dict__["__slots__"]]) for key, window in shelf.items()]
        for shelf in (store._fresh, store._used, store._full)
    ]


class Twins(RuleBasedStateMachine):
    """Two stores are asked the same; one of them in short where it can."""

    @initialize(units=st.sampled_from([0, 1, 2, 3, 6, EXACT_LIMIT + 1]))
    def begin(self, units: int) -> None:
        self.short, self.long = MemoryStore(KEYS), MemoryStore(KEYS)
        self.limit, self.now, self.passed = limit_of(units, 1.0), NOW, 0

    def ask(self, limit: Limit, who: str) -> None:
        before = copy.deepcopy(kept(self.short))
        take = Take(limit, f"l\0{who}")
        grant = self.short.take_one(limit, take.key, self.now)
        if grant is None:
            # It may have dropped what counts no more; what counts is as it was.
            assert [[key for key, _ in shelf] for shelf in kept(self.short)] == [[k for k, _ in s] for s in before]
            grant = self.short.take([take], self.now)[0]
        else:
            self.passed += 1
            assert grant.remaining > 0
        wanted = self.long.take([take], self.now)[0]
        assert 0 <= wanted.spent - grant.spent < limit.width, "of one bucket"
        assert replace(grant, spent=wanted.spent) == wanted

    @rule(step=st.sampled_from([0.0, 0.0, 1e-6, 0.25, 0.5, 0.999999, 1.0, 3.0, -0.5]), who=st.sampled_from("aaab"))
    def usual(self, step: float, who: str) -> None:
        self.now += step
        self.ask(self.limit, who)

    @rule(who=st.sampled_from("abcdefgh"), mode=st.sampled_from(["enforce", "report"]), cost=st.integers(1, 2))
    def other(self, who: str, mode: str, cost: int) -> None:
        self.ask(replace(self.limit, mode=mode, cost=cost), who)  # type: ignore[arg-type]  # a table of texts

    @rule(units=st.sampled_from([1, 2, 3, 6, EXACT_LIMIT, EXACT_LIMIT + 1, EXACT_LIMIT * 10]))
    def reload(self, units: int) -> None:
        self.limit = replace(self.limit, limit=units)

    @rule()
    def two_limits(self) -> None:
        takes = [Take(self.limit, "l\0a"), Take(replace(self.limit, name="m"), "m\0a")]
        assert self.short.take(takes, self.now) == self.long.take(takes, self.now)

    @invariant()
    def alike(self) -> None:
        assert kept(self.short) == kept(self.long)
        assert (self.short.forgotten, self.short._now) == (self.long.forgotten, self.long._now)


TestTwins = Twins.TestCase
TestTwins.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def short(store: MemoryStore, take: Take, now: float = NOW) -> Grant | None:
    return store.take_one(take.limit, take.key, now)


def test_the_usual_request_goes_the_short_way() -> None:
    store, take = MemoryStore(), take_of(limit_of(100))
    assert short(store, take) is None, "a new key"
    store.take([take, take_of(limit_of(1))], NOW)
    store.take([take], NOW)
    for second in range(90):
        assert short(store, take, NOW + second) is not None
    assert short(store, take_of(take.limit, "bob"), NOW + 90) is None


def test_a_request_from_before_and_a_limit_that_is_none_go_the_long_way() -> None:
    store, take = MemoryStore(), take_of(limit_of(100))
    for _ in range(2):
        store.take([take], NOW)
    assert short(store, take, NOW - 1e-6) is None
    for wrong in ({"cost": 0}, {"cost": -1}, {"window": 0.0}, {"window": -1.0}, {"cost": 2}):
        assert short(store, Take(replace(take.limit, **wrong), take.key)) is None
    assert short(store, take) is not None
