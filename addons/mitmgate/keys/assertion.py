"""The signer of identity assertions, and the public key that upstreams verify them with.

A signature takes tens of µs (ES256, EdDSA) or ten times that (RS256, ES384), which is much of what a request costs.
Therefore an assertion that says the very same, for the same user, upstream, method and path, is used again while at
least half of its lifetime is left: `jti` names the assertion, not the request.
"""

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from cachetools import LRUCache
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import get_default_algorithms

from mitmgate.core.assertion import TYPE, assertion_claims
from mitmgate.core.principal import Principal
from mitmgate.core.rules import Assertion

REMEMBERED: Final = 4 * 1024 * 1024
"""Octets of assertions that are kept to be used again, about 1 KB each: those of users with many roles are longer."""
LONGEST_PATH: Final = 512
"""Characters of a path whose assertion is kept: clients choose paths of up to 8 KB."""

LONGEST: Final = 16 * 1024
"""Octets of an assertion that is kept."""

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_REQUIRED: Final = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}

Jwk = Mapping[str, str]


class Signer:
    """Signs the assertions of one policy. Belongs to the event loop's thread."""

    def __init__(self, rule: Assertion) -> None:
        """Load the key; raises ValueError where it can't sign (the policy's loader has said so before)."""
        self._rule = rule
        self._key: Any = load_pem_private_key(rule.key, None)
        self.algorithm = _algorithm(self._key)
        self._signature: Any = get_default_algorithms()[self.algorithm]
        members = self._signature.to_jwk(self._key.public_key(), as_dict=True)
        needed = {name: str(members[name]) for name in _REQUIRED[members["kty"]]}
        self.key_id = thumbprint(needed)
        self.jwk: Jwk = {**needed, "kid": self.key_id, "alg": self.algorithm, "use": "sig"}
        """The public key, as it is published (RFC 7517)."""
        self._header = _encoded({"alg": self.algorithm, "kid": self.key_id, "typ": TYPE})
        self._made: LRUCache[tuple[object, ...], tuple[float, bytes]] = LRUCache(REMEMBERED, _octets)

    def assertion(self, principal: Principal, audience: str, method: str, path: str, now: float) -> bytes:
        """Return an assertion as a compact JWS (RFC 7515), see core.assertion.assertion_claims."""
        key = (principal.issuer, principal.subject, principal.roles, principal.scopes, audience, method, path)
        known = self._made.get(key)
        if known is not None and known[0] <= now < known[0] + self._rule.lifetime / 2:
            return known[1]
        identifier = secrets.token_urlsafe(12)
        claims = assertion_claims(self._rule, principal, audience, method, path, now, identifier)
        content = self._header + b"." + _encoded(claims)
        made = content + b"." + _base64url(self._signature.sign(content, self._key))
        if len(path) <= LONGEST_PATH and len(made) <= LONGEST:
            self._made[key] = now, made
        return made


def _octets(known: tuple[float, bytes]) -> int:
    """Estimate what an assertion takes, with the principal and the path that it says again."""
    return 400 + 2 * len(known[1])


@lru_cache(maxsize=4)
def signer_of(rule: Assertion) -> Signer:
    """Return the signer of a policy's rule; the same while the rule stays the same, over reloads as well."""
    return Signer(rule)


def thumbprint(members: Jwk) -> str:
    """Return a key's thumbprint (RFC 7638, section 3): of its required members alone, in their order."""
    text = json.dumps({name: members[name] for name in _REQUIRED[members["kty"]]}, separators=(",", ":"))
    return _base64url(sha256(text.encode("ascii")).digest()).decode("ascii")


def _algorithm(key: object) -> str:
    match key:
        case EllipticCurvePrivateKey() if key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        case Ed25519PrivateKey():
            return "EdDSA"
        case RSAPrivateKey():
            return "RS256"
        case _:
            raise ValueError("the key can't sign assertions")


def _encoded(members: Mapping[str, object]) -> bytes:
    return _base64url(json.dumps(members, separators=(",", ":")).encode("ascii"))


def _base64url(octets: bytes) -> bytes:
    return urlsafe_b64encode(octets).rstrip(b"=")
