"""ClientQuota: the limits that are taken before any signature is verified."""

from collections.abc import Awaitable, Iterator
from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.pipeline.coverage import GRANTED, LIMITED, Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Denial
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Location
from mitmgate.stages.quota import Quota, taken, told, waiting


class ClientQuota(Quota):
    """Take the policy's client_limits, on every route.

    Reads: the client's address. Writes: exchange.grants, exchange.answer (Retry-After).
    Denies: 429 quota-exceeded; 503 store-unavailable where the store is away and a limit says deny.
    On failure: stage-error.
    """

    name: ClassVar[str] = "client-quota"

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return told(exchange.grants[: len(exchange.snapshot.client_limits)])

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        return [("client_limits",), *(("rate_limits", name) for name in exchange.snapshot.policy.client_limits)]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        return waiting(denial) if denial.step.reason is Reason.QUOTA_EXCEEDED else super().change(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count what each limit has said."""
        for index, limit in enumerate(loaded.policy.client_limits):
            yield Rule(("client_limits", index), f"client limit {limit}", (GRANTED, LIMITED))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        return taken(exchange.grants[: len(exchange.snapshot.client_limits)], ("client_limits",))

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Take them all in one call."""
        limits = exchange.snapshot.client_limits
        return self.take(exchange, limits) if limits else self.skipped
