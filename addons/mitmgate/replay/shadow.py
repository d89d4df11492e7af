"""Shadow: a candidate policy decides every live request too, on its own state and without any effect."""

import asyncio
import logging
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar

from mitmproxy.http import HTTPFlow

from mitmgate import chain
from mitmgate.audit.event import rfc3339
from mitmgate.audit.record import Event
from mitmgate.audit.trail import AuditSettings, open_trail
from mitmgate.core.reason import Reason
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.exchange import Exchange, exchange_of
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.decision import NO_RULE, Decision, decided, is_denial
from mitmgate.replay.differences import Difference, compare
from mitmgate.replay.offline import unsigned
from mitmgate.services import Services
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stages.decision_service import RecordedAnswers
from mitmgate.stages.own import OwnStage
from mitmgate.stores.api_keys import ApiKeys
from mitmgate.stores.memory import MemoryStore

logger = logging.getLogger(__name__)

_MOST_WAITING = 256
"""Requests whose shadow waits for a key; further ones are not shadowed."""

_OPERATIONAL = frozenset(
    {
        *(Reason.AUDIT_UNAVAILABLE.code, Reason.STORE_UNAVAILABLE.code, Reason.STAGE_ERROR.code),
        Reason.DECISION_UNAVAILABLE.code,
    }
)
"""Denials of the live gateway that say something of its state, and nothing of either policy."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """The candidate, as Arrival asks for it."""

    snapshot: Snapshot


class Shadow:
    """Decide each request under a candidate as well, and say where it decides otherwise.

    Stands behind the chain. Its counters, circuits and keys are its own, in this process: a limit that several
    processes share counts only this one's requests here. It asks no decision service: what the live one has said counts
    for it, and a request about which none was asked is taken for allowed. Reads: the exchange as the chain left it.
    Writes: nothing of it. For metrics, all read on the event loop: `compared` requests; `counts` of differences by
    (kind, reason), the values of differences.Kind and the code of the denial that only one of the two gives ("ok" where
    neither denies); `failed`, requests that could not be decided; `missed`, those that were not tried because too many
    waited for keys. Each difference is an event `shadow-difference`. On failure: the request goes on, `failed` counts.
    """

    name: ClassVar[str] = "mitmgate-shadow"

    def __init__(
        self,
        candidate: Snapshot,
        emit: Callable[[Event], None],
        *,
        ignored: frozenset[bytes] = frozenset(),
        api_keys: ApiKeys | None = None,
        ticks: Callable[[], float] = time.perf_counter,
    ) -> None:
        """emit: takes events, such as the audit trail's. ignored: lower-case header names that are not compared.

        api_keys: the gateway's, whatever list the candidate names.
        """
        self.candidate = candidate
        self.compared = 0
        self.failed = 0
        self.missed = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._emit = emit
        self._ignored = ignored
        self._ticks = ticks
        self._live: Exchange | None = None  # which a candidate's exchange begins with
        self._ring = KeyRing()
        self._ring.configure(candidate.issuers)
        trail, keys = open_trail(AuditSettings(on_full="drop")), ApiKeys() if api_keys is None else api_keys
        answers = RecordedAnswers("allow")
        services = Services(MemoryStore(), self._ring, trail, api_keys=keys, decisions=answers)
        source = _Candidate(unsigned(candidate))
        self._chain: tuple[Stage, ...] = chain.stages(source, services, self._time, self._tick, candidate.own)
        self._arrival = next(stage for stage in self._chain if isinstance(stage, Arrival))
        self._breaker = next(stage for stage in self._chain if isinstance(stage, CircuitBreaker))
        self._flows: weakref.WeakKeyDictionary[HTTPFlow, Exchange] = weakref.WeakKeyDictionary()
        self._waiting: set[asyncio.Task[None]] = set()

    def _time(self) -> float:
        return time.time() if self._live is None else self._live.now

    def _tick(self) -> float:
        return self._ticks() if self._live is None else self._live.started

    def running(self) -> None:
        """Fetch the candidate's keys. Nobody waits for them: a shadow has no effect."""
        starting = asyncio.create_task(self._ring.start(), name="keys of the shadow")
        self._waiting.add(starting)
        starting.add_done_callback(self._waiting.discard)

    async def done(self) -> None:
        """Stop fetching keys."""
        for task in self._waiting:
            task.cancel()
        for stage in self._chain:
            if isinstance(stage, OwnStage):
                stage.done()
        await self._ring.close()

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Decide once more; what would have to wait goes on beside the request."""
        live = exchange_of(flow)
        if live is None or flow in self._flows or "protocol" in {step.stage for step in live.verdict.steps[:1]}:
            return
        try:
            exchange = self._begin(live)
            self._flows[flow] = exchange
            at = self._run(exchange, 0)
            if at is None:
                self._compare(live, exchange)
            elif len(self._waiting) < _MOST_WAITING:
                task = asyncio.ensure_future(self._later(live, exchange, *at))
                self._waiting.add(task)
                task.add_done_callback(self._waiting.discard)
            else:
                self.missed += 1
                _close(at[1])
        except Exception:
            self._fail()

    def _begin(self, live: Exchange) -> Exchange:
        """Begin an exchange at the time, and with the ids, of the live one."""
        self._live = live
        exchange = self._arrival.begin(live.request)
        self._live = None
        exchange.request_id, exchange.traceparent = live.request_id, live.traceparent
        exchange.service_answer = live.service_answer
        return exchange

    def _run(self, exchange: Exchange, first: int) -> tuple[int, Awaitable[None]] | None:
        """Run stages until one has to wait; return its number and what it waits for, None at the end."""
        for number in range(first, len(self._chain)):
            if exchange.verdict.final is not None:
                break
            pending = self._chain[number].run(exchange)
            if pending is not None:
                return number, pending
        return None

    async def _later(self, live: Exchange, exchange: Exchange, number: int, pending: Awaitable[None]) -> None:
        try:
            await pending
            at = self._run(exchange, number + 1)
            while at is not None:
                await at[1]
                at = self._run(exchange, at[0] + 1)
            self._compare(live, exchange)
        except Exception:
            self._fail()

    def _compare(self, live: Exchange, exchange: Exchange) -> None:
        exchange.admitted = exchange.verdict.final is None
        before, after = decided(live), decided(exchange)
        if before.reason in _OPERATIONAL:
            return
        self.compared += 1
        signed = live.snapshot.forward.assertion
        ignored = self._ignored if signed is None else self._ignored | {signed.header}
        difference = compare(before, after, ignored)
        if difference is not None:
            self.counts[difference.kind.value, after.reason if is_denial(after) else before.reason] += 1
            self._emit(self._event(live, exchange, difference, before, after))

    def _event(
        self, live: Exchange, exchange: Exchange, difference: Difference, before: Decision, after: Decision
    ) -> Event:
        event: Event = {
            "time": rfc3339(live.now),
            "event": "shadow-difference",
            "request_id": live.request_id,
            "kind": difference.kind.value,
            "before": difference.before,
            "after": difference.after,
            "route": after.route if after.route != NO_RULE else before.route,
            "policy": live.verdict.policy_digest,
            "candidate": self.candidate.digest,
        }
        principal = live.principal or exchange.principal
        if principal is not None:
            event |= {"user": principal.subject, "issuer": principal.issuer}
        return event

    def responseheaders(self, flow: HTTPFlow) -> None:
        """Tell the candidate's circuits what the upstream's head said."""
        if flow.response is not None:
            self._learn(flow, flow.response.data.status_code)

    def response(self, flow: HTTPFlow) -> None:
        """Tell them how the exchange ended; the permit goes back."""
        self._learn(flow, None)

    error = response

    def _learn(self, flow: HTTPFlow, status: int | None) -> None:
        live, exchange = exchange_of(flow), self._flows.get(flow)
        if live is None or exchange is None or exchange.permit is None:
            return
        try:
            exchange.failure, exchange.cause, exchange.uploading = live.failure, live.cause, live.uploading
            exchange.upstream_seconds = live.upstream_seconds
            if live.admitted and status is not None:
                self._breaker.judge(exchange, status)
            else:  # where the candidate alone let it in, nobody knows what its endpoint would have said
                self._breaker.conclude(exchange, None)
        except Exception:
            self._fail()

    def _fail(self) -> None:
        self.failed += 1
        if self.failed == 1:
            logger.exception("the shadow could not decide; further failures are only counted")


def _close(pending: Awaitable[None]) -> None:
    """Drop a coroutine that never ran, without a warning."""
    close = getattr(pending, "close", None)
    if close is not None:
        close()
