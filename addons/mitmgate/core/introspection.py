"""Opaque tokens: which they are, and what their issuer's answer means that was asked about one (RFC 7662)."""

import re
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Final

from mitmgate.core.api_key import in_text
from mitmgate.core.claims import VerifiedClaims, verify_claims
from mitmgate.core.jose import Json, parse_object
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer
from mitmgate.core.token import WRONG_TYPE, SignedClaims

INTROSPECTED: Final = "introspected"
"""Stands where a token's algorithm is said, in recordings: its issuer has vouched for it, and no signature has."""

UNAVAILABLE: Final = Refusal(Reason.INTROSPECTION_UNAVAILABLE, "The token's issuer can't be asked about it.")
_INACTIVE: Final = Refusal(Reason.TOKEN_INACTIVE, "The token's issuer says that it is not active.")

_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_JSON: Final = re.compile(rb"\.(?:ey[A-DI-L]|e3[0-3]|ew[k-r0-3])")
"""A part behind a dot that is a JSON object in base64url: `{`, and a quotation mark, `}` or a blank."""
_HEADER: Final = (b'"alg"', b'"enc"')
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
_KINDS: Final = {
    "token_type": frozenset({"bearer", "dpop", "access_token"}),
    "token_use": frozenset({"access", "access_token"}),
    "typ": frozenset({"bearer", "dpop", "at+jwt", "jwt"}),
}
_OF_IDENTITY: Final = frozenset({"nonce", "at_hash", "c_hash", "s_hash", "events"})


def is_opaque(token: bytes) -> bool:
    """Tell whether a token is for its issuer alone to read: well-formed (RFC 6750, section 2.1), and no JWT or JWE.

    A JWT is verified, or refused; that its issuer could be asked about it is no way around its signature. It is known
    by its first part, which is a JSON object (RFC 7519, section 5), in good base64url or not. One that something stands
    before, or that has lost its beginning, would tell another's issuer a good token: it is known by its claims, or by
    the members of its header. An API key is no token.
    """
    if _TOKEN.fullmatch(token) is None or in_text(token.decode("ascii")):
        return False
    first, dot, _ = token.partition(b".")
    if not dot:
        return True
    if _JSON.search(token) is not None or _decoded(first[:64]).lstrip(b" \t\r\n").startswith(b"{"):
        return False
    return not any(name in _decoded(first[shift:]) for shift in range(4) for name in _HEADER)


def _decoded(part: bytes) -> bytes:
    """Decode base64url, in a good form or not."""
    part = part.translate(_TO_STANDARD, b"~=")
    part = part[: len(part) - 1] if len(part) % 4 == 1 else part
    return a2b_base64(part + b"=" * (-len(part) % 4))


def read_answer(document: bytes, issuer: Issuer, now: float) -> VerifiedClaims | Refusal:
    """Read an answer (RFC 7662, section 2.2) about a token at `now` (Unix seconds), and check it like a token's claims.

    `iss` may be left out: who was asked is known. `exp` may not, as nothing is good for ever.
    """
    members = parse_object(document)
    if members is None:
        return UNAVAILABLE
    if members.get("active") is not True:
        return _INACTIVE if members.get("active") is False else UNAVAILABLE
    claims: dict[str, Json] = {"iss": issuer.issuer, **members}
    if not _is_access_token(claims):
        return WRONG_TYPE
    return verify_claims(SignedClaims(claims), issuer, now)


def _is_access_token(claims: Mapping[str, Json]) -> bool:
    """Tell whether the issuer calls the token nothing else: it answers for refresh tokens, too (section 2.1)."""
    for name, kinds in _KINDS.items():
        kind = claims.get(name)
        if kind is not None and (not isinstance(kind, str) or kind.lower() not in kinds):
            return False
    return _OF_IDENTITY.isdisjoint(claims)
