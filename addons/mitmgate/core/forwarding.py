"""What trusted proxies say of the client and of what it asked for: the X-Forwarded-* fields, read from the right.

Each proxy appends the address that connected to it, so an entry is as good as the proxy to its right: the walk goes on
while that is a trusted one, and what is left of the entry where it stops is the client's own claim. The other fields
are read at the same place as the address, where they are lists; most proxies send one value, which then is the one.
"""

import re
from typing import Final, NamedTuple

from mitmgate.core.address import Address, CidrSet, parse_address
from mitmgate.core.authority import parse_authority
from mitmgate.core.headers import Headers

_WITH_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Told(NamedTuple):
    """What is believed. client: None where the address that decides can't be parsed: the caller denies.

    scheme ("http" or "https"), host (`name[:port]` as written) and port: None where nothing is said, or nothing valid.
    """

    client: Address | None
    scheme: str | None = None
    host: str | None = None
    port: str | None = None


def parse_hop(text: str) -> Address | None:
    """Parse an entry of X-Forwarded-For, also as load balancers write it: ADDRESS:PORT, [v6], [v6]:PORT."""
    address = parse_address(text)
    if address is not None:
        return address
    match = _WITH_PORT.fullmatch(text)
    if match is None or (match[3] is not None and int(match[3]) > 65535):
        return None
    bracketed, plain, _ = match.groups()
    if bracketed is not None and ":" not in bracketed:
        return None
    return parse_address(bracketed if bracketed is not None else plain)


def walk(hops: list[str], trusted: CidrSet) -> tuple[Address | None, int]:
    """Return the first address from the right that is no trusted proxy, and how many entries that took.

    Where all of them are trusted, it is the leftmost. An empty entry is none that could be skipped: to its left may
    stand what a client claims. No entry at all: None, and 0.
    """
    address: Address | None = None
    for taken, hop in enumerate(reversed(hops), 1):
        address = parse_hop(hop)
        if address is None or address not in trusted:
            return address, taken
    return address, len(hops)


def told_by(peer: Address, headers: Headers, trusted: CidrSet) -> Told:
    """Read what a trusted peer says. A proxy must set, or remove, each of these fields that a client may send it."""
    client, taken = walk(entries(headers, b"x-forwarded-for"), trusted)
    if not taken:
        client = peer
    scheme = _at(headers, b"x-forwarded-proto", taken)
    host = _at(headers, b"x-forwarded-host", taken)
    port = _at(headers, b"x-forwarded-port", taken)
    return Told(
        client,
        None if scheme is None else SCHEMES.get(scheme.lower()),
        host if host is not None and parse_authority(host) is not None else None,
        port if port is not None and _PORT.fullmatch(port) is not None and int(port) < 65536 else None,
    )


def entries(headers: Headers, name: bytes) -> list[str]:
    """Return the entries of a list field, in order, empty ones too."""
    return [part.strip(" \t") for value in headers.all(name) for part in value.decode("latin-1").split(",")]


def _at(headers: Headers, name: bytes, taken: int) -> str | None:
    """Return the entry that stands where the client's address does, or the leftmost of a shorter list."""
    found = entries(headers, name)
    return found[-min(max(taken, 1), len(found))] if found else None
