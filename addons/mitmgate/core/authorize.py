"""Authorisation: whether a principal has what a route requires; comparison is exact and knows types."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from mitmgate.core import pointer
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Head
from mitmgate.core.rules import Requirement

Facts = Mapping[str, object]
Wanted = Mapping[str, Iterable[str]] | None

_SCOPE = Refusal(Reason.SCOPE_MISSING, "The token lacks a scope that this route requires.")
_ROLE = Refusal(Reason.ROLE_MISSING, "None of the roles that this route requires is present.")
_CLAIM = Refusal(Reason.CLAIM_MISMATCH, "A claim that this route requires is absent or has another value.")
INSUFFICIENT = Refusal(Reason.AUTHENTICATION_INSUFFICIENT, "A stronger or newer authentication is required here.")
_FALSE = Refusal(Reason.CONDITION_FALSE, "The route's condition is not met.")
_ERROR = Refusal(Reason.CONDITION_ERROR, "The route's condition could not be evaluated.")
_SLOW = Refusal(Reason.CONDITION_TIMEOUT, "The route's condition took too long.")


def authorize(
    require: Requirement, principal: Principal | None, facts: Callable[[], Facts], now: float = 0.0, leeway: float = 0.0
) -> Refusal | None:
    """Check every member of a requirement, in the order of the policy; None where all hold.

    No principal meets nothing but an empty requirement: also a condition is not asked, since a negated one
    ("not banned") would hold of nobody. facts is called only where there is a condition; whatever it or the
    condition raises is a denial. now: Unix seconds. leeway: seconds by which the issuer's clock may differ.
    """
    if require.scopes_all and (principal is None or not require.scopes_all <= principal.scopes):
        return _SCOPE
    if require.roles_any and (principal is None or require.roles_any.isdisjoint(principal.roles)):
        return _ROLE
    for name, allowed in require.claims.items():
        if principal is None or not claim_holds(principal.claims, name, allowed):
            return _CLAIM
    if require.acr_values and (principal is None or principal.claims.get("acr") not in require.acr_values):
        return INSUFFICIENT
    if require.max_age is not None and (principal is None or not _is_fresh(principal, require.max_age, now, leeway)):
        return INSUFFICIENT
    if require.when is None:
        return None
    if principal is None:
        return _ERROR
    try:
        return None if require.when.holds(facts()) is True else _FALSE
    except TimeoutError:
        return _SLOW
    except Exception:  # a condition is the policy author's code: whatever goes wrong in it denies
        return _ERROR


def _is_fresh(principal: Principal, max_age: float, now: float, leeway: float) -> bool:
    """Tell whether the user has authenticated within max_age seconds (OpenID Connect Core, section 2, `auth_time`)."""
    at = principal.claims.get("auth_time")
    return isinstance(at, int | float) and not isinstance(at, bool) and -leeway <= now - at <= max_age + leeway


def claim_holds(claims: Mapping[str, object], name: str, allowed: Sequence[object]) -> bool:
    """Tell whether a claim, or where it is a list any element of it, is one of the allowed values."""
    value = pointer.find(claims, name, pointer.ABSENT)
    values = value if isinstance(value, list) else [value]
    return any(same(one, other) for one in values for other in allowed)


def same(one: object, other: object) -> bool:
    """Compare two JSON values: equal and of one type, all the way down (True is not 1, and 1 is not 1.0)."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return one == other


def facts_of(
    head: Head,
    principal: Principal | None,
    client: IPv4Address | IPv6Address | None,
    route: str,
    certificate: str | None = None,
    wanted: Wanted = None,
) -> Facts:
    """Make what a condition may read: `request`, `principal`, `client` and `route`, plain values all.

    Header names are lower-case, repeated fields joined by ", "; the credential itself is left out. `query` is the raw
    text, "" where there is none; so is `client.certificate`, the subject of the verified client certificate (RFC 4514).
    wanted: the members of each variable that are read, the others are not made; None: all.
    """
    if wanted is None:
        wanted = _ALL
    facts: dict[str, object] = {}
    for variable, members in wanted.items():
        if variable == "principal":
            facts[variable] = None if principal is None else {name: _OF_PRINCIPAL[name](principal) for name in members}
        elif variable == "request":
            facts[variable] = {name: _OF_REQUEST[name](head) for name in members}
        elif variable == "client":
            facts[variable] = {"ip": "" if client is None else str(client), "certificate": certificate or ""}
        elif variable == "route":
            facts[variable] = {"name": route}
    return facts


def _headers(head: Head) -> dict[str, str | None]:
    names = [name.decode("latin-1") for name in head.headers.names() if name != b"authorization"]
    return {name: head.headers.text(name) for name in names}


_OF_REQUEST: Mapping[str, Callable[[Head], object]] = {
    "method": lambda head: head.method,
    "path": lambda head: head.path,
    "query": lambda head: head.query or "",
    "host": lambda head: head.host,
    "headers": _headers,
}
_OF_PRINCIPAL: Mapping[str, Callable[[Principal], object]] = {
    "subject": lambda principal: principal.subject,
    "roles": lambda principal: list(principal.roles),
    "scopes": lambda principal: sorted(principal.scopes),
    "claims": lambda principal: dict(principal.claims),
    "issuer": lambda principal: principal.issuer,
}
_ALL: Mapping[str, Iterable[str]] = {
    "request": _OF_REQUEST,
    "principal": _OF_PRINCIPAL,
    "client": ("ip", "certificate"),
    "route": ("name",),
}
