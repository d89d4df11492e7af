"""ClientQuota: the limits that are taken before any signature is verified."""

from collections.abc import Awaitable
from typing import ClassVar

from mitmgate.core.verdict import Step
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.quota import Quota


class ClientQuota(Quota):
    """Take the policy's client_limits, on every route.

    Reads: the client's address. Writes: exchange.grants, exchange.answer (Retry-After).
    Denies: 429 quota-exceeded; 503 store-unavailable where the store is away and a limit says deny.
    On failure: stage-error.
    """

    name: ClassVar[str] = "client-quota"

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Take them all in one call."""
        limits = exchange.snapshot.client_limits
        return self.take(exchange, limits) if limits else self.skipped
