"""Metrics: counts every exchange when it ends. What costs more than a count is read when somebody asks."""

import asyncio
import contextlib
import weakref
from bisect import bisect_left
from collections import defaultdict
from http import HTTPStatus
from time import perf_counter
from typing import ClassVar, Final

from mitmproxy.http import HTTPFlow

from mitmgate.admin.denials import Denials
from mitmgate.admin.families import NONE, SECONDS, SHORT, Series
from mitmgate.admin.readings import Sources, report_of
from mitmgate.admin.report import Report
from mitmgate.audit.event import fate_of
from mitmgate.core.reason import Reason
from mitmgate.pipeline.exchange import Exchange, exchange_of, exchanges

METHODS: Final = {method: method for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
OTHER: Final = "other"
LAG_EVERY: Final = 0.5  # seconds

_LOOKED_AT: Final = frozenset({"denied", "failed"})
"""What became of the requests that the status page shows one by one."""
_STATUSES: Final = {status.value: str(status.value) for status in HTTPStatus} | {499: "499"}


def status_label(status: int) -> str:
    """Return a status as a label: itself where it is a registered one, else its class, since upstreams may invent."""
    return _STATUSES.get(status) or f"{status // 100}xx"


class Metrics:
    """Count exchanges as they end. An addon behind Audit; it decides nothing, and its failure touches no request.

    Reads: the exchange and the response's status. Writes: exchange.counted. `snapshot` is all of it, and what `sources`
    say, as JSON for `report.merge`.
    """

    name: ClassVar[str] = "mitmgate-metrics"

    def __init__(self, sources: Sources) -> None:
        """sources: what else is exported; read when a report is made."""
        self._sources = sources
        self.denials = Denials()
        self._requests: defaultdict[tuple[str, str, str, Reason], int] = defaultdict(int)
        self._decisions: defaultdict[tuple[object, ...], int] = defaultdict(int)
        self._grants: defaultdict[tuple[str, bool, bool, bool], int] = defaultdict(int)
        self._durations: defaultdict[str, list[float]] = defaultdict(lambda: _empty(SECONDS))
        self._deciding: defaultdict[str, list[float]] = defaultdict(lambda: _empty(SHORT))
        self._upstream: defaultdict[str, list[float]] = defaultdict(lambda: _empty(SECONDS))
        self._own: defaultdict[str, list[float]] = defaultdict(lambda: _empty(SHORT))
        self._answers: defaultdict[tuple[str, str, bool], int] = defaultdict(int)
        self._asking: defaultdict[str, list[float]] = defaultdict(lambda: _empty(SECONDS))
        self._lag = _empty(SHORT)
        self._unknown: weakref.WeakSet[HTTPFlow] = weakref.WeakSet()
        self._sampling: asyncio.Task[None] | None = None

    def response(self, flow: HTTPFlow) -> None:
        """Take the end of a complete response."""
        if flow.websocket is None:
            self._end(flow, aborted=False)

    def websocket_end(self, flow: HTTPFlow) -> None:
        """Take the end of a WebSocket."""
        self._end(flow, aborted=False)

    def error(self, flow: HTTPFlow) -> None:
        """Take the end of an exchange that was cut."""
        self._end(flow, aborted=True)

    async def running(self) -> None:
        """Start to watch the event loop."""
        self._sampling = asyncio.create_task(self._sample(), name="event loop lag")

    def conclude(self) -> None:
        """Count what has not ended, as Audit does."""
        for flow, exchange in exchanges():
            if not exchange.counted:
                self._end(flow, aborted=True)

    async def done(self) -> None:
        """Stop watching."""
        if self._sampling is not None:
            self._sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampling

    def snapshot(self) -> bytes:
        """Return everything, for `report.merge` in another process."""
        return self.report().encode()

    def report(self) -> Report:
        """Return everything."""
        return report_of(self._sources, self._series())

    def _end(self, flow: HTTPFlow, aborted: bool) -> None:
        exchange = exchange_of(flow)
        response = flow.response
        if exchange is None:
            if flow not in self._unknown:  # Arrival never saw it, and Enforcer has denied it
                self._unknown.add(flow)
                method = METHODS.get(flow.request.method, OTHER)
                self._requests[NONE, method, "503", Reason.POLICY_UNAVAILABLE] += 1
        elif not exchange.counted:
            exchange.counted = True
            self.count(exchange, None if response is None else response.data.status_code, aborted)

    def count(self, exchange: Exchange, status: int | None, aborted: bool) -> None:
        """Count an exchange that has ended. status: what the client got; None: nothing."""
        route, verdict = exchange.route, exchange.verdict
        fate, reason = fate_of(exchange, aborted)
        if status is None:
            status = reason.status
        name = NONE if route is None else route.name
        label = _STATUSES.get(status) or status_label(status)
        self._requests[name, METHODS.get(exchange.request.method, OTHER), label, reason] += 1
        decisions = self._decisions
        for step in verdict.said:
            decisions[step[:2]] += 1
        for grant in exchange.grants:
            limit = grant.limit
            self._grants[limit.name, grant.admitted, limit.mode == "enforce", grant.degraded] += 1
            if not grant.remaining or not grant.admitted:
                self.denials.at_limit(exchange, grant)
        seconds = perf_counter() - exchange.started
        _observe(self._durations[name], SECONDS, seconds)
        if fate in _LOOKED_AT or verdict.observed:
            self.denials.add(exchange, status, fate, reason, seconds)
        _observe(self._deciding[name], SHORT, verdict.seconds)
        if exchange.snapshot.own:
            for stage, seconds in verdict.times:
                if stage in exchange.snapshot.own:
                    _observe(self._own[stage], SHORT, seconds)
        answer = exchange.service_answer
        if answer is not None:
            self._answers[answer.service, answer.said, answer.cached] += 1
            if not answer.cached:
                _observe(self._asking[answer.service], SECONDS, answer.seconds)
        if exchange.upstream_seconds is not None and route is not None:
            _observe(self._upstream[route.upstream.name], SECONDS, exchange.upstream_seconds)

    def _series(self) -> dict[str, Series]:
        requests: Series = {}
        for (route, method, status, reason), count in self._requests.items():
            requests[route, method, status, reason.code] = count
        limits: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for (limit, admitted, enforced, degraded), count in self._grants.items():
            outcome = "admitted" if admitted else "denied" if enforced else "observed"
            limits[limit, outcome, "true" if degraded else "false"] += count
        answers: Series = {}
        for (service, said, cached), count in self._answers.items():
            answers[service, said, "true" if cached else "false"] = count
        return {
            "mitmgate_decision_service_answers": answers,
            "mitmgate_decision_service_duration_seconds": {(name,): [*v] for name, v in self._asking.items()},
            "mitmgate_requests": requests,
            "mitmgate_decisions": {tuple(map(str, said)): count for said, count in self._decisions.items()},
            "mitmgate_rate_limit_decisions": {**limits},
            "mitmgate_request_duration_seconds": {(name,): [*v] for name, v in self._durations.items()},
            "mitmgate_decision_duration_seconds": {(name,): [*v] for name, v in self._deciding.items()},
            "mitmgate_own_stage_duration_seconds": {(name,): [*v] for name, v in self._own.items()},
            "mitmgate_upstream_duration_seconds": {(name,): [*v] for name, v in self._upstream.items()},
            "mitmgate_requests_in_flight": {(): sum(not exchange.counted for _, exchange in exchanges())},
            "mitmgate_event_loop_lag_seconds": {(): [*self._lag]},
        }

    async def _sample(self) -> None:
        """Measure how late a timer comes."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_EVERY
            await asyncio.sleep(LAG_EVERY)
            _observe(self._lag, SHORT, max(0.0, loop.time() - due))
            self.denials.settle()


def _empty(bounds: tuple[float, ...]) -> list[float]:
    """Make a histogram: a bucket for each bound, one beyond, and the sum."""
    return [0] * (len(bounds) + 1) + [0.0]


def _observe(histogram: list[float], bounds: tuple[float, ...], seconds: float) -> None:
    histogram[bisect_left(bounds, seconds)] += 1
    histogram[-1] += seconds
