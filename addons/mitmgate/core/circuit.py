"""The circuit of one upstream endpoint: closed, open, half-open.

Theory of operation. A closed circuit lets everything through and counts failures. `failures` of them within `window`
seconds open it: for `open_for` seconds nothing is let through. Then it is half-open: at most `probes` requests are on
their way at once; when `probes` of them have succeeded it closes, and one failure opens it again. A permit stands for
the circuit as it was when the request was let through (its generation), so that a late answer can't close, or open, a
circuit that has gone on since. A probe that says nothing of the endpoint (the client left, a later stage denied) gives
its slot back, and so does one that is forgotten: slots are counted by the permits that still exist. The rule comes with
each call, since a reload may change it. See Nygard, Release It!, "Circuit Breaker".
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from weakref import WeakSet

from mitmgate.core.rules import Circuit


class State(StrEnum):
    """Whether requests pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Event(StrEnum):
    """What moves a circuit."""

    FAILURES_REACHED = "failures-reached"
    WAITED = "waited"
    PROBES_SUCCEEDED = "probes-succeeded"
    PROBE_FAILED = "probe-failed"


class Outcome(StrEnum):
    """What a request said of the endpoint. ABANDONED: nothing."""

    SUCCESS = "success"
    FAILURE = "failure"
    ABANDONED = "abandoned"


TRANSITIONS = {
    (State.CLOSED, Event.FAILURES_REACHED): State.OPEN,
    (State.OPEN, Event.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBES_SUCCEEDED): State.CLOSED,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
}


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Permit:
    """Leave to send one request to an endpoint ("UPSTREAM URL"); given back with its outcome, once.

    Compared by identity: each probe's permit is another one. All requests of one closed generation share theirs, which
    has nothing to tell them apart: only whoever holds it knows whether it was given back.
    """

    endpoint: str
    generation: int
    probe: bool


class Breaker:
    """The state of one endpoint. All times are Unix seconds, given by the caller."""

    __slots__ = ("_failures", "_opened", "_probing", "_succeeded", "endpoint", "generation", "leave", "state")

    leave: Permit | None
    """What `acquire` returns while the circuit is closed, whatever rule and time are; None: it is not closed."""

    def __init__(self, endpoint: str) -> None:
        """Start closed."""
        self.endpoint = endpoint
        self.state = State.CLOSED
        self.generation = 0
        self._failures: deque[float] = deque()
        self._opened = 0.0
        self._probing: WeakSet[Permit] = WeakSet()
        self._succeeded = 0
        self.leave = Permit(endpoint, 0, probe=False)

    def acquire(self, rule: Circuit, now: float) -> Permit | float:
        """Ask for leave. Returns a permit, or the seconds after which asking again makes sense."""
        if self.state is State.OPEN:
            left = self._opened + rule.open_for - now
            if left > 2 * rule.open_for:  # the clock was set back: that must not keep it open for so much longer
                self._opened, left = now, rule.open_for
            if left > 0:
                return left
            self._move(Event.WAITED)
        if self.state is State.HALF_OPEN and self._succeeded >= rule.probes:  # a reload asks for fewer
            self._move(Event.PROBES_SUCCEEDED)
        if self.leave is not None:
            return self.leave
        if len(self._probing) + self._succeeded >= rule.probes:
            # The probes' answers decide; a second is a guess, but a request that asks then loses nothing.
            return 1.0
        permit = Permit(self.endpoint, self.generation, probe=True)
        self._probing.add(permit)
        return permit

    def settle(self, rule: Circuit, permit: Permit, outcome: Outcome, now: float) -> None:
        """Take a permit back. One of an earlier generation, or a probe's given back before, changes nothing."""
        if permit.generation != self.generation:
            return
        if permit.probe:
            if permit not in self._probing:
                return
            self._probing.discard(permit)
            if outcome is Outcome.FAILURE:
                self._opened = now
                self._move(Event.PROBE_FAILED)
            elif outcome is Outcome.SUCCESS:
                self._succeeded += 1
                if self._succeeded >= rule.probes:
                    self._move(Event.PROBES_SUCCEEDED)
            return
        if outcome is not Outcome.FAILURE:
            return
        failures = self._failures
        failures.append(now)
        while failures and failures[0] <= now - rule.window:
            failures.popleft()
        if len(failures) >= rule.failures:
            self._opened = now
            self._move(Event.FAILURES_REACHED)

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.generation += 1
        self._failures.clear()
        self._probing.clear()
        self._succeeded = 0
        closed = self.state is State.CLOSED
        self.leave = Permit(self.endpoint, self.generation, probe=False) if closed else None
