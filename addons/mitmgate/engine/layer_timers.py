"""Deadlines of one client connection, on one wakeup at a time.

mitmproxy makes a task of every `RequestWakeup` and keeps it until it fires, so a deadline is a number here, and a
wakeup is asked for only where none is under way that comes early enough.
"""

import time
import weakref
from collections.abc import Callable, Iterator
from math import inf

from mitmproxy.proxy import events
from mitmproxy.proxy.commands import Command, RequestWakeup
from mitmproxy.proxy.layer import Layer

SLACK = 0.002  # seconds; a wakeup may come this much before its deadline, for want of finer clocks


type Action = Callable[[Layer], Iterator[Command]]
"""What is run when a deadline has passed; it gets the timer's owner."""


class Expired(events.Event):
    """A deadline has passed. `current` is False where it was set anew while the event waited in a paused layer."""

    def __init__(self, timer: "Timer", generation: int) -> None:
        """generation: the timer's when it expired."""
        self.timer = timer
        self._generation = generation

    @property
    def current(self) -> bool:
        """Whether the deadline still is the one that passed."""
        return self.timer.generation == self._generation


class Timer:
    """One deadline of a layer. It is delivered as an Expired event to `owner`, or by calling `action` at once."""

    __slots__ = ("__weakref__", "_owner", "_timers", "action", "due", "generation")

    def __init__(self, timers: "Timers", owner: Layer, action: Action | None = None) -> None:
        """action: commands to run at once, even while the owner is paused and would only queue an event."""
        self._timers = timers
        self._owner = weakref.ref(owner)  # which owns this timer: no cycle, so that both go at once
        self.action = action
        self.due = inf
        self.generation = 0

    @property
    def owner(self) -> Layer | None:
        """The layer that the deadline is of; None where it is gone."""
        return self._owner()

    @property
    def idle(self) -> bool:
        """Whether no deadline is set."""
        return self.due == inf

    def set(self, seconds: float) -> None:
        """Expire in so many seconds, instead of when it was to expire."""
        self.at(self._timers.clock() + seconds)

    def at(self, due: float) -> None:
        """Expire at a time of the clock."""
        self.due = due
        self.generation += 1
        self._timers.active[self] = None
        self._timers.soonest = min(self._timers.soonest, due)

    def clear(self) -> None:
        """Don't expire."""
        if self.due != inf:
            self.due = inf
            self.generation += 1
            self._timers.active.pop(self, None)


class Timers:
    """All deadlines of a client connection."""

    __slots__ = ("_wakeups", "active", "clock", "soonest")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: monotonic seconds."""
        self.clock = clock
        self.active: dict[Timer, None] = {}
        self.soonest = inf  # no deadline of an active timer is earlier
        self._wakeups: dict[RequestWakeup, float] = {}

    def wakeup(self) -> RequestWakeup | None:
        """Return the command to yield, where the soonest deadline comes before every wakeup under way."""
        if self.soonest == inf or (self._wakeups and min(self._wakeups.values()) <= self.soonest + SLACK):
            return None
        command = RequestWakeup(max(0.0, self.soonest - self.clock()))
        self._wakeups[command] = self.soonest
        return command

    def owns(self, command: object) -> bool:
        """Tell whether a completed command is a wakeup of these timers, and forget it."""
        return isinstance(command, RequestWakeup) and self._wakeups.pop(command, None) is not None

    def expire(self) -> list[Timer]:
        """Take the timers that are due out, and find the soonest of the rest."""
        now = self.clock() + SLACK
        due = [timer for timer in self.active if timer.due <= now]
        for timer in due:
            self.active.pop(timer, None)
            timer.due = inf
        self.soonest = min((timer.due for timer in self.active), default=inf)
        return due
