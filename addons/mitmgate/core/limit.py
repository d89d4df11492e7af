"""A limit, and what every request that it counts would otherwise compute anew: its numbers and its texts, made once.

Times inside are ticks, whole microseconds (core/sliding.py says why).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mitmgate.core import pointer

EXACT_LIMIT: Final = 10_000
"""Units up to which a limit keeps one time a unit."""
BUCKETS: Final = 1_000
"""How many counts a larger one keeps, about."""

_KEY: Final = 350  # octets of a key without its units
_LONGEST: Final = 86400 * 365


def ticks(seconds: float) -> int:
    """Round seconds to whole microseconds."""
    return round(seconds * 1e6)


def whole_seconds(seconds: float) -> int:
    """Round up: who waits that long has waited long enough (RFC 9110, section 10.2.3)."""
    if seconds <= 0:
        return 0
    return math.ceil(seconds) if seconds < _LONGEST else _LONGEST


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `limit` units of one key in any `window` seconds.

    key: one or more of "principal", "client_ip", "issuer", "route", "claim:NAME", "header:NAME",
    "stage:NAME:KEY". ipv6_prefix: the bits of an IPv6 address that count as one client_ip.
    tiers: whose limit it is instead; this one is then the default. tier: the value of the claim that this one is for,
    "default" for all others. widest: the largest limit of the tiers, which count in windows of one kind: a key's units
    are the same whatever tier it is asked for.
    The rest follows from these and is no argument. length: the window in ticks. width: the ticks of a bucket, 1 where
    the limit is small enough for an exact log. spare: how many units may count already where a request is let through
    and leaves room for another; -1 where its cost is not 1, or where the limit is none (see `length_of`). prefix: what
    its keys begin with. quota_field, policy_field, state: of the response, see core/ratelimit_fields.py.
    """

    name: str
    limit: int
    window: float
    key: tuple[str, ...]
    cost: int = 1
    on_store_failure: Literal["deny", "allow", "local"] = "local"
    mode: Literal["enforce", "report"] = "enforce"
    ipv6_prefix: int = 64
    widest: int = 0
    tier: str | None = None
    tiers: "Tiers | None" = None
    length: int = field(init=False, repr=False, compare=False)
    width: int = field(init=False, repr=False, compare=False)
    spare: int = field(init=False, repr=False, compare=False)
    prefix: str = field(init=False, repr=False, compare=False)
    quota_field: tuple[bytes, bytes] = field(init=False, repr=False, compare=False)
    policy_field: tuple[bytes, bytes] = field(init=False, repr=False, compare=False)
    state: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make what follows."""
        put = object.__setattr__
        length = ticks(self.window)
        # Names are tokens of letters, digits and ".-_", which a quoted string holds as they are.
        name = self.name.encode("ascii", "backslashreplace")
        put(self, "length", length)
        put(self, "width", 1 if max(self.limit, self.widest) <= EXACT_LIMIT else max(1, -(-length // BUCKETS)))
        put(self, "spare", self.limit - 2 if self.cost == 1 and length >= 1 else -1)
        put(self, "prefix", f"{self.name}\0")
        put(self, "quota_field", (b"X-RateLimit-Limit", b"%d" % self.limit))
        policy = b'"%b";q=%d;w=%d' % (name, self.limit, whole_seconds(self.window))
        put(self, "policy_field", (b"RateLimit-Policy", policy))
        put(self, "state", b'"%b";r=' % name)

    def of(self, claims: Mapping[str, Any]) -> "Limit":
        """Return the limit of a principal's tier, by the claim that names it; the default for what has no tier."""
        if self.tiers is None:
            return self
        value = pointer.find(claims, self.tiers.claim)
        if type(value) is int:
            value = str(value)
        return self.tiers.limits.get(value, self) if isinstance(value, str) else self


@dataclass(frozen=True, slots=True)
class Tiers:
    """The limits of a plan's tiers: by the text of a claim, found by name or JSON pointer."""

    claim: str
    limits: Mapping[str, Limit]


def octets(limit: int, widest: int) -> int:
    """Return about what a key takes in this process's memory, all of its units counting. widest: see Limit."""
    return _KEY + (8 * limit if widest <= EXACT_LIMIT else 16 * min(limit, BUCKETS + 1))


def length_of(limit: Limit) -> int:
    """Return the ticks of a limit's window. Raises ValueError where window or cost would limit nothing."""
    length = limit.length
    if length < 1 or limit.cost < 1:
        raise ValueError(f"limit {limit.name}: a cost of {limit.cost} in {limit.window} s")
    return length
