"""Tokens for development: signed with the secret of an issuer that has one."""

from collections.abc import Mapping, Sequence
from uuid import uuid4

import jwt

from mitmgate.core.pointer import put
from mitmgate.core.rules import Issuer
from mitmgate.keys.keyset import SECRET_SIZES


def mint(
    issuer: Issuer,
    subject: str,
    *,
    now: float,
    lifetime: float,
    roles: Sequence[str] = (),
    scopes: Sequence[str] = (),
    claims: Mapping[str, object] | None = None,
) -> str:
    """Sign a token that the issuer's own policy accepts, in the claims that it reads.

    now: Unix seconds; lifetime: seconds. claims are added last and win over the others. Raises ValueError where the
    issuer has no secret (only the issuer itself can sign then) or would not accept such a lifetime.
    """
    if issuer.keys.kind != "secret":
        raise ValueError(f"tokens of issuer {issuer.name} are signed by {issuer.issuer}; the gateway has no key for it")
    if issuer.max_lifetime is not None and lifetime > issuer.max_lifetime:
        raise ValueError(f"issuer {issuer.name} accepts tokens of at most {issuer.max_lifetime:g} seconds")
    issued = int(now)
    payload: dict[str, object] = {
        "iss": issuer.issuer,
        "iat": issued,
        "exp": issued + int(lifetime),
        "jti": str(uuid4()),
    }
    put(payload, issuer.subject[0], subject)
    if issuer.rfc9068:
        payload["client_id"] = "mitmgate"
    for name, values in issuer.require:
        put(payload, name, values[0])
    if issuer.audience:
        put(payload, issuer.audience_in[0], issuer.audience[0])
    if roles:
        put(payload, issuer.roles[0], roles[0] if len(roles) == 1 else list(roles))
    if scopes:
        put(payload, issuer.scopes[0], " ".join(scopes))
    payload.update(claims or {})
    algorithm = next(name for name in issuer.algorithms if name in SECRET_SIZES)
    kind = "at+jwt" if issuer.token_type == "at+jwt" else "JWT"
    return jwt.encode(payload, issuer.keys.material, algorithm=algorithm, headers={"typ": kind})
