"""One canonical path: what routing, authorisation, limits, rewriting and the upstream all read.

RFC 3986 lets a sender write one resource in several ways, and servers differ in which of them they fold together.
So the harmless differences are folded here (percent-encoded unreserved characters, the case of hex digits: section
6.2.2), and everything that two servers could read differently is refused: dot segments, empty segments, backslashes,
`;` parameters, encoded slashes, controls, double encoding, and octets that are not UTF-8.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

_PLAIN = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?|/")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,=:@-]|%[0-9A-Fa-f]{2})+")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_DOUBLE = re.compile(r"%25[0-9A-Fa-f]{2}")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_QUERY = re.compile(r"[!-~]*")


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """A path that is refused; detail says why, in words that the client may read."""

    detail: str


class CanonicalPath(NamedTuple):
    """A path that has one reading. encoded_slash: it holds %2F, which a route must have opted in to."""

    text: str
    encoded_slash: bool = False


def canonical_path(raw: str) -> CanonicalPath | Ambiguous:
    """Fold a raw path (from "/" up to, not including, "?") into its canonical form, or say why it has none."""
    if _PLAIN.fullmatch(raw):
        return CanonicalPath(raw)
    if not raw.startswith("/"):
        return Ambiguous("The path does not start with a slash.")
    if "\\" in raw:
        return Ambiguous("The path holds a backslash.")
    if ";" in raw:
        return Ambiguous("The path holds a parameter (;).")
    if _DOUBLE.search(raw):
        return Ambiguous("The path is percent-encoded twice.")
    segments = raw[1:].split("/")
    folded: list[str] = []
    for position, segment in enumerate(segments):
        if not segment:
            if position == len(segments) - 1:
                folded.append("")
                continue
            return Ambiguous("The path holds an empty segment.")
        text = _fold(segment)
        if isinstance(text, Ambiguous):
            return text
        folded.append(text)
    path = "/" + "/".join(folded)
    return CanonicalPath(path, encoded_slash="%2F" in path)


def is_plain(path: str) -> bool:
    """Tell whether a path is canonical and holds no percent-encoding, as most are."""
    return _PLAIN.fullmatch(path) is not None


def _fold(segment: str) -> str | Ambiguous:
    """Fold one segment, or refuse it."""
    if not _SEGMENT.fullmatch(segment):
        return Ambiguous("The path holds a character that must be percent-encoded.")
    octets = bytearray()
    pieces: list[str] = []
    for index, piece in enumerate(_ESCAPE.split(segment)):
        if index % 2 == 0:
            octets += piece.encode("ascii")
            pieces.append(piece)
            continue
        octet = int(piece, 16)
        if octet < 0x20 or octet == 0x7F:
            return Ambiguous("The path holds an encoded control character.")
        if octet == 0x5C:
            return Ambiguous("The path holds an encoded backslash.")
        octets.append(octet)
        pieces.append(chr(octet) if octet in _UNRESERVED else f"%{piece.upper()}")
    if bytes(octets) in {b".", b".."} or (0x2F in octets and _dotted(bytes(octets))):
        return Ambiguous("The path holds a dot segment.")
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return Ambiguous("The path is not UTF-8.")
    return "".join(pieces)


def _dotted(octets: bytes) -> bool:
    """Tell whether a segment with encoded slashes would hide a dot or empty segment once decoded."""
    return any(part in {b"", b".", b".."} for part in octets.split(b"/"))


def query_is_plain(query: str) -> bool:
    """Tell whether a raw query holds only visible ASCII: anything else must have been percent-encoded."""
    return _QUERY.fullmatch(query) is not None and "#" not in query
