"""How long and what to measure."""

from dataclasses import dataclass, replace
from pathlib import Path

SECTIONS = ("compare", "stages", "workers", "bodies", "denials", "ratios")


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. seconds: of each measurement; rounds: how often each subject has its turn; reduced: a part of each."""

    seconds: int = 5
    rounds: int = 3
    sections: tuple[str, ...] = SECTIONS
    peers: bool = False
    reduced: bool = False
    beside: Path | None = None
    """An older checkout, to be measured beside this one among the ratios."""
    budget: float | None = None
    """Seconds after which no further section is begun, and the table says which were left out; None: no bound."""


QUICK = Settings(seconds=1, rounds=1, reduced=True, budget=60.0)
"""A minute or two: shows that everything works; its figures are rough."""


def choose(
    *,
    seconds: int | None,
    rounds: int | None,
    quick: bool,
    peers: bool,
    sections: tuple[str, ...],
    beside: Path | None = None,
) -> Settings:
    """Read what the command line says; what it leaves out is the default, or the quick one."""
    base = QUICK if quick else Settings()
    return replace(
        base,
        seconds=seconds or base.seconds,
        rounds=rounds or base.rounds,
        sections=sections or base.sections,
        peers=peers,
        beside=beside,
    )
