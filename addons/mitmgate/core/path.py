"""One canonical path: what routing, authorisation, limits, rewriting and the upstream all read.

RFC 3986 lets a sender write one resource in several ways, and servers differ in which of them they fold together.
So the harmless differences are folded here (percent-encoded unreserved characters, the case of hex digits: section
6.2.2; the characters that browsers leave as they are though they may not stand in a path), and what two servers could
read differently is refused: backslashes, controls, double encoding, octets that are not UTF-8, and every segment that
some server takes for "." or "..". Encoded slashes, `;` parameters and empty segments are a matter of the route. What
ends a segment for a server that parses what it has decoded (an encoded `;`, `?` or `#`) is no way around a route.
"""

import re
from binascii import a2b_qp
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Final, NamedTuple

_PLAIN = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?|/")
_WRITTEN = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,=:@/;\[\]|^-]++|%[0-9A-Fa-f]{2})*+")
_BROWSERS: Final = (("[", "%5B"), ("]", "%5D"), ("|", "%7C"), ("^", "%5E"))
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX: Final = "0123456789ABCDEFabcdef"
_FOLDED: Final = {
    high + low: chr(octet) if (octet := int(high + low, 16)) in _UNRESERVED else f"%{octet:02X}"
    for high in _HEX
    for low in _HEX
}
"""What two hexadecimal digits behind a percent sign are folded to."""
_DOUBLE = re.compile(r"%25(?:[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})")
_CONTROL = re.compile(r"%(?:[01][0-9A-F]|7F)")
_BLANK = (
    r"\s\x80-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    r"\u200b-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
"""Spaces, controls and format characters (general categories Z, Cc, Cf) that a path may hold encoded, and all else that
is ignored by default (Unicode's Default_Ignorable_Code_Point), which case folding drops (NFKC_Casefold)."""
_SLASH: Final = "\x00"  # what an encoded slash is decoded to, so that it can be told from one that was written
_DOTS = re.compile(rf"[/\\\x00](?!\.{{3,}}+(?:[/\\\x00;?#]|\Z))(?=[{_BLANK}]*+\.)[.{_BLANK}]++(?=[/\\\x00;?#]|\Z)")
"""A segment of dots and of what can't be seen, which some servers drop, a final dot as well; three dots are a name."""
_HIDDEN = re.compile(r"\x00(?:[/\\\x00]|\Z)|[/\\]\x00")
_COMPATIBLE: Final = {
    **dict.fromkeys((0x2024, 0xFE52, 0xFF0E), "."),
    **dict.fromkeys((0x2025, 0xFE30), ".."),
    **dict.fromkeys((0x2026, 0xFE19), "..."),
    **dict.fromkeys((0x37E, 0xFE14, 0xFE54, 0xFF1B), ";"),
    **dict.fromkeys((0xFE16, 0xFE56, 0xFF1F), "?"),
    **dict(zip((0x2047, 0x2048, 0x2049), ("??", "?!", "!?"), strict=True)),
    **dict.fromkeys((0xFE5F, 0xFF03), "#"),
    **dict.fromkeys((0xFE6A, 0xFF05), "%"),
    **dict.fromkeys((0xFE68, 0xFF3C), "\\"),
    0xFF0F: "/",
}
"""What has a meaning in a path after Unicode's compatibility folding (NFKC, Standard Annex 15), which is left to this
table: on a long row of combining marks the folding itself takes a time that grows with the square of its length."""
_NOT_COMPATIBLE = re.compile(f"[{''.join(map(chr, _COMPATIBLE))}]")
_QUERY = re.compile(r"[!-~]*")
_PARAMETERS = re.compile(r";[^/]*")
_DELIMITED = re.compile(r"%3B[^/]*|%(?:3F|23).*")
_ESCAPE = re.compile(r"%(?:[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})")
_SLASHES = re.compile(r"/{2,}")


class Oddity(StrEnum):
    """What a path may hold only where its route says so, because servers read it differently. The value: its name."""

    ENCODED_SLASH = "an encoded slash"
    PARAMETER = "a parameter (;)"
    EMPTY_SEGMENT = "an empty segment"
    ENCODED_DELIMITER = "an encoded ; ? or #"
    """Every route takes it, for it is how a name with such a character is written."""


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A path that is refused; detail says why, in words that the client may read."""

    detail: str


class CanonicalPath(NamedTuple):
    """A path that has one reading but for what is odd about it."""

    text: str
    odd: frozenset[Oddity] = frozenset()


def canonical_path(raw: str) -> CanonicalPath | Ambiguous:
    """Fold a raw path (from "/" up to, not including, "?") into its canonical form, or say why it has none.

    The time that it takes grows with the path's length, and with nothing else.
    """
    if _PLAIN.fullmatch(raw):
        return CanonicalPath(raw)
    if not raw.startswith("/"):
        return Ambiguous("The path does not start with a slash.")
    if "\\" in raw:
        return Ambiguous("The path holds a backslash.")
    if _WRITTEN.fullmatch(raw) is None:
        return Ambiguous("The path holds a character that must be percent-encoded.")
    first, *escapes = raw.split("%")
    # Of many escapes most are followed by another one; a slice takes as long as everything else here.
    folded = first + "".join([_FOLDED.get(escape) or _FOLDED[escape[:2]] + escape[2:] for escape in escapes])
    if _DOUBLE.search(folded) is not None:  # only now: the digits of "%25%32%65" may be encoded themselves
        return Ambiguous("The path is percent-encoded twice.")
    if _CONTROL.search(folded) is not None:
        return Ambiguous("The path holds an encoded control character.")
    if "%5C" in folded:
        return Ambiguous("The path holds an encoded backslash.")
    # Decoded as quoted-printable (RFC 2045, section 6.7), whose escapes differ in their first character: that is in C.
    flaw = _flaw(a2b_qp(folded.replace("=", "=3D").replace("%2F", _SLASH).replace("%", "=")))
    if flaw is not None:
        return Ambiguous(f"The path {flaw}.")
    for written, encoded in _BROWSERS:
        folded = folded.replace(written, encoded)
    return CanonicalPath(folded, _oddities(folded))


def _flaw(octets: bytes) -> str | None:
    """Say what is wrong with a decoded path."""
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8"
    if _NOT_COMPATIBLE.search(text) is not None:
        text = text.translate(_COMPATIBLE)
        if _ESCAPE.search(text) is not None:
            return "is percent-encoded twice"
    if _DOTS.search(text) is not None:
        return "holds a dot segment"
    if _SLASH in text and _HIDDEN.search(text) is not None:
        return "holds a dot segment"  # or an empty one, that an encoded slash hides
    return None


def _oddities(path: str) -> frozenset[Oddity]:
    found = []
    if "%2F" in path:
        found.append(Oddity.ENCODED_SLASH)
    if ";" in path:
        found.append(Oddity.PARAMETER)
    if "//" in path or ("/;" in path and "//" in _PARAMETERS.sub("", path)):
        found.append(Oddity.EMPTY_SEGMENT)
    if _DELIMITED.search(path) is not None:
        found.append(Oddity.ENCODED_DELIMITER)
    return frozenset(found)


def is_plain(path: str) -> bool:
    """Tell whether a path is canonical and holds no percent-encoding, as most are."""
    return _PLAIN.fullmatch(path) is not None


def readings(path: CanonicalPath) -> set[str]:
    """Return the paths that servers may take an odd path for: each oddity folded away, or left as it is."""
    found = set()
    for count in range(1, len(path.odd) + 1):
        for chosen in combinations(sorted(path.odd), count):
            text = path.text
            if Oddity.ENCODED_SLASH in chosen:
                text = text.replace("%2F", "/")
            if Oddity.PARAMETER in chosen:
                text = _PARAMETERS.sub("", text)
            if Oddity.EMPTY_SEGMENT in chosen:
                text = _SLASHES.sub("/", text)
            if Oddity.ENCODED_DELIMITER in chosen:
                text = _SLASHES.sub("/", _DELIMITED.sub("", text))
            found.add(text)
    return found


def query_is_plain(query: str) -> bool:
    """Tell whether a raw query holds only visible ASCII: anything else must have been percent-encoded."""
    return _QUERY.fullmatch(query) is not None and "#" not in query
