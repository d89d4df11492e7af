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
        return (
            b"via" in headers
            and sum(_WORDS.split(value.lower()).count(self.name) for value in headers.all(b"via")) >= MOST_PASSES
        )
