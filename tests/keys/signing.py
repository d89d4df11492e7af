"""Real keys of every kind, and tokens signed with them: honest ones, and ones that PyJWT would not make."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import get_default_algorithms

from mitmgate.core.rules import Issuer, KeySource

NOW = 1_800_000_000.0
URL = "https://issuer.example"
SECRET = b"0123456789abcdef" * 4
CLAIMS: dict[str, Any] = {"iss": URL, "aud": "api://orders", "sub": "alice", "exp": NOW + 600, "iat": NOW}

_ALGORITHMS = get_default_algorithms()
_CURVES: dict[str, Callable[[], ec.EllipticCurve]] = {
    "ES256": ec.SECP256R1,
    "ES384": ec.SECP384R1,
    "ES512": ec.SECP521R1,
    "ES256K": ec.SECP256K1,
}
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


@cache
def private_key(algorithm: str, number: int = 0, *, bits: int = 2048) -> Any:
    """Return a private key for an algorithm, the same one for the same arguments; EdDSA's number 448 is Ed448."""
    if algorithm[:2] in {"RS", "PS"} and algorithm != "RSA":
        return private_key("RSA", number, bits=bits)
    if algorithm == "RSA":
        return rsa.generate_private_key(65537, bits)
    if algorithm == "EdDSA":
        return ed448.Ed448PrivateKey.generate() if number == 448 else ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(_CURVES[algorithm]())


def public_pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def private_pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def jwk(algorithm: str, key: Any, **members: Any) -> dict[str, Any]:
    """Return the public JWK of a private key (or the JWK of a secret), with members added; ... takes one away."""
    public = key if isinstance(key, bytes) else key.public_key()
    made = dict(_ALGORITHMS[algorithm].to_jwk(public, as_dict=True))
    made.pop("key_ops", None)
    return {name: value for name, value in (made | members).items() if value is not ...}


def jwk_set(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def b64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def sign(
    algorithm: str, key: Any, claims: Mapping[str, Any] | bytes = CLAIMS, header: Mapping[str, Any] | None = None
) -> bytes:
    """Sign with PyJWT's own algorithm object and no question asked of the key; header members win over `alg`."""
    named = {"alg": algorithm, "typ": "JWT"} | dict(header or {})
    body = claims if isinstance(claims, bytes) else json.dumps(dict(claims)).encode()
    signing_input = b64(json.dumps(named).encode()) + b"." + b64(body)
    return signing_input + b"." + b64(_ALGORITHMS[algorithm].sign(signing_input, key))


def issuer(source: KeySource, *algorithms: str, **members: Any) -> Issuer:
    made: dict[str, Any] = {"name": "corp", "issuer": URL, "audience": ("api://orders",), "leeway": 0.0}
    return Issuer(keys=source, algorithms=algorithms, **(made | members))
