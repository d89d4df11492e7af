"""What the status page is told each second, while somebody looks: rates, latencies, states, what was denied.

Theory of operation. The counters of a report only grow; the feed asks for a report each second, and takes the
differences. One feed serves all who look; each event is made once for all that have had the one before. Without anybody
who looks it asks for LINGER more, so that a page which is loaded again keeps its picture, and then nothing runs.
"""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import orjson

from mitmgate.admin.denials import KEPT, Row
from mitmgate.admin.families import BY_NAME, NONE, Series
from mitmgate.admin.report import Report
from mitmgate.admin.status import Concern, concerns, state_of, status_of
from mitmgate.admin.workers import Inquire
from mitmgate.core.reason import Reason

logger = logging.getLogger(__name__)

EVERY: Final = 1.0
"""Seconds from one event to the next."""
LINGER: Final = 30.0
"""Seconds that the feed goes on for when nobody looks any more."""
HISTORY: Final = 300
"""Events of which rates and latencies are kept, for who comes later."""
SPAN: Final = 10
"""Events that latencies and the figures of routes are taken over."""
_MOST_ROUTES: Final = 50
_MOST_REASONS: Final = 20
_MOST_TURNS: Final = 50
_MOST_LIMITS: Final = 100
_MUCH: Final = 0.5  # the part of the requests that is denied from which on it is worth a word
_SOME: Final = 0.05  # the same of those that failed
_FEW: Final = 10  # requests within SPAN below which nothing is said of parts
_SLOW_LOOP: Final = 0.1  # seconds

Quantiles = list[float | None]

_HISTOGRAMS: Final = {
    "gateway": "mitmgate_decision_duration_seconds",
    "upstream": "mitmgate_upstream_duration_seconds",
    "whole": "mitmgate_request_duration_seconds",
}
_LAG: Final = "mitmgate_event_loop_lag_seconds"


class Totals(NamedTuple):
    """Counters at a time. at: seconds of a clock that nobody sets. requests: by route, status and reason."""

    at: float
    requests: Mapping[tuple[str, str], float]
    histograms: Mapping[str, Mapping[str, list[float]]]


class Feed:
    """Makes the events, while somebody looks."""

    def __init__(self, ask: Callable[[], Awaitable[Report]], inquire: Inquire) -> None:
        """ask: makes a report. inquire: asks the processes for what is no figure."""
        self._ask = ask
        self._inquire = inquire
        self._looking = 0
        self._running: asyncio.Task[None] | None = None
        self._arrived = asyncio.Condition()
        self._points: deque[tuple[int, Row]] = deque(maxlen=HISTORY)
        self._totals: deque[Totals] = deque(maxlen=SPAN + 1)
        self._rows: deque[tuple[int, Row]] = deque(maxlen=KEPT)
        self._seen: dict[str, int] = {}
        self._latest: Row = {}
        self._number = 0
        self._closed = False
        self._encoded: tuple[int, int, bytes] = (0, 0, b"")

    @property
    def looking(self) -> int:
        """How many look."""
        return self._looking

    @contextmanager
    def look(self) -> Iterator[None]:
        """Count one who looks, and begin to ask where it is the first."""
        self._looking += 1
        if self._running is None or self._running.done():
            self._forget()
            self._running = asyncio.create_task(self._run(), name="status feed")
        try:
            yield
        finally:
            self._looking -= 1

    async def after(self, number: int) -> tuple[int, bytes] | None:
        """Wait for an event that comes after this one; return its number, and all that came since as JSON.

        None: the feed is closed.
        """
        async with self._arrived:
            await self._arrived.wait_for(lambda: self._number > number or self._closed)
        return None if self._closed else (self._number, self._encode(number))

    async def close(self) -> None:
        """Ask no more."""
        self._closed = True
        async with self._arrived:
            self._arrived.notify_all()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def _forget(self) -> None:
        self._points.clear()
        self._totals.clear()
        self._rows.clear()
        self._seen.clear()

    def _encode(self, number: int) -> bytes:
        since, upto, encoded = self._encoded
        if (since, upto) != (number, self._number):
            members = {
                **self._latest,
                "since": number,
                "points": [point for at, point in self._points if at > number],
                "denials": [row for at, row in self._rows if at > number],
            }
            encoded = orjson.dumps(members, default=str)
            self._encoded = number, self._number, encoded
        return encoded

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        lonely = loop.time()
        while True:
            began = loop.time()
            try:
                await self._tick()
            except Exception:
                logger.exception("the status page could not be told")
            if self._looking:
                lonely = loop.time()
            elif loop.time() - lonely > LINGER:
                return
            await asyncio.sleep(max(0.1, began + EVERY - loop.time()))

    async def _tick(self) -> None:
        report = await self._ask()
        answers = await self._inquire({"ask": "recent", "after": dict(self._seen)})
        now = time.time()
        self._totals.append(totals_of(report, asyncio.get_running_loop().time()))
        point = point_of(self._totals, now)
        rows = self._take(answers)
        number = self._number + 1
        status = status_of(report, now)
        found = [*concerns(status), *_rising(self._totals, report)]
        first = next(iter(answers.values()), {})
        self._latest = {
            "number": number,
            "at": round(now, 3),
            "every": EVERY,
            "status": status,
            "state": state_of(found),
            "concerns": [one._asdict() for one in found],
            "routes": routes_of(self._totals),
            "upstreams": _quantiles_by(self._totals, "upstream"),
            "stages": _quantiles_by(self._totals, "own"),
            "limits": _merged_limits(answers),
            "turned": _merged_turned(answers),
            "turns": _merged(answers, "turns", _MOST_TURNS),
            "policies": first.get("policies", []),
            "processes": [
                {"process": process, **_object(told.get("process")), "error": told.get("error")}
                for process, told in answers.items()
            ],
        }
        self._rows.extend((number, row) for row in rows)
        async with self._arrived:
            self._number = number
            self._points.append((number, point))
            self._arrived.notify_all()

    def _take(self, answers: Mapping[int, Mapping[str, object]]) -> list[Row]:
        """Return the denials that came, the oldest first."""
        rows: list[Row] = []
        for process, told in answers.items():
            last, denials = told.get("last"), told.get("denials")
            if isinstance(last, int) and isinstance(denials, list):
                self._seen[str(process)] = last
                rows += denials
        self._seen = {process: last for process, last in self._seen.items() if int(process) in answers}
        return sorted(rows, key=lambda row: str(row.get("time")))[-KEPT:]


def totals_of(report: Report, at: float) -> Totals:
    """Take what differences are made of."""
    requests: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (route, _, _, reason), value in report.series.get("mitmgate_requests", {}).items():
        if not isinstance(value, list):
            requests[route, reason] += value
    names = {**_HISTOGRAMS, "own": "mitmgate_own_stage_duration_seconds", "lag": _LAG}
    return Totals(at, requests, {key: _histograms(report.series.get(name, {})) for key, name in names.items()})


def _histograms(series: Series) -> dict[str, list[float]]:
    return {labels[0] if labels else "": value for labels, value in series.items() if isinstance(value, list)}


def kind_of(reason: str) -> str:
    """Say what a reason means for the picture: "admitted", "failed", "left" (the client did), or "denied"."""
    if reason == Reason.CLIENT_CLOSED.code:
        return "left"
    if reason.startswith("upstream-") or reason in {Reason.STREAM_TIMEOUT.code, Reason.STAGE_ERROR.code}:
        return "failed"
    known = Reason.of(reason)
    return "admitted" if known is not None and known.status < 400 else "denied"


def point_of(totals: Sequence[Totals], now: float) -> Row:
    """Make a point of the picture: rates by reason over the last second, quantiles over SPAN."""
    rates: defaultdict[str, float] = defaultdict(float)
    if len(totals) > 1:
        before, after = totals[-2], totals[-1]
        seconds = max(after.at - before.at, 1e-3)
        for key, value in after.requests.items():
            more = value - before.requests.get(key, 0.0)
            if more > 0:
                rates[key[1]] += more / seconds
    most = sorted(rates.items(), key=lambda one: -one[1])[:_MOST_REASONS]
    return {
        "at": round(now, 1),
        "rates": {reason: [kind_of(reason), round(rate, 2)] for reason, rate in most},
        "latency": {name: _quantiles(totals, name) for name in _HISTOGRAMS},
    }


def _grown(totals: Sequence[Totals], name: str, label: str | None = None) -> list[float]:
    """Return what a histogram has grown by over SPAN. label: of which; None: all of them together."""
    sums: list[float] = []
    if len(totals) < 2:
        return sums
    for which, after in totals[-1].histograms[name].items():
        if label is None or which == label:
            before = totals[0].histograms[name].get(which) or [0.0] * len(after)
            more = [max(0.0, one - other) for one, other in zip(after, before, strict=True)]
            sums = [one + other for one, other in zip(sums, more, strict=True)] if sums else more
    return sums


def _bounds(name: str) -> tuple[float, ...]:
    return BY_NAME[_HISTOGRAMS.get(name, _LAG if name == "lag" else "mitmgate_own_stage_duration_seconds")].bounds


def _quantiles(totals: Sequence[Totals], name: str, label: str | None = None) -> Quantiles:
    grown = _grown(totals, name, label)
    return [quantile(grown[:-1], _bounds(name), part) for part in (0.5, 0.95, 0.99)]


def quantile(buckets: Sequence[float], bounds: Sequence[float], part: float) -> float | None:
    """Estimate a quantile of a histogram (seconds): within its bucket evenly spread; None: nothing was counted.

    buckets: not cumulative, one for each bound and one beyond, of which the last bound is said.
    """
    count = sum(buckets)
    if not count:
        return None
    wanted, below = part * count, 0.0
    for place, bucket in enumerate(buckets):
        if below + bucket >= wanted and bucket:
            if place >= len(bounds):
                break
            low = bounds[place - 1] if place else 0.0
            return round(low + (bounds[place] - low) * (wanted - below) / bucket, 6)
        below += bucket
    return bounds[-1]


def _quantiles_by(totals: Sequence[Totals], name: str) -> dict[str, Quantiles]:
    if not totals:
        return {}
    found = {label: _quantiles(totals, name, label) for label in [*totals[-1].histograms[name]][:_MOST_ROUTES]}
    return {label: told for label, told in found.items() if told[0] is not None}


def routes_of(totals: Sequence[Totals]) -> list[Row]:
    """Say of each route what came over SPAN: requests a second, how many of them were denied or failed, p95."""
    if len(totals) < 2:
        return []
    before, after = totals[0], totals[-1]
    seconds = max(after.at - before.at, 1e-3)
    counts: dict[str, defaultdict[str, float]] = {}
    for (route, reason), value in after.requests.items():
        more = value - before.requests.get((route, reason), 0.0)
        if more > 0:
            counts.setdefault(route, defaultdict(float))[kind_of(reason)] += more
    rows: list[Row] = [
        {
            "route": "no route" if route == NONE else route,
            "rate": round(sum(count.values()) / seconds, 2),
            "denied": round(count["denied"] / sum(count.values()), 4),
            "failed": round(count["failed"] / sum(count.values()), 4),
            "p95": _quantiles(totals, "whole", route)[1],
        }
        for route, count in counts.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["rate"])))[:_MOST_ROUTES]


def _rising(totals: Sequence[Totals], report: Report) -> list[Concern]:
    """Say what the last seconds are worth a word for."""
    if len(totals) < 2:
        return []
    before, after = totals[0], totals[-1]
    counts: defaultdict[str, float] = defaultdict(float)
    reasons: defaultdict[str, float] = defaultdict(float)
    for (route, reason), value in after.requests.items():
        more = value - before.requests.get((route, reason), 0.0)
        if more > 0:
            counts[kind_of(reason)] += more
            reasons[reason] += more
    found, count = [], sum(counts.values())
    if count >= _FEW:
        for kind, enough, severity in (("denied", _MUCH, "warn"), ("failed", _SOME, "bad")):
            part = counts[kind] / count
            if part >= enough:
                most = max((reason for reason in reasons if kind_of(reason) == kind), key=reasons.__getitem__)
                told = (
                    f"{part:.0%} of the requests are {kind}" if kind == "denied" else f"{part:.0%} of the requests fail"
                )
                found.append(Concern(severity, told, f"Over the last {SPAN} s, most of them for {most}.", "traffic"))
    lag = quantile(_grown(totals, "lag")[:-1], _bounds("lag"), 0.95)
    if lag is not None and lag > _SLOW_LOOP:
        found.append(Concern("warn", "The event loop is late", f"By {lag:.2f} s at times: too little CPU.", "workers"))
    return found


def _object(value: object) -> Row:
    return value if isinstance(value, dict) else {}


def _merged(answers: Mapping[int, Mapping[str, object]], member: str, most: int | None) -> list[Row]:
    """Return the rows of all processes, the last first."""
    rows: list[Row] = []
    for told in answers.values():
        listed = told.get(member)
        rows += listed if isinstance(listed, list) else []
    return sorted(rows, key=lambda row: str(row.get("time")), reverse=True)[:most]


def _merged_limits(answers: Mapping[int, Mapping[str, object]]) -> list[Row]:
    """Return who is at a limit: one row each, whichever processes have seen it."""
    rows: dict[tuple[object, object], Row] = {}
    for row in _merged(answers, "limits", None):
        known = rows.setdefault((row.get("limit"), row.get("who")), {**row, "denied": 0})
        known["denied"] = int(str(known["denied"])) + int(str(row.get("denied") or 0))
    return [*rows.values()][:_MOST_LIMITS]


def _merged_turned(answers: Mapping[int, Mapping[str, object]]) -> dict[str, Row]:
    """Return how each circuit came into its state: the last word of those that see it open, else the last."""
    found: dict[str, Row] = {}
    for told in answers.values():
        for circuit, one in _object(told.get("turned")).items():
            turn = _object(one)
            known = found.get(circuit)
            if known is None or _weight(turn) > _weight(known):
                found[circuit] = turn
    return found


def _weight(turn: Row) -> tuple[bool, str]:
    return turn.get("state") != "closed", str(turn.get("time"))
