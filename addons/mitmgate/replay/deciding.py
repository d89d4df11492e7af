"""Decide recorded requests again: the same chain, at the recorded time, with nothing but memory around it.

What was dated then, such as a token, is so again; what lasts, such as a limit's window, has a clock that only runs on
where that of the recording was set back.

Two kinds of events happen at a gateway, and replay repeats both in the order of their times: a request is decided, and
later the circuit learns what its endpoint said. Between the two the request is on its way, and holds a probe's slot,
say, exactly as long as it did then.
"""

import heapq
from collections.abc import Awaitable, Generator, Mapping
from dataclasses import dataclass

from mitmgate import chain
from mitmgate.audit.trail import AuditSettings, open_trail
from mitmgate.core.api_key import ApiKey
from mitmgate.core.decision_service import Said
from mitmgate.core.reason import Reason
from mitmgate.core.trace import valid_traceparent
from mitmgate.pipeline.enforcer import Enforcer
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.shown_keys import OfflineKeys
from mitmgate.replay.traffic import Aftermath, Recorded
from mitmgate.services import Services
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stages.decision_service import RecordedAnswers
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.revocations import Revocations

_TRACE = "00-00000000000000000000000000000001-0000000000000001-01"
_KEYS = 1_000_000


@dataclass(frozen=True, slots=True)
class _InForce:
    """The policy of a replay: one, from beginning to end (stages.arrival.SnapshotSource)."""

    snapshot: Snapshot


class Decider:
    """One policy with its own counters and circuits, deciding on recorded requests in the order of their arrival."""

    def __init__(
        self,
        snapshot: Snapshot,
        ring: OfflineRing,
        assumed: Said = "unavailable",
        keys: Mapping[str, ApiKey] | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        """ring: of this policy alone. Its state, like the counters and circuits here, goes from request to request.

        assumed: what a decision service is taken to say of a request about which nobody asked it then. keys: API keys
        that are at hand, by id. revocations: what is revoked; None: nothing but what a recording says.
        """
        self.answers = RecordedAnswers(assumed)
        self.snapshot = snapshot
        self.ring = ring
        self.now = self.ticks = 0.0
        self.imagined = 0
        """Admitted requests of which the recording has no response: taken for answered at once, with success."""
        ring.configure(snapshot.issuers)
        source = _InForce(snapshot)
        self.keys = OfflineKeys(keys)
        trail = open_trail(AuditSettings(on_full="drop"))
        services = Services(
            MemoryStore(_KEYS),
            ring,
            trail,
            api_keys=self.keys,
            decisions=self.answers,
            revocations=revocations or Revocations(),
        )
        self._chain: tuple[Stage, ...] = chain.stages(
            source, services, lambda: self.now, lambda: self.ticks, snapshot.own, offline=True
        )
        self._arrival = next(stage for stage in self._chain if isinstance(stage, Arrival))
        self._breaker = next(stage for stage in self._chain if isinstance(stage, CircuitBreaker))
        self._enforcer = Enforcer(source, chain.signatures(snapshot.own))
        self._events: list[tuple[float, int, Exchange, Aftermath | Reason]] = []
        self._number = 0

    def decide(self, recorded: Recorded) -> Exchange:
        """Decide one request. Call it in the order of arrival; an earlier time than the last is taken for the last."""
        self._learn(recorded.at)
        self.now, self.ticks = recorded.at, max(self.ticks, recorded.at)
        self.ring.presented, self.keys.shown = recorded.presented, recorded.key
        exchange = self._arrival.begin(recorded.request)
        exchange.request_id = recorded.request_id or exchange.request_id
        # What would be random is what it was then, or the same in every run.
        exchange.traceparent = _traceparent(recorded)
        exchange.service_answer = recorded.service_answer
        verdict = exchange.verdict
        for stage in self._chain:
            pending = stage.run(exchange)
            if pending is not None:
                _finish(pending)
            if verdict.final is not None:
                break
        exchange.admitted = self._enforcer.enforce(exchange)
        if exchange.admitted:
            self._expect(exchange, recorded)
        elif exchange.permit is not None:
            self._breaker.conclude(exchange, None)
        return exchange

    def _expect(self, exchange: Exchange, recorded: Recorded) -> None:
        """Note when the circuit will learn of this request."""
        after = recorded.aftermath
        if after is None:
            self.imagined += 1
            self._breaker.conclude(exchange, 200)
            return
        for at, why in after.tried:
            self._push(at, exchange, why)
        if after.known is not None:
            self._push(after.known, exchange, after)

    def _push(self, at: float, exchange: Exchange, after: Aftermath | Reason) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, exchange, after))

    def _learn(self, until: float) -> None:
        """Tell the circuit what it had learnt before this time."""
        while self._events and self._events[0][0] <= until:
            at, _, exchange, after = heapq.heappop(self._events)
            self.ticks = max(self.ticks, at)
            if isinstance(after, Reason):
                endpoint = self._breaker.fail_over(exchange, after)
                exchange.endpoint = endpoint or exchange.endpoint
            elif exchange.permit is not None:
                exchange.failure, exchange.upstream_seconds = after.failure, after.took
                self._breaker.conclude(exchange, after.status)

    @property
    def stages(self) -> Mapping[str, Stage]:
        """The stages by their names: what each has read, and by which members of the policy it went, it says itself."""
        return {stage.name: stage for stage in self._chain}

    @property
    def on_their_way(self) -> int:
        """How many admitted requests have not been answered yet."""
        return len(self._events)


def _traceparent(recorded: Recorded) -> str:
    """Find the trace context that the request went on with, where it did."""
    decision = recorded.decision
    if decision is not None and decision.fields is not None:
        for name, content in reversed(decision.fields):
            if name == b"traceparent" and (trace := valid_traceparent(content)) is not None:
                return trace
    return valid_traceparent(recorded.request.headers.one(b"traceparent")) or _TRACE


def _finish(pending: Awaitable[None]) -> None:
    """Run an awaitable that has nothing to wait for."""
    steps: Generator[object] = pending.__await__()
    try:
        next(steps)
    except StopIteration:
        return
    steps.close()
    raise RuntimeError(
        f"{Reason.STAGE_ERROR.code}: a stage waits for something, and there is nothing to wait for offline"
    )
