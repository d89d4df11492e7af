"""One thing that a soak run found, beside its bar."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was done, what was seen, what is allowed. passed None: it could not be measured, and seen says why."""

    what: str
    seen: str
    bar: str
    passed: bool | None

    @property
    def word(self) -> str:
        """Say how it went."""
        return {True: "passed", False: "FAILED", None: "not measured"}[self.passed]
