"""Trailers: which fields may follow a body (RFC 9110, section 6.5), and which a client is given."""

from collections.abc import Container
from typing import Final

from mitmgate.core.headers import Fields
from mitmgate.core.http1.names import LOWER
from mitmgate.core.http1.writer import HOP_BY_HOP

FORBIDDEN: Final = HOP_BY_HOP | frozenset(
    b"host content-encoding content-type content-range set-cookie authorization authentication-info www-authenticate "
    b"cache-control expires age date location retry-after vary warning expect max-forwards range if-match "
    b"if-none-match if-modified-since if-unmodified-since if-range te trailer forwarded via".split()
)
"""Fields for framing, routing, authentication, control and content (RFC 9110, section 6.5.1): they mean nothing behind
the content, or something that was decided on before it came."""


def permitted(trailers: Fields, hidden: Container[bytes]) -> Fields:
    """Return the trailers that go on. hidden: lower-case names of fields that the gateway takes out, or writes."""
    return tuple(
        (name, value) for name, value in trailers if (lower := LOWER[name]) not in FORBIDDEN and lower not in hidden
    )
