"""Via (RFC 9110, section 7.6.3): what a request came through, and whether it goes in circles."""

import re
from typing import Final

from mitmgate.core.headers import Headers

MOST_PASSES: Final = 8
"""How often a request may come through gateways of one name: an error in a policy must not make requests endless."""

_WORDS: Final = re.compile(rb"[\s,]+")
_VERSIONS: Final = {"HTTP/1.0": b"1.0", "HTTP/1.1": b"1.1", "HTTP/2.0": b"2.0"}


class Via:
    """The fields of one name."""

    __slots__ = ("_fields", "name")

    name: bytes

    def __init__(self, name: bytes) -> None:
        """name: the pseudonym of the gateway, a token."""
        self.name = name.lower()
        self._fields = {version: (b"Via", b"%b %b" % (number, name)) for version, number in _VERSIONS.items()}

    def field(self, version: str) -> tuple[bytes, bytes]:
        """Return the field that is added to a request which came in a version."""
        return self._fields[version]

    def circles(self, headers: Headers) -> bool:
        """Tell whether a request has come through gateways of this name too often."""
        if b"via" not in headers:
            return False
        value = b",".join(headers.all(b"via")).lower()
        # Clients choose how long it is: it is taken apart only where the name may be there often enough.
        return value.count(self.name) >= MOST_PASSES and _WORDS.split(value).count(self.name) >= MOST_PASSES
