"""Readings: what is looked up when a report is made, rather than counted on the request path."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, NamedTuple

from mitmgate import __version__
from mitmgate.admin.families import BY_NAME, Series
from mitmgate.admin.readiness import readiness
from mitmgate.admin.report import Rejection, Report
from mitmgate.audit.writer import SinkState
from mitmgate.core.circuit import State
from mitmgate.keys.assertion import Jwk
from mitmgate.keys.ring import KeySetState
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.history import History
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.snapshot import Snapshot
from mitmgate.process_log import without_credentials
from mitmgate.stages.circuit_breaker import Turn

BUILD: Final = (__version__, version("mitmproxy"), platform.python_version())


class Held(NamedTuple):
    """Bytes that are held for clients, how many may be, and how often the largest account was ended for that."""

    held: int
    limit: int
    ended: int


@dataclass(frozen=True, slots=True)
class Sources:
    """What a report asks. All are called on the event loop's thread, and none of them may wait.

    policy: the policy in force, None: there is none. connected: clients. circuits, failed_shares: `CircuitBreaker`'s
    `states` and `failed_shares`. key_sets: `KeyRing.states`. sinks: `AuditTrail.states`. audit_admits:
    `AuditTrail.admits`. shadow:
    differences by (change, reason). draining: whether the process is on its way to its end. keys: the public keys of
    identity assertions. memory: what is held for clients. loaded: the file of the policy in force. stages: of the
    chain, by name. turned, turns: `CircuitBreaker`'s.
    """

    policy: Callable[[], Snapshot | None]
    accepting: Callable[[], bool]
    connected: Callable[[], int]
    circuits: Callable[[], Mapping[str, State]]
    key_sets: Callable[[], Sequence[KeySetState]]
    store_available: Callable[[], bool]
    sinks: Callable[[], Sequence[SinkState]]
    history: History
    shadow: Callable[[], Mapping[tuple[str, str], int]] = dict
    draining: Callable[[], bool] = bool
    audit_admits: Callable[[], bool] = lambda: True
    failed_shares: Callable[[], Mapping[str, float]] = dict
    keys: Callable[[], Sequence[Jwk]] = tuple
    memory: Callable[[], Held] = lambda: Held(0, 0, 0)
    loaded: Callable[[], Loaded | None] = lambda: None
    stages: Callable[[], Mapping[str, Stage]] = dict
    turned: Callable[[], Mapping[str, Turn]] = dict
    turns: Callable[[], Sequence[Turn]] = tuple


def report_of(sources: Sources, counted: Mapping[str, Series]) -> Report:
    """Make the report of this process. counted: the series of Metrics."""
    snapshot, key_sets = sources.policy(), sources.key_sets()
    available = sources.store_available()
    held = sources.memory()
    missing = readiness(
        draining=sources.draining(),
        accepting=sources.accepting(),
        snapshot=snapshot,
        unusable=[state.issuer for state in key_sets if not state.usable],
        store_available=available,
        audit_admits=sources.audit_admits(),
    )
    series: dict[str, Series] = {
        **counted,
        **_process(),
        **_keys(key_sets),
        **_audit(sources.sinks()),
        **_policy(snapshot, sources.history),
        "mitmgate_connections": {(): sources.connected()},
        "mitmgate_memory_held_bytes": {(): held.held},
        "mitmgate_memory_limit_bytes": {(): held.limit},
        "mitmgate_memory_ended": {(): held.ended},
        "mitmgate_circuit_state": _circuits(snapshot, sources.circuits()),
        "mitmgate_circuit_failed_share": _failed_shares(snapshot, sources.failed_shares()),
        "mitmgate_store_available": {(): int(available)},
        "mitmgate_shadow_differences": {(*labels,): count for labels, count in sources.shadow().items()},
        "mitmgate_ready": {(): int(not missing)},
        "mitmgate_workers": {(): 1},
        "mitmgate_build": {BUILD: 1},
    }
    rejections = tuple(
        Rejection(one.when, tuple(map(without_credentials, one.problems))) for one in sources.history.rejections
    )
    return Report(series, missing, rejections, tuple(sources.keys()))


def _circuits(snapshot: Snapshot | None, states: Mapping[str, State]) -> Series:
    """Say of every endpoint of the policy in which state its circuit is; one that was never asked is closed."""
    series: Series = {}
    for upstream in snapshot.upstreams.values() if snapshot is not None else ():
        for endpoint in upstream.endpoints:
            here = states.get(f"{upstream.name} {endpoint.url}", State.CLOSED)
            for state in State:
                series[upstream.name, endpoint.url, state.value] = int(state is here)
    return series


def _failed_shares(snapshot: Snapshot | None, shares: Mapping[str, float]) -> Series:
    return {
        (upstream.name, endpoint.url): shares.get(f"{upstream.name} {endpoint.url}", 0.0)
        for upstream in (snapshot.upstreams.values() if snapshot is not None else ())
        for endpoint in upstream.endpoints
    }


def _keys(key_sets: Sequence[KeySetState]) -> dict[str, Series]:
    fetched = [state for state in key_sets if state.age is not None]
    return {
        "mitmgate_key_set_usable": {(state.issuer,): int(state.usable) for state in key_sets},
        "mitmgate_key_set_age_seconds": {(state.issuer,): state.age for state in fetched if state.age is not None},
        "mitmgate_key_set_refresh_failures": {(state.issuer,): state.failed for state in key_sets},
    }


def _audit(sinks: Sequence[SinkState]) -> dict[str, Series]:
    return {
        "mitmgate_audit_queue_depth": {(sink.name,): sink.backlog for sink in sinks},
        "mitmgate_audit_written": {(sink.name,): sink.written for sink in sinks},
        "mitmgate_audit_dropped": {(sink.name,): sink.dropped for sink in sinks},
        "mitmgate_audit_spilled": {(sink.name,): sink.spilled for sink in sinks},
        "mitmgate_audit_sink_failing": {(sink.name,): int(sink.failing) for sink in sinks},
        "mitmgate_audit_sink_failures": {(sink.name,): sink.failures for sink in sinks},
    }


def _policy(snapshot: Snapshot | None, history: History) -> dict[str, Series]:
    return {
        "mitmgate_policy": {} if snapshot is None else {(snapshot.digest,): 1},
        "mitmgate_policy_loaded_timestamp_seconds": {} if history.since is None else {(): history.since},
        "mitmgate_policy_reloads": {("ok",): history.reloaded, ("rejected",): history.rejected},
    }


def _process() -> dict[str, Series]:
    """Read this process's own figures, as far as prometheus_client knows them here (Linux alone)."""
    from prometheus_client.process_collector import ProcessCollector  # noqa: PLC0415 - where metrics are asked for

    collector = ProcessCollector(registry=None)
    return {
        metric.name: {(): metric.samples[0].value}
        for metric in collector.collect()
        if metric.name in BY_NAME and metric.samples
    }
