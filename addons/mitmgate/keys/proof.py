"""The crypto of DPoP proofs (RFC 9449): the key that a proof brings along, its signature, and our nonces."""

import base64
import hmac
from hashlib import sha256
from typing import Final

from cachetools import LRUCache

from mitmgate.core.proof import OTHER_KEY, SIGNATURE, UnverifiedProof
from mitmgate.core.refusal import Refusal
from mitmgate.keys.jwks import parse_jwk
from mitmgate.keys.keyset import VerificationKey
from mitmgate.keys.verify import ALGORITHM_OF

REMEMBERED: Final = 1024
"""Public keys of proofs that are kept parsed; by their thumbprints, which are of nothing but the key."""

_NUMBERS: Final = frozenset({"kty", "crv", "x", "y", "n", "e"})


class ProofKeys:
    """Checks who has made a proof."""

    def __init__(self) -> None:
        """Know no key."""
        self._parsed: LRUCache[str, VerificationKey] = LRUCache(REMEMBERED)

    def verify(self, proof: UnverifiedProof, thumbprint: str) -> Refusal | None:
        """Check that a proof is signed with the key of this thumbprint; None where it is (section 4.3, steps 6 and 12).

        What others send makes no key be parsed: the thumbprint is compared before.
        """
        if not hmac.compare_digest(proof.thumbprint, thumbprint):
            return OTHER_KEY
        key = self._parsed.get(thumbprint)
        if key is None:
            try:
                key = parse_jwk({name: value for name, value in proof.key.items() if name in _NUMBERS})
            except ValueError:
                return SIGNATURE
            self._parsed[thumbprint] = key
        if proof.algorithm not in key.algorithms:
            return SIGNATURE
        good = ALGORITHM_OF[proof.algorithm].verify(proof.signing_input, key.key, proof.signature)
        return None if good else SIGNATURE


def nonce_at(secret: bytes, now: float, period: float) -> str:
    """Make the nonce of a moment (section 8): the same for everybody, and in every process that has the secret."""
    slot = int(now // period).to_bytes(8, "big")
    made = slot[2:] + hmac.digest(secret, b"mitmgate dpop nonce" + slot, sha256)[:18]
    return base64.urlsafe_b64encode(made).decode("ascii")


def is_nonce(text: str | None, secret: bytes, now: float, period: float) -> bool:
    """Tell whether a nonce is of this period, or of the one before."""
    if text is None or not text.isascii():
        return False
    good = [hmac.compare_digest(text, nonce_at(secret, max(0.0, at), period)) for at in (now, now - period)]
    return any(good)
