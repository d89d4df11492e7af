"""Routing: which route a request takes. Recorded here; the 404 is given after authentication."""

from typing import ClassVar

from mitmgate.core.cors import is_preflight
from mitmgate.core.reason import Reason
from mitmgate.core.routing import NoRoute
from mitmgate.core.rules import Route
from mitmgate.core.verdict import Step
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.stage import Stage


class Routing(Stage):
    """Match path, host and method against the route table.

    Reads: exchange.head. Writes: exchange.route, or exchange.no_route, which Authorization turns into 404 or 405, so
    that the table can't be enumerated without a credential. A true preflight takes the route of the method that it
    asks for. Denies: 400 path-ambiguous for an encoded slash that no route opted in to. On failure: stage-error.
    """

    name: ClassVar[str] = "routing"
    reportable: ClassVar[bool] = False

    def decide(self, exchange: Exchange) -> Step:
        """Find the route."""
        head = exchange.head
        if head is None:
            raise ValueError("no head")
        table = exchange.snapshot.routes
        found: Route | NoRoute | None = None
        if head.method == "OPTIONS" and is_preflight(head.method, head.headers):
            asked = head.headers.text("access-control-request-method") or ""
            candidate = table.match(asked, head.host, head.path)
            if isinstance(candidate, Route) and candidate.cors is not None:
                found = candidate
        if found is None:
            found = table.match(head.method, head.host, head.path)
        if isinstance(found, Route) and not head.encoded_slash:
            exchange.route = found
            return self.admitted
        if head.encoded_slash and not (isinstance(found, Route) and found.allow_encoded_slash):
            return self.deny(Reason.PATH_AMBIGUOUS, "The path holds an encoded slash.")
        if isinstance(found, NoRoute):
            exchange.no_route = found
            return self.skipped
        exchange.route = found
        return self.admitted
