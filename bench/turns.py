"""Measurements in turns: A B C A B C, so that whatever else the machine does meets all of them alike."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from bench.load import Sample

type Series = dict[str, list[Sample]]
"""Samples by subject, one for each round."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure: the median of the rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Sum up the rounds' figures."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])


@dataclass(slots=True)
class Comparison:
    """Subjects measured in one run: at saturation by kind of connection, and at fixed rates below it.

    absent: why a subject was not measured, by name. conformance: what each was asked before, and whether it did it.
    """

    saturation: dict[str, Series] = field(default_factory=dict)
    half: Series = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    conformance: dict[str, list[dict[str, object]]] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    lacks: dict[str, tuple[str, ...]] = field(default_factory=dict)


def take_turns[Key](rounds: int, turns: Mapping[Key, Callable[[], Sample]]) -> dict[Key, list[Sample]]:
    """Measure each once a round."""
    found: dict[Key, list[Sample]] = {key: [] for key in turns}
    for _ in range(rounds):
        for key, measure in turns.items():
            found[key].append(measure())
    return found


def paired(first: list[Sample], second: list[Sample], figure: Callable[[Sample, Sample], float]) -> Spread:
    """Compare two subjects round by round: only what was measured next to each other is compared."""
    return Spread.of(figure(a, b) for a, b in zip(first, second, strict=True))
