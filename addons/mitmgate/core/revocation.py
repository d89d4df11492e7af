"""Revocations: what an issuer has vouched for and no longer holds, and which tokens a revocation is about."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeGuard, get_args

from mitmgate.core.jose import Json, parse_object
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer
from mitmgate.core.token import MAX_NAME

Kind = Literal["jti", "sub", "sid", "kid", "iss"]
"""A token, a subject, a session (OpenID Connect Front-Channel Logout, section 3), a key, all of an issuer."""

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

LONGEST: Final = 366 * 86_400.0
"""Seconds that a revocation is kept at the most; a revoked key has left its issuer's key set by then."""

REVOKED: Final = Refusal(Reason.TOKEN_REVOKED, "The token was revoked.")
UNKNOWN: Final = Refusal(Reason.REVOCATIONS_UNKNOWN, "Whether the credential was revoked is not known.")


@dataclass(frozen=True, slots=True)
class Revocation:
    """What is revoked. Times are Unix seconds.

    issuer: the policy's name of it. value: of the claim, or the key id; empty for a whole issuer. before: tokens that
    were issued up to then; None: all. until: when no token that it is about can be good any more, and it is forgotten.
    lifted: it takes back an earlier one. by: who has revoked it, for the record.
    """

    kind: Kind
    issuer: str
    value: str
    until: float
    before: float | None = None
    lifted: bool = False
    by: str = ""

    @property
    def mark(self) -> str:
        """What tokens that it is about are known by."""
        return mark(self.kind, self.issuer, self.value)

    def holds(self, issued: float | None) -> bool:
        """Tell whether it is about a token with its mark. issued: its `iat`; one without may be of any time."""
        return self.before is None or issued is None or issued <= self.before


def mark(kind: Kind, issuer: str, value: str) -> str:
    """Write what a token is known by. Names of issuers have no spaces, so that no two things share a mark."""
    return f"{kind} {issuer} {value}"


def marks(principal: Principal, key_id: str | None) -> tuple[str, ...]:
    """Name everything whose revocation is about a token. key_id: of the key that verified it, whatever it says itself.

    The subject is the one that the policy reads, and `sub` as well, which is what issuers revoke by.
    """
    issuer, claims = principal.issuer, principal.claims
    found = [mark("iss", issuer, ""), mark("sub", issuer, principal.subject)]
    subject, session = claims.get("sub"), claims.get("sid")
    if isinstance(subject, str) and subject != principal.subject:
        found.append(mark("sub", issuer, subject))
    if isinstance(session, str):
        found.append(mark("sid", issuer, session))
    if principal.token_id is not None:
        found.append(mark("jti", issuer, principal.token_id))
    if key_id is not None:
        found.append(mark("kid", issuer, key_id))
    return tuple(found)


def lasting_until(kind: Kind, now: float, before: float | None, lifetime: float, leeway: float) -> float:
    """Say until when (Unix seconds) tokens that a revocation is about can be good. lifetime: the longest of a token.

    Who has a revoked key makes tokens of any time: only that the key is no longer published ends that.
    """
    if kind == "kid":
        return now + LONGEST
    return min(max(now, before or 0.0) + lifetime + 2 * leeway + 1.0, now + LONGEST)


DATED: Final = frozenset[Kind]({"sub", "iss"})
"""What is revoked as it was up to a time: who logs in again gets a token that counts."""


def revocation_of(
    issuer: Issuer,
    kind: Kind,
    value: str,
    now: float,
    *,
    before: float | None = None,
    lasting: float | None = None,
    lifted: bool = False,
    by: str = "",
) -> Revocation:
    """Make a revocation of an issuer's tokens, or of an earlier one (lifted). now, before: Unix seconds.

    lasting: seconds; None: as long as such tokens may be good. Raises ValueError with a sentence.
    """
    if kind == "iss" and value:
        raise ValueError("a whole issuer is revoked without a value")
    if kind != "iss" and not 0 < len(value) <= MAX_NAME:
        raise ValueError(f"what is revoked must have 1 to {MAX_NAME} characters")
    if kind == "kid" and issuer.keys.kind in {"secret", "pem", "none"}:
        raise ValueError("this issuer's keys have no ids; revoke all that it has issued")
    if kind == "kid" and issuer.keys.kind == "jwks" and not lifted and value not in (ids := _key_ids(issuer)):
        named = f"it has {', '.join(ids)}" if ids else "none of its keys has an id; revoke all that it has issued"
        raise ValueError(f"this issuer's file of keys has no key {value!r}: {named}")
    if before is not None and kind not in DATED:
        raise ValueError("a time goes with a subject and with an issuer: the others name what has no later tokens")
    if kind in DATED:
        before = now if before is None else before
    until = lasting_until(kind, now, before, issuer.max_lifetime or LONGEST, issuer.leeway)
    if lasting is not None:
        until = now + min(lasting, LONGEST)
    return Revocation(kind, issuer.name, value, until, None if lifted else before, lifted, by)


def _key_ids(issuer: Issuer) -> list[str]:
    members: Json = json.loads(issuer.keys.material)  # as it was read when the policy was loaded
    keys = members.get("keys") if isinstance(members, dict) else None
    found = [key.get("kid") for key in keys if isinstance(key, dict)] if isinstance(keys, list) else []
    return [one for one in found if isinstance(one, str)]


def both(one: Revocation, other: Revocation) -> Revocation:
    """Put two revocations of one mark together: what either is about stays revoked."""
    before = None if one.before is None or other.before is None else max(one.before, other.before)
    return replace(one, until=max(one.until, other.until), before=before)


def written(revocation: Revocation) -> bytes:
    """Write a revocation as one line of JSON, without its end."""
    members: dict[str, object] = {"kind": revocation.kind, "issuer": revocation.issuer, "until": revocation.until}
    if revocation.value:
        members["value"] = revocation.value
    if revocation.before is not None:
        members["before"] = revocation.before
    if revocation.lifted:
        members["lifted"] = True
    if revocation.by:
        members["by"] = revocation.by
    return json.dumps(members, separators=(",", ":"), allow_nan=False).encode()


def read(line: bytes) -> Revocation:
    """Read what `written` has written. Raises ValueError: what can't be read may be about any token."""
    members = parse_object(line)
    if members is None:
        raise ValueError("is no plain JSON object")
    kind = next((one for one in KINDS if one == members.get("kind")), None)
    issuer, value, by = (_text(members, name) for name in ("issuer", "value", "by"))
    until, before, lifted = members.get("until"), members.get("before"), members.get("lifted", False)
    if kind is None or not issuer or (kind == "iss") is bool(value):
        raise ValueError("does not say what is revoked")
    if not _is_time(until) or not (before is None or _is_time(before)) or not isinstance(lifted, bool):
        raise ValueError("has a time that is none")
    return Revocation(kind, issuer, value, float(until), None if before is None else float(before), lifted, by)


def _text(members: Mapping[str, Json], name: str) -> str:
    value = members.get(name, "")
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ValueError(f"{name} is no text of at most {MAX_NAME} characters")
    return value


def _is_time(value: Json) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
