"""A replay's report as JSON: for programs, the same bytes in every run."""

import json

from mitmgate.replay.differences import Group, Kind
from mitmgate.replay.run import Report

_MOST_PRINCIPALS = 20


def members(report: Report) -> dict[str, object]:
    """Return the report as plain values."""
    tally = report.tally
    return {
        "traffic": report.traffic,
        "policy": report.policy,
        "digest": report.digest,
        "compared_with": report.compared_with,
        "decided": report.decided,
        "compared": report.compared,
        "same": report.compared - tally.total,
        "skipped": dict(sorted(report.skipped.items())),
        "decisions": dict(sorted(report.answers.items())),
        "routes": dict(sorted(report.routes.items())),
        "recorded_policies": dict(sorted((digest or "unknown", n) for digest, n in report.recorded.items())),
        "sample": report.sample,
        "differences": {
            "total": tally.total,
            "kinds": {kind.value: tally.kinds[kind] for kind in Kind},
            "groups": [_group(group) for group in tally.groups],
        },
        "notes": report.notes,
    }


def _group(group: Group) -> dict[str, object]:
    ranked = group.ranked
    return {
        "kind": group.kind.value,
        "before": group.before,
        "after": group.after,
        "route": group.route,
        "count": group.count,
        "principals": dict(ranked[:_MOST_PRINCIPALS]),
        "more_principals": max(0, len(ranked) - _MOST_PRINCIPALS),
        "examples": group.examples,
    }


def as_json(report: Report, **more: object) -> str:
    """Write the report. more: further members."""
    return json.dumps({**members(report), **more}, indent=2, ensure_ascii=True)
