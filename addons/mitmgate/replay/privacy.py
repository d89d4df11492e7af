"""Privacy of recordings: which values are hidden, and how one value is hidden.

What is hidden keeps its length wherever that can matter to a decision (the head's size is bounded), and the same
value is hidden as the same text all through one recording, so that what counts or compares by it still does. The hash
is keyed by a secret that is never written: nobody can find out a value by hashing guesses.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, cast
from urllib.parse import quote, quote_plus

from mitmgate.core import api_key, credentials
from mitmgate.core.headers import Fields
from mitmgate.core.jose import Json

CLAIMS = (
    *("email", "name", "given_name", "family_name", "middle_name", "nickname", "preferred_username", "profile"),
    *("picture", "website", "birthdate", "phone_number", "address", "upn", "unique_name"),
)
"""The claims that are hashed unless told otherwise (OpenID Connect Core, section 5.1, and two of Entra's)."""

_SCHEMES = frozenset(
    b"basic bearer digest dpop gnap hoba mutual negotiate oauth privatetoken vapid token apikey".split()
)
_TELLING = 6  # characters of a hidden text that is looked for everywhere
_SUBJECTS = frozenset({"sub", "oid", "uid", "user_id", "username", "login"})
"""Claims that name the person whom a listed claim may name as well, be it with one word."""
_STRUCTURE = frozenset({"iss", "aud", "exp", "nbf", "iat", "jti", "scope", "scp", "typ", "azp", "client_id"})
"""Claims that a policy names values of: they are no person's."""
_HIDDEN = re.compile(r"[0-9a-f]+")
_UNSAFE = "\N{MIDDLE DOT}"  # of ISO-8859-1, as recordings keep fields
_WORD = re.compile(r"[A-Za-z0-9]+")
_BETWEEN = re.compile(r"([\x00-/:-@\[-`{-\x7f]+)")  # what stands between words, of whatever letters
_SAFE = re.compile(r"[!-~](?:[ -~]*[!-~])?")  # what a field takes as it stands


@dataclass(frozen=True, slots=True)
class Privacy:
    """What a recording hides, beside what core.credentials knows. Names are compared without regard to case.

    bodies: whether they are kept, unredacted.
    """

    claims: tuple[str, ...] = CLAIMS
    headers: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
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
        self.again = False
        """Whether what comes was hidden before: hexadecimal digits then stay, as what they stand for is unknown."""
        self._secret = secrets.token_bytes(32)
        self._headers = frozenset(name.lower().encode("latin-1") for name in privacy.headers)
        self._claims = frozenset(name.lower() for name in privacy.claims)
        self._query = frozenset(name.lower() for name in privacy.query)

    def text(self, value: str) -> str:
        """Hide a value behind hexadecimal digits, as many as it has characters."""
        if self.again and _HIDDEN.fullmatch(value):
            return value
        digest = blake2b(value.encode("utf-8", "surrogatepass"), key=self._secret).hexdigest()
        digits = (digest * (len(value) // len(digest) + 1))[: len(value)]
        return api_key.hidden(value, digits) or digits

    def name(self, value: str) -> str:
        """Hide a value behind 32 digits: for claims, where short values must stay apart.

        One that no header field takes, for which a request may have been refused, becomes one that none takes either.
        """
        if not value:
            return value
        digest = blake2b(value.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=16).hexdigest()
        return digest if _SAFE.fullmatch(value) else f"{_UNSAFE}{digest}"

    def octets(self, value: bytes) -> bytes:
        """Hide bytes of a header field."""
        return self.text(value.decode("latin-1")).encode("ascii")

    def url(self, text: str) -> str:
        """Hide what a request target or any other URL has of credentials: parameters, tokens, user and password."""
        return credentials.hide_in_url(text, self.text, self._is_secret)

    def _is_secret(self, name: str) -> bool:
        return credentials.is_secret_name(name) or name.partition("[")[0].strip("+ ").lower() in self._query

    def authority(self, text: str) -> str:
        """Hide user and password before a host."""
        userinfo, at, host = text.rpartition("@")
        return f"{self.text(userinfo)}{at}{host}" if at else text

    def field(self, name: bytes, value: bytes) -> bytes:
        """Hide what a header field has of credentials. Authorization's tokens are signed again before this."""
        lower = name.lower()
        if lower == b"cookie":
            return b"; ".join([self._cookie(pair) for pair in value.split(b"; ")])
        if lower == b"set-cookie":
            pair, semicolon, attributes = value.partition(b";")
            return self._cookie(pair) + semicolon + attributes
        if lower in {b"authorization", b"proxy-authorization"}:
            return self._credential(value)
        if self.is_secret_field(lower):
            return self.octets(value)
        return credentials.hide_in_field(lower.decode("latin-1"), value.decode("latin-1"), self.text).encode("latin-1")

    def name_of_field(self, name: bytes) -> bytes:
        """Hide the credential that a header field's name is. One with `_`, which is dropped, still has one."""
        shown = credentials.hide_in_name(name.decode("latin-1"), self.text).encode("latin-1")
        return shown if b"_" not in name or b"_" in shown else b"_" + shown[1:]

    def is_secret_field(self, lower: bytes) -> bool:
        """Tell whether a field's value is a credential as a whole. lower: its name in small letters."""
        return lower in self._headers or credentials.is_secret_name(lower.decode("latin-1"))

    def fields(self, fields: Fields) -> Fields:
        """Hide what header fields have of credentials."""
        return tuple([(self.name_of_field(name), self.field(name, value)) for name, value in fields])

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
        """Hide the listed claims, and others that say the same; also return each hidden text and what stands for it."""
        hidden: dict[str, str] = {}
        shown = {
            name: self._hide(value, hidden)
            if name.lower() in self._claims
            else self._listed(value, _step("", name), hidden)
            for name, value in claims.items()
        }
        texts = Hidden(hidden)
        for name, value in shown.items():
            if name.lower() in self._claims or name in _STRUCTURE:
                continue
            whole = texts.whole(value) if name in _SUBJECTS and isinstance(value, str) else value
            shown[name] = texts.everywhere(whole)
        return shown, hidden

    def _listed(self, value: Json, at: str, hidden: dict[str, str]) -> Json:
        """Hide what is listed by a JSON pointer within a claim. at: where the claim is."""
        if at.lower() in self._claims:
            return self._hide(value, hidden)
        if isinstance(value, dict):
            return {name: self._listed(member, _step(at, name), hidden) for name, member in value.items()}
        return value

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
        hidden[str(value)] = self.name(str(value))
        return hidden[str(value)]


def _step(at: str, name: str) -> str:
    return f"{at}/{name.replace('~', '~0').replace('/', '~1')}"


class Hidden:
    """The texts of one request that are hidden, and what stands in their places. The longest is replaced first.

    A single word can stand anywhere and mean something else: a role, a route, a part of another word. It is replaced
    only where it is the whole value, or a word of its own in a field that the gateway has made.
    """

    def __init__(self, texts: Mapping[str, str]) -> None:
        """texts: what stands for each, as it was written."""
        self._whole = {text: place for text, place in texts.items() if text}
        spelled = {spelling: place for text, place in self._whole.items() for spelling in {text, _wire(text)}}
        for text, place in self._whole.items():  # in a URL, which takes no other characters
            for spelling in {quote(text, safe=""), quote(text, safe="@"), quote_plus(text)}:
                spelled.setdefault(spelling, place.removeprefix(_UNSAFE))
        parts = sorted(spelled.items(), key=lambda item: (-len(item[0]), item[0]))
        self._parts = parts
        self._tell = [(text, place) for text, place in parts if len(text) >= _TELLING and not text.isalpha()]

    def whole(self, text: str) -> str:
        """Replace a text that is hidden as it stands, or what it has of hidden texts."""
        place = self._whole.get(text)
        if place is not None:
            return place
        for part, place in self._parts:
            if part in text:
                text = _replaced(text, part, place)
        return text

    def telling(self, text: str) -> str:
        """Replace what a text has of hidden ones that are more than a word."""
        for part, place in self._tell:
            if part in text:
                text = text.replace(part, place)
        return text

    def everywhere[V](self, value: V) -> V:
        """Replace what tells of a person, wherever it stands in a value: text, bytes, and containers of them."""
        made: Any = value
        if isinstance(value, str):
            made = self.telling(value)
        elif isinstance(value, bytes):
            made = self.telling(value.decode("latin-1")).encode("latin-1")
        elif isinstance(value, dict):
            made = {name: self.everywhere(member) for name, member in value.items()}
        elif isinstance(value, list | tuple):
            made = type(value)([self.everywhere(item) for item in value])
        return cast(V, made)

    def left_in(self, record: bytes) -> bool:
        """Tell whether a record still has anything that tells of a person."""
        return any(text.encode("utf-8") in record for text, _ in self._tell)


def _replaced(text: str, part: str, place: str) -> str:
    """Replace a part of a text; one of letters and digits only where it is a word of its own.

    The part is a client's choice: a pattern made of it would take the time of compiling it, and stay in `re`'s cache.
    """
    if not part.isalnum():
        return text.replace(part, place)
    if part.isascii():
        return _WORD.sub(lambda word: place if word[0] == part else word[0], text)
    return "".join([place if word == part else word for word in _BETWEEN.split(text)])


def _wire(text: str) -> str:
    """Return UTF-8 as it looks where it was read as ISO-8859-1."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")
