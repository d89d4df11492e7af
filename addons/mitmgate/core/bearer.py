"""Where a bearer token may stand (RFC 6750, section 2): in Authorization, and nowhere beside it."""

import re
from typing import Final

_ACCESS_TOKEN: Final = re.compile(
    "(?:^|[&;])"
    + "".join(
        f"(?:{letter}|%{''.join(f'[{d}{d.upper()}]' for d in f'{ord(letter):02x}')})" for letter in "access_token"
    )
    + "(?:[=&;]|$)"
)


def holds_token(query: str) -> bool:
    """Tell whether a raw query holds a parameter `access_token` (RFC 6750, section 2.3), however it is encoded."""
    return _ACCESS_TOKEN.search(query) is not None
