"""Audit: exactly one event for every request that arrived, whatever became of it."""

import logging
import weakref
from time import perf_counter, time
from typing import ClassVar

from mitmproxy.http import HTTPFlow

from mitmgate.audit.ended import Ended, ended
from mitmgate.audit.event import minimal_event
from mitmgate.audit.writer import AuditTrail
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.descriptors import Seldom
from mitmgate.pipeline.exchange import Exchange, exchange_of, exchanges

_seldom = Seldom(logging.getLogger(__name__))


class Audit:
    """Write an exchange's event when it ends. An addon behind ResponseHeaders; it decides nothing.

    An exchange ends with mitmproxy's `response` hook (for a streamed response: when all of it was passed on) or with
    its `error` hook; whichever comes first writes the event. A WebSocket's exchange ends when it is closed
    (`websocket_end`): its one event has the duration of the whole connection and `upgraded`.

    Reads: the exchange and the flow. Writes: exchange.audited. On failure: an event that says so.
    """

    name: ClassVar[str] = "audit"

    def __init__(self, trail: AuditTrail) -> None:
        """trail: where events go."""
        self._trail = trail
        self._unknown: weakref.WeakSet[HTTPFlow] = weakref.WeakSet()

    def response(self, flow: HTTPFlow) -> None:
        """Take the end of a complete response."""
        if flow.websocket is None:
            self._write(flow, aborted=False)

    def websocket_end(self, flow: HTTPFlow) -> None:
        """Take the end of a WebSocket."""
        self._write(flow, aborted=False)

    def error(self, flow: HTTPFlow) -> None:
        """Take the end of an exchange that was cut: by the client, the upstream or the gateway."""
        self._write(flow, aborted=True)

    def conclude(self) -> int:
        """Write the events of exchanges that have not ended; return how many. Called before the trail is closed."""
        pending = [(flow, exchange) for flow, exchange in exchanges() if not exchange.audited]
        for flow, _ in pending:
            self._write(flow, aborted=True)
        self._trail.settle()
        return len(pending)

    def _write(self, flow: HTTPFlow, aborted: bool) -> None:
        if not self._trail.enabled:
            return
        exchange = exchange_of(flow)
        if exchange is None:
            self._write_unknown(flow)
        elif not exchange.audited:
            exchange.audited = True
            try:
                one = _ended(flow, exchange, aborted)
            except Exception as error:
                text = "the end of %s could not be recorded"
                _seldom.log(logging.ERROR, text, exchange.request_id, error=error)
                detail, digest = "The event could not be made.", exchange.verdict.policy_digest
                self._trail.emit(minimal_event(exchange.request_id, exchange.now, Reason.STAGE_ERROR, detail, digest))
            else:
                self._trail.gather(one)

    def _write_unknown(self, flow: HTTPFlow) -> None:
        """Write the event of a flow that Arrival never saw: Enforcer has denied it."""
        if flow not in self._unknown:
            self._unknown.add(flow)
            self._trail.emit(minimal_event("", time(), Reason.POLICY_UNAVAILABLE, "No policy decided on this request."))


def _ended(flow: HTTPFlow, exchange: Exchange, aborted: bool) -> Ended:
    """Take what the event says, now: neither the flow nor the exchange is looked at again."""
    response = flow.response
    body_in, body_out = exchange.body_in, exchange.body_out
    if body_in is None:
        content = flow.request.data.content
        if content is not None:
            body_in = len(content)
        elif exchange.admitted and not aborted:
            body_in = exchange.request.declared_body
    if body_out is None and response is not None and response.data.content is not None:
        body_out = len(response.data.content)
    status = None if response is None else response.data.status_code
    if exchange.check is not None:
        body_in = None  # it is with the proxy that asks
        final = exchange.verdict.final
        if final is not None and status is not None:  # what the proxy was told may be another one (Enforcer)
            answered = final.outcome is Outcome.ANSWER and exchange.answer is not None
            status = exchange.answer.status if answered and exchange.answer is not None else final.reason.status
    return ended(
        exchange,
        perf_counter() - exchange.started,
        status,
        aborted,
        flow.websocket is not None,
        exchange.upstream_seconds,
        body_in,
        body_out,
        exchange.websocket,
    )
