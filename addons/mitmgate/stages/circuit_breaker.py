"""CircuitBreaker: which endpoint a request goes to, and whether it may go at all."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import ClassVar, Final, NamedTuple

from mitmproxy.http import HTTPFlow

from mitmgate.audit.event import circuit_turned
from mitmgate.core.address import parse_address
from mitmgate.core.cause import UNCONNECTED
from mitmgate.core.circuit import FAILED, Breaker, Outcome, Permit, State
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Circuit, Endpoint, Upstream
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.pipeline import warnings
from mitmgate.pipeline.coverage import REACHED, Branch, Rule
from mitmgate.pipeline.exchange import Answer, Exchange, exchange_of, reports
from mitmgate.pipeline.stage import Denial, Stage
from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.model_upstreams import parse_endpoint
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.snapshot import Snapshot

_UPSTREAM_FAILURES = frozenset(
    {Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_MALFORMED, Reason.UPSTREAM_CLOSED, Reason.UPSTREAM_TIMEOUT}
)
SILENT: Final = 2.0
"""Seconds for which an endpoint that has let a connection wait in vain is passed over."""
TURNS: Final = 50
"""Openings and closings of circuits that are remembered, for people."""
_UNREACHABLE: Final = Outcome.UNREACHABLE
_ANSWERED: Final = frozenset({Outcome.SUCCESS, Outcome.FAILURE})


class Turn(NamedTuple):
    """A circuit that has opened or closed, and the request that was the last straw.

    circuit: "UPSTREAM URL". at: Unix seconds. why: the reason of the failure, or the status of the response.
    """

    circuit: str
    state: State
    at: float
    why: str
    cause: str
    request_id: str


_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not bound


class CircuitBreaker(Stage):
    """Choose an endpoint in turn, among those whose circuit lets a request through.

    One that lets connections wait, since packets to it are dropped, is passed over for SILENT seconds where another one
    will do; then one request tries it. Its circuit needs failures to open, each of which would cost a request the
    connect timeout.

    Reads: exchange.route.upstream. Writes: exchange.endpoint, exchange.permit, exchange.answer (Retry-After).
    Denies: 503 circuit-open, where no endpoint is left; observed, the next in turn is taken. On failure: stage-error.
    The outcome is recorded once: a failure and a probe's success when the response's head arrives, everything else
    when the exchange ends, since a body may still break off. What the gateway denied, and what a client broke off, says
    nothing of the endpoint; nor does one that closes the connection while a request's body is on its way to it: it may
    refuse that body. A check is answered, and goes nowhere: it says nothing either. Circuits outlive a reload; those of
    endpoints that no policy in use names are dropped.
    """

    name: ClassVar[str] = "circuit-breaker"
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.CIRCUIT_OPEN,)

    def __init__(self, ticks: Callable[[], float] = time.perf_counter) -> None:
        """ticks: the clock of `Exchange.started`, for the time at which an outcome is known."""
        self._ticks = ticks
        self._breakers: dict[str, Breaker] = {}
        self._turns: dict[str, int] = {}
        self._silent: dict[Endpoint, float] = {}  # until when each is passed over
        self._names: dict[str, tuple[Upstream, tuple[str, ...]]] = {}
        self._policy: Snapshot | None = None
        self.turned: dict[str, Turn] = {}
        """How each circuit that ever opened came into its state."""
        self.turns: deque[Turn] = deque(maxlen=TURNS)
        """The last of them, of all circuits."""

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        route = exchange.route
        if route is None:
            return {}
        return {
            "upstream": route.upstream.name,
            "endpoints": [endpoint.url for endpoint in route.upstream.endpoints],
            "chosen": None if exchange.endpoint is None else exchange.endpoint.url,
            "opens": opens_when(route.upstream.circuit),
        }

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        route = exchange.route
        return [] if route is None else [("upstreams", route.upstream.name, name) for name in ("endpoints", "circuit")]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        made = _CHANGES.get(denial.step.reason)
        return super().change(denial) if made is None else made(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count circuits that the file has, and endpoints."""
        for name, upstream in loaded.policy.upstreams.items():
            at: Location = ("upstreams", name)
            if loaded.document.at((*at, "circuit")) is not None:
                yield Rule((*at, "circuit"), f"circuit of {name}", ("closed", "open"))
            for index, endpoint in enumerate(upstream.endpoints):
                yield Rule((*at, "endpoints", index), f"endpoint {endpoint}", (REACHED,))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        route, endpoint = exchange.route, exchange.endpoint
        if route is None:
            return
        at: Location = ("upstreams", route.upstream.name)
        yield (*at, "circuit"), "open" if endpoint is None else "closed"
        if endpoint is not None:
            yield (*at, "endpoints", route.upstream.endpoints.index(endpoint)), REACHED

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find upstreams that no route has, TLS that is never used, and the gateway itself."""
        policy, document = loaded.policy, loaded.document
        used = {route.upstream for route in policy.routes}
        yield from warnings.unused(document, ("upstreams",), policy.upstreams, used)
        for name, upstream in policy.upstreams.items():
            if upstream.tls is not None and not any(url.startswith("https://") for url in upstream.endpoints):
                message = "no endpoint is https, so tls is never used"
                yield document.warning(("upstreams", name, "tls"), Code.UNUSED, message, key=True)
        yield from _itself(policy, document)

    def decide(self, exchange: Exchange) -> Step:
        """Acquire a permit."""
        route = exchange.route
        if route is None:
            raise ValueError("no route")
        if exchange.snapshot is not self._policy:
            self._adopt(exchange.snapshot)
        upstream = route.upstream
        keys = self._keys(upstream)
        if len(keys) == 1:
            breaker = self._breakers.get(keys[0])
            if breaker is not None and breaker.leave is not None:  # as nearly always; `_acquire` would do the same
                exchange.endpoint, exchange.permit = upstream.endpoints[0], breaker.leave
                return self.admitted
        wait = self._acquire(exchange, upstream, exchange.started, ())
        if wait is None:
            return self.admitted
        if reports(exchange):  # the request goes on all the same; without a permit, it says nothing of the endpoint
            endpoints = route.upstream.endpoints
            exchange.endpoint = endpoints[self._turns[route.upstream.name] % len(endpoints)]
        exchange.answer = Answer(503, ((b"Retry-After", b"%d" % max(1, ceil(wait))),))
        return self.deny(Reason.CIRCUIT_OPEN, "The service is not available at the moment.")

    def fail_over(self, exchange: Exchange, reason: Reason) -> Endpoint | None:
        """Record that the endpoint failed, and move the exchange to another; None where none is left to try.

        reason: upstream-closed, where the request was sent; any other: there was no connection to send it on.
        """
        route = exchange.route
        if route is None or exchange.endpoint is None or exchange.retries >= route.upstream.retries:
            return None
        if reason is Reason.UPSTREAM_TIMEOUT:
            self._silence(exchange.endpoint, self._ticks())
        if len(route.upstream.endpoints) == 1:
            if reason is Reason.UPSTREAM_TIMEOUT:
                return None  # packets are dropped: a second connection would wait as long
            exchange.retries += 1
            # The same endpoint once more, since a new connection may do where an old one was stale: the request will
            # say of the endpoint what it has to say when it ends, and a permit is enough for both attempts.
            return exchange.endpoint if exchange.permit is not None else None
        exchange.retries += 1
        now, tried = self._ticks(), (exchange.endpoint,)
        exchange.failed_over = (*exchange.failed_over, reason)
        self._settle(exchange, Outcome.FAILURE if reason is Reason.UPSTREAM_CLOSED else Outcome.UNREACHABLE, now)
        wait = self._acquire(exchange, route.upstream, now, tried)
        return exchange.endpoint if wait is None else None

    def unanswered(self, exchange: Exchange) -> None:
        """Pass an endpoint over that has not answered a connection yet: others need not wait for the end of that."""
        if exchange.endpoint is not None and exchange.route is not None:
            self._silence(exchange.endpoint, self._ticks() + exchange.route.upstream.connect_timeout)

    def _silence(self, endpoint: Endpoint, begin: float) -> None:
        self._silent[endpoint] = begin + SILENT

    def states(self) -> Mapping[str, State]:
        """Return the state of every endpoint that was used, by "UPSTREAM URL"."""
        return {key: breaker.state for key, breaker in self._breakers.items()}

    def reset(self) -> list[str]:
        """Close every circuit, as a person wants; returns those that were not closed, by "UPSTREAM URL"."""
        self._silent.clear()
        return [key for key, breaker in self._breakers.items() if self._reset(breaker)]

    def _reset(self, breaker: Breaker) -> bool:
        before = breaker.state
        breaker.reset()
        if before is State.CLOSED:
            return False
        self._remember(Turn(breaker.endpoint, breaker.state, time.time(), "reset by a person", "", ""))
        return True

    def failed_shares(self) -> Mapping[str, float]:
        """Return what part of each endpoint's requests within its window failed, 0 to 1, by "UPSTREAM URL"."""
        now = self._ticks()
        upstreams = self._policy.upstreams.values() if self._policy is not None else ()
        rules = {key: upstream.circuit for upstream in upstreams for key in _keys_of(upstream)}
        return {key: breaker.share(rules[key], now) for key, breaker in self._breakers.items() if key in rules}

    def responseheaders(self, flow: HTTPFlow) -> None:
        """Record what the response's head says of the endpoint."""
        exchange = exchange_of(flow)
        if exchange is not None and exchange.permit is not None and flow.response is not None:
            self.judge(exchange, flow.response.data.status_code)

    def judge(self, exchange: Exchange, status: int) -> None:
        """Settle the permit where the response's head already says it all."""
        now = self._ticks()
        outcome, permit = self._outcome(exchange, status, now), exchange.permit
        self._settle(exchange, outcome, now, status)
        if outcome is Outcome.SUCCESS and permit is not None and not permit.probe:
            exchange.permit, exchange.judged = permit, True  # unless the end has something else to say

    def response(self, flow: HTTPFlow) -> None:
        """Give back the permit of a request that has ended."""
        exchange = exchange_of(flow)
        if exchange is None or exchange.permit is None:
            return
        if exchange.failure is None and not exchange.permit.probe:
            exchange.permit = None  # nothing to say that the head has not said
        else:
            self.conclude(exchange, None)

    def error(self, flow: HTTPFlow) -> None:
        """Give back the permit of a request that was broken off."""
        self.response(flow)

    def conclude(self, exchange: Exchange, status: int | None) -> None:
        """Settle the permit: status is the upstream's, None where it gave none or has been judged."""
        now = self._ticks()
        outcome, permit = self._outcome(exchange, status, now), exchange.permit
        if exchange.endpoint is not None and exchange.failure is Reason.UPSTREAM_TIMEOUT and outcome is _UNREACHABLE:
            self._silence(exchange.endpoint, now)
        if exchange.judged and permit is not None and outcome in FAILED and permit.endpoint in self._breakers:
            self._breakers[permit.endpoint].withdraw(permit)
        self._settle(exchange, outcome, now, status)

    def _outcome(self, exchange: Exchange, status: int | None, now: float) -> Outcome:
        route = exchange.route
        if route is None:
            raise ValueError("no route")
        rule = route.upstream.circuit
        failure = blamed(exchange)
        if failure in _UPSTREAM_FAILURES:
            return Outcome.UNREACHABLE if failure is Reason.UPSTREAM_UNREACHABLE else Outcome.FAILURE
        if not exchange.admitted or exchange.failure is not None or status is None or exchange.check is not None:
            return Outcome.ABANDONED
        # A client that sends its body slowly must not make the upstream look slow.
        slow = rule.slow
        if slow is not None:
            took = exchange.upstream_seconds
            if (now - exchange.started if took is None else took) > slow:
                return Outcome.FAILURE
        return Outcome.FAILURE if status in rule.statuses else Outcome.SUCCESS

    def _settle(self, exchange: Exchange, outcome: Outcome, now: float, status: int | None = None) -> None:
        permit, route = exchange.permit, exchange.route
        exchange.permit = None
        if self._silent and exchange.endpoint is not None and outcome in _ANSWERED:
            self._silent.pop(exchange.endpoint, None)
        if permit is not None and route is not None:
            if permit.probe or outcome is not Outcome.ABANDONED:
                exchange.settled = (*exchange.settled, exchange.now + now - exchange.started)
            breaker = self._breakers.get(permit.endpoint)
            if breaker is not None:
                if outcome is Outcome.SUCCESS and not permit.probe:
                    breaker.settle(route.upstream.circuit, permit, outcome, now)
                    return
                before = breaker.state
                breaker.settle(route.upstream.circuit, permit, outcome, now)
                if breaker.state is not before:
                    self._turned(exchange, breaker, now, status)

    def _remember(self, turn: Turn) -> None:
        self.turned[turn.circuit] = turn
        self.turns.append(turn)
        if self.tell is not None:
            self.tell(circuit_turned(turn.at, turn.circuit, turn.state.value, turn.why, turn.cause, turn.request_id))

    def _turned(self, exchange: Exchange, breaker: Breaker, now: float, status: int | None) -> None:
        """Remember what opened or closed a circuit."""
        failure = exchange.failure  # first: the response of one that failed is the gateway's own
        if failure is None and status is None and exchange.failed_over:
            failure = exchange.failed_over[-1]
        why = failure.code if failure is not None else "" if status is None else f"status {status}"
        cause = "" if exchange.cause is None or failure is None else exchange.cause.value
        at = exchange.now + now - exchange.started
        self._remember(Turn(breaker.endpoint, breaker.state, at, why, cause, exchange.request_id))

    def _adopt(self, snapshot: Snapshot) -> None:
        """Keep the circuits of this policy, and of the one before it, whose requests may still be on their way."""
        former, self._policy = self._policy, snapshot
        upstreams = [*snapshot.upstreams.values(), *(former.upstreams.values() if former else ())]
        named = {key for upstream in upstreams for key in _keys_of(upstream)}
        self._names.clear()
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if key in named}
        self.turned = {key: turn for key, turn in self.turned.items() if key in named}
        used = {endpoint for upstream in upstreams for endpoint in upstream.endpoints}
        self._silent = {endpoint: until for endpoint, until in self._silent.items() if endpoint in used}

    def _acquire(self, exchange: Exchange, upstream: Upstream, now: float, but: tuple[Endpoint, ...]) -> float | None:
        """Try each endpoint in turn; returns None, or the shortest wait of those that refused."""
        endpoints, keys = upstream.endpoints, self._keys(upstream)
        turn = self._turns.get(upstream.name, 0)
        if not but:  # a retry moves nobody's turn: with two endpoints the dead one would always be next
            self._turns[upstream.name] = turn + 1
        order = [(turn + offset) % len(endpoints) for offset in range(len(endpoints))]
        if self._silent:
            order.sort(key=lambda at: self._silent.get(endpoints[at], 0.0) > now)  # they come last, and in their turn
        waits = []
        for at in order:
            endpoint = endpoints[at]
            if endpoint in but:
                continue
            breaker = self._breakers.get(keys[at])
            if breaker is None:
                breaker = self._breakers[keys[at]] = Breaker(keys[at])
            permit = breaker.acquire(upstream.circuit, now)
            if isinstance(permit, Permit):
                exchange.endpoint, exchange.permit = endpoint, permit
                if endpoint in self._silent:  # this request finds out; others wait for its answer
                    self._silence(endpoint, now + upstream.connect_timeout)
                return None
            waits.append(permit)
        return min(waits, default=1.0)

    def _keys(self, upstream: Upstream) -> tuple[str, ...]:
        """Name the circuits of an upstream; remembered by its name, and believed of that one object alone."""
        known = self._names.get(upstream.name)
        if known is None or known[0] is not upstream:
            known = self._names[upstream.name] = upstream, _keys_of(upstream)
        return known[1]


def blamed(exchange: Exchange) -> Reason | None:
    """Return what went wrong, as far as the endpoint may be to blame for it.

    One that closes the connection while a request's body is on its way may refuse that body: the client's doing. One
    to which a connection was not made in time could not be reached.
    """
    failure = exchange.failure
    if failure is Reason.UPSTREAM_CLOSED and exchange.uploading:
        return None
    if failure is Reason.UPSTREAM_TIMEOUT and exchange.cause in UNCONNECTED:
        return Reason.UPSTREAM_UNREACHABLE
    return failure


def _keys_of(upstream: Upstream) -> tuple[str, ...]:
    """Name circuits. Two upstreams that share an address are two services, each with its own rule and circuit."""
    return tuple(f"{upstream.name} {endpoint.url}" for endpoint in upstream.endpoints)


def opens_when(circuit: Circuit) -> str:
    """Say what opens a circuit; that an endpoint which only fails need not outweigh its successes is left out."""
    share = f", at least {circuit.share:.0%} of the requests," if circuit.share else ""
    return f"{circuit.failures} failures{share} in {circuit.window:g} s"


def _circuit_change(denial: Denial) -> list[str]:
    route = denial.exchange.route
    if route is None:
        return []
    circuit, name = route.upstream.circuit, route.upstream.name
    place = denial.place("upstreams", name, "circuit") or denial.place("upstreams", name)
    return [
        f"the endpoints of {name} would have to recover: {opens_when(circuit)} open the circuit for "
        f"{circuit.open_for:g} s: {place}"
    ]


_CHANGES: Final[Mapping[Reason, Callable[[Denial], list[str]]]] = {
    Reason.CIRCUIT_OPEN: _circuit_change,
}


def _itself(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find endpoints at which the gateway itself listens."""
    listeners = [(policy.listen.host, policy.listen.port)]
    if policy.admin is not None:
        listeners.append((policy.admin.host, policy.admin.port))
    for name, upstream in policy.upstreams.items():
        for index, url in enumerate(upstream.endpoints):
            endpoint = parse_endpoint(url)
            for host, port in listeners:
                here = endpoint.host == host or (_loopback(endpoint.host) and (_loopback(host) or host in _ANY_ADDRESS))
                if here and endpoint.port == port:
                    at = ("upstreams", name, "endpoints", index)
                    yield document.warning(at, Code.ITSELF, "the gateway itself listens there")


def _loopback(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)
