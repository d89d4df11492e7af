"""Request targets (RFC 9112, section 3.2): origin-form, and absolute-form taken apart."""

import re
from typing import Final, NamedTuple

_ABSOLUTE: Final = re.compile(rb"([Hh][Tt][Tt][Pp][Ss]?)://([^/?]*)(.*)", re.DOTALL)


class Target(NamedTuple):
    """scheme (lower-case) and authority are empty in origin-form. path has the query with it."""

    scheme: bytes
    authority: bytes
    path: bytes


def split_target(target: bytes) -> Target:
    """Take absolute-form apart; every other form is left as it is, and judged by Hygiene."""
    if target.startswith(b"/"):
        return Target(b"", b"", target)
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        return Target(b"", b"", target)
    path = match[3]
    return Target(match[1].lower(), match[2], path if path.startswith(b"/") else b"/" + path)
