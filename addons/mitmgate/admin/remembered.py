"""Keys for an edited copy of a request: its token is gone, and counts for what was found out of it then."""

from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Final

from mitmgate.core import api_key
from mitmgate.core.claims import ISSUER_UNKNOWN
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer
from mitmgate.core.verdict import Outcome
from mitmgate.keys.verify import KEYS_UNAVAILABLE
from mitmgate.pipeline.exchange import Exchange
from mitmgate.replay.ring import OfflineRing

_UNREAD: Final = frozenset({Reason.CREDENTIAL_MISSING, Reason.SCHEME_UNSUPPORTED, Reason.CREDENTIAL_AMBIGUOUS})
"""Denials of authentication that say nothing of a token."""


class RememberedRing(OfflineRing):
    """Authenticates one request. unknown: nothing was found out of its token. remembered: something was."""

    def __init__(self, exchange: Exchange, hidden: bytes) -> None:
        """exchange: the request as it was. hidden: what stands where its token stood; another token is a real one."""
        super().__init__()
        self.unknown = self.remembered = False
        self._exchange = exchange
        self._hidden = hidden

    def authenticate(
        self, issuers: Mapping[str, Issuer], names: tuple[str, ...], token: bytes, now: float
    ) -> Principal | Refusal | Awaitable[Principal | Refusal]:
        """Say of the token that was taken out what was said then. Never waits."""
        if token != self._hidden:
            return super().authenticate(issuers, names, token, now)
        known = (self._exchange.principal, *self._exchange.beside)
        principal = next((one for one in known if one is not None and one.issuer != api_key.ISSUER), None)
        if principal is not None:
            self.remembered = True
            # What it is bound to was proved then.
            return replace(principal, confirmation=None) if principal.issuer in names else ISSUER_UNKNOWN
        for step in self._exchange.verdict.steps:
            refused = step.outcome in {Outcome.DENY, Outcome.OBSERVE}
            if step.stage == "authentication" and refused and step.reason not in _UNREAD:
                self.remembered = True
                return Refusal(step.reason, step.detail)
        self.unknown = True
        return KEYS_UNAVAILABLE
