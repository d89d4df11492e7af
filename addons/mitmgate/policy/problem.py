"""What is wrong with a policy file, where, and what would be right."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]
Location = tuple[str | int, ...]  # ("routes", 0, "upstream")
Stamp = tuple[int, int, int] | None  # mtime in ns, size in bytes, inode; None: the file can't be read


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. line and column count from 1; path is the member, as routes[0].upstream.

    found is the offending value as the file writes it (never a value from the environment), "" where the place says
    enough. hint is a short phrase: "did you mean users?", "write 30s".
    """

    file: str
    line: int
    column: int
    severity: Severity
    path: str
    message: str
    found: str = ""
    hint: str = ""

    def __str__(self) -> str:
        """Write it as compilers do, so that editors can jump there."""
        subject = f"{self.path}: " if self.path else ""
        more = "; ".join(filter(None, (self.found and f"found {self.found}", self.hint)))
        more = f" ({more})" if more else ""
        text = f"{self.file}:{self.line}:{self.column}: {self.severity}: {subject}{self.message}{more}"
        # One problem is one line, whatever a key or a value holds.
        return text if text.isprintable() else "".join(map(_printable, text))

    def as_dict(self) -> dict[str, str | int]:
        """Return the members as plain values, for JSON."""
        return asdict(self)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


class PolicyError(Exception):
    """A policy that can't be used. problems: every one of them, in the order of the file, errors and warnings.

    stamps: the files that were read or looked for, so that a watcher knows whether trying again is worth it.
    """

    def __init__(self, problems: Iterable[Problem], stamps: Mapping[Path, Stamp] | None = None) -> None:
        """Sort the problems by place."""
        self.problems = in_order(problems)
        self.stamps = dict(stamps or {})
        super().__init__("\n".join(map(str, self.problems)))


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Sort problems by place, each once."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda p: (p.file, p.line, p.column, p.severity)))


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the hint "did you mean …?" for the name that is closest to a word, or "" where none is close."""
    names = list(names)
    lowered = {name.lower(): name for name in names}
    found = get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f"did you mean {lowered[found[0]]}?" if found else ""


def dotted(location: Location) -> str:
    """Write a location as people do: routes[0].match.prefix."""
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text
