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

    Reads: head.path, head.method. Writes: exchange.answer. Denies: nothing; other methods on the path are routed
    like any request. On failure: stage-error.
    """

    name: ClassVar[str] = "endpoints"

    def decide(self, exchange: Exchange) -> Step:
        """Answer, or skip."""
        head = exchange.head
        if head is None:
            raise ValueError("no head")
        if head.path == exchange.snapshot.health_path and head.method in _METHODS:
            exchange.answer = _HEALTHY
            return Step(self.name, Outcome.ANSWER, Reason.HEALTH)
        return self.skipped
