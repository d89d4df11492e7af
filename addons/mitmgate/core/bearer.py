"""Where a bearer token may stand (RFC 6750, section 2): in Authorization, and nowhere beside it."""

import re
from typing import Final


def _octet(character: str) -> str:
    """Match a character of a query as it stands, or percent-encoded."""
    number = f"{ord(character):02x}"
    return f"{re.escape(character)}|%{number[0]}[{number[1]}{number[1].upper()}]"


def _letter(character: str) -> str:
    """Match a letter of a name, or what a server takes for it: ASP.NET the capital, PHP ". [" and a space for "_"."""
    taken = (character, character.upper()) if character.isalpha() else ("_", ".", "[", " ")
    return f"(?:{'|'.join(map(_octet, taken))}{'' if character.isalpha() else '|[+]'})"


_ACCESS_TOKEN: Final = re.compile(
    f"(?:^|[&;])(?:[+]|%20)*+{''.join(map(_letter, 'access_token'))}(?:[=&;]|$|%00|{_octet('[')})"
)
"""PHP drops spaces before a name and what follows NUL, and takes `access_token[]` for a list of that name."""


def holds_token(query: str) -> bool:
    """Tell whether a raw query holds a parameter that some server reads as `access_token` (RFC 6750, section 2.3)."""
    return _ACCESS_TOKEN.search(query) is not None
