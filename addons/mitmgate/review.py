"""What is allowed in a policy and still worth a second look, and which of that the policy acknowledges, for `check`."""

from collections.abc import Iterator
from typing import NamedTuple

from mitmgate import chain
from mitmgate.policy import lint as of_the_file
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Code, Location, Problem, in_order
from mitmgate.policy.section import Section
from mitmgate.policy.snapshot import Snapshot

_ELSEWHERE = frozenset({Code.UNWRITABLE, Code.UNKEYED_CHAIN, Code.CERTIFICATE_TIME})
"""Warnings that depend on machine and time: to acknowledge one that is not there now is no mistake."""


class Acknowledged(NamedTuple):
    """A warning that the policy says is meant, and why."""

    problem: Problem
    reason: str


class Review(NamedTuple):
    """What there is to say of a valid policy, in the order of the file."""

    warnings: tuple[Problem, ...]
    acknowledged: tuple[Acknowledged, ...]


def lint(loaded: Loaded) -> tuple[Problem, ...]:
    """Return every warning of a valid policy that it does not acknowledge, those of loading included."""
    return review(loaded).warnings


def review(loaded: Loaded, snapshot: Snapshot | None = None) -> Review:
    """Find every warning of a valid policy. snapshot: what it was compiled to, where that was done already."""
    document = loaded.document
    snapshot = snapshot or compile_policy(loaded)
    found = [*loaded.warnings, *of_the_file.warnings(loaded, snapshot), *chain.warnings(loaded, snapshot)]
    reasons = dict(_reasons(loaded.policy, ()))
    warnings, acknowledged, used = [], [], set()
    for problem in in_order(found):
        place = next(
            (
                place
                for length in range(len(problem.location), -1, -1)
                if (place := (problem.location[:length], problem.code)) in reasons
            ),
            None,
        )
        if place is None:
            warnings.append(problem)
        else:
            used.add(place)
            acknowledged.append(Acknowledged(problem, reasons[place]))
    for location, code in reasons.keys() - used:
        if code not in _ELSEWHERE:
            at = (*location, "acknowledge", code)
            message = f"there is no warning {code} here that could be meant"
            warnings.append(document.warning(at, Code.NOTHING_TO_ACKNOWLEDGE, message, "leave it out", key=True))
    return Review(in_order(warnings), tuple(acknowledged))


def _reasons(value: object, location: Location) -> Iterator[tuple[tuple[Location, Code], str]]:
    """Yield what the policy acknowledges: the place of the mapping, the warning's code, and the reason."""
    if isinstance(value, Section):
        for code, reason in value.acknowledge.items():
            yield (location, Code(code)), reason
        for name in type(value).model_fields:
            if name != "acknowledge":
                yield from _reasons(getattr(value, name), (*location, name))
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from _reasons(member, (*location, name))
    elif isinstance(value, tuple):
        for index, member in enumerate(value):
            yield from _reasons(member, (*location, index))
