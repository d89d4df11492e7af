"""Verification of a token for one issuer: the signature by PyJWT's algorithms, everything else by core."""

from asyncio import Task
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Protocol

from jwt.algorithms import get_default_algorithms

from mitmgate.core.claims import principal_of, verify_claims
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.revocation import marks
from mitmgate.core.rules import Issuer
from mitmgate.core.token import SignedClaims, UnverifiedToken, check_header
from mitmgate.keys.keyset import ALGORITHMS, KeySet, VerificationKey

KEYS_UNAVAILABLE = Refusal(Reason.KEYS_UNAVAILABLE, "The keys to verify this token with are not available.")
_KEY_UNKNOWN = Refusal(Reason.TOKEN_KEY_UNKNOWN, "The token was signed with a key that is not known.")
_SIGNATURE = Refusal(Reason.TOKEN_SIGNATURE_INVALID, "The token's signature is not valid.")

ALGORITHM_OF = {name: algorithm for name, algorithm in get_default_algorithms().items() if name in ALGORITHMS}
"""What verifies a signature, by the name of its algorithm."""


class KeyStore(Protocol):
    """Where an issuer's keys are kept."""

    def current(self) -> KeySet | None:
        """Return the keys in force, the same object until they change; None: there are none."""
        ...

    def refetch(self) -> Task[None] | None:
        """Return a fetch that may bring a key that is not known; None where there is nothing to wait for."""
        ...


class StaticKeys:
    """Keys that came with the policy."""

    def __init__(self, keys: KeySet) -> None:
        """Keep the keys."""
        self._keys = keys

    def current(self) -> KeySet | None:
        """Return the keys."""
        return self._keys

    def refetch(self) -> Task[None] | None:
        """Return None: they change with the policy alone."""
        return None


class Verified(NamedTuple):
    """A principal, the key set that vouches for it, and the times (Unix seconds) between which the token is good."""

    principal: Principal
    keys: KeySet
    earliest: float
    latest: float


def verify_signature(
    token: UnverifiedToken, keys: Iterable[VerificationKey]
) -> tuple[SignedClaims, VerificationKey] | None:
    """Check the signature with each key; returns the claims and the key that made it, None where none did.

    Keys must have been selected for the token's algorithm: that binds algorithm and key type.
    """
    algorithm = ALGORITHM_OF[token.algorithm]
    for key in keys:
        if token.algorithm in key.algorithms and algorithm.verify(token.signing_input, key.key, token.signature):
            return SignedClaims(token.unverified_claims), key
    return None


class Verifier:
    """One issuer of a policy with its keys."""

    __slots__ = ("issuer", "keys")

    def __init__(self, issuer: Issuer, keys: KeyStore) -> None:
        """Bind the issuer to its keys."""
        self.issuer = issuer
        self.keys = keys

    def verify(self, token: UnverifiedToken, now: float) -> Verified | Refusal:
        """Verify a token of this issuer at `now` (Unix seconds) with the keys that are there."""
        issuer = self.issuer
        refusal = check_header(token, issuer)
        if refusal is not None:
            return refusal
        keys = self.keys.current()
        if keys is None:
            return KEYS_UNAVAILABLE
        candidates = keys.select(token.key_id, token.algorithm)
        if not candidates:
            return _KEY_UNKNOWN
        found = verify_signature(token, candidates)
        if found is None:
            return _SIGNATURE
        signed, key = found
        verified = verify_claims(signed, issuer, now)
        if isinstance(verified, Refusal):
            return verified
        principal = principal_of(verified, issuer)
        if isinstance(principal, Refusal):
            return principal
        principal = replace(principal, issued=verified.times.issued, marks=marks(principal, key.key_id))
        return Verified(principal, keys, *verified.times.window(issuer.leeway, issuer.max_lifetime))

    def signed(self, token: UnverifiedToken) -> SignedClaims | Refusal:
        """Check the signature of a token that is no access token, with the keys and algorithms of this issuer."""
        keys = self.keys.current()
        if keys is None:
            return KEYS_UNAVAILABLE
        if token.algorithm not in self.issuer.algorithms:
            return _SIGNATURE
        candidates = keys.select(token.key_id, token.algorithm)
        found = verify_signature(token, candidates) if candidates else None
        return (_SIGNATURE if candidates else _KEY_UNKNOWN) if found is None else found[0]

    def awaits(self, token: UnverifiedToken, refusal: Refusal) -> Task[None] | None:
        """Return the fetch that may turn a refusal of `verify` round: keys may be newer than ours, or ours too old."""
        missed = refusal in {_KEY_UNKNOWN, KEYS_UNAVAILABLE} or (refusal is _SIGNATURE and token.key_id is None)
        return self.keys.refetch() if missed else None
