"""The status page's content: what a report says, in plain values and in the order in which people ask."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from mitmgate.admin.families import Series
from mitmgate.admin.report import Report
from mitmgate.audit.event import rfc3339
from mitmgate.core.circuit import State

Row = dict[str, object]

_WORST: Final = (State.OPEN, State.HALF_OPEN, State.CLOSED)


def status_of(report: Report, now: float) -> Row:
    """Make the status of a report. now: Unix seconds. Times are RFC 3339, durations seconds."""
    series = report.series
    started = _number(series, "process_start_time_seconds")
    since = _number(series, "mitmgate_policy_loaded_timestamp_seconds")
    return {
        "ready": not report.readiness,
        "missing": [{"condition": one.condition.value, "detail": one.detail} for one in report.readiness],
        "version": next((labels[0] for labels in series.get("mitmgate_build", {})), None),
        "workers": _count(series, "mitmgate_workers"),
        "uptime_seconds": None if started is None else round(now - started),
        "policy": [labels[0] for labels in series.get("mitmgate_policy", {})],
        "policy_since": None if since is None else rfc3339(since),
        "connections": _count(series, "mitmgate_connections"),
        "requests_in_flight": _count(series, "mitmgate_requests_in_flight"),
        "requests": sum(_numbers(series.get("mitmgate_requests", {})).values()),
        "store_available": bool(_number(series, "mitmgate_store_available")),
        "circuits": _circuits(
            series.get("mitmgate_circuit_state", {}), _numbers(series.get("mitmgate_circuit_failed_share", {}))
        ),
        "key_sets": _rows(
            series,
            "issuer",
            usable="mitmgate_key_set_usable",
            age_seconds="mitmgate_key_set_age_seconds",
            refresh_failures="mitmgate_key_set_refresh_failures",
        ),
        "audit": _rows(
            series,
            "sink",
            queued="mitmgate_audit_queue_depth",
            written="mitmgate_audit_written",
            dropped="mitmgate_audit_dropped",
            spilled="mitmgate_audit_spilled",
            failures="mitmgate_audit_sink_failures",
        ),
        "rejections": [{"time": rfc3339(one.when), "problems": list(one.problems)} for one in report.rejections],
    }


def duration(seconds: object) -> str:
    """Write seconds as people do: 3 d 4 h, 5 min 6 s, 0.25 s."""
    if not isinstance(seconds, int | float):
        return "-"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = int(seconds)
    for unit, size, less, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {less}"
    raise AssertionError("a minute is 60 seconds")


def _numbers(series: Series) -> dict[tuple[str, ...], float]:
    return {labels: value for labels, value in series.items() if not isinstance(value, list)}


def _number(series: Mapping[str, Series], name: str) -> float | None:
    return _numbers(series.get(name, {})).get(())


def _count(series: Mapping[str, Series], name: str) -> int:
    return int(_number(series, name) or 0)


def _rows(series: Mapping[str, Series], label: str, **columns: str) -> list[Row]:
    """Make a table: a row for each value of the only label, a column for each family."""
    rows: dict[str, Row] = {}
    for column, name in columns.items():
        for (value,), number in _numbers(series.get(name, {})).items():
            row = rows.setdefault(value, {label: value, **dict.fromkeys(columns)})
            row[column] = bool(number) if column == "usable" else round(number, 3)
    return list(rows.values())


def _circuits(series: Series, shares: Mapping[tuple[str, ...], float]) -> list[Row]:
    """Make a row for each endpoint: the worst state that a worker sees, how many workers see each, what failed."""
    seen: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for (upstream, endpoint, state), count in _numbers(series).items():
        if count:
            seen[upstream, endpoint][state] = int(count)
    return [
        {
            "upstream": upstream,
            "endpoint": endpoint,
            "state": next((state.value for state in _WORST if state.value in states), None),
            "workers": states,
            "failed_share": round(shares.get((upstream, endpoint), 0.0), 3),
        }
        for (upstream, endpoint), states in seen.items()
    ]
