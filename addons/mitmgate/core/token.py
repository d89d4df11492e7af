"""Access tokens (RFC 7515, 7519, 9068) as pure steps, each with its own type.

    read_token      bytes           → UnverifiedToken   well-formed; nothing of it may be believed
    check_header    UnverifiedToken                     what the issuer's policy says of algorithm and type
    (keys.verify)   UnverifiedToken → SignedClaims      the signature is the issuer's
    verify_claims   SignedClaims    → VerifiedClaims    issuer, audience and times hold
    principal_of    VerifiedClaims  → Principal         who it is

Each step returns a Refusal where the token is not acceptable; none raises, whatever the token holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mitmgate.core.jose import Json, decode_base64url, parse_object
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Issuer

MAX_TOKEN = 8192
"""Bytes of a token: more than any known issuer makes, less than a head may hold."""

_MAX_NAME = 255  # characters of a subject, a role, a scope, a token id and a key id
_MAX_ISSUER = 2048
_MAX_DATE = 253_402_300_799  # 9999-12-31T23:59:59Z: beyond it are milliseconds taken for seconds, or mischief


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a token is not accepted. detail: one sentence for the client, constant, nothing of the token in it."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A well-formed token that anyone may have made."""

    algorithm: str
    key_id: str | None
    type: str | None
    issuer: str
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    unverified_claims: Mapping[str, Json] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SignedClaims:
    """The claims of a token whose signature was checked; made by keys.verify alone. Times are not checked yet."""

    claims: Mapping[str, Json] = field(repr=False)


class Times(NamedTuple):
    """The times of a token (Unix seconds)."""

    expires: float
    not_before: float | None
    issued: float | None

    def window(self, leeway: float, max_lifetime: float | None) -> tuple[float, float]:
        """Return (earliest, latest): `check_times` is content exactly where earliest <= now < latest.

        Asked on every use of a token whose signature is known already, where a comparison must do.
        """
        if max_lifetime is not None and self.issued is not None and self.expires - self.issued > max_lifetime:
            return 0.0, 0.0
        earliest = max(0.0, (self.not_before or 0.0) - leeway, (self.issued or 0.0) - leeway)
        if max_lifetime is not None and self.issued is None:
            earliest = max(earliest, self.expires - max_lifetime - leeway)
        return earliest, self.expires + leeway


@dataclass(frozen=True, slots=True)
class VerifiedClaims:
    """Claims that hold: signature, issuer, audience and times were checked."""

    claims: Mapping[str, Json] = field(repr=False)
    times: Times


_TOO_LARGE = Refusal(Reason.TOKEN_TOO_LARGE, "The token is too large.")
_ENCRYPTED = Refusal(Reason.TOKEN_MALFORMED, "Encrypted tokens are not accepted.")
_NOT_COMPACT = Refusal(Reason.TOKEN_MALFORMED, "The token is not a signed token in compact form.")
_NOT_BASE64 = Refusal(Reason.TOKEN_MALFORMED, "A part of the token is not base64url.")
_NO_SIGNATURE = Refusal(Reason.TOKEN_MALFORMED, "The token has no signature.")
_HEADER_NOT_JSON = Refusal(Reason.TOKEN_MALFORMED, "The token's header is not a plain JSON object.")
_CLAIMS_NOT_JSON = Refusal(Reason.TOKEN_MALFORMED, "The token's claims are not a plain JSON object.")
_CRITICAL = Refusal(Reason.TOKEN_HEADER_INVALID, "The token's header asks for an extension that is not understood.")
_COMPRESSED = Refusal(Reason.TOKEN_HEADER_INVALID, "Compressed or encrypted content is not accepted.")
_NESTED = Refusal(Reason.TOKEN_HEADER_INVALID, "Nested tokens are not accepted.")
_HEADER_TYPES = Refusal(Reason.TOKEN_HEADER_INVALID, "A member of the token's header has an unexpected form.")
_ALGORITHM = Refusal(Reason.TOKEN_ALGORITHM_REFUSED, "The token's algorithm is not accepted.")
_TYPE = Refusal(Reason.TOKEN_TYPE_REFUSED, "The token is not of an accepted type.")
_ISSUER_CLAIM = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token names no issuer.")
_ISSUER = Refusal(Reason.TOKEN_ISSUER_UNKNOWN, "The token's issuer is not accepted here.")
_AUDIENCE = Refusal(Reason.TOKEN_AUDIENCE_REFUSED, "The token is not meant for this audience.")
_AUDIENCE_CLAIM = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's audience has an unexpected form.")
_TIME_CLAIM = Refusal(Reason.TOKEN_CLAIM_INVALID, "A time of the token is no valid number of seconds.")
_NO_EXPIRY = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token has no expiry.")
_EXPIRED = Refusal(Reason.TOKEN_EXPIRED, "The token has expired.")
_NOT_YET = Refusal(Reason.TOKEN_NOT_YET_VALID, "The token is not valid yet.")
_LIFETIME = Refusal(Reason.TOKEN_LIFETIME_EXCEEDED, "The token is valid for longer than is accepted.")
_SUBJECT = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token names no subject, or one of an unexpected form.")
_ROLES = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's roles have an unexpected form.")
_SCOPES = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's scopes have an unexpected form.")
_TOKEN_ID = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token's id has an unexpected form.")


def read_token(token: bytes) -> UnverifiedToken | Refusal:
    """Take a compact JWS apart (RFC 7515, section 7.1) and check what no policy may allow.

    `jku`, `x5u`, `x5c` and `jwk` are left unread: keys come from the policy alone, and some issuers send them.
    """
    if len(token) > MAX_TOKEN:
        return _TOO_LARGE
    parts = token.split(b".")
    if len(parts) != 3:
        return _ENCRYPTED if len(parts) == 5 else _NOT_COMPACT
    decoded = [decode_base64url(part) for part in parts]
    header_json, claims_json, signature = decoded
    if header_json is None or claims_json is None or signature is None:
        return _NOT_BASE64
    header = parse_object(header_json)
    if header is None:
        return _HEADER_NOT_JSON
    refusal = _check_extensions(header)
    if refusal is not None:
        return refusal
    algorithm, key_id, type_ = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str) or not _is_optional_name(key_id) or not _is_optional_name(type_):
        return _HEADER_TYPES
    if algorithm.lower() == "none":
        return _ALGORITHM
    if not signature:
        return _NO_SIGNATURE
    claims = parse_object(claims_json)
    if claims is None:
        return _CLAIMS_NOT_JSON
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or not 0 < len(issuer) <= _MAX_ISSUER:
        return _ISSUER_CLAIM
    return UnverifiedToken(
        algorithm=algorithm,
        key_id=key_id if isinstance(key_id, str) else None,
        type=type_ if isinstance(type_, str) else None,
        issuer=issuer,
        signing_input=token[: len(parts[0]) + 1 + len(parts[1])],
        signature=signature,
        unverified_claims=claims,
    )


def _check_extensions(header: Mapping[str, Json]) -> Refusal | None:
    """Refuse a header that changes how the rest is read (RFC 7515, section 4.1.11; RFC 7797; RFC 7519, section 5.2)."""
    if "crit" in header or header.get("b64", True) is not True:
        return _CRITICAL
    if "zip" in header or "enc" in header:
        return _COMPRESSED
    content = header.get("cty")
    if content is not None and (not isinstance(content, str) or _media_type(content) == "jwt"):
        return _NESTED
    return None


def _is_optional_name(value: Json) -> bool:
    return value is None or (isinstance(value, str) and 0 < len(value) <= _MAX_NAME)


def _media_type(text: str) -> str:
    """Return a media type as JOSE compares it: without regard to case, "application/" implied (RFC 7515, 4.1.9)."""
    return text.lower().removeprefix("application/")


def check_header(token: UnverifiedToken, issuer: Issuer) -> Refusal | None:
    """Check algorithm and type against the issuer's policy; None where both are accepted."""
    if token.algorithm not in issuer.algorithms:
        return _ALGORITHM
    kind = None if token.type is None else _media_type(token.type)
    if issuer.token_type == "at+jwt":
        return None if kind == "at+jwt" else _TYPE
    return None if kind is None or kind in {"jwt", "at+jwt"} else _TYPE


def issuer_unknown() -> Refusal:
    """Return the refusal of a token whose issuer is none of the allowed ones."""
    return _ISSUER


def read_times(claims: Mapping[str, Json]) -> Times | Refusal:
    """Read `exp` (required), `nbf` and `iat`: finite numbers of seconds, no booleans (RFC 7519, section 4.1)."""
    if "exp" not in claims:
        return _NO_EXPIRY
    expires = claims["exp"]
    not_before, issued = claims.get("nbf"), claims.get("iat")
    if not _is_date(expires) or ("nbf" in claims and not _is_date(not_before)):
        return _TIME_CLAIM
    if "iat" in claims and not _is_date(issued):
        return _TIME_CLAIM
    return Times(_seconds(expires) or 0.0, _seconds(not_before), _seconds(issued))


def _is_date(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_DATE


def _seconds(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def check_times(times: Times, now: float, leeway: float, max_lifetime: float | None) -> Refusal | None:
    """Check a token's times at `now` (Unix seconds); None where they hold.

    leeway: seconds by which clocks may differ, on either side. max_lifetime: seconds between `iat` and `exp`; of a
    token without `iat`, what is left of its life must not be more.
    """
    if now >= times.expires + leeway:
        return _EXPIRED
    if times.not_before is not None and now < times.not_before - leeway:
        return _NOT_YET
    if times.issued is not None and now < times.issued - leeway:
        return _NOT_YET
    if max_lifetime is not None:
        if times.issued is not None:
            return _LIFETIME if times.expires - times.issued > max_lifetime else None
        if now < times.expires - max_lifetime - leeway:
            return _LIFETIME
    return None


def verify_claims(signed: SignedClaims, issuer: Issuer, now: float) -> VerifiedClaims | Refusal:
    """Check issuer, audience and times of signed claims."""
    claims = signed.claims
    if claims.get("iss") != issuer.issuer:
        return _ISSUER
    refusal = _check_audience(claims.get("aud"), issuer.audience)
    if refusal is not None:
        return refusal
    times = read_times(claims)
    if isinstance(times, Refusal):
        return times
    return check_times(times, now, issuer.leeway, issuer.max_lifetime) or VerifiedClaims(claims, times)


def _check_audience(audience: Json, accepted: tuple[str, ...]) -> Refusal | None:
    if not accepted:
        return None
    if audience is None:
        return _AUDIENCE
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(name, str) for name in named):
        return _AUDIENCE_CLAIM
    return None if any(name in accepted for name in named) else _AUDIENCE


def principal_of(verified: VerifiedClaims, issuer: Issuer) -> Principal | Refusal:
    """Read who a verified token stands for, from the claims that the policy names; the first one present counts."""
    claims = verified.claims
    subject = _first(claims, issuer.subject)
    if not _is_name(subject):
        return _SUBJECT
    roles = _names(_first(claims, issuer.roles))
    if roles is None:
        return _ROLES
    scopes = _scopes(_first(claims, issuer.scopes))
    if scopes is None:
        return _SCOPES
    token_id = claims.get("jti")
    if token_id is not None and not _is_name(token_id):
        return _TOKEN_ID
    return Principal(
        subject=str(subject),
        issuer=issuer.name,
        roles=roles,
        scopes=frozenset(scopes),
        claims=claims,
        expires=verified.times.expires,
        token_id=None if token_id is None else str(token_id),
    )


def _first(claims: Mapping[str, Json], names: tuple[str, ...]) -> Json:
    for name in names:
        if name in claims:
            return claims[name]
    return None


def _is_name(value: Json) -> bool:
    """Tell whether a value names something the same way everywhere.

    Printable, bounded, not empty, no space at its ends: header fields lose those on the way, and logs show them badly.
    """
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value.isprintable() and value == value.strip()


def _names(value: Json) -> tuple[str, ...] | None:
    """Read roles: one string is one role, never split; a list is of strings. None: neither."""
    if value is None or value == "":
        return ()
    named = value if isinstance(value, list) else [value]
    if not all(_is_name(name) for name in named):
        return None
    return tuple(dict.fromkeys(str(name) for name in named))


def _scopes(value: Json) -> tuple[str, ...] | None:
    """Read scopes: a string of words between single spaces (RFC 6749, section 3.3), or a list of words."""
    words = _names([word for word in value.split(" ") if word] if isinstance(value, str) else value)
    if words is None or not all(word.isascii() and " " not in word for word in words):
        return None
    return words
