"""Privacy of recordings: which values are hidden, and how one value is hidden.

What is hidden keeps its length wherever that can matter to a decision (the head's size is bounded), and the same
value is hidden as the same text all through one recording, so that what counts or compares by it still does. The hash
is keyed by a secret that is never written: nobody can find out a value by hashing guesses.
"""

import re
import secrets
from dataclasses import dataclass, replace
from hashlib import blake2b

from mitmgate.audit.redact import may_hold_jwt, veil
from mitmgate.core.headers import Fields
from mitmgate.core.jose import Json

CLAIMS = (
    *("email", "name", "given_name", "family_name", "middle_name", "nickname", "preferred_username", "profile"),
    *("picture", "website", "birthdate", "phone_number", "address", "upn", "unique_name"),
)
"""The claims that are hashed unless told otherwise (OpenID Connect Core, section 5.1, and two of Entra's)."""

HEADERS = (
    *("x-api-key", "api-key", "apikey", "x-auth-token", "x-access-token", "x-csrf-token", "x-xsrf-token"),
    *("x-amz-security-token", "x-goog-api-key", "x-gitlab-token", "x-vault-token", "private-token", "dpop"),
)
"""The header fields that are hashed unless told otherwise, beside Authorization, Cookie and their kin."""

QUERY = (
    *("access_token", "refresh_token", "id_token", "token", "api_key", "apikey", "key", "client_secret"),
    *("assertion", "client_assertion", "password", "code", "sig", "signature", "x-amz-signature"),
    *("x-amz-security-token", "x-goog-signature"),
)
"""The query parameters whose values are hashed unless told otherwise."""

_SCHEMES = frozenset(
    b"basic bearer digest dpop gnap hoba mutual negotiate oauth privatetoken vapid token apikey".split()
)
_JWT = re.compile(r"(?:eyJ|eyA|ew[0ok])[\w-]*(?:(?:\.|%2[eE])[\w-]*)+", re.ASCII)
_LONG = re.compile(r"[\w%.~-]{16,}", re.ASCII)
_USERINFO = re.compile(r"(?<=//)[^/@?#]+(?=@)")
_LEAST = 3  # characters of a claim that is looked for in other places: shorter ones are everywhere


@dataclass(frozen=True, slots=True)
class Privacy:
    """What a recording hides. Names are compared without regard to case. bodies: whether they are kept, unredacted."""

    claims: tuple[str, ...] = CLAIMS
    headers: tuple[str, ...] = HEADERS
    query: tuple[str, ...] = QUERY
    bodies: bool = False


_SPECIAL = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})


def with_policy(privacy: Privacy, headers: tuple[str, ...], query: tuple[str, ...]) -> Privacy:
    """Add what a policy's `audit.redact` names. Authorization and cookies are hidden in ways of their own."""
    named = tuple(name for name in headers if name.lower() not in _SPECIAL)
    return replace(privacy, headers=(*privacy.headers, *named), query=(*privacy.query, *query))


class Veil:
    """Hides values under one secret."""

    def __init__(self, privacy: Privacy) -> None:
        """Make a new secret."""
        self._secret = secrets.token_bytes(32)
        self._headers = frozenset(name.lower().encode("latin-1") for name in privacy.headers)
        self._claims = frozenset(name.lower() for name in privacy.claims)
        names = "|".join(re.escape(name) for name in sorted(privacy.query, key=len, reverse=True))
        self._parameter = re.compile(rf"(?i)(?<![^&;?#])((?:{names})(?:\[[^\]=&]*\])?=)([^&;?#]+)") if names else None

    def text(self, value: str) -> str:
        """Hide a value behind hexadecimal digits, as many as it has characters."""
        digest = blake2b(value.encode("utf-8", "surrogatepass"), key=self._secret).hexdigest()
        return (digest * (len(value) // len(digest) + 1))[: len(value)]

    def name(self, value: str) -> str:
        """Hide a value behind 32 digits: for claims, where short values must stay apart."""
        return blake2b(value.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=16).hexdigest()

    def octets(self, value: bytes) -> bytes:
        """Hide bytes of a header field."""
        return self.text(value.decode("latin-1")).encode("ascii")

    def url(self, text: str) -> str:
        """Hide what a request target or any other URL has of credentials: parameters, JWTs, user and password."""
        if self._parameter is not None and "=" in text:
            text = self._parameter.sub(lambda found: found[1] + self.text(found[2]), text)
        if "@" in text:
            text = _USERINFO.sub(lambda found: self.text(found[0]), text)
        return self._without_jwts(text)

    def authority(self, text: str) -> str:
        """Hide user and password before a host."""
        userinfo, at, host = text.rpartition("@")
        return f"{self.text(userinfo)}{at}{host}" if at else text

    def _without_jwts(self, text: str) -> str:
        if not may_hold_jwt(text.encode("latin-1", "replace")) and "%" not in text:
            return text
        text = _JWT.sub(lambda found: self.text(found[0]), text)
        if veil(text) != text:  # a token behind more percent-encoding than one layer
            text = _LONG.sub(lambda found: self.text(found[0]), text)
        return text

    def field(self, name: bytes, value: bytes) -> bytes:
        """Hide what a header field has of credentials. Authorization's tokens are signed again before this."""
        lower = name.lower()
        if lower in self._headers:
            return self.octets(value)
        if lower == b"cookie":
            return b"; ".join([self._cookie(pair) for pair in value.split(b"; ")])
        if lower == b"set-cookie":
            pair, semicolon, attributes = value.partition(b";")
            return self._cookie(pair) + semicolon + attributes
        if lower in {b"authorization", b"proxy-authorization"}:
            return self._credential(value)
        if lower == b"host":
            return self.authority(value.decode("latin-1")).encode("latin-1")
        return self.url(value.decode("latin-1")).encode("latin-1")

    def fields(self, fields: Fields) -> Fields:
        """Hide what header fields have of credentials."""
        return tuple([(name, self.field(name, value)) for name, value in fields])

    def _cookie(self, pair: bytes) -> bytes:
        name, equals, value = pair.partition(b"=")
        return name + equals + self.octets(value) if equals else self.octets(pair)

    def _credential(self, value: bytes) -> bytes:
        """Keep a scheme that is one; everything else may be a key."""
        scheme, space, rest = value.partition(b" ")
        if scheme.lower() not in _SCHEMES and not scheme.lower().startswith((b"scram-", b"aws4-")):
            scheme = self.octets(scheme)
        return scheme + space + self.octets(rest)

    def claims(self, claims: dict[str, Json]) -> tuple[dict[str, Json], dict[str, str]]:
        """Hide the listed claims; also return each text that was hidden and what stands for it."""
        shown: dict[str, Json] = {}
        hidden: dict[str, str] = {}
        for name, value in claims.items():
            shown[name] = self._hide(value, hidden) if name.lower() in self._claims else value
        return shown, {text: place for text, place in hidden.items() if len(text) >= _LEAST}

    def _hide(self, value: Json, hidden: dict[str, str]) -> Json:
        if isinstance(value, str):
            hidden[value] = self.name(value)
            return hidden[value]
        if isinstance(value, list):
            return [self._hide(item, hidden) for item in value]
        if isinstance(value, dict):
            return {name: self._hide(member, hidden) for name, member in value.items()}
        if value is None or isinstance(value, bool):
            return value
        return self.name(repr(value))
