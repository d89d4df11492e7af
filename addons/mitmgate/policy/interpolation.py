"""${NAME} and ${NAME:-default} in the text of a policy, read from the environment."""

import re
from collections.abc import Mapping

from mitmgate.policy.problem import nearest

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_BODY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


class FromEnvironment(str):
    """Text that came, in part at least, from the environment.

    A number, a duration or a truth value may come from there although an environment knows only text; where a member
    wants text it stays text, and it is never read as YAML. `written` is what the policy file says.
    """

    __slots__ = ("written",)
    written: str

    def __new__(cls, value: str, written: str) -> "FromEnvironment":
        """Keep the file's text beside the value."""
        text = super().__new__(cls, value)
        text.written = written
        return text


class UnresolvedError(ValueError):
    """A reference that has no value. hint: what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the hint apart from the message."""
        super().__init__(message)
        self.hint = hint


def without_newline(value: str) -> str:
    """Return what a variable says, without a newline at its end: it comes with a secret that was read from a file."""
    return value.removesuffix("\n").removesuffix("\r")


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Replace the references in a text; `$${` stands for a literal `${`.

    Text without references is returned as it is, other text as FromEnvironment. A newline at a variable's end is not
    part of it. An unset or empty variable takes the default, as in a shell. Raises UnresolvedError for a variable that
    is not set, and for what is no reference.
    """
    if "${" not in text:
        return text

    def value_of(reference: re.Match[str]) -> str:
        if reference.group() == "$${":
            return "${"
        body = _BODY.fullmatch(reference.group(1))
        if body is None or not reference.group(2):
            raise UnresolvedError(
                "there is a ${ that is no reference to the environment", "write ${NAME} or $${ for a literal ${"
            )
        name, default = body.groups()
        value = without_newline(environ.get(name, ""))
        if value == "" and default is not None:
            value = default
        elif name not in environ:
            hint = nearest(name, environ) or f"set it, or write ${{{name}:-default}}"
            raise UnresolvedError(f"the environment variable {name} is not set", hint)
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UnresolvedError(f"the environment variable {name} is not valid UTF-8")
        return value

    return FromEnvironment(_REFERENCE.sub(value_of, text), text)
