"""A policy file as plain values, and where each of them stands."""

import re
from dataclasses import dataclass, field

from mitmgate.policy.interpolation import FromEnvironment
from mitmgate.policy.problem import Location, Problem, Severity, dotted

_USER_INFORMATION = re.compile(r"//[^/@\s]*@")  # a password in a URL is not for a terminal

Place = tuple[int, int]  # line and column, from 1


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

    def problem(
        self,
        location: Location,
        message: str,
        *,
        found: str | None = None,
        hint: str = "",
        key: bool = False,
        severity: Severity = "error",
    ) -> Problem:
        """Make a problem of a member. found: None shows the value that the file has there."""
        line, column = self.place(location, key)
        if found is None:
            found = written(self.at(location))
        return Problem(self.file, line, column, severity, dotted(location), message, found, hint)

    def warning(self, location: Location, message: str, hint: str = "", key: bool = False) -> Problem:
        """Make a warning of a member, without its value."""
        return self.problem(location, message, found="", hint=hint, key=key, severity="warning")


def written(value: object) -> str:
    """Show a scalar as the file writes it, shortened; "" for mappings and lists. Never what the environment says."""
    if isinstance(value, FromEnvironment):
        value = value.written
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if not isinstance(value, str | int | float):
        return ""
    text = _USER_INFORMATION.sub("//***@", repr(value))
    return text if len(text) <= 60 else text[:57] + "..."
