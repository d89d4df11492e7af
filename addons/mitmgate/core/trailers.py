"""Trailers: which fields may follow a body (RFC 9110, section 6.5), which a service is given, and which a client."""

from collections.abc import Container, Iterable
from typing import Final

from mitmgate.core.api_key import in_text
from mitmgate.core.client_fields import ClientFields, Disposition
from mitmgate.core.headers import Fields
from mitmgate.core.http1.names import LOWER
from mitmgate.core.http1.writer import HOP_BY_HOP

FORBIDDEN: Final = HOP_BY_HOP | frozenset(
    b"host cookie set-cookie authorization authentication-info www-authenticate proxy-authentication-info origin "
    b"cache-control pragma expires age date location retry-after vary warning expect max-forwards range if-match "
    b"if-none-match if-modified-since if-unmodified-since if-range http2-settings forwarded via".split()
)
"""Fields for framing, routing, authentication, control and content (RFC 9110, section 6.5.1): they mean nothing behind
the content, or something that was decided on before it came."""
_DIGEST: Final = b"content-digest"  # which is meant to follow the content, too (RFC 9530, section 2)
_NO_ONE: Final = ClientFields(())


def forbidden(lower: bytes) -> bool:
    """Tell whether a field, by its lower-case name, never is a trailer."""
    return lower in FORBIDDEN or (lower.startswith(b"content-") and lower != _DIGEST)


def never_forwarded(lower: bytes) -> bool:
    """Tell whether no service is ever given a client's field of this lower-case name as a trailer."""
    return forbidden(lower) or _NO_ONE.disposition(lower) is not Disposition.KEEP


def permitted(trailers: Fields, hidden: Container[bytes]) -> Fields:
    """Return the trailers of a response that go on. hidden: lower-case names that the gateway takes out, or writes."""
    return tuple(
        (name, value) for name, value in trailers if not forbidden(lower := LOWER[name]) and lower not in hidden
    )


class RequestTrailers:
    """Which trailers of clients a route's service is given: those that it wants, as far as heads may hold them."""

    __slots__ = ("_client_fields", "_removed", "_wanted")

    def __init__(self, wanted: frozenset[bytes], client_fields: ClientFields, removed: Container[bytes]) -> None:
        """wanted: lower-case names that the service knows (RFC 9110, section 6.5.1). removed: those of the rewrite."""
        self._wanted = wanted
        self._client_fields = client_fields
        self._removed = removed

    def _goes_on(self, lower: bytes) -> bool:
        return (
            lower in self._wanted
            and lower not in self._removed
            and not forbidden(lower)
            and self._client_fields.disposition(lower) is Disposition.KEEP
        )

    def permitted(self, trailers: Fields) -> Fields:
        """Return the trailers that go on."""
        hides_keys = self._client_fields.hides_keys
        return tuple(
            (name, value)
            for name, value in trailers
            if self._goes_on(LOWER[name]) and not (hides_keys and in_text(value.decode("latin-1")))
        )

    def announced(self, values: Iterable[bytes]) -> bytes:
        """Return the Trailer field to send (RFC 9110, section 6.6.2), of a client's own; empty: none."""
        names = [name for value in values for name in value.lower().replace(b" ", b"").replace(b"\t", b"").split(b",")]
        return b", ".join(dict.fromkeys(name for name in names if self._goes_on(name)))


def announcing(trailers: Fields) -> bytes:
    """Return the Trailer field to send before these trailers."""
    return b", ".join(dict.fromkeys(LOWER[name] for name, _ in trailers))
