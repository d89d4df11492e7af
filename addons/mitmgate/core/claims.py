"""The claims of a signed token (RFC 7519, 9068): times, issuer, audience, and the principal that they name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeGuard

from mitmgate.core import pointer
from mitmgate.core.authorize import claim_holds
from mitmgate.core.jose import Json
from mitmgate.core.principal import Confirmation, Principal
from mitmgate.core.proof import UNBOUND, confirmation_of
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer
from mitmgate.core.token import MAX_NAME, SignedClaims, issuer_of, trust_domain

ISSUER_UNKNOWN = Refusal(Reason.TOKEN_ISSUER_UNKNOWN, "The token's issuer is not accepted here.")

_OF_IDENTITY: Final = frozenset({"nonce", "at_hash", "c_hash", "s_hash", "events"})
_BEARER: Final = ("Bearer", "DPoP")
_MAX_DATE = 253_402_300_799  # 9999-12-31T23:59:59Z: beyond it are milliseconds taken for seconds, or mischief

_AUDIENCE = Refusal(Reason.TOKEN_AUDIENCE_REFUSED, "The token is not meant for this audience.")
_AUDIENCE_FORM = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's audience has an unexpected form.")
_TENANT = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's tenant is not its issuer's.")
_KIND = Refusal(Reason.TOKEN_TYPE_REFUSED, "The token is no access token.")
_INCOMPLETE = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token lacks a claim that its issuer's tokens must have.")
_OTHERS = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token is none of those of its issuer that are accepted here.")
_PROFILE = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token is no access token as RFC 9068 has them.")
_NO_EXPIRY = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token has no expiry.")
_TIME_FORM = Refusal(Reason.TOKEN_CLAIM_INVALID, "A time of the token is no valid number of seconds.")
_EXPIRED = Refusal(Reason.TOKEN_EXPIRED, "The token has expired.")
_NOT_YET = Refusal(Reason.TOKEN_NOT_YET_VALID, "The token is not valid yet.")
_LIFETIME = Refusal(Reason.TOKEN_LIFETIME_EXCEEDED, "The token is valid for longer than is accepted.")
_SUBJECT_FORM = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token names no subject, or one of an unexpected form.")
_TRUST_DOMAIN = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's subject is no workload of its trust domain.")
_ROLES_FORM = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's roles have an unexpected form.")
_SCOPES_FORM = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's scopes have an unexpected form.")
_ID_FORM = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's id has an unexpected form.")


class Times(NamedTuple):
    """The times of a token (Unix seconds)."""

    expires: float
    not_before: float | None = None
    issued: float | None = None

    def window(self, leeway: float, max_lifetime: float | None) -> tuple[float, float]:
        """Return (earliest, latest): `check_times` is content exactly where earliest <= now < latest.

        For tokens that were verified before, where a comparison must do.
        """
        earliest = max(self.not_before or 0.0, self.issued or 0.0) - leeway
        if max_lifetime is not None:
            if self.issued is None:
                earliest = max(earliest, self.expires - max_lifetime - leeway)
            elif self.expires - self.issued > max_lifetime:
                return 0.0, 0.0
        return earliest, self.expires + leeway


@dataclass(frozen=True, slots=True)
class VerifiedClaims:
    """Claims that hold: signature, issuer, audience and times were checked."""

    claims: Mapping[str, Json] = field(repr=False)
    times: Times
    confirmation: Confirmation | None = None


def read_times(claims: Mapping[str, Json]) -> Times | Refusal:
    """Read `exp` (required), `nbf` and `iat`: numbers of seconds, no booleans (RFC 7519, section 4.1)."""
    if "exp" not in claims:
        return _NO_EXPIRY
    expires, not_before, issued = (_date(claims.get(name)) for name in ("exp", "nbf", "iat"))
    if expires is None or (not_before is None and "nbf" in claims) or (issued is None and "iat" in claims):
        return _TIME_FORM
    return Times(expires, not_before, issued)


def _date(value: Json) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_DATE:
        return float(value)
    return None


def check_times(times: Times, now: float, leeway: float, max_lifetime: float | None) -> Refusal | None:
    """Check a token's times at `now` (Unix seconds); None where they hold.

    leeway: seconds by which clocks may differ, on either side. max_lifetime: seconds between `iat` and `exp`; of a
    token without `iat`, what is left of its life must not be more.
    """
    if now >= times.expires + leeway:
        return _EXPIRED
    if now < max(times.not_before or 0.0, times.issued or 0.0) - leeway:
        return _NOT_YET
    if max_lifetime is not None:
        if times.issued is None:
            return _LIFETIME if now < times.expires - max_lifetime - leeway else None
        if times.expires - times.issued > max_lifetime:
            return _LIFETIME
    return None


def verify_claims(signed: SignedClaims, issuer: Issuer, now: float) -> VerifiedClaims | Refusal:
    """Check issuer, audience and times of signed claims, and that who brings them is all that they ask for."""
    claims = signed.claims
    if issuer_of(claims) not in issuer.urls:
        return ISSUER_UNKNOWN
    if _is_of_another_tenant(claims, issuer):
        return _TENANT
    if issuer.token_type == "access" and is_no_access_token(claims):
        return _KIND
    refusal = _check_audience(_first(claims, issuer.audience_in), issuer.audience)
    if refusal is not None:
        return refusal
    if issuer.rfc9068:
        refusal = _check_profile(claims)
        if refusal is not None:
            return refusal
    if any(pointer.find(claims, name) is None for name in issuer.required):
        return _INCOMPLETE
    if not all(claim_holds(claims, name, values) for name, values in issuer.require):
        return _OTHERS
    confirmation = confirmation_of(claims)
    if isinstance(confirmation, Refusal):
        return confirmation
    if confirmation is None and issuer.bound:
        return UNBOUND
    times = read_times(claims)
    if isinstance(times, Refusal):
        return times
    return check_times(times, now, issuer.leeway, issuer.max_lifetime) or VerifiedClaims(claims, times, confirmation)


def _check_profile(claims: Mapping[str, Json]) -> Refusal | None:
    """Check what RFC 9068 has of an access token's claims: those that must be there, and the forms of those that may.

    Its type, issuer, audience, times and signature are checked for every token.
    """
    if not all(_is_name(claims.get(name)) for name in ("sub", "client_id", "jti")) or _date(claims.get("iat")) is None:
        return _PROFILE  # section 2.2
    if "scope" in claims and not isinstance(claims["scope"], str):
        return _PROFILE  # section 2.2.3
    if "auth_time" in claims and _date(claims["auth_time"]) is None:
        return _PROFILE  # section 2.2.1, as the two below
    if "acr" in claims and not isinstance(claims["acr"], str):
        return _PROFILE
    amr = claims.get("amr", [])
    return None if isinstance(amr, list) and all(isinstance(method, str) for method in amr) else _PROFILE


def _is_of_another_tenant(claims: Mapping[str, Json], issuer: Issuer) -> bool:
    if issuer.tenant is None:
        return False
    name, value = issuer.tenant
    return name in claims and claims[name] != value


def is_no_access_token(claims: Mapping[str, Json]) -> bool:
    """Tell whether a token says of itself that it is something else: an identity, refresh or logout token.

    By the claims that identity tokens alone have (OpenID Connect Core, sections 2 and 3.3.2.11), by Cognito's
    `token_use`, Keycloak's `typ` and the `events` of a security event (RFC 8417).
    """
    if not _OF_IDENTITY.isdisjoint(claims):
        return True
    return claims.get("token_use", "access") != "access" or claims.get("typ", "Bearer") not in _BEARER


def _check_audience(audience: Json, accepted: tuple[str, ...]) -> Refusal | None:
    if not accepted:
        return None
    if audience is None:
        return _AUDIENCE
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(name, str) for name in named):
        return _AUDIENCE_FORM
    return None if any(name in accepted for name in named) else _AUDIENCE


def principal_of(verified: VerifiedClaims, issuer: Issuer) -> Principal | Refusal:
    """Read who a verified token stands for, from the claims that the policy names.

    The first subject that is present counts; roles and scopes are those of all their claims together.
    """
    claims = verified.claims
    subject = _first(claims, issuer.subject)
    if not _is_name(subject):
        return _SUBJECT_FORM
    if issuer.spiffe is not None and trust_domain(subject) != issuer.spiffe:
        return _TRUST_DOMAIN
    roles: dict[str, None] = {}
    for name in issuer.roles:
        names = _names(pointer.find(claims, name))
        if names is None:
            return _ROLES_FORM
        roles |= dict.fromkeys(names)
    if not roles and issuer.default_role is not None:
        roles[issuer.default_role] = None
    scopes: set[str] = set()
    for name in issuer.scopes:
        words = _scopes(pointer.find(claims, name))
        if words is None:
            return _SCOPES_FORM
        scopes.update(words)
    token_id = claims.get("jti")
    if token_id is not None and not _is_name(token_id):
        return _ID_FORM
    return Principal(
        subject,
        issuer.name,
        tuple(roles),
        frozenset(scopes),
        claims,
        verified.times.expires,
        token_id,
        confirmation=verified.confirmation,
    )


def _first(claims: Mapping[str, Json], names: tuple[str, ...]) -> Json:
    for name in names:
        found = pointer.find(claims, name, pointer.ABSENT)
        if found is not pointer.ABSENT:
            value: Json = found  # null, too: it is there, and of no good form
            return value
    return None


def _is_name(value: Json) -> TypeGuard[str]:
    """Tell whether a value names something, and reads the same everywhere.

    Printable, bounded, not empty, no space at its ends: header fields lose those, and log viewers obey the rest.
    """
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable() and value == value.strip()


def _names(value: Json) -> tuple[str, ...] | None:
    """Read roles: one string is one role, never split; a list is of strings. Returns None for anything else."""
    if value is None or value == "":
        return ()
    values = value if isinstance(value, list) else [value]
    names = [name for name in values if _is_name(name)]
    return tuple(dict.fromkeys(names)) if len(names) == len(values) else None


def _scopes(value: Json) -> tuple[str, ...] | None:
    """Read scopes: a string of words between spaces (RFC 6749, section 3.3), or a list of words."""
    words = _names([word for word in value.split(" ") if word] if isinstance(value, str) else value)
    if words is None or not all(word.isascii() and " " not in word for word in words):
        return None
    return words
