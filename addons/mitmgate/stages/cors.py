"""Cors: answers preflights, refuses foreign origins, prepares the fields of the response."""

from typing import ClassVar

from mitmgate.core.cors import allowed_origin, grant, is_preflight, is_same_origin, preflight
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.stages.exchange import Answer, Exchange
from mitmgate.stages.stage import Stage


class Cors(Stage):
    """Apply the route's CORS policy.

    Reads: exchange.route.cors, Origin, Access-Control-Request-*. Writes: exchange.cors (also for requests that are
    denied later, so that a browser may read the problem), exchange.answer for a preflight.
    Denies: 403 origin-not-allowed, preflight-refused. On failure: stage-error.
    """

    name: ClassVar[str] = "cors"

    def decide(self, exchange: Exchange) -> Step:
        """Answer a preflight; check the origin of anything else."""
        head, route = exchange.head, exchange.route
        if head is None:
            raise ValueError("no head")
        if route is None or route.cors is None:
            return self.skipped
        rule = route.cors
        origin = head.headers.text("origin")
        exchange.cors = grant(rule, origin)
        if origin is None:
            return self.skipped
        asks = is_preflight(head.method, head.headers)
        if allowed_origin(rule, origin) is None:
            host = exchange.public_host or head.headers.text("host") or exchange.request.authority
            hosts = [host] if exchange.public_port is None else [host, f"{host}:{exchange.public_port}"]
            if not asks and any(is_same_origin(origin, name) for name in hosts):
                return self.skipped
            return self.deny(Reason.ORIGIN_NOT_ALLOWED, "The origin is not among those that this route allows.")
        if not asks:
            return self.admitted
        answer = preflight(rule, head.headers)
        if isinstance(answer, str):
            return self.deny(Reason.PREFLIGHT_REFUSED, answer)
        vary = (b"Vary", b"Access-Control-Request-Method, Access-Control-Request-Headers")
        exchange.answer = Answer(204, (*answer, vary))
        return Step(self.name, Outcome.ANSWER, Reason.PREFLIGHT)
