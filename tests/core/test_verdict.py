"""The verdict: append-only, final once, and only what is known goes on."""

from typing import Any

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step, Verdict

REQUIRED = ("a", "b")


def steps(*outcomes: Any) -> list[Step]:
    return [Step(name, outcome, Reason.OK) for name, outcome in zip("abc", outcomes, strict=False)]


def verdict(*outcomes: Any) -> Verdict:
    made = Verdict("digest")
    for step in steps(*outcomes):
        made.record(step, 0.5)
    return made


@pytest.mark.parametrize("final", [Outcome.DENY, Outcome.ANSWER, "maybe", "", None])
@pytest.mark.parametrize("later", [*Outcome, "maybe"])
def test_nothing_is_decided_twice(final: Any, later: Any) -> None:
    made = verdict(Outcome.ADMIT, final)
    before = made.steps
    with pytest.raises(ValueError, match="c spoke after b had decided"):
        made.record(Step("c", later, Reason.HEALTH))
    assert made.final == steps(Outcome.ADMIT, final)[1]
    assert made.steps == before


@pytest.mark.parametrize("outcome", [Outcome.ADMIT, Outcome.SKIP, Outcome.OBSERVE])
def test_what_goes_on(outcome: Outcome) -> None:
    made = verdict(outcome, outcome)
    assert made.final is None
    assert made.admitted_by(REQUIRED)
    assert made.observed == (tuple(steps(outcome, outcome)) if outcome is Outcome.OBSERVE else ())
    assert made.seconds == 1.0
    assert [step.seconds for step in made.steps] == [0.5, 0.5]
    assert made.said == steps(outcome, outcome)


@pytest.mark.parametrize("outcome", [Outcome.DENY, Outcome.ANSWER, "maybe", None])
def test_what_is_final_is_admitted_by_nobody(outcome: Any) -> None:
    made = verdict(Outcome.ADMIT, outcome)
    assert [step.stage for step in made.said] == list(REQUIRED), "each has spoken, in order"
    assert not made.admitted_by(REQUIRED)
    assert made.observed == ()


@pytest.mark.parametrize("required", [(), ("a",), ("b", "a"), ("a", "b", "c"), ("a", "x")])
def test_admitted_by_exactly_the_required_stages_in_order(required: tuple[str, ...]) -> None:
    assert not verdict(Outcome.ADMIT, Outcome.ADMIT).admitted_by(required)
    assert not Verdict("").admitted_by(REQUIRED), "no step, no admission"
