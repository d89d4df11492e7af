"""Access tokens (RFC 7515, 9068) read as pure steps, each with its own type.

    read_token      bytes           → UnverifiedToken   well-formed; nothing of it may be believed
    check_header    UnverifiedToken                     what the issuer's policy says of algorithm and type
    (keys.verify)   UnverifiedToken → SignedClaims      the signature is the issuer's
    verify_claims   SignedClaims    → VerifiedClaims    issuer, audience and times hold (core.claims)
    principal_of    VerifiedClaims  → Principal         who it is (core.claims)

Each step returns a Refusal where the token is not acceptable; none raises, whatever the token holds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mitmgate.core.jose import Json, decode_base64url, parse_object
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer

MAX_TOKEN = 1 << 20
"""Bytes of a token that is looked at, whatever a policy says (`limits.token`): as many as a head may have."""

MAX_NAME = 255
"""Characters of a subject, a role, a scope, a token id and a key id."""

_MAX_ISSUER = 2048
_SPIFFE_ID: Final = re.compile(r"(spiffe://[a-z0-9._-]{1,255})(?:/(?!\.{1,2}(?:/|$))[a-zA-Z0-9._-]+)+")


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


TOO_LARGE = Refusal(Reason.TOKEN_TOO_LARGE, "The token is too large.")
_ENCRYPTED = Refusal(Reason.TOKEN_MALFORMED, "Encrypted tokens are not accepted.")
NOT_COMPACT = Refusal(Reason.TOKEN_MALFORMED, "The token is not a signed token in compact form.")
_NOT_BASE64 = Refusal(Reason.TOKEN_MALFORMED, "A part of the token is not base64url.")
_NO_SIGNATURE = Refusal(Reason.TOKEN_MALFORMED, "The token has no signature.")
_HEADER_NOT_JSON = Refusal(Reason.TOKEN_MALFORMED, "The token's header is not a plain JSON object.")
_CLAIMS_NOT_JSON = Refusal(Reason.TOKEN_MALFORMED, "The token's claims are not a plain JSON object.")
_CRITICAL = Refusal(Reason.TOKEN_HEADER_INVALID, "The token's header asks for an extension that is not understood.")
_COMPRESSED = Refusal(Reason.TOKEN_HEADER_INVALID, "Compressed or encrypted content is not accepted.")
_NESTED = Refusal(Reason.TOKEN_HEADER_INVALID, "Nested tokens are not accepted.")
_HEADER_FORM = Refusal(Reason.TOKEN_HEADER_INVALID, "A member of the token's header has an unexpected form.")
_ALGORITHM = Refusal(Reason.TOKEN_ALGORITHM_REFUSED, "The token's algorithm is not accepted.")
WRONG_TYPE = Refusal(Reason.TOKEN_TYPE_REFUSED, "The token is not of an accepted type.")
_NO_ISSUER = Refusal(Reason.TOKEN_CLAIM_INVALID, "The token names no issuer.")


def read_token(token: bytes) -> UnverifiedToken | Refusal:
    """Take a compact JWS apart (RFC 7515, section 7.1) and check what no policy may allow.

    `jku`, `x5u`, `x5c` and `jwk` are left unread, not refused: keys come from the policy alone, and honest issuers
    send some of these.
    """
    if len(token) > MAX_TOKEN:
        return TOO_LARGE
    parts = token.split(b".")
    if len(parts) != 3:
        return _ENCRYPTED if len(parts) == 5 else NOT_COMPACT
    header_json, claims_json, signature = map(decode_base64url, parts)
    if header_json is None or claims_json is None or signature is None:
        return _NOT_BASE64
    header = parse_object(header_json)
    if header is None:
        return _HEADER_NOT_JSON
    refusal = _check_form(header)
    if refusal is not None:
        return refusal
    if not signature:
        return _NO_SIGNATURE
    claims = parse_object(claims_json)
    if claims is None:
        return _CLAIMS_NOT_JSON
    issuer = issuer_of(claims)
    if issuer is None:
        return _NO_ISSUER
    return UnverifiedToken(
        algorithm=str(header["alg"]),
        key_id=str(header["kid"]) if "kid" in header else None,
        type=str(header["typ"]) if "typ" in header else None,
        issuer=issuer,
        signing_input=token[: len(parts[0]) + 1 + len(parts[1])],
        signature=signature,
        unverified_claims=claims,
    )


def issuer_of(claims: Mapping[str, Json]) -> str | None:
    """Return whose token it says it is: `iss`, or of a JWT-SVID without one its trust domain (`spiffe://NAME`).

    `iss` is no part of a JWT-SVID (SPIFFE, JWT-SVID, section 3); the subject says which trust domain vouches for it.
    """
    issuer = claims.get("iss")
    if "iss" not in claims:
        issuer = trust_domain(claims.get("sub"))
    return issuer if isinstance(issuer, str) and 0 < len(issuer) <= _MAX_ISSUER else None


def trust_domain(subject: Json) -> str | None:
    """Return the trust domain of a SPIFFE ID, as `spiffe://NAME`; None for anything else (SPIFFE-ID, section 2)."""
    found = _SPIFFE_ID.fullmatch(subject) if isinstance(subject, str) else None
    return None if found is None else found[1]


def _check_form(header: Mapping[str, Json]) -> Refusal | None:
    """Refuse what changes how the rest is read (RFC 7515, 4.1.11; RFC 7797; RFC 7516; RFC 7519, 5.2), and odd types."""
    if "crit" in header or header.get("b64", True) is not True:
        return _CRITICAL
    if "zip" in header or "enc" in header:
        return _COMPRESSED
    for name in ("alg", "kid", "typ", "cty"):
        if name in header:
            value = header[name]
            if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
                return _HEADER_FORM
    if "cty" in header and _media_type(str(header["cty"])) == "jwt":
        return _NESTED
    if "alg" not in header:
        return _HEADER_FORM
    return _ALGORITHM if str(header["alg"]).lower() == "none" else None


def _media_type(text: str) -> str:
    """Return a media type as JOSE compares it: without regard to case, "application/" implied (RFC 7515, 4.1.9)."""
    return text.lower().removeprefix("application/")


def check_header(token: UnverifiedToken, issuer: Issuer) -> Refusal | None:
    """Check algorithm and type against the issuer's policy; None where both are accepted."""
    if token.algorithm not in issuer.algorithms:
        return _ALGORITHM
    kind = None if token.type is None else _media_type(token.type)
    if issuer.token_type == "at+jwt":
        return None if kind == "at+jwt" else WRONG_TYPE
    if kind is None or kind in {"jwt", "at+jwt"}:
        return None
    return None if kind == "jose" and issuer.spiffe is not None else WRONG_TYPE  # SPIFFE, JWT-SVID, section 2.3
