"""What several stages warn of, for `check`: names that nothing uses, and texts that look like what they are not."""

import re
from collections.abc import Container, Iterable, Iterator
from typing import Final

from mitmgate.core.client_fields import Disposition
from mitmgate.policy.document import Document
from mitmgate.policy.problem import Code, Location, Problem, nearest
from mitmgate.policy.scalars import METHODS, pattern_in
from mitmgate.policy.snapshot import Snapshot

_LIKE_A_PATH: Final = re.compile(r"^[$]|[\[\]]|^[A-Za-z_][\w-]*(?:\.[\w-]+)+$")

_REGISTERED: Final = frozenset(
    {
        *METHODS,
        *[
            "ACL",
            "BASELINE-CONTROL",
            "BIND",
            "CHECKIN",
            "CHECKOUT",
            "COPY",
            "LABEL",
            "LINK",
            "LOCK",
            "MERGE",
            "MKACTIVITY",
            "MKCALENDAR",
            "MKCOL",
        ],
        *[
            "MKREDIRECTREF",
            "MKWORKSPACE",
            "MOVE",
            "ORDERPATCH",
            "PRI",
            "PROPFIND",
            "PROPPATCH",
            "QUERY",
            "REBIND",
            "REPORT",
            "SEARCH",
            "UNBIND",
        ],
        *["UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"],
    }
)
"""IANA's registry of methods, but for those that are never forwarded."""


def unused(
    document: Document, location: Location, defined: Iterable[str], used: Container[str | None]
) -> Iterator[Problem]:
    """Find names that nothing uses. location: where they are defined."""
    for name in defined:
        if name not in used:
            yield document.warning((*location, name), Code.UNUSED, "nothing uses this", key=True)


def like_a_path(document: Document, claims: Iterable[tuple[Location, str]]) -> Iterator[Problem]:
    """Find claims that are paths elsewhere: here a path is a JSON pointer, and begins with a slash."""
    for location, claim in claims:
        if _LIKE_A_PATH.search(claim) and "://" not in claim:
            message = f"only a claim that is called {claim!r} itself is found: a path begins with a slash"
            hint = f"write /{claim.replace('.', '/')}" if re.fullmatch(r"[\w.-]+", claim) else ""
            yield document.warning(location, Code.LOOKS_LIKE_PATH, message, hint, key=location[-1] == claim)


def like_a_pattern(document: Document, location: Location, path: str | None) -> Iterator[Problem]:
    """Find wildcards, parameters and regular expressions in a path, which is taken as it stands."""
    if path is not None and (found := pattern_in(path)):
        message = f"a path is no pattern: only one with {found!r} in it, just so, is meant"
        hint = "leave it out: a prefix takes every path below it" if location[-1] == "prefix" else ""
        yield document.warning(location, Code.LOOKS_LIKE_PATTERN, message, hint)


def unregistered(document: Document, methods: Iterable[tuple[Location, str]]) -> Iterator[Problem]:
    """Find methods that HTTP does not have."""
    for location, method in methods:
        if method not in _REGISTERED:
            hint = "leave methods out for every method" if method in {"ALL", "ANY"} else nearest(method, METHODS)
            yield document.warning(location, Code.UNKNOWN_METHOD, f"{method} is no registered method of HTTP", hint)


def removed(document: Document, snapshot: Snapshot, fields: Iterable[tuple[Location, str]]) -> Iterator[Problem]:
    """Find header fields that are read, and that no request has by then."""
    for location, name in fields:
        if snapshot.client_fields.disposition(name.encode("ascii", "replace")) is not Disposition.KEEP:
            message = f"a client's {name} is removed before anything reads it"
            yield document.warning(location, Code.NEVER_MATCHES, message)
