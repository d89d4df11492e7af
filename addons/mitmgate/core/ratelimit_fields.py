"""The fields that tell a client of its limits.

`X-RateLimit-*` speak of the grant with the least room, with Reset in seconds from now (a time of day would need clocks
that agree). `RateLimit-Policy` and `RateLimit` name every limit (draft-ietf-httpapi-ratelimit-headers-11, sections 3
and 4): q is the quota, w its window, r what remains, t the seconds until more is there; all in units, of which a
request takes the limit's cost. Limits that hold nobody back at the moment, in report mode or without a store, are not
told. `Retry-After` goes with the denial itself (stages/quota.py).
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mitmgate.core.headers import Fields
from mitmgate.core.rules import Limit
from mitmgate.core.window import Grant

_LONGEST = 86400 * 365


def whole_seconds(seconds: float) -> int:
    """Round up: who waits that long has waited long enough (RFC 9110, section 10.2.3)."""
    return math.ceil(min(_LONGEST, seconds)) if seconds > 0 else 0


def binds(grant: Grant) -> bool:
    """Tell whether a grant is one that can hold the client back."""
    return grant.limit.mode == "enforce" and not (grant.degraded and grant.limit.on_store_failure == "allow")


def tightest(grants: Sequence[Grant]) -> Grant:
    """Return the grant that binds: a refusing one with the longest wait, else the one with the least room."""
    if len(grants) == 1:
        return grants[0]
    return min(grants, key=lambda grant: (grant.admitted, -grant.retry_after, grant.remaining))


def fields(grants: Sequence[Grant]) -> Fields:
    """Make the fields of a request's grants; none where nothing holds the client back."""
    binding = [grant for grant in grants if binds(grant)]
    if not binding:
        return ()
    grant = tightest(binding)
    return (
        (b"X-RateLimit-Limit", b"%d" % grant.limit.limit),
        (b"X-RateLimit-Remaining", b"%d" % grant.remaining),
        (b"X-RateLimit-Reset", b"%d" % whole_seconds(grant.reset)),
        (
            b"RateLimit-Policy",
            b", ".join([_policy_of(given.limit) for given in binding]),
        ),
        (b"RateLimit", b", ".join([_state(given) for given in binding])),
    )


def retry_after(grants: Iterable[Grant]) -> int:
    """Return the seconds after which all enforced limits have room, at least 1."""
    waits = [grant.retry_after for grant in grants if not grant.admitted and grant.limit.mode == "enforce"]
    return max(1, whole_seconds(max(waits, default=0.0)))


def _policy_of(limit: Limit) -> bytes:
    return _policy(limit.name, limit.limit, limit.window)


@lru_cache(maxsize=1024)
def _policy(name: str, quota: int, window: float) -> bytes:
    # Names are tokens of letters, digits and ".-_", which a quoted string holds as they are.
    return b'"%b";q=%d;w=%d' % (name.encode("ascii"), quota, whole_seconds(window))


def _state(grant: Grant) -> bytes:
    name = grant.limit.name.encode("ascii")
    return b'"%b";r=%d;t=%d' % (name, grant.remaining, whole_seconds(grant.reset))
