"""SizeLimit: how large a request body may be."""

from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Step
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage, route_at
from mitmgate.policy.problem import Location


class SizeLimit(Stage):
    """Refuse a declared length that is too large, and set the bound for a body whose length is not declared.

    Reads: the declared length, the route's max_body. Writes: exchange.max_body, to which the protocol layer holds
    the body while it arrives. Denies: 413 body-too-large. On failure: stage-error.
    """

    name: ClassVar[str] = "size-limit"

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return {"declared_body": exchange.request.declared_body, "bound": exchange.max_body}

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at = route_at(exchange)
        return [*([(*at, "max_body")] if at else []), ("limits", "body")]

    def decide(self, exchange: Exchange) -> Step:
        """Compare, or hand the bound on."""
        route = exchange.route
        exchange.max_body = exchange.snapshot.max_body if route is None else route.max_body
        declared = exchange.request.declared_body
        if declared is not None and declared > exchange.max_body:
            return self.deny(
                Reason.BODY_TOO_LARGE, f"The body is larger than the {exchange.max_body} bytes that are allowed."
            )
        return self.admitted
