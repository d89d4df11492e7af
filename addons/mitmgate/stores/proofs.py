"""DPoP proofs (RFC 9449) as they come with requests: each is good once, in whichever process."""

from collections.abc import Awaitable, Sequence
from typing import Final

from mitmgate.core.limit import Limit
from mitmgate.core.proof import (
    AHEAD,
    NONCE,
    PROOF_MISSING,
    REPLAYED,
    Asked,
    UnverifiedProof,
    check_proof,
    read_proof,
)
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Proofs
from mitmgate.core.window import Grant, Take
from mitmgate.keys.proof import ProofKeys, is_nonce
from mitmgate.stores.protocol import CounterStore

UNKNOWN: Final = Refusal(Reason.STORE_UNAVAILABLE, "Whether the DPoP proof was used before can't be told.")


class ProofCheck:
    """Checks proofs; which were used the counter store remembers, as a limit of one in the time that it is good."""

    def __init__(self, store: CounterStore) -> None:
        """store: shared by all processes that requests may go to."""
        self._store = store
        self._keys = ProofKeys()

    def check(
        self, fields: Sequence[bytes], thumbprint: str, asked: Asked, token: bytes, rule: Proofs, now: float, at: float
    ) -> Refusal | Awaitable[Refusal | None] | None:
        """Check the proof of a token that is bound to a key; None where it is good, and has not been used before.

        fields: of the name DPoP, of which there must be one. now: Unix seconds. at: of a clock that nobody sets.
        A proof that is not good is not remembered.
        """
        if len(fields) != 1:
            return PROOF_MISSING
        proof = read_proof(fields[0])
        if isinstance(proof, Refusal):
            return proof
        refusal = self._keys.verify(proof, thumbprint) or check_proof(proof, asked, token, now, rule.lifetime)
        if refusal is not None:
            return refusal
        if rule.nonce is not None and not is_nonce(proof.nonce, rule.nonce, now, rule.lifetime):
            return NONCE
        return self._once(proof, rule, at)

    def _once(self, proof: UnverifiedProof, rule: Proofs, at: float) -> Refusal | Awaitable[Refusal | None] | None:
        # A second more than it is good for: the store's clock is another one.
        limit = Limit("dpop", 1, rule.lifetime + AHEAD + 1.0, (), 1, rule.on_store_failure, "enforce")
        grants = self._store.take([Take(limit, f"dpop\0{proof.thumbprint}\0{proof.id}")], at)
        return _said(grants) if isinstance(grants, list) else _later(grants)


async def _later(pending: Awaitable[list[Grant]]) -> Refusal | None:
    return _said(await pending)


def _said(grants: list[Grant]) -> Refusal | None:
    (grant,) = grants
    if grant.admitted:
        return None
    return UNKNOWN if grant.degraded and grant.limit.on_store_failure == "deny" else REPLAYED
