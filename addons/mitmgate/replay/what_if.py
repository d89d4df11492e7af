"""What if: the same traffic with other numbers in a limit or a circuit; who would have been limited, and when."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.problem import Location, nearest
from mitmgate.replay.decision import ADMIT, NO_RULE, Decision
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.traffic import Recorded
from mitmgate.usage import UserError

LIMIT: Final = ("limit", "window", "cost", "key", "mode", "on_store_failure", "ipv6_prefix")
CIRCUIT: Final = ("failures", "share", "window", "open_for", "probes", "slow")
REASONS: Final = frozenset({"quota-exceeded", "circuit-open"})

_MOST_BUCKETS = 120
_MOST_PRINCIPALS = 1_000
OTHERS: Final = "(others)"


def parse_changes(policy: OfflinePolicy, texts: Iterable[str]) -> list[tuple[Location, object]]:
    """Read `per-user.limit=50` and `users.failures=3`: a limit's or an upstream's name, a member, a value.

    Raises UserError, which names the nearest that there is.
    """
    changes: list[tuple[Location, object]] = []
    model = policy.loaded.policy
    for text in texts:
        where, equals, value = text.partition("=")
        name, _, member = where.rpartition(".")
        if not equals or not name or not value:
            raise UserError(f"--what-if {text}: must be NAME.MEMBER=VALUE, like per-user.limit=50")
        if name in model.rate_limits and member in LIMIT:
            location: Location = ("rate_limits", name, member)
        elif name in model.upstreams and member in CIRCUIT:
            location = ("upstreams", name, "circuit", member)
        elif (tiered := model.rate_limits.get(name.removesuffix(".tiers"))) is not None and tiered.tiers is not None:
            if member != "default" and member not in tiered.tiers.values:
                hint = nearest(member, (*tiered.tiers.values, "default"))
                raise UserError(f"--what-if {text}: {name} has no tier {member}" + (hint and f"; {hint}"))
            value_at = ("default",) if member == "default" else ("values", member)
            location = ("rate_limits", name.removesuffix(".tiers"), "tiers", *value_at)
        else:
            known = [f"{limit}.{each}" for limit in model.rate_limits for each in LIMIT]
            known += [f"{limit}.tiers.default" for limit, rule in model.rate_limits.items() if rule.tiers is not None]
            known += [f"{upstream}.{each}" for upstream in model.upstreams for each in CIRCUIT]
            hint = nearest(where, known)
            raise UserError(f"--what-if {text}: {policy.path} has no limit or circuit {where}" + (hint and f"; {hint}"))
        changes.append((location, int(value) if value.isdecimal() else value))
    return changes


class Bucket(NamedTuple):
    """Counts of a stretch of time. limited: of the denied ones, those by a limit or a circuit."""

    admitted: int
    limited: int


class Line:
    """What became of one principal's requests over time."""

    __slots__ = ("admitted", "buckets", "first", "last", "limited", "newly", "relieved")

    def __init__(self) -> None:
        """Start with nothing."""
        self.admitted = self.limited = self.newly = self.relieved = 0
        self.first = self.last = 0.0
        self.buckets: dict[int, Bucket] = {}

    def merge(self) -> None:
        """Double the width of the buckets."""
        merged: dict[int, Bucket] = {}
        for number, bucket in self.buckets.items():
            known = merged.get(number // 2, Bucket(0, 0))
            merged[number // 2] = Bucket(known.admitted + bucket.admitted, known.limited + bucket.limited)
        self.buckets = merged


class Timeline:
    """Counts a replay by principal and time, in bounded memory (run.Observer).

    width: seconds of a bucket; it doubles as the recording goes on. begin: Unix seconds of the first bucket.
    """

    def __init__(self) -> None:
        """Start with one second a bucket."""
        self.lines: dict[str, Line] = {}
        self.width = 1.0
        self.begin: float | None = None

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        """Count one request. Denials for other reasons than a limit or a circuit are none of this."""
        limited = decision.reason in REASONS
        if not limited and decision.outcome != ADMIT:
            return
        who = decision.principal if decision.principal != NO_RULE else str(exchange.client)
        line = self.lines.get(who)
        if line is None:
            who = who if len(self.lines) < _MOST_PRINCIPALS else OTHERS
            line = self.lines.setdefault(who, Line())
        if limited:
            line.limited += 1
            if before is not None and before.reason not in REASONS:
                line.newly += 1
                line.first = line.first or recorded.at
                line.last = recorded.at
        else:
            line.admitted += 1
            line.relieved += before is not None and before.reason in REASONS
        self._count(line, recorded.at, limited=limited)

    def _count(self, line: Line, at: float, *, limited: bool) -> None:
        if self.begin is None:
            self.begin = at
        number = int((at - self.begin) / self.width)
        while number >= _MOST_BUCKETS:
            self.width *= 2
            for each in self.lines.values():
                each.merge()
            number = int((at - self.begin) / self.width)
        admitted, denied = line.buckets.get(number, (0, 0))
        line.buckets[number] = Bucket(admitted + (not limited), denied + limited)

    @property
    def ranked(self) -> list[tuple[str, Line]]:
        """The principals, those first who would have been limited most."""
        return sorted(self.lines.items(), key=lambda item: (-item[1].newly, -item[1].limited, item[0]))

    def members(self) -> dict[str, object]:
        """Return the counts as plain values."""
        return {
            who: {
                "admitted": line.admitted,
                "limited": line.limited,
                "newly_limited": line.newly,
                "no_longer_limited": line.relieved,
                "first": moment(line.first),
                "last": moment(line.last),
            }
            for who, line in self.ranked
        }


def moment(at: float) -> str | None:
    """Write Unix seconds as RFC 3339 text in UTC; None for 0."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None
