"""Where a claim is found: by its name, or, beginning with "/", by a JSON pointer into the token (RFC 6901)."""

import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

ABSENT: Final = object()
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")  # RFC 6901, section 4


def find(claims: Mapping[str, Any], name: str, absent: Any = None) -> Any:
    """Return the value of a claim; `absent` where the token has none there.

    A name that does not begin with "/" is one member of the token, dots, slashes and all ("https://acme.example/roles").
    """
    if name[:1] != "/":
        return claims.get(name, absent)
    value: Any = claims
    for step in _steps(name):
        if isinstance(value, Mapping):
            if step not in value:
                return absent
            value = value[step]
        elif isinstance(value, list) and _INDEX.fullmatch(step) is not None and int(step) < len(value):
            value = value[int(step)]
        else:
            return absent
    return value


def put(claims: MutableMapping[str, Any], name: str, value: object) -> None:
    """Give a claim a value, for a token that is made; what is no mapping on the way there is replaced."""
    *way, last = _steps(name) if name[:1] == "/" else [name]
    inner: Any = claims
    for step in way:
        if not isinstance(inner.get(step), dict):
            inner[step] = {}
        inner = inner[step]
    inner[last] = value


def problem(name: str) -> str | None:
    """Say why a name that begins with "/" is no JSON pointer; None where it is one, or a plain name."""
    if name[:1] == "/" and re.search("~(?![01])", name):
        return 'no JSON pointer: "~" is written ~0, and "/" within a name ~1'
    return None


def _steps(pointer: str) -> list[str]:
    steps = pointer[1:].split("/")
    return [step.replace("~1", "/").replace("~0", "~") for step in steps] if "~" in pointer else steps
