"""Endpoints: what the gateway answers itself. The health check is one exact path."""

from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.stages.exchange import Answer, Exchange
from mitmgate.stages.stage import Stage

_HEALTHY = Answer(200, ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")), b'{"status":"ok"}')
_METHODS = frozenset({"GET", "HEAD"})


class Endpoints(Stage):
    """Answer the health check: never authenticated, never forwarded, and it discloses nothing.

    A request of HTTP/1.0 without Host is for no service, and so for the gateway itself: it may be the health check, or
    `OPTIONS /`, with which HAProxy's `option httpchk` asks whether a server is there.
    Reads: head.path, head.method, head.host. Writes: exchange.answer. Denies: 400 host-invalid, for any other request
    without Host; other methods on the path are routed like any request. On failure: stage-error.
    """

    name: ClassVar[str] = "endpoints"
    reportable: ClassVar[bool] = False

    def decide(self, exchange: Exchange) -> Step:
        """Answer, or skip."""
        head = exchange.head
        if head is None:
            raise ValueError("no head")
        if head.path == exchange.snapshot.health_path and head.method in _METHODS:
            return self._answer(exchange)
        if head.host:
            return self.skipped
        if head.method == "OPTIONS" and head.path == "/":
            return self._answer(exchange)
        return self.deny(Reason.HOST_INVALID, "Exactly one Host is required.")

    def _answer(self, exchange: Exchange) -> Step:
        exchange.answer = _HEALTHY
        return Step(self.name, Outcome.ANSWER, Reason.HEALTH)
