"""The circuit of one upstream endpoint: closed, open, half-open.

Theory of operation. A closed circuit lets everything through and counts. It opens when `failures` requests have failed
within `window` seconds, and these are `share` of all that have ended in it: else one client that knows how to make a
service fail would close it to everybody. An endpoint that is dead has a window full of successes behind it, and must
not wait until failures outweigh them. So `failures` of them open the circuit as well
  where no connection could be made, one time after the other: no request can cause that;
  where nothing but failures came for QUIET seconds, and for as long as `failures` successes have taken to come.

Open, it lets nothing through for `open_for` seconds. Then it is half-open: at most `probes` requests are on their way
at once; when `probes` of them have succeeded it closes, and one failure opens it again. A permit stands for the circuit
as it was when the request was let through (its generation), so that a late answer can't close, or open, a circuit that
has gone on since. A probe that says nothing of the endpoint (the client left, a later stage denied) gives its slot
back, and so does one that is forgotten: slots are counted by the permits that still exist. The rule comes with each
call, since a reload may change it. See Nygard, Release It!, "Circuit Breaker".

Successes are counted in SLICES slices of a window, since there are many of them: one counts until all of its slice is
out of the window, up to a slice longer than a failure would.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from weakref import WeakSet

from mitmgate.core.rules import Circuit

QUIET: Final = 1.0
"""Seconds without a success after which failures are no longer weighed against the successes before."""
SLICES: Final = 10
"""Parts of a window in which successes are counted."""


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
    RESET = "reset"


class Outcome(StrEnum):
    """What a request said of the endpoint. UNREACHABLE: a failure before there was a connection. ABANDONED: nothing."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNREACHABLE = "unreachable"
    ABANDONED = "abandoned"


FAILED: Final = frozenset({Outcome.FAILURE, Outcome.UNREACHABLE})


TRANSITIONS = {
    (State.CLOSED, Event.FAILURES_REACHED): State.OPEN,
    (State.OPEN, Event.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Event.PROBES_SUCCEEDED): State.CLOSED,
    (State.HALF_OPEN, Event.PROBE_FAILED): State.OPEN,
    **{(state, Event.RESET): State.CLOSED for state in State},
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
    """The state of one endpoint. All times are seconds of one clock that never runs back, given by the caller."""

    __slots__ = (
        "_failures",
        "_good",
        "_opened",
        "_probing",
        "_run",
        "_succeeded",
        "_successes",
        "_unreachable",
        "endpoint",
        "generation",
        "leave",
        "state",
    )

    leave: Permit | None
    """What `acquire` returns while the circuit is closed, whatever rule and time are; None: it is not closed."""

    def __init__(self, endpoint: str) -> None:
        """Start closed."""
        self.endpoint = endpoint
        self.state = State.CLOSED
        self.generation = 0
        self._failures: deque[float] = deque()
        self._successes: deque[list[float]] = deque()  # the end of each slice, and the successes in it
        self._good = 0.0  # when the last success came, where there was one
        self._run = 0  # failures since then
        self._unreachable = 0  # those of them, without another between, that could not connect
        self._opened = 0.0
        self._probing: WeakSet[Permit] = WeakSet()
        self._succeeded = 0
        self.leave = Permit(endpoint, 0, probe=False)

    def acquire(self, rule: Circuit, now: float) -> Permit | float:
        """Ask for leave. Returns a permit, or the seconds after which asking again makes sense."""
        if self.state is State.OPEN:
            left = self._opened + rule.open_for - now
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
            if outcome in FAILED:
                self._opened = now
                self._move(Event.PROBE_FAILED)
            elif outcome is Outcome.SUCCESS:
                self._succeeded += 1
                if self._succeeded >= rule.probes:
                    self._move(Event.PROBES_SUCCEEDED)
        elif outcome is Outcome.SUCCESS:
            self._succeed(rule, now)
        elif outcome in FAILED:
            self._failures.append(now)
            self._run += 1
            self._unreachable = self._unreachable + 1 if outcome is Outcome.UNREACHABLE else 0
            if self._opens(rule, now):
                self._opened = now
                self._move(Event.FAILURES_REACHED)

    def reset(self) -> None:
        """Close, and forget what was seen: a person says so. Permits that are out change nothing any more."""
        self._move(Event.RESET)

    def withdraw(self, permit: Permit) -> None:
        """Take back the last success: its response broke off behind its head."""
        if permit.generation == self.generation and self._successes and self._successes[-1][1] > 0:
            self._successes[-1][1] -= 1

    def share(self, rule: Circuit, now: float) -> float:
        """Return the part of the requests that ended within the window, 0 to 1, that failed."""
        failed, succeeded = self._counts(rule, now)
        return failed / (failed + succeeded) if failed else 0.0

    def _succeed(self, rule: Circuit, now: float) -> None:
        self._good = now
        self._run = self._unreachable = 0
        successes = self._successes
        if successes and successes[-1][0] > now:
            successes[-1][1] += 1
            return
        self._counts(rule, now)
        successes.append([now + rule.window / SLICES, 1])

    def _counts(self, rule: Circuit, now: float) -> tuple[int, float]:
        """Drop what is out of the window; return the failures and the successes in it."""
        failures, successes, begin = self._failures, self._successes, now - rule.window
        while failures and failures[0] <= begin:
            failures.popleft()
        while successes and successes[0][0] <= begin:
            successes.popleft()
        return len(failures), sum([count for _, count in successes])

    def _opens(self, rule: Circuit, now: float) -> bool:
        failed, succeeded = self._counts(rule, now)
        enough = rule.failures
        if failed < enough:
            return False
        if failed >= rule.share * (failed + succeeded) or self._unreachable >= enough:
            return True
        return self._run >= enough and now - self._good >= max(QUIET, (enough - 1) * rule.window / succeeded)

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.generation += 1
        self._failures.clear()
        self._successes.clear()
        self._run = self._unreachable = 0
        self._probing.clear()
        self._succeeded = 0
        closed = self.state is State.CLOSED
        self.leave = Permit(self.endpoint, self.generation, probe=False) if closed else None
