"""The identity assertion: what the gateway vouches for to an upstream, as a JWT's claims (RFC 7519)."""

from math import ceil

from mitmgate.core.principal import Principal
from mitmgate.core.rules import Assertion

TYPE = "gateway-assertion+jwt"
"""Its `typ`: explicit, so that it is not taken for a token of another kind (RFC 8725, section 3.11)."""


def assertion_claims(
    rule: Assertion, principal: Principal, audience: str, method: str, path: str, now: float, identifier: str
) -> dict[str, object]:
    """Make the claims. audience: the upstream's name. path: as the upstream gets it, without query. now: Unix seconds.

    `sub_iss` is the policy's name of the issuer that `sub` is a subject of; `htm` (RFC 9449) and `path` bind the
    assertion to a request's method and path.
    """
    issued = int(now)
    claims: dict[str, object] = {
        "iss": rule.issuer,
        "aud": audience,
        "sub": principal.subject,
        "sub_iss": principal.issuer,
        "iat": issued,
        "exp": issued + ceil(rule.lifetime),
        "jti": identifier,
        "htm": method,
        "path": path,
    }
    if principal.roles:
        claims["roles"] = list(principal.roles)
    if principal.scopes:
        claims["scope"] = " ".join(sorted(principal.scopes))  # RFC 8693, section 4.2
    return claims
