"""A report: everything that one worker, or several together, have to say for the admin listener."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import orjson

from mitmgate.admin.families import BY_NAME, FAMILIES, LASTING, Series, merged
from mitmgate.admin.readiness import Condition, Missing, Readiness, merged_readiness
from mitmgate.keys.assertion import Jwk


class Rejection(NamedTuple):
    """A policy that was not put in force. when: Unix seconds. problems: a line each, as `check` writes them."""

    when: float
    problems: tuple[str, ...]


class Report(NamedTuple):
    """series: the values of `families.FAMILIES`, by name. rejections: the newest first. keys: JWKs, of assertions."""

    series: Mapping[str, Series]
    readiness: Readiness = ()
    rejections: tuple[Rejection, ...] = ()
    keys: tuple[Jwk, ...] = ()

    def encode(self) -> bytes:
        """Write it as JSON, for another process."""
        return orjson.dumps(
            {
                "series": {name: [[list(labels), value] for labels, value in s.items()] for name, s in _items(self)},
                "missing": [[one.condition.value, one.detail] for one in self.readiness],
                "rejections": [[one.when, list(one.problems)] for one in self.rejections],
                "keys": [dict(key) for key in self.keys],
            }
        )


def _items(report: Report) -> Iterable[tuple[str, Series]]:
    return report.series.items()


def decode(snapshot: bytes) -> Report:
    """Read what `encode` wrote. A family that this version does not know is left out (workers of two versions)."""
    told = orjson.loads(snapshot)
    return Report(
        {
            name: {tuple(labels): value for labels, value in series}
            for name, series in told["series"].items()
            if name in BY_NAME
        },
        tuple(Missing(Condition(condition), detail) for condition, detail in told["missing"]),
        tuple(Rejection(when, tuple(problems)) for when, problems in told["rejections"]),
        tuple(told["keys"]),
    )


def merge(snapshots: Iterable[bytes], retired: bytes | None = None) -> Report:
    """Make one report of the living workers' snapshots and of what `retire` kept of those that have ended.

    Counters and histograms are added; gauges are added, or the largest or smallest counts, as families.FAMILIES says.
    """
    living = [decode(snapshot) for snapshot in snapshots]
    parts = living if retired is None else [*living, decode(retired)]
    series = {family.name: merged(family, [p.series.get(family.name, {}) for p in parts]) for family in FAMILIES}
    rejections = sorted({one for part in living for one in part.rejections}, reverse=True)
    keys = {key["kid"]: key for part in living for key in part.keys}
    return Report(series, merged_readiness([one.readiness for one in living]), tuple(rejections), tuple(keys.values()))


def retire(last: bytes, retired: bytes | None = None) -> bytes:
    """Add a worker's last snapshot to what is kept of those that ended before; what is no total is forgotten."""
    parts = [decode(snapshot) for snapshot in (last, retired) if snapshot is not None]
    return Report(
        {
            name: merged(BY_NAME[name], [part.series[name] for part in parts if name in part.series])
            for name in sorted(LASTING)
        }
    ).encode()
