"""The verdict: what each stage said of one request, append-only, the first deny or answer final."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mitmgate.core.reason import Reason


class Outcome(StrEnum):
    """What a stage says. Only ADMIT, SKIP and OBSERVE let a request go on."""

    ADMIT = "admit"
    DENY = "deny"
    ANSWER = "answer"  # a response that the gateway itself owes: health, CORS preflight
    SKIP = "skip"  # the stage looked, and has nothing to decide for this request
    OBSERVE = "observe"  # report-only: would have denied


GOES_ON = frozenset({Outcome.ADMIT, Outcome.SKIP, Outcome.OBSERVE})


class Step(NamedTuple):
    """One stage's word.

    stage: the stage's name, kebab-case. detail: one sentence for people, shown to the client of a denial,
    so without internals. seconds: time the stage took, filled in when it is recorded.
    """

    stage: str
    outcome: Outcome
    reason: Reason
    detail: str = ""
    seconds: float = 0.0


@dataclass(slots=True, init=False)
class Verdict:
    """The steps of one request in the order they were taken.

    Steps are kept beside their times, because most steps are shared constants of their stage.
    """

    policy_digest: str
    final: Step | None
    observed: tuple[Step, ...]
    """The steps that would have denied, had they been enforced."""
    _steps: list[Step]
    _seconds: list[float]

    def __init__(self, policy_digest: str) -> None:
        """Start with no step: a verdict without steps admits nothing."""
        self.policy_digest = policy_digest
        self.final = None
        self.observed = ()
        self._steps = []
        self._seconds = []

    def record(self, step: Step, seconds: float = 0.0) -> None:
        """Append a step. A step after the final one raises ValueError: nothing can be decided twice."""
        if self.final is not None:
            raise ValueError(f"{step.stage} spoke after {self.final.stage} had decided")
        self._steps.append(step)
        self._seconds.append(seconds)
        outcome = step.outcome
        if outcome not in GOES_ON:  # so that an outcome nobody knows admits nothing
            self.final = step
        elif outcome is Outcome.OBSERVE:
            self.observed += (step,)

    def decided(self) -> bool:
        """Tell whether a step is final. Not by a member: mypy, and so a compiled module, holds that to what it was."""
        return self.final is not None

    @property
    def going_on(self) -> tuple[list[Step], list[float]]:
        """The lists of steps and of their times, for a row of stages to append to what lets the request go on.

        It spares a call for each of them; whoever appends asks `final` first, and gives everything else to `record`.
        """
        return self._steps, self._seconds

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps so far, with their times."""
        return tuple(step._replace(seconds=seconds) for step, seconds in zip(self._steps, self._seconds, strict=True))

    @property
    def said(self) -> Sequence[Step]:
        """All steps so far, without their times: for whoever counts them on every request."""
        return self._steps

    @property
    def times(self) -> Iterator[tuple[str, float]]:
        """The stages that have spoken so far, each with the time that it took."""
        return ((step.stage, seconds) for step, seconds in zip(self._steps, self._seconds, strict=True))

    @property
    def seconds(self) -> float:
        """The time that all stages took together."""
        return sum(self._seconds)

    def admitted_by(self, required: tuple[str, ...]) -> bool:
        """Tell whether exactly the `required` stages, in order, have each let the request go on."""
        return self.final is None and tuple([step.stage for step in self._steps]) == required
