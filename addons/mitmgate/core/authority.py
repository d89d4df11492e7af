"""Host and authority: one strict reading of `host[:port]` (RFC 3986, section 3.2; RFC 9110, section 7.2)."""

import re
from functools import lru_cache

from mitmgate.core.address import parse_address

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_NAME = re.compile(
    r"(?=.{1,253}\.?\Z)(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)(?:\.(?!\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?"
)
_NUMERIC = re.compile(r"[0-9.]+|0[xX].*")


_LONGEST = 262  # a name of 253 characters, its final dot, a colon and a port; with a little room


def parse_authority(text: str) -> tuple[str, int | None] | None:
    """Split `host[:port]` into the lower-case host (without a trailing dot, IPv6 without brackets) and the port.

    Returns None for anything that is no valid authority: user information, an empty host or port, a port above
    65535, a label over 63 characters, numbers that only look like an IPv4 address.
    """
    return _parse(text) if len(text) <= _LONGEST else None  # nor is anything longer remembered


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[str, int | None] | None:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    host, port_text = match.groups()
    port = None if port_text is None else int(port_text)
    if port is not None and not 0 < port < 65536:
        return None
    if host.startswith("["):
        host = host[1:-1]
        return (host.lower(), port) if ":" in host and parse_address(host) is not None else None
    if _NUMERIC.fullmatch(host):
        return (host, port) if parse_address(host) is not None else None
    if _NAME.fullmatch(host) is None:
        return None
    return host.lower().removesuffix("."), port
