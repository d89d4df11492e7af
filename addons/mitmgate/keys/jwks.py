"""JWK sets (RFC 7517): good members become keys, bad ones are left out with the reason."""

from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import replace

from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import PyJWTError

from mitmgate.core.jose import Json, decode_base64url, parse_object
from mitmgate.core.token import MAX_NAME
from mitmgate.keys.keyset import KeySet, VerificationKey, verification_key

_MOST_KEYS = 128
_PARSERS = {
    "RSA": (RSAAlgorithm.from_jwk, ("n", "e")),
    "EC": (ECAlgorithm.from_jwk, ("x", "y")),
    "OKP": (OKPAlgorithm.from_jwk, ("x",)),
    "oct": (HMACAlgorithm.from_jwk, ("k",)),
}
_FOR_SIGNATURES = ("sig", "jwt-svid")
"""What `use` may be; the second is of JWT-SVIDs (SPIFFE Trust Domain and Bundle, section 4.2.2)."""
_SAME_ALGORITHM = {"Ed25519": "EdDSA", "Ed448": "EdDSA"}  # RFC 9864 renames what RFC 8037 had


def parse_jwk_set(document: bytes, *, secrets: bool) -> KeySet:
    """Parse a JWK set. Members that can't be used are named in `ignored`; there may be no key left.

    secrets: whether the set is for HMAC algorithms: a set holds either `oct` keys or public ones, never both.
    Raises ValueError where the document is no JWK set at all.
    """
    parsed = parse_object(document)
    if parsed is None:
        raise ValueError("the document is no plain JSON object")
    members = parsed.get("keys")
    if not isinstance(members, list):
        raise ValueError('the document has no list "keys"; a JWK set is {"keys": [...]}')  # noqa: TRY004  # a parser's error
    keys: list[VerificationKey] = []
    ignored: list[str] = []
    for at, member in enumerate(members[:_MOST_KEYS]):
        try:
            keys.append(_parse_member(member, secrets=secrets))
        except ValueError as error:
            ignored.append(f"key {at + 1}: {error}")
    if len(members) > _MOST_KEYS:
        ignored.append(f"keys from {_MOST_KEYS + 1} on: more than are read")
    return KeySet(keys, ignored)


def _parse_member(member: Json, *, secrets: bool) -> VerificationKey:
    """Parse one JWK; raises ValueError with the reason for anything that may not verify signatures."""
    if not isinstance(member, dict):
        raise ValueError("not an object")  # noqa: TRY004  # a parser's error
    member = {name: value for name, value in member.items() if value is not None}  # as good as absent
    key_type, key_id = member.get("kty"), member.get("kid")
    if not isinstance(key_type, str) or key_type not in _PARSERS:
        raise ValueError("its type (kty) is not supported")
    if key_id is not None and (not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_NAME):
        raise ValueError("its key id is no string of a sensible size")
    if (key_type == "oct") is not secrets:
        raise ValueError("a secret among public keys" if key_type == "oct" else "a public key among secrets")
    if member.get("use", "sig") not in _FOR_SIGNATURES:
        raise ValueError("not for signatures (use)")
    operations = member.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("not for verifying (key_ops)")
    if "d" in member:
        raise ValueError("a private key; it must not be published")
    key = verification_key(_parse_key(key_type, member), key_id)
    if "alg" not in member:
        return key
    algorithm = member["alg"]
    named = _SAME_ALGORITHM.get(algorithm, algorithm) if isinstance(algorithm, str) else None
    if named not in key.algorithms:
        raise ValueError("its algorithm (alg) does not fit its type or size, or is not supported")
    return replace(key, algorithms=frozenset({named}))


def parse_jwk(member: Mapping[str, Json]) -> VerificationKey:
    """Parse a public JWK by its numbers alone. Raises ValueError with the reason."""
    return _parse_member(dict(member), secrets=False)


def _parse_key(key_type: str, member: Mapping[str, Json]) -> object:
    parse, numbers = _PARSERS[key_type]
    numbers_of: dict[str, str] = {}
    for name in numbers:
        value = numbers_of[name] = str(member.get(name, "")).rstrip("=")  # some pad, which RFC 7515 does not
        if not isinstance(member.get(name), str) or not value.isascii() or not decode_base64url(value.encode("ascii")):
            raise ValueError(f"{name} is not base64url")
    try:
        return parse({**member, **numbers_of})
    except (PyJWTError, UnsupportedAlgorithm, Base64Error, ValueError, TypeError, KeyError, OverflowError) as error:
        raise ValueError("its numbers make no valid key") from error
