"""Who asks: the identity that a verified token stands for."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a token is bound to.

    key: thumbprint of a key (RFC 9449, section 6.1). certificate: of a certificate (RFC 8705, section 3.1). Who
    brings the token has to prove each that is given.
    """

    key: str | None = None
    certificate: str | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """The verified identity of a request.

    issuer is the policy's name of the issuer (not its URL). claims are the token's verified members. expires is
    Unix seconds. token_id is `jti`, or None. issued is `iat` (Unix seconds), or None. marks is what a revocation knows
    it by (core.revocation). confirmation: what is still to be proved before it is one; None: nothing.
    """

    subject: str
    issuer: str
    roles: tuple[str, ...]
    scopes: frozenset[str]
    claims: Mapping[str, object]
    expires: float
    token_id: str | None = None
    issued: float | None = None
    marks: tuple[str, ...] = ()
    confirmation: Confirmation | None = None
