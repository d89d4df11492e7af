"""The status page's content: what a report says, in plain values and in the order in which people ask."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from mitmgate.admin.families import Series
from mitmgate.admin.report import Report
from mitmgate.audit.event import rfc3339
from mitmgate.core.circuit import State

Row = dict[str, object]

_FULL: Final = 0.8  # the part of the memory for clients from which on it is worth a word
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
        "memory_held": _count(series, "mitmgate_memory_held_bytes"),
        "memory_limit": _count(series, "mitmgate_memory_limit_bytes"),
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
            failing="mitmgate_audit_sink_failing",
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
            row[column] = bool(number) if column in {"usable", "failing"} else round(number, 3)
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


class Concern(NamedTuple):
    """Something that an operator should look at. severity: "bad", or "warn". section: of the page."""

    severity: str
    what: str
    detail: str
    section: str


def concerns(status: Row) -> list[Concern]:
    """Say what is wrong in a status, the worst first. Figures alone are nothing wrong."""
    found = [Concern("bad", "Not ready", str(one["detail"]), "readiness") for one in _listed(status, "missing")]
    for row in _listed(status, "circuits"):
        where = f"{row['upstream']} {row['endpoint']}"
        if row["state"] == State.OPEN.value:
            found.append(Concern("bad", f"Circuit open: {row['upstream']}", f"No request goes to {where}.", "circuits"))
        elif row["state"] == State.HALF_OPEN.value:
            detail = f"A few requests try {where}."
            found.append(Concern("warn", f"Circuit half-open: {row['upstream']}", detail, "circuits"))
    if not status["store_available"] and status["policy"]:
        found.append(Concern("bad", "Counter store away", "Limits count as the policy says for its absence.", "store"))
    for row in _listed(status, "key_sets"):
        if not row["usable"]:
            detail = f"No token of {row['issuer']} can be verified."
            found.append(Concern("bad", f"No keys: {row['issuer']}", detail, "keys"))
    for row in _listed(status, "audit"):
        if row["dropped"]:
            detail = f"{row['dropped']:g} records found no room since the start ({row['sink']})."
            found.append(Concern("bad", "Audit records lost", detail, "audit"))
        elif row["failing"]:
            detail = (
                f"{row['sink']} takes nothing; {row['queued'] or 0:g} records wait, {row['spilled'] or 0:g} spilled."
            )
            found.append(Concern("bad", "Audit sink fails", detail, "audit"))
    rejections, since = _listed(status, "rejections"), str(status["policy_since"])
    if rejections and str(rejections[0]["time"]) > since:
        detail = f"At {rejections[0]['time']}; the policy before it stays in force."
        found.append(Concern("bad", "The last policy was refused", detail, "policy"))
    if len(_listed_texts(status, "policy")) > 1:
        found.append(
            Concern("bad", "Workers decide by different policies", "A reload is under way, or failed.", "policy")
        )
    held, limit = status["memory_held"], status["memory_limit"]
    if isinstance(held, int) and isinstance(limit, int) and limit and held > _FULL * limit:
        found.append(Concern("warn", "Memory for clients runs out", f"{held / limit:.0%} is held.", "workers"))
    return sorted(found, key=lambda one: one.severity)


def _listed(status: Row, name: str) -> list[Row]:
    rows = status[name]
    return rows if isinstance(rows, list) else []


def _listed_texts(status: Row, name: str) -> list[str]:
    return [str(one) for one in _listed(status, name)]


def state_of(found: Sequence[Concern]) -> str:
    """Say it in a word: "ready", "degraded" or "not ready"."""
    if any(one.section == "readiness" for one in found):
        return "not ready"
    return "degraded" if found else "ready"
