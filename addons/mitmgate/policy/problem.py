"""What is wrong with a policy file, where, and what would be right."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning"]


class Code(StrEnum):
    """What a warning is about: the name by which a policy acknowledges it. docs/warnings.md says what each means."""

    PUBLIC = "public"
    REPORT_MODE = "report-mode"
    NO_RATE_LIMIT = "no-rate-limit"
    UNUSED = "unused"
    ANY_AUDIENCE = "any-audience"
    ANY_LIFETIME = "any-lifetime"
    LONG_LEEWAY = "long-leeway"
    KEYS_OVER_HTTP = "keys-over-http"
    SHARED_SECRET = "shared-secret"
    TWO_ISSUERS = "two-issuers"
    KEY_LEFT_OUT = "key-left-out"
    CERTIFICATE_TIME = "certificate-time"
    TRUSTS_EVERYONE = "trusts-everyone"
    DECIDES_FOR_NOBODY = "decides-for-nobody"
    DENY_ONLY = "deny-only"
    CLIENT_CHOOSES = "client-chooses"
    ADMITS_UNDECIDED = "admits-undecided"
    DECISIONS_OVER_HTTP = "decisions-over-http"
    HANDS_OVER_CREDENTIAL = "hands-over-credential"
    UNLIMITED_WITHOUT_STORE = "unlimited-without-store"
    HSTS_OVER_HTTP = "hsts-over-http"
    COOKIE_OF_OTHERS = "cookie-of-others"
    NO_AUDIT = "no-audit"
    UNKEYED_CHAIN = "unkeyed-chain"
    LOSES_EVENTS = "loses-events"
    UNWRITABLE = "unwritable"
    NEVER_REACHED = "never-reached"
    NEVER_MATCHES = "never-matches"
    LOOKS_LIKE_PATTERN = "looks-like-pattern"
    LOOKS_LIKE_PATH = "looks-like-path"
    UNKNOWN_METHOD = "unknown-method"
    ITSELF = "itself"
    STAGE_WARNS = "stage-warns"
    NOTHING_TO_ACKNOWLEDGE = "nothing-to-acknowledge"


Location = tuple[str | int, ...]  # ("routes", 0, "upstream")
Stamp = tuple[int, int, int] | None  # mtime in ns, size in bytes, inode; None: the file can't be read


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. line and column count from 1; path is the member, as routes[0].upstream.

    found is the offending value as the file writes it (never a value from the environment), "" where the place says
    enough. hint is a short phrase: "did you mean users?", "write 30s".
    code: of a warning. location: path, in its steps.
    """

    file: str
    line: int
    column: int
    severity: Severity
    path: str
    message: str
    found: str = ""
    hint: str = ""
    code: Code | None = None
    location: Location = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        """Write it as compilers do, so that editors can jump there."""
        subject = f"{self.path}: " if self.path else ""
        more = "; ".join(filter(None, (self.found and f"found {self.found}", self.hint)))
        more = f" ({more})" if more else ""
        more += f" [{self.code}]" if self.code else ""
        text = f"{self.file}:{self.line}:{self.column}: {self.severity}: {subject}{self.message}{more}"
        # One problem is one line, whatever a key or a value holds.
        return text if text.isprintable() else "".join(map(_printable, text))

    def as_dict(self) -> dict[str, str | int]:
        """Return the members as plain values, for JSON."""
        members = asdict(self)
        del members["location"]
        if self.code is None:
            del members["code"]
        return members


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
