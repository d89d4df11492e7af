"""The fields that tell a client of its limits.

`X-RateLimit-*` speak of the grant with the least room, with Reset in seconds from now. `RateLimit-Policy` and
`RateLimit` name every limit (draft-ietf-httpapi-ratelimit-headers-10): q is the quota, w its window, r what remains,
t the seconds until more is there.
"""

import math
from collections.abc import Iterable, Sequence

from mitmgate.core.headers import Fields
from mitmgate.core.window import Grant

_LONGEST = 86400 * 365


def whole_seconds(seconds: float) -> int:
    """Round up: who waits that long has waited long enough (RFC 9110, section 10.2.3)."""
    return min(_LONGEST, math.ceil(seconds)) if seconds > 0 else 0


def tightest(grants: Sequence[Grant]) -> Grant:
    """Return the grant that binds: a refusing one with the longest wait, else the one with the least room."""
    return min(grants, key=lambda grant: (grant.admitted, -grant.retry_after, grant.remaining))


def fields(grants: Sequence[Grant]) -> Fields:
    """Make the fields of one or more grants."""
    grant = tightest(grants)
    return (
        (b"X-RateLimit-Limit", b"%d" % grant.limit.limit),
        (b"X-RateLimit-Remaining", b"%d" % grant.remaining),
        (b"X-RateLimit-Reset", b"%d" % whole_seconds(grant.reset)),
        (b"RateLimit-Policy", b", ".join([_policy(given) for given in grants])),
        (b"RateLimit", b", ".join([_state(given) for given in grants])),
    )


def retry_after(grants: Iterable[Grant]) -> int:
    """Return the seconds after which all enforced limits have room, at least 1."""
    waits = [grant.retry_after for grant in grants if not grant.admitted and grant.limit.mode == "enforce"]
    return max(1, whole_seconds(max(waits, default=0.0)))


def _policy(grant: Grant) -> bytes:
    limit = grant.limit
    return b'"%b";q=%d;w=%d' % (limit.name.encode("ascii", "replace"), limit.limit, whole_seconds(limit.window))


def _state(grant: Grant) -> bytes:
    name = grant.limit.name.encode("ascii", "replace")
    return b'"%b";r=%d;t=%d' % (name, grant.remaining, whole_seconds(grant.reset))
