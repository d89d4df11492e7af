"""A policy file as plain values, and where each of them stands."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mitmgate.policy.interpolation import FromEnvironment
from mitmgate.policy.problem import Code, Location, Problem, Severity, dotted

Place = tuple[int, int]  # line and column, from 1

HIDDEN = "***"

_SECRET: tuple[tuple[str | None, ...], ...] = (
    ("store",),  # a URL that was written without its mapping
    ("store", "url"),
    ("routes", None, "rewrite", "set", None),
    ("response_headers", "set", None),
)
"""Members that may hold a credential (None: any name), so that no message ever shows their values."""


@dataclass(slots=True)
class Document:
    """A parsed file: dicts with text keys, lists, str, int, float, bool and None, and where each of them stands.

    unresolved: members whose reference to the environment has no value, so that further errors in them say nothing.
    values and keys: the places of members' values and of their names.
    """

    file: str
    value: object = None
    problems: list[Problem] = field(default_factory=list)
    unresolved: set[Location] = field(default_factory=set)
    values: dict[Location, Place] = field(default_factory=dict)
    keys: dict[Location, Place] = field(default_factory=dict)

    def at(self, location: Location) -> object:
        """Return the value at a location; None where there is none."""
        value = self.value
        for step in location:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def place(self, location: Location, key: bool = False) -> Place:
        """Return where a member's value (or its key) stands; that of the nearest member around it if it has none."""
        if key and location in self.keys:
            return self.keys[location]
        while location and location not in self.values:
            location = location[:-1]
        return self.values.get(location, (1, 1))

    def items(self, location: Location, values: Iterable[str]) -> list[tuple[Location, str]]:
        """Give each of a member's values its place; a lone value may be written without a list."""
        listed = isinstance(self.at(location), list)
        return [((*location, index) if listed else location, value) for index, value in enumerate(values)]

    def problem(
        self,
        location: Location,
        message: str,
        *,
        found: str | None = None,
        hint: str = "",
        key: bool = False,
        severity: Severity = "error",
        code: Code | None = None,
    ) -> Problem:
        """Make a problem of a member. found: None shows the value that the file has there."""
        line, column = self.place(location, key)
        if found is None:
            found = self.shown(location)
        path, message, hint = (without_userinfo(text) for text in (dotted(location), message, hint))
        return Problem(self.file, line, column, severity, path, message, found, hint, code, location)

    def shown(self, location: Location) -> str:
        """Show a member's value as `written` does; "" for one that may hold a credential."""
        return "" if is_secret(location) else written(self.at(location))

    def may_quote(self, location: Location) -> bool:
        """Tell whether a message may quote a part of a value: it is no credential, nor the environment's."""
        return not is_secret(location) and not isinstance(self.at(location), FromEnvironment)

    def may_quote_within(self, location: Location) -> bool:
        """Tell whether a message may quote anything of a mapping: nothing in it is the environment's."""
        return not is_secret(location) and not any(
            isinstance(text, FromEnvironment) for text in texts(self.at(location))
        )

    def warning(self, location: Location, code: Code, message: str, hint: str = "", key: bool = False) -> Problem:
        """Make a warning of a member, without its value."""
        return self.problem(location, message, found="", hint=hint, key=key, severity="warning", code=code)


def texts(value: object) -> Iterator[str]:
    """Yield every text of a value, however deep."""
    if isinstance(value, str):
        yield value
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:
        yield from texts(member)


def as_written(text: str) -> str:
    """Return a text as the policy file has it: a reference to the environment in place of what the environment says."""
    return text.written if isinstance(text, FromEnvironment) else text


def written(value: object) -> str:
    """Show a scalar as the file writes it, shortened; "" for mappings and lists. Never what the environment says."""
    if isinstance(value, str):
        value = as_written(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if not isinstance(value, str | int | float):
        return ""
    text = without_userinfo(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def is_secret(location: Location) -> bool:
    """Tell whether a member may hold a credential."""
    return any(
        len(names) == len(location)
        and all(name is None or name == step for name, step in zip(names, location, strict=True))
        for names in _SECRET
    )


def without_userinfo(text: str) -> str:
    """Hide user and password of a URL (RFC 3986, section 3.2.1), also where it is no valid one.

    All up to the last "@" may belong to them: a password that is not percent-encoded holds "/", "?" and "@" as well.
    """
    before, at, host = text.rpartition("@")
    if not at or not (":" in before or "//" in before):
        return text
    start, slashes, _ = before.partition("//")
    if slashes:
        return f"{start}//{HIDDEN}@{host}"
    quote = before[:1] if before[:1] in {"'", '"'} else ""
    return f"{quote}{HIDDEN}@{host}"
