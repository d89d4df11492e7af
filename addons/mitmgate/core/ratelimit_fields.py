"""The fields that tell a client of its limits.

`X-RateLimit-*` speak of the grant with the least room, with Reset in seconds from now (a time of day would need clocks
that agree). `RateLimit-Policy` and `RateLimit` name every limit (draft-ietf-httpapi-ratelimit-headers-11, sections 3
and 4): q is the quota, w its window, r what remains, t the seconds until more is there; all in units, of which a
request takes the limit's cost. Limits that hold nobody back at the moment, in report mode or without a store, are not
told. `Retry-After` goes with the denial itself (stages/quota.py).
"""

from collections.abc import Iterable, Sequence

from mitmgate.core.headers import Fields
from mitmgate.core.limit import whole_seconds
from mitmgate.core.window import Grant


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
    grant = binding[0] if len(binding) == 1 else tightest(binding)
    limit = grant.limit
    remaining, reset = b"%d" % grant.remaining, b"%d" % whole_seconds(grant.reset)
    if len(binding) == 1:
        policy, states = limit.policy_field, limit.state + remaining + b";t=" + reset
    else:
        policy = (b"RateLimit-Policy", b", ".join([given.limit.policy_field[1] for given in binding]))
        states = b", ".join([_state(given) for given in binding])
    return (
        limit.quota_field,
        (b"X-RateLimit-Remaining", remaining),
        (b"X-RateLimit-Reset", reset),
        policy,
        (b"RateLimit", states),
    )


def retry_after(grants: Iterable[Grant]) -> int:
    """Return the seconds after which all enforced limits have room, at least 1."""
    waits = [grant.retry_after for grant in grants if not grant.admitted and grant.limit.mode == "enforce"]
    return max(1, whole_seconds(max(waits, default=0.0)))


def _state(grant: Grant) -> bytes:
    return b"%b%d;t=%d" % (grant.limit.state, grant.remaining, whole_seconds(grant.reset))
