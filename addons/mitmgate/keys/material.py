"""Key material of a policy: secrets, PEM public keys and JWK sets, and what is wrong with them."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError

from mitmgate.core.rules import KeySource
from mitmgate.keys.jwks import parse_jwk_set
from mitmgate.keys.keyset import ALGORITHMS, SECRET_SIZES, KeySet, verification_key


def problem(source: KeySource, algorithms: Sequence[str]) -> str | None:
    """Say why an issuer with this key source and these algorithms can't verify tokens; None where it can.

    A sentence for the policy's author, without final stop and without any of the material. Asked when a policy is
    loaded; for `jwks_url` only what can be known without fetching is checked.
    """
    unknown = [name for name in algorithms if name not in ALGORITHMS]
    if unknown:
        return f"{unknown[0]!r} is not supported; algorithms are {', '.join(sorted(ALGORITHMS))}"
    secrets = [name for name in algorithms if name in SECRET_SIZES]
    if not algorithms:
        return "no algorithm is allowed, so no token could be accepted"
    if secrets and len(secrets) != len(algorithms):
        return f"{secrets[0]} takes a secret, the other algorithms a public key; make two issuers of them"
    if source.kind == "jwks_url":
        return _remote_problem(source, secrets)
    try:
        keys = key_set(source, algorithms)
    except ValueError as error:
        return str(error)
    return _fit_problem(source, keys, algorithms)


def _remote_problem(source: KeySource, secrets: list[str]) -> str | None:
    if secrets:
        return f"{secrets[0]} takes a secret, which must not be published as a key set"
    try:
        parts = urlsplit(source.url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        return "the address of the key set is no http:// or https:// URL"
    if source.max_stale < source.refresh:
        return "max_stale is shorter than refresh, so keys would be refused before they are fetched again"
    return None


def _fit_problem(source: KeySource, keys: KeySet, algorithms: Sequence[str]) -> str | None:
    if not keys.keys:
        return "; ".join(["the key set has no usable key", *keys.ignored])
    fitting = keys.algorithms()
    strongest = max(algorithms, key=lambda name: SECRET_SIZES.get(name, 0))
    if source.kind == "secret" and len(source.material) < SECRET_SIZES.get(strongest, 0):
        return f"the secret has {len(source.material)} bytes; {strongest} takes at least {SECRET_SIZES[strongest]}"
    if fitting.isdisjoint(algorithms):
        return f"no key is for {' or '.join(algorithms)}; the keys given are for {', '.join(sorted(fitting))}"
    return None


def key_set(source: KeySource, algorithms: Sequence[str]) -> KeySet:
    """Parse the material of a source that has any; raises ValueError with a sentence where it is not usable."""
    match source.kind:
        case "secret":
            return _secret(source.material)
        case "pem":
            return _pem(source.material)
        case "none":
            return KeySet(())
        case "jwks":
            return parse_jwk_set(source.material, secrets=all(name in SECRET_SIZES for name in algorithms))
        case _:
            raise ValueError("the keys have to be fetched")


def _secret(material: bytes) -> KeySet:
    key = verification_key(material)
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(material)
    except InvalidKeyError as error:
        # A public key taken for a secret is the classic way to have tokens forged.
        raise ValueError("the secret is a key or a certificate, not a secret: whoever has it could sign") from error
    return KeySet([key], unnamed=True)


def _pem(material: bytes) -> KeySet:
    blocks = material.count(b"-----BEGIN ")
    if blocks == 0:
        raise ValueError("the file is no PEM public key (-----BEGIN PUBLIC KEY-----)")
    if b"PRIVATE KEY-----" in material:
        raise ValueError("the file has a private key; give the public one: openssl pkey -in FILE -pubout")
    if blocks > 1:
        raise ValueError(f"the file has {blocks} PEM blocks; give one public key, or several as jwks_file")
    key: object
    try:
        if b"-----BEGIN CERTIFICATE-----" in material:
            key = load_pem_x509_certificate(material).public_key()
        else:
            key = load_pem_public_key(material)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("the file has no valid PEM public key or certificate") from error
    return KeySet([verification_key(key)], unnamed=True)
