"""Challenges (RFC 9110, section 11.6.1): what a client is told to show, by the kind of its credential."""

from typing import Final

from mitmgate.core import api_key, certificate
from mitmgate.core.principal import Principal
from mitmgate.core.proof import ALGORITHMS
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Credential
from mitmgate.pipeline.exchange import Exchange, told_challenge

BARE: Final = "Bearer"
"""Says that a token is needed, and nothing more, where none was given (RFC 6750, section 3.1)."""

ALGS: Final = " ".join(ALGORITHMS)
"""What DPoP proofs may be signed with, as a challenge says it (RFC 9449, section 7.1)."""

_KINDS: Final[dict[str, Credential]] = {api_key.ISSUER: "api-key", certificate.ISSUER: "certificate"}
_ENDED: Final[dict[Reason, Credential]] = {
    Reason.API_KEY_EXPIRED: "api-key",
    Reason.API_KEY_REVOKED: "api-key",
    Reason.CERTIFICATE_EXPIRED: "certificate",
}


def kind_of(principal: Principal | None) -> Credential:
    """Say by which kind of credential a principal is known."""
    return "jwt" if principal is None else _KINDS.get(principal.issuer, "jwt")


def of_kind(exchange: Exchange, kind: Credential, error: str = "") -> str:
    """Make the challenge of a kind. error: what is wrong with the API key that was there; safe in a quoted string."""
    if kind == "jwt":
        return told_challenge(exchange, BARE)
    if kind == "certificate":
        return "Certificate"
    text = f'ApiKey name="{(exchange.snapshot.key_field or b"").decode("ascii")}"'
    return f'{text}, error="invalid_key", error_description="{error}"' if error else text


def of_token(exchange: Exchange, parameters: str) -> str:
    """Make the challenge for a token that is good, and not enough: a new one has to come as this one did.

    parameters: from `error` on. RFC 9449, section 7.1: a token that is bound to a key has a scheme of its own.
    """
    if is_of_key(exchange.principal):
        return told_challenge(exchange, f'DPoP {parameters}, algs="{ALGS}"')
    return told_challenge(exchange, f"Bearer {parameters}")


def of_ended(exchange: Exchange, reason: Reason) -> str:
    """Make the challenge for a client that was admitted by what has ended since."""
    kind = _ENDED.get(reason, "jwt")
    return of_token(exchange, 'error="invalid_token"') if kind == "jwt" else of_kind(exchange, kind, reason.title)


def is_of_key(principal: Principal | None) -> bool:
    """Tell whether a token says that it is bound to a key, which may have been proved already."""
    confirmation = None if principal is None else principal.claims.get("cnf")
    return isinstance(confirmation, dict) and "jkt" in confirmation
