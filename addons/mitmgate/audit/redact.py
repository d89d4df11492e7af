"""Redaction: no credential in a record, wherever a client may have put one. core.credentials recognises them."""

from typing import Final

from mitmgate.audit.settings import Redact
from mitmgate.core import credentials

REDACTED = "[redacted]"

SHOWN = 1024
"""Characters of a text that a client chose which are looked at, and written; what is longer says how long it was."""

_SHORT: Final = 20  # characters; without `=`, `@` and `%` core.credentials recognises nothing in a shorter text


def mark(text: str) -> str:
    """Return what stands in the place of a credential in events, logs and on screens."""
    return REDACTED


def may_hold_jwt(record: bytes) -> bool:
    """Tell whether a serialised record may hold a JWT or a JWE (RFC 7519, section 3) whose JSON has no white space.

    Replacing is for without_jwts: in the serialised form it would break the escape of U+001E before "yJ".
    """
    return b"J" in record and b"eyJ" in record  # one rare byte is found 20 times as fast as three


def without_jwts(text: str) -> str:
    """Replace everything in a text that looks like a JWT or a JWE."""
    return credentials.without_jwts(text, mark)


class Redaction:
    """What is not shown of a request: by the names of core.credentials and the operator's own, and by what it holds."""

    __slots__ = ("_headers", "_is_secret", "_query")

    def __init__(self, settings: Redact) -> None:
        """Compile the names, lower-case."""
        self._headers = frozenset(name.lower() for name in settings.headers)
        self._query = frozenset(name.lower() for name in settings.query)
        own = [name for name in self._query if not credentials.is_secret_name(name)]
        self._is_secret = self.is_secret_parameter if own else credentials.is_secret_name

    def is_secret_field(self, name: str) -> bool:
        """Tell whether a header field's value is a credential as a whole."""
        return name.lower() in self._headers or credentials.is_secret_name(name)

    def is_secret_parameter(self, name: str) -> bool:
        """Tell whether a parameter's value is a credential."""
        return credentials.is_secret_name(name) or name.partition("[")[0].strip("+ ").lower() in self._query

    def path(self, text: str) -> str:
        """Hide the credentials of a path, or of anything else without a query: a host, a method."""
        if len(text) < _SHORT and "=" not in text and "@" not in text and "%" not in text:
            return text  # as it would come out below, without four calls
        return _bounded(text, credentials.hide_in_path(text[:SHOWN], mark))

    def query(self, text: str) -> str:
        """Hide the credentials of the raw text after "?"."""
        return _bounded(text, credentials.hide_in_query(text[:SHOWN], mark, self._is_secret))

    def target(self, text: str) -> str:
        """Hide the credentials of a request target."""
        return _bounded(text, credentials.hide_in_url(text[:SHOWN], mark, self._is_secret))

    def name(self, name: str) -> str:
        """Hide the credential that stands in the place of a header field's name; what is left is a name."""
        return credentials.hide_in_name(name[:SHOWN], lambda text: "redacted") if len(name) <= SHOWN else "redacted"

    def field(self, name: str, value: str) -> str:
        """Hide the credentials of a header field."""
        if self.is_secret_field(name):
            return REDACTED
        return _bounded(value, credentials.hide_in_field(name.lower(), value[:SHOWN], mark))


def _bounded(text: str, shown: str) -> str:
    return shown if len(text) <= SHOWN else f"{shown}[cut: {len(text)} characters]"
