"""The metrics: THE table of what is exported, each with its labels and with how several workers' values become one.

No label can be made by a client: routes, limits, upstreams, endpoints, issuers and sinks are the policy's names, all
others come from closed lists. "-" stands where there is none, such as the route of a request that found none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram", "info"]
Value = float | list[float]
Series = dict[tuple[str, ...], Value]
"""Values by their labels' values. A histogram's value is a list: its buckets, not cumulative, and at last the sum."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHORT = (0.00005, 0.0001, 0.00025, *SECONDS[:-3])

NONE = "-"


class Family(NamedTuple):
    """One metric. name: without the `_total` and `_info` that its kind adds. merge: of several workers' values."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    merge: Literal["sum", "max", "min"] = "sum"
    bounds: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name under which it is queried; a histogram has `_bucket`, `_sum` and `_count` behind it."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


FAMILIES: tuple[Family, ...] = (
    Family(
        "mitmgate_requests",
        "counter",
        "Requests that have ended, as the audit trail counts them.",
        ("route", "method", "status", "reason"),
    ),
    Family("mitmgate_decisions", "counter", "Steps that stages have taken.", ("stage", "outcome")),
    Family(
        "mitmgate_request_duration_seconds",
        "histogram",
        "From a request's arrival to its end, bodies included.",
        ("route",),
        bounds=SECONDS,
    ),
    Family(
        "mitmgate_decision_duration_seconds",
        "histogram",
        "The gateway's own part: the time that all stages of a request took.",
        ("route",),
        bounds=SHORT,
    ),
    Family(
        "mitmgate_own_stage_duration_seconds",
        "histogram",
        "The time that each of the operator's own stages took for a request.",
        ("stage",),
        bounds=SHORT,
    ),
    Family(
        "mitmgate_decision_service_answers",
        "counter",
        "What decision services have said: allow, deny, unavailable or invalid; cached: of an earlier, equal question.",
        ("service", "said", "cached"),
    ),
    Family(
        "mitmgate_decision_service_duration_seconds",
        "histogram",
        "How long requests waited for a decision service.",
        ("service",),
        bounds=SECONDS,
    ),
    Family(
        "mitmgate_upstream_duration_seconds",
        "histogram",
        "The upstream's part: up to the head of its response.",
        ("upstream",),
        bounds=SECONDS,
    ),
    Family("mitmgate_requests_in_flight", "gauge", "Requests that have arrived and not ended."),
    Family("mitmgate_connections", "gauge", "Clients that are connected."),
    Family("mitmgate_memory_held_bytes", "gauge", "Bytes that are held for clients: bodies, queues, answers not read."),
    Family("mitmgate_memory_limit_bytes", "gauge", "Bytes that may be held for clients (limits.memory)."),
    Family("mitmgate_memory_ended", "counter", "Exchanges and connections that were ended for what was held."),
    Family(
        "mitmgate_rate_limit_decisions",
        "counter",
        "What limits have said: admitted, denied, or observed in report mode; degraded: without the store.",
        ("limit", "outcome", "degraded"),
    ),
    Family(
        "mitmgate_circuit_state",
        "gauge",
        "1 for the state that an endpoint's circuit is in; with several workers, how many see it so.",
        ("upstream", "endpoint", "state"),
    ),
    Family(
        "mitmgate_circuit_failed_share",
        "gauge",
        "The part of an endpoint's requests within its circuit's window that failed; of several workers the largest.",
        ("upstream", "endpoint"),
        merge="max",
    ),
    Family(
        "mitmgate_store_available",
        "gauge",
        "1 while the counter store counts: it answers, and refuses nothing; of several workers the smallest.",
        merge="min",
    ),
    Family("mitmgate_key_set_usable", "gauge", "1 while an issuer's keys can verify tokens.", ("issuer",), merge="min"),
    Family(
        "mitmgate_key_set_age_seconds",
        "gauge",
        "Seconds since an issuer's published key set was fetched.",
        ("issuer",),
        merge="max",
    ),
    Family(
        "mitmgate_key_set_refresh_failures",
        "counter",
        "Fetches of an issuer's published key set that have failed.",
        ("issuer",),
    ),
    Family("mitmgate_audit_queue_depth", "gauge", "Audit records that wait for a sink.", ("sink",)),
    Family("mitmgate_audit_written", "counter", "Audit records that a sink has taken.", ("sink",)),
    Family("mitmgate_audit_dropped", "counter", "Audit records that found no room in the queue.", ("sink",)),
    Family("mitmgate_audit_spilled", "counter", "Audit records that a sink's spill file took for it.", ("sink",)),
    Family("mitmgate_audit_sink_failures", "counter", "Attempts to write that a sink has refused.", ("sink",)),
    Family(
        "mitmgate_audit_sink_failing",
        "gauge",
        "1 while a sink takes no records; with several workers, for how many.",
        ("sink",),
    ),
    Family("mitmgate_policy_reloads", "counter", "Reloads of the policy: ok or rejected.", ("outcome",)),
    Family("mitmgate_policy", "info", "The digest of the policy in force.", ("digest",), merge="max"),
    Family(
        "mitmgate_policy_loaded_timestamp_seconds",
        "gauge",
        "When the policy in force was loaded (Unix seconds).",
        merge="max",
    ),
    Family(
        "mitmgate_shadow_differences",
        "counter",
        "Requests that a shadow policy would have decided otherwise.",
        ("change", "reason"),
    ),
    Family("mitmgate_ready", "gauge", "1 while a worker is ready; with several, how many are."),
    Family("mitmgate_workers", "gauge", "Worker processes that are counted here."),
    Family("mitmgate_build", "info", "The version.", ("version", "mitmproxy", "python"), merge="max"),
    Family(
        "mitmgate_event_loop_lag_seconds",
        "histogram",
        "How much later than asked for a timer of the event loop came.",
        bounds=SHORT,
    ),
    Family("process_cpu_seconds", "counter", "CPU time, user and system."),
    Family("process_resident_memory_bytes", "gauge", "Resident memory."),
    Family("process_virtual_memory_bytes", "gauge", "Virtual memory."),
    Family("process_open_fds", "gauge", "Open file descriptors."),
    Family("process_max_fds", "gauge", "The most file descriptors that one process may have open.", merge="min"),
    Family("process_start_time_seconds", "gauge", "When the oldest process started (Unix seconds).", merge="min"),
)

BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}

LASTING: frozenset[str] = frozenset(family.name for family in FAMILIES if family.kind in {"counter", "histogram"})
"""What a worker that has ended leaves behind: totals never fall."""

_MERGED: Mapping[str, Callable[[float, float], float]] = {"sum": lambda one, other: one + other, "max": max, "min": min}


def merged(family: Family, parts: Sequence[Series]) -> Series:
    """Make one series of several workers'. Histograms are added bucket by bucket."""
    made: Series = {}
    merge = _MERGED[family.merge]
    for part in parts:
        for labels, value in part.items():
            known = made.get(labels)
            if known is None:
                made[labels] = list(value) if isinstance(value, list) else value
            elif isinstance(known, list) and isinstance(value, list):
                made[labels] = [one + other for one, other in zip(known, value, strict=True)]
            elif not isinstance(known, list) and not isinstance(value, list):
                made[labels] = merge(known, value)
            else:
                raise ValueError(f"{family.name} is a histogram in one worker and none in another")
    return made
