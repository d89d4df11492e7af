"""Who asks: the identity that a verified token stands for."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Principal:
    """The verified identity of a request.

    issuer is the policy's name of the issuer (not its URL). claims are the token's verified members. expires is
    Unix seconds. token_id is `jti`, or None. issued is `iat` (Unix seconds), or None. marks is what a revocation knows
    it by (core.revocation).
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
