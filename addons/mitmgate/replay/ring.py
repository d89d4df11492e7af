"""The keys of a replay: tokens of recordings by what was found out about them, real tokens by keys that are at hand."""

from collections import Counter
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from math import inf

from cachetools import LRUCache

from mitmgate.core.claims import ISSUER_UNKNOWN, principal_of, verify_claims
from mitmgate.core.introspection import INTROSPECTED, is_opaque
from mitmgate.core.principal import Principal
from mitmgate.core.proof import NONCE, PROOF_MISSING, REPLAYED
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.revocation import REVOKED, UNKNOWN
from mitmgate.core.rules import Issuer
from mitmgate.core.token import NOT_COMPACT, SignedClaims, UnverifiedToken, check_header
from mitmgate.keys.ring import KeyRing
from mitmgate.keys.verify import KEYS_UNAVAILABLE
from mitmgate.replay.presented import assumed
from mitmgate.replay.traffic import Known, Presented, Signature

_REFUSED: Mapping[Signature, Refusal] = {
    "bad": Refusal(Reason.TOKEN_SIGNATURE_INVALID, "The token's signature is not valid."),
    "key-unknown": Refusal(Reason.TOKEN_KEY_UNKNOWN, "The token was signed with a key that is not known."),
    "keys-unavailable": KEYS_UNAVAILABLE,
}

_LATER: Mapping[Signature, Refusal] = {
    "revoked": REVOKED,
    "revocations-unknown": UNKNOWN,
    "proof-missing": PROOF_MISSING,
    "proof-invalid": Refusal(Reason.TOKEN_PROOF_INVALID, "The proof of possession was not valid."),
    "proof-replayed": REPLAYED,
    "proof-nonce": NONCE,
}
"""What is found out of a token that is good, from what a recording does not hold."""

_NOT_AT_HAND = frozenset({Reason.KEYS_UNAVAILABLE, Reason.INTROSPECTION_UNAVAILABLE})

Names = tuple[str, ...]


class OfflineRing(KeyRing):
    """Authenticates without a network.

    The decider puts the token that a recorded request showed into `presented` before the request is decided. What was
    recorded of its signature holds; where nothing was (nobody had checked it), the answer is keys-unavailable, unless
    `assume_signed`. The same goes for a real token whose issuer's keys are not at hand. `assumed` counts the decisions
    that rest on the assumption, `unverified` those that were refused for the lack of it, by issuer URL.
    """

    def __init__(self, *, assume_signed: bool = False) -> None:
        """assume_signed: whether a token that nobody has checked is taken for a good one."""
        super().__init__(ask=None)
        self.presented: Presented | None = None
        self.assumed: Counter[str] = Counter()
        self.unverified: Counter[str] = Counter()
        self.real = 0
        """Tokens that were checked with an issuer's key, and are good."""
        self._assume_signed = assume_signed
        self._accepted: LRUCache[tuple[bytes, Names], tuple[Principal, float, float]] = LRUCache(16_384)

    def authenticate(
        self, issuers: Mapping[str, Issuer], names: Names, token: bytes, now: float
    ) -> Principal | Refusal | Awaitable[Principal | Refusal]:
        """Authenticate the token of the request that is being decided. Never waits."""
        presented = self.presented
        if presented is None or presented.text != token:
            if not self._assume_signed or is_opaque(token):
                return self._checked(issuers, names, token, now)
            presented = assumed(token)
            if presented.token is not None:
                self.assumed[presented.token.issuer] += 1
        if presented.refusal is not None:
            return presented.refusal
        if presented.known is not None:
            return _principal(presented.known, names)
        known = self._accepted.get((presented.text, names))
        if known is not None and known[1] <= now < known[2]:
            if presented.signature == "unchecked":
                self.assumed[str(known[0].claims.get("iss"))] += 1
            return known[0]
        return self._decide(presented, presented.token, issuers, names, now)

    def _checked(
        self, issuers: Mapping[str, Issuer], names: Names, token: bytes, now: float
    ) -> Principal | Refusal | Awaitable[Principal | Refusal]:
        """Check a real token with the keys that are at hand."""
        result = super().authenticate(issuers, names, token, now)
        if isinstance(result, Refusal) and result.reason in _NOT_AT_HAND:
            self.unverified[" or ".join(names)] += 1
        self.real += isinstance(result, Principal)
        return result

    def _decide(
        self,
        presented: Presented,
        token: UnverifiedToken | None,
        issuers: Mapping[str, Issuer],
        names: Names,
        now: float,
    ) -> Principal | Refusal:
        """Go through what keys.verify checks, in its order, with the recorded signature in place of a check."""
        if token is None:
            return KEYS_UNAVAILABLE
        issuer = next((issuer for issuer in issuers.values() if token.issuer in issuer.urls), None)
        if issuer is None:
            return ISSUER_UNKNOWN
        opaque = token.algorithm == INTROSPECTED
        refusal = _unexpected(issuer) if opaque else check_header(token, issuer)
        if refusal is not None:
            return refusal
        if opaque:
            issuer = replace(issuer, token_type="any")  # as keys.introspection
        if presented.signature in _REFUSED:
            return _REFUSED[presented.signature]
        if presented.signature == "unchecked":
            if not self._assume_signed:
                self.unverified[token.issuer] += 1
                return KEYS_UNAVAILABLE
            self.assumed[token.issuer] += 1
        verified = verify_claims(SignedClaims(token.unverified_claims), issuer, now)
        if isinstance(verified, Refusal):
            return verified
        principal = principal_of(verified, issuer)
        if issuer.name not in names:
            return ISSUER_UNKNOWN
        if presented.signature in _LATER:
            return principal if isinstance(principal, Refusal) else _LATER[presented.signature]
        if isinstance(principal, Principal):
            principal = replace(principal, confirmation=None)  # it was proved then
            window = verified.times.window(issuer.leeway, issuer.max_lifetime)
            self._accepted[presented.text, names] = (principal, *window)
        return principal


def _unexpected(issuer: Issuer) -> Refusal | None:
    return NOT_COMPACT if issuer.introspection is None else None


def _principal(known: Known, names: Names) -> Principal | Refusal:
    """Make the principal of an audit event."""
    if known.issuer not in names:
        return ISSUER_UNKNOWN
    return Principal(known.subject, known.issuer, known.roles, frozenset(), {}, inf)
