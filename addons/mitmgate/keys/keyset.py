"""Verification keys: each bound to the algorithms that its type and size allow, chosen by key id and algorithm."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey

SECRET_SIZES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The least bytes of a secret: the hash's own size (RFC 7518, section 3.2)."""

_RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

ALGORITHMS = frozenset({*SECRET_SIZES, *_RSA, *_CURVES.values(), "EdDSA"})
"""Every algorithm that a policy may name (RFC 7518, section 3.1; RFC 8037)."""

_LEAST_RSA_BITS = 2048  # RFC 7518, section 3.3
_MOST_CANDIDATES = 8  # signatures tried for one token


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key and the algorithms that it may verify. A secret is bytes."""

    key_id: str | None
    algorithms: frozenset[str]
    key: bytes | PublicKey = field(repr=False)


def verification_key(key: object, key_id: str | None = None) -> VerificationKey:
    """Bind a key to what its type and size allow; raises ValueError with a sentence where that is nothing."""
    match key:
        case bytes():
            algorithms = frozenset(name for name, size in SECRET_SIZES.items() if len(key) >= size)
            if not algorithms:
                raise ValueError(f"the secret has {len(key)} bytes; HS256 takes at least {SECRET_SIZES['HS256']}")
            return VerificationKey(key_id, algorithms, key)
        case RSAPublicKey():
            if key.key_size < _LEAST_RSA_BITS:
                raise ValueError(f"the RSA key has {key.key_size} bits; at least {_LEAST_RSA_BITS} are needed")
            return VerificationKey(key_id, _RSA, key)
        case EllipticCurvePublicKey():
            if key.curve.name not in _CURVES:
                raise ValueError(f"the curve {key.curve.name} is not supported; P-256, P-384 and P-521 are")
            return VerificationKey(key_id, frozenset({_CURVES[key.curve.name]}), key)
        case Ed25519PublicKey() | Ed448PublicKey():
            return VerificationKey(key_id, frozenset({"EdDSA"}), key)
        case _:
            raise ValueError(f"{type(key).__name__} is no public key for signatures")


class KeySet:
    """An immutable set of keys. Two sets are the same only where they are one object: caches rely on that.

    ignored: why members of the source were left out, one sentence each. unnamed: the source has no key ids at all
    (a secret, a PEM file), so that the token's says nothing.
    """

    __slots__ = ("_candidates", "ignored", "keys", "unnamed")

    keys: tuple[VerificationKey, ...]
    ignored: tuple[str, ...]
    unnamed: bool

    def __init__(self, keys: Iterable[VerificationKey], ignored: Iterable[str] = (), *, unnamed: bool = False) -> None:
        """Sort the keys by what tokens ask for."""
        self.keys = tuple(keys)
        self.ignored = tuple(ignored)
        self.unnamed = unnamed
        found: dict[tuple[str | None, str], tuple[VerificationKey, ...]] = {}
        for key in self.keys:
            for algorithm in key.algorithms:
                for key_id in {None, key.key_id}:
                    found[key_id, algorithm] = (*found.get((key_id, algorithm), ()), key)[:_MOST_CANDIDATES]
        self._candidates = found

    def select(self, key_id: str | None, algorithm: str) -> tuple[VerificationKey, ...]:
        """Return the keys to try. Without a key id in the token these are all that fit the algorithm, at most 8."""
        return self._candidates.get((None if self.unnamed else key_id, algorithm), ())

    def algorithms(self) -> frozenset[str]:
        """Return every algorithm that some key verifies."""
        return frozenset().union(*(key.algorithms for key in self.keys))
