"""Figures of an audit file of any length, in memory that does not grow with it."""

import math
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, get_args

from mitmgate.audit.event import Fate

_NAMES: Final = 50_000
"""Names that are counted exactly."""
_ROUTES: Final = 1000
"""Routes whose durations are told apart."""
_ERROR: Final = 0.01
"""Of a quantile, as a share of it."""
_SHARES: Final = (50, 90, 95, 99)
_SMALLEST: Final = 1e-3  # milliseconds: what events are written with
_LONGEST: Final = 1e13  # milliseconds, three hundred years
_NAME: Final = 200
"""Characters of a name that are kept; of a longer one a digest stands for the rest."""


_TIME: Final = 40  # characters
_OUTCOMES: Final = frozenset(get_args(Fate))


def _number(value: object) -> float | int | None:
    return value if isinstance(value, float | int) and not isinstance(value, bool) else None


class Frequent:
    """The most frequent of any number of names (J. Misra, D. Gries, "Finding repeated elements", 1982).

    Counts are exact up to `most` different names. Beyond that a count is at most `missed` too low.
    """

    def __init__(self, most: int = _NAMES) -> None:
        """most: names that are counted exactly."""
        self.counts = Counter[str]()
        self.missed = 0
        self._most = most

    def add(self, name: str) -> None:
        """Count a name once."""
        if len(name) > _NAME:
            rest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            name = f"{name[:_NAME]}…{rest}"
        counts = self.counts
        counts[name] += 1
        if len(counts) > 2 * self._most:
            less = sorted(counts.values(), reverse=True)[self._most]
            self.counts = Counter({name: count - less for name, count in counts.items() if count > less})
            self.missed += less

    def top(self, most: int) -> list[tuple[str, int]]:
        """Return the most frequent with their counts."""
        return sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))[:most]


class Quantiles:
    """Quantiles within one part in a hundred, of durations in milliseconds (DDSketch; C. Masson et al., VLDB 2019)."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.longest = 0.0
        self._scale = 1 / math.log((1 + _ERROR) / (1 - _ERROR))
        self._buckets = Counter[int]()

    def add(self, duration: float) -> None:
        """Take a duration; what is none (NaN, a negative number) is left out, and no file makes one endless."""
        if not duration >= 0:
            return
        duration = min(duration, _LONGEST)
        self.count += 1
        self.longest = max(self.longest, duration)
        self._buckets[math.ceil(math.log(max(duration, _SMALLEST)) * self._scale)] += 1

    def at(self, percent: float) -> float | None:
        """Return the duration that so many of a hundred do not exceed; None where there is none."""
        before = math.ceil(self.count * percent / 100)
        for bucket in sorted(self._buckets):
            before -= self._buckets[bucket]
            if before <= 0:
                return min(math.exp(bucket / self._scale) * (1 - _ERROR), self.longest)
        return None

    def figures(self) -> dict[str, float]:
        """Return the usual quantiles and the longest, by their names."""
        found = {f"p{percent}": self.at(percent) for percent in _SHARES}
        return {name: round(value, 3) for name, value in (*found.items(), ("max", self.longest)) if value is not None}


class Statistics:
    """Figures of events, which are added one after the other."""

    def __init__(self) -> None:
        """Begin with none."""
        self.events = 0
        self.requests = 0
        self.first = ""
        self.last = ""
        self.kinds = Frequent()
        self.named = {name: Frequent() for name in ("outcome", "reason", "status", "route", "user", "client_ip")}
        self.durations = Quantiles()
        self.upstream = Quantiles()
        self.by_route: dict[str, tuple[Quantiles, Counter[str]]] = {}

    def add(self, event: Mapping[str, object]) -> None:
        """Count an event."""
        self.events += 1
        when = event.get("time")
        if isinstance(when, str):
            when = when[:_TIME]
            if not self.first or when < self.first:
                self.first = when
            self.last = max(self.last, when)
        if event.get("event") != "request":
            self.kinds.add(str(event.get("event")))
            return
        self.requests += 1
        for name, frequent in self.named.items():
            value = event.get(name)
            if value is not None:
                frequent.add(value if isinstance(value, str) else str(value))
        duration, upstream = _number(event.get("duration_ms")), _number(event.get("upstream_ms"))
        route = event.get("route")
        if duration is not None:
            self.durations.add(duration)
        if upstream is not None:
            self.upstream.add(upstream)
        if isinstance(route, str):
            route = route[:_NAME]
            known = self.by_route.get(route)
            if known is None:
                if len(self.by_route) >= _ROUTES:
                    return
                known = self.by_route[route] = Quantiles(), Counter[str]()
            if duration is not None:
                known[0].add(duration)
            outcome = event.get("outcome")
            known[1][outcome if isinstance(outcome, str) and outcome in _OUTCOMES else "?"] += 1

    def report(self, top: int) -> dict[str, object]:
        """Return all figures for a program. Durations are milliseconds."""
        named = {
            name: {"top": dict(frequent.top(top)), "counts_may_lack": frequent.missed}
            for name, frequent in self.named.items()
        }
        routes = {
            name: {"requests": outcomes.total(), "outcomes": dict(outcomes), "duration_ms": durations.figures()}
            for name, (durations, outcomes) in sorted(self.by_route.items(), key=lambda one: -one[1][1].total())[:top]
        }
        return {
            "events": self.events,
            "requests": self.requests,
            "first": self.first,
            "last": self.last,
            **named,
            "duration_ms": self.durations.figures(),
            "upstream_ms": self.upstream.figures(),
            "routes": routes,
            "other_events": dict(self.kinds.top(top)),
        }
