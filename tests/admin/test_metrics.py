"""Metrics counts each exchange once, whatever it ends with, and cheaply."""

import time
import timeit
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from mitmproxy.test.tflow import tflow
from mitmproxy.websocket import WebSocketData

from mitmgate.admin.families import FAMILIES, SHORT
from mitmgate.admin.metrics import METHODS, Metrics, status_label
from mitmgate.admin.readings import Sources
from mitmgate.admin.report import decode
from mitmgate.chain import REQUIRED
from mitmgate.core.circuit import State
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.core.window import Grant
from mitmgate.pipeline.exchange import Exchange, begin, exchanges, forget
from mitmgate.policy.history import History
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from tests.audit.facts import grant
from tests.live.harness import policy, write_policy
from tests.stages.test_audit import ANSWERED, DENIED, exchange, flow_of

BUDGET = 10e-6  # seconds a request


def sources(snapshot: Snapshot | None = None, **members: object) -> Sources:
    """Make sources of a process in which nothing is wrong."""
    told: dict[str, object] = {
        "policy": lambda: snapshot,
        "accepting": lambda: True,
        "connected": lambda: 2,
        "circuits": dict,
        "key_sets": list,
        "store_available": lambda: True,
        "sinks": list,
        "history": History(),
    }
    return Sources(**(told | members))  # type: ignore[arg-type]  # named above


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(sources())


def requests(metrics: Metrics) -> dict[tuple[str, ...], object]:
    return dict(metrics.report().series["mitmgate_requests"])


def test_a_proxied_request(metrics: Metrics) -> None:
    metrics.response(flow_of(exchange()))
    assert requests(metrics) == {("users", "GET", "200", "ok"): 1}


def test_a_denied_and_an_answered_one(metrics: Metrics) -> None:
    metrics.response(flow_of(exchange(DENIED), 401))
    metrics.response(flow_of(exchange(ANSWERED), 200))
    assert requests(metrics) == {
        ("users", "GET", "401", "token-expired"): 1,
        ("users", "GET", "200", "health"): 1,
    }
    decisions = metrics.report().series["mitmgate_decisions"]
    assert decisions == {("authentication", "deny"): 1, ("endpoints", "answer"): 1}


def test_one_that_the_client_left_and_one_that_failed(metrics: Metrics) -> None:
    metrics.error(flow_of(exchange(), None))
    failed = exchange()
    failed.failure = Reason.UPSTREAM_TIMEOUT
    metrics.error(flow_of(failed, None))
    assert requests(metrics) == {
        ("users", "GET", "499", "client-closed"): 1,
        ("users", "GET", "504", "upstream-timeout"): 1,
    }


def test_each_is_counted_once(metrics: Metrics) -> None:
    flow = flow_of(exchange())
    for _ in range(3):
        metrics.response(flow)
        metrics.error(flow)
    assert requests(metrics) == {("users", "GET", "200", "ok"): 1}


def test_a_websocket_is_counted_when_it_is_closed(metrics: Metrics) -> None:
    flow = flow_of(exchange(), 101)
    flow.websocket = WebSocketData()
    metrics.response(flow)
    assert requests(metrics) == {}
    metrics.websocket_end(flow)
    assert requests(metrics) == {("users", "GET", "101", "ok"): 1}


def test_a_flow_that_arrival_never_saw(metrics: Metrics) -> None:
    flow = flow_of(None, 503)
    metrics.response(flow)
    metrics.error(flow)
    assert requests(metrics) == {("-", "GET", "503", "policy-unavailable"): 1}


def test_what_is_in_flight_is_counted_until_it_ends(metrics: Metrics) -> None:
    def in_flight() -> object:
        return metrics.report().series["mitmgate_requests_in_flight"][()]

    before = in_flight()
    assert isinstance(before, int)
    made = exchange()
    flow = tflow()
    begin(flow, made)
    assert in_flight() == before + 1
    metrics.error(flow)
    assert in_flight() == before


def test_names_that_clients_invent_are_one_label(metrics: Metrics) -> None:
    for method in ("BREW", "get", "CONNECT", "X" * 100):
        made = exchange()
        made.request = replace(made.request, method=method)
        metrics.response(flow_of(made))
    assert requests(metrics) == {("users", "other", "200", "ok"): 4}
    assert "GET" in METHODS


def test_statuses_that_upstreams_invent_are_their_class() -> None:
    assert [status_label(status) for status in (200, 404, 499, 299, 599, 999)] == [
        "200",
        "404",
        "499",
        "2xx",
        "5xx",
        "9xx",
    ]


def test_limits_say_what_they_said(metrics: Metrics) -> None:
    made = exchange()
    made.grants = [grant("a", 1), grant("a", 1, degraded=True), used_up("b", "enforce"), used_up("b", "report")]
    metrics.response(flow_of(made))
    assert metrics.report().series["mitmgate_rate_limit_decisions"] == {
        ("a", "admitted", "false"): 1,
        ("a", "admitted", "true"): 1,
        ("b", "denied", "false"): 1,
        ("b", "observed", "false"): 1,
    }


def used_up(name: str, mode: str) -> Grant:
    made = grant(name, 0)
    made.admitted, made.limit = False, replace(made.limit, mode=mode)  # type: ignore[arg-type]  # a Mode
    return made


def test_times_fall_into_their_buckets(metrics: Metrics) -> None:
    made = exchange()
    made.verdict.record(Step("arrival", Outcome.ADMIT, Reason.OK), SHORT[0])
    made.upstream_seconds = 31.0
    metrics.response(flow_of(made))
    series = metrics.report().series
    assert series["mitmgate_decision_duration_seconds"]["users",] == [1, *[0] * len(SHORT), SHORT[0]]
    upstream = series["mitmgate_upstream_duration_seconds"]["users",]
    assert isinstance(upstream, list)
    assert upstream[-2:] == [1, 31.0]


def test_every_family_is_read(metrics: Metrics) -> None:
    told = decode(metrics.snapshot())
    assert set(told.series) | {"mitmgate_key_set_age_seconds"} == {family.name for family in FAMILIES}
    assert [one.condition for one in told.readiness] == ["policy-in-force"]
    ending = Metrics(sources(draining=lambda: True))
    assert "not-draining" in [one.condition for one in decode(ending.snapshot()).readiness]


def test_what_has_not_ended_is_counted_in_the_end(metrics: Metrics) -> None:
    for other, _ in exchanges():  # of tests before, in this process
        forget(other)
    flow = tflow()
    begin(flow, exchange())
    metrics.conclude()
    assert requests(metrics)["users", "GET", "499", "client-closed"] == 1
    metrics.error(flow)
    assert requests(metrics)["users", "GET", "499", "client-closed"] == 1


def test_every_endpoint_of_the_policy_has_a_circuit(tmp_path: Path) -> None:
    path = write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9"))
    snapshot = load_snapshot(path, {"MITMGATE_TEST_SECRET": "x" * 64})
    metrics = Metrics(sources(snapshot, circuits=lambda: {"users http://127.0.0.1:9": State.OPEN}))
    assert len(metrics.report().series["mitmgate_circuit_failed_share"]) == len(snapshot.upstreams)
    series = metrics.report().series["mitmgate_circuit_state"]
    assert {labels for labels, value in series.items() if value} == {
        ("users", "http://127.0.0.1:9", "open"),
        ("orders", "http://127.0.0.1:9", "closed"),
    }


def test_a_request_costs_little(metrics: Metrics) -> None:
    made: Exchange = exchange()
    made.grants = [grant("a", 1), grant("b", 2)]
    made.upstream_seconds = 0.001
    for name in REQUIRED:
        made.verdict.record(Step(name, Outcome.ADMIT, Reason.OK), 1e-5)
    flow = flow_of(made)

    def once() -> None:
        made.counted = False
        metrics.response(flow)

    # This process's own time, in short runs: nobody else's load is in the best of them.
    assert min(timeit.repeat(once, timer=time.process_time, number=100, repeat=200)) / 100 < BUDGET
    assert cast(int, sum(cast(int, count) for count in requests(metrics).values())) == 20_000
