"""DPoP proofs (RFC 9449) as they come with requests: each is good once, in whichever process.

Theory of operation. Who can't know whether a proof was used before refuses it. A process knows which proofs came to it
since it began to take requests, but for the oldest where there were too many; whatever was made before that, by the
fastest clock that is accepted, it refuses. A Redis remembers the proofs of all processes for REMEMBERED seconds, and
beside them since when it does: one that has come back empty knows nothing of what was made before.
"""

import time
from collections.abc import Awaitable, Sequence
from hashlib import blake2b
from typing import Final, Protocol

from mitmgate.core.limit import Limit
from mitmgate.core.proof import (
    AHEAD,
    LONGEST_LIFETIME,
    NONCE,
    PROOF_MISSING,
    REPLAYED,
    Asked,
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
FORGOTTEN: Final = Refusal(
    Reason.STORE_UNAVAILABLE, "The DPoP proof was made before used ones were remembered: make another one."
)

MOST: Final = 100_000
"""Proofs that a process remembers."""
REMEMBERED: Final = LONGEST_LIFETIME + AHEAD + 1.0
"""Seconds for which a proof is remembered once it was used, whatever its lifetime is now: a policy that makes it longer
must not make a used one good again. A second more than any is good for: the store's clock is another one."""

_ONCE: Final = Limit("dpop", 1, REMEMBERED, (), 1, "deny")
_YEAR: Final = 365 * 86400.0
_SINCE: Final = Take(Limit("dpop-since", 1, _YEAR, (), 1, "deny", "report"), "dpop-since")
"""Spent once, and then found spent: so the store tells since when it has remembered proofs."""


class Once(Protocol):
    """What is good once: a proof, or what is remembered like one. issued: Unix seconds."""

    @property
    def thumbprint(self) -> str:
        """Whose it is."""
        ...

    @property
    def id(self) -> str:
        """What tells it from others of the same."""
        ...

    @property
    def issued(self) -> float:
        """When it was made."""
        ...


class UsedProofs:
    """Which proofs were used, as far as this process, and the store that it shares with others, can know."""

    def __init__(self, store: CounterStore | None = None, most: int = MOST) -> None:
        """store: shared by all processes that requests may go to; None: there is this one alone."""
        self._store = store
        self._most = most
        self._issued: dict[bytes, float] = {}  # by key and id, in the order of use
        self._floor = time.time() + AHEAD  # what was issued until then may have been used, and is not known

    async def start(self) -> None:
        """Begin to remember. Called before requests are taken, when the store is started."""
        self._floor = time.time() + AHEAD
        if self._store is not None:
            grants = self._store.take([_SINCE], time.perf_counter())
            if not isinstance(grants, list):
                await grants

    def use(self, proof: Once, rule: Proofs, now: float, at: float) -> Refusal | Awaitable[Refusal | None] | None:
        """Use a proof up; None: it was not used before. now: Unix seconds. at: of a clock that nobody sets."""
        name = f"{proof.thumbprint}\0{proof.id}"
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if self._store is None:
            return self._use_here(digest, proof.issued, now)
        grants = self._store.take([Take(_ONCE, f"dpop\0{name}"), _SINCE], at)
        if isinstance(grants, list):
            return self._said(grants, digest, proof.issued, rule, now)
        return self._later(grants, digest, proof.issued, rule, now)

    async def _later(
        self, pending: Awaitable[list[Grant]], digest: bytes, issued: float, rule: Proofs, now: float
    ) -> Refusal | None:
        return self._said(await pending, digest, issued, rule, now)

    def _said(self, grants: Sequence[Grant], digest: bytes, issued: float, rule: Proofs, now: float) -> Refusal | None:
        once, since = grants
        if once.degraded:
            return UNKNOWN if rule.on_store_failure == "deny" else self._use_here(digest, issued, now)
        if not once.admitted or self._use_here(digest, issued, now) is REPLAYED:
            return REPLAYED
        remembers = 0.0 if since.admitted else _YEAR - since.retry_after
        return FORGOTTEN if issued <= now - remembers + AHEAD else None

    def _use_here(self, digest: bytes, issued: float, now: float) -> Refusal | None:
        known = self._issued
        if digest in known:
            return REPLAYED
        if issued <= self._floor:
            return FORGOTTEN
        for _ in range(2):  # so that what is too old goes faster than others come
            oldest = next(iter(known), None)
            if oldest is None or (known[oldest] >= now - LONGEST_LIFETIME and len(known) < self._most):
                break
            self._floor = max(self._floor, known.pop(oldest))
        known[digest] = issued
        return None


class ProofCheck:
    """Checks proofs."""

    def __init__(self, used: UsedProofs) -> None:
        """used: remembers those that were good."""
        self._used = used
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
        return self._used.use(proof, rule, now, at)
