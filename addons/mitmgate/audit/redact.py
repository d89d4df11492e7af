"""Redaction: no credential in a record, in whatever position a client may have put one."""

import re
from urllib.parse import unquote_plus

from mitmgate.audit.settings import Redact

REDACTED = "[redacted]"

# Where OAuth sends credentials in a query (RFC 6749, sections 2.3.1, 4.1.3, 4.3.2; RFC 6750, section 2.3; RFC 7521).
_ALWAYS = frozenset(
    {
        "access_token",
        "refresh_token",
        "id_token",
        "client_secret",
        "assertion",
        "client_assertion",
        "password",
    }
)
_NEVER_LOGGED = frozenset({"authorization", "proxy-authorization", "cookie"})

# base64url of '{"' is eyJ; of '{' and white space it is eyA, ewo, ew0 or ewk, which English has too.
_START = re.compile(r"eyJ|(?:eyA|ew[0ok])[\w-]{13}", re.ASCII)
# A run of base64url segments joined by dots, percent-encoded or not. Possessive, so that hostile text costs O(n).
_RUN = re.compile(r"(?<![\w-])[\w-]++(?:(?:\.|%2[eE])[\w-]*+)++", re.ASCII)
_DOT = re.compile(r"\.|%2[eE]")


def may_hold_jwt(record: bytes) -> bool:
    """Tell whether a serialised record may hold a JWT or a JWE (RFC 7519, section 3) whose JSON has no white space.

    Replacing is for without_jwts: in the serialised form it would break the escape of U+001E before "yJ".
    """
    return b"J" in record and b"eyJ" in record  # one rare byte is found 20 times as fast as three


def without_jwts(text: str) -> str:
    """Replace everything in a text that looks like a JWT or a JWE."""
    return _RUN.sub(_without_jwt, text)


def _without_jwt(run: re.Match[str]) -> str:
    text = run[0]
    start = _START.search(text)
    if start is None or _DOT.search(text, start.end()) is None:
        return text
    return text[: start.start()] + REDACTED


def _decoded(text: str) -> str:
    """Undo percent-encoding, also where it was applied twice or three times."""
    for _ in range(3):
        plain = unquote_plus(text, encoding="latin-1")
        if plain == text:
            break
        text = plain
    return text


def veil(text: str) -> str:
    """Replace what looks like a JWT, or hides one behind percent-encoding, in text that a client chose."""
    if "%" in text:
        text = without_jwts(text)
        plain = _decoded(text)
        return text if without_jwts(plain) == plain else REDACTED
    return without_jwts(text) if "ew" in text or "ey" in text else text


class Redaction:
    """Redact compiled once: asked on the request path."""

    __slots__ = ("_names", "_plain", "headers")

    headers: frozenset[str]

    def __init__(self, settings: Redact) -> None:
        """Compile the names, lower-case."""
        self.headers = frozenset(name.lower() for name in settings.headers) | _NEVER_LOGGED
        self._names = frozenset(name.lower() for name in settings.query) | _ALWAYS
        names = "|".join(re.escape(name) for name in sorted(self._names, key=len, reverse=True))
        # A parameter starts the text or follows a separator; `token[]=` and `token[0]=` are `token` to PHP and others.
        self._plain = re.compile(rf"(?i)(?<![^&;?#])((?:{names})(?:\[[^\]=&]*\])?=)[^&;?#]+")

    def query(self, text: str) -> str:
        """Replace the values of the named parameters in the raw text after "?"."""
        if "%" not in text and "+" not in text:
            return veil(self._plain.sub(rf"\1{REDACTED}", text))
        return "".join([self._parameter(part) for part in re.split(r"([&;?#])", text)])

    def _parameter(self, part: str) -> str:
        name, equals, value = part.partition("=")
        if equals and value and _decoded(name).partition("[")[0].strip().lower() in self._names:
            return f"{name}={REDACTED}"
        return veil(part)
