"""A policy with something for every stage to decide on, requests that arrive under it, and the chain as hooks."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.http import Headers, HTTPFlow, Request
from mitmproxy.test import taddons
from mitmproxy.test.tflow import tflow

from mitmgate.chain import REQUIRED
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.enforcer import BLACK_HOLE, Enforcer
from mitmgate.pipeline.exchange import Exchange, begin, exchange_of
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.hygiene import Hygiene
from mitmgate.stages.routing import Routing
from mitmgate.stores.redis import RedisStore
from tests.live.harness_http import free_port

NOW = 1_800_000_000.0
PEER = "192.0.2.7"
POLICY = Path(__file__).with_name("stages.yaml").read_text()
Fields = Iterable[tuple[bytes, bytes]]


@dataclass
class Source:
    """A SnapshotSource that stays what it is."""

    snapshot: Snapshot


def snapshot_of(directory: Path, mode: str = "enforce", **members: Any) -> Snapshot:
    """Load the policy of these tests, then replace members of the snapshot."""
    path = directory / f"stages-{mode}.yaml"
    path.write_text(POLICY.replace("mode: enforce", f"mode: {mode}", 1))
    return replace(load_snapshot(path, {}), **members)


def flow_of(method: str = "GET", path: str = "/users/7", fields: Fields = (), peer: str = PEER) -> HTTPFlow:
    """Make a live flow as the protocol layer hands it over: it points to the black hole."""
    headers = Headers([*(() if any(n.lower() == b"host" for n, _ in fields) else [(b"Host", b"api.example")]), *fields])
    request = Request(
        BLACK_HOLE,
        80,
        method.encode(),
        b"http",
        b"",
        path.encode("latin-1"),
        b"HTTP/1.1",
        headers,
        None,
        None,
        0.0,
        0.0,
    )
    flow = tflow(req=request)
    flow.live = True
    flow.client_conn.peername = (peer, 50_000)
    return flow


def arrival(snapshot: Snapshot) -> Arrival:
    """Make an Arrival whose clock stands at NOW, with an audit trail that has room."""
    return Arrival(Source(snapshot), lambda: None, lambda: NOW, lambda: NOW)


def arrived(snapshot: Snapshot, flow: HTTPFlow, *stages: Stage) -> Exchange:
    """Let a flow arrive, and pass further stages."""
    for stage in (arrival(snapshot), *stages):
        finish(stage.requestheaders(flow))
    made = exchange_of(flow)
    assert made is not None
    return made


def routed(snapshot: Snapshot, method: str = "GET", path: str = "/users/7", fields: Fields = ()) -> Exchange:
    """Return the exchange of a request as Routing leaves it."""
    return arrived(snapshot, flow_of(method, path, fields), Hygiene(), Routing())


def finish(pending: Awaitable[None] | None) -> None:
    """Wait for a stage that waits."""
    if pending is not None:

        async def wait() -> None:
            await pending

        asyncio.run(wait())


def step_of(stage: Stage, made: Exchange) -> Step:
    """Run a stage and return the one step that it recorded."""
    before = len(made.verdict.steps)
    finish(stage.run(made))
    (step,) = made.verdict.steps[before:]
    assert step.stage == stage.name
    return step


def said(stage: Stage, made: Exchange) -> tuple[Outcome, Reason]:
    """Run a stage and return the outcome and the reason of its step."""
    step = step_of(stage, made)
    return step.outcome, step.reason


def said_without_store(make: Callable[[RedisStore], Stage], made: Sequence[Exchange]) -> list[tuple[Outcome, Reason]]:
    """Run a stage for each exchange while its Redis server, on a port where nothing listens, can't be reached."""

    async def run() -> None:
        store = RedisStore(f"redis://127.0.0.1:{free_port()}/0")
        await store.start()
        stage = make(store)
        for one in made:
            await (stage.run(one) or asyncio.sleep(0))
        await store.close()

    asyncio.run(run())
    steps = [one.verdict.steps[-1] for one in made]
    assert all(grant.degraded for one in made for grant in one.grants)
    return [(step.outcome, step.reason) for step in steps]


def enforced(snapshot: Snapshot, made: Exchange, required: Sequence[str] = REQUIRED) -> HTTPFlow:
    """Hand an exchange to Enforcer on a fresh flow, as mitmproxy would."""
    flow = flow_of()
    begin(flow, made)
    enforcer = Enforcer(Source(snapshot), tuple(required))
    with taddons.context(enforcer):
        enforcer.requestheaders(flow)
    return flow


def assert_refused(snapshot: Snapshot, made: Exchange, reason: Reason, upstream: str = "users") -> HTTPFlow:
    """Check that Enforcer answers with a problem, and that nothing could be sent though all was ready."""
    assert made.request_id
    made.forward = made.forward or Forward("GET", "/", "api.example", ((b"Host", b"api.example"),))
    made.endpoint = made.endpoint or snapshot.upstreams[upstream].endpoints[0]
    flow = enforced(snapshot, made)
    assert flow.response is not None
    assert flow.response.status_code == reason.status
    assert flow.response.headers["Content-Type"] == "application/problem+json"
    body = json.loads(flow.response.content or b"")
    assert (body["status"], body["reason"], body["request_id"]) == (reason.status, reason.code, made.request_id)
    assert (flow.request.host, flow.request.headers.get("Host")) == (BLACK_HOLE, "api.example")
    assert not made.admitted
    return flow


def assert_leaves_decided_alone(stage: Stage, made: Exchange) -> None:
    """Check that a stage adds nothing to a verdict that is final."""
    made.verdict.record(Step("earlier", Outcome.DENY, Reason.HOST_INVALID))
    before = made.verdict.steps
    flow = flow_of()
    begin(flow, made)
    assert stage.requestheaders(flow) is None
    assert made.verdict.steps == before


def assert_contains_exceptions(
    make: Callable[[], Stage], snapshot: Snapshot, made: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that whatever `decide` raises becomes a stage-error denial, in report mode too, and reaches the client."""
    stage = make()

    def broken(self: Stage, exchange: Exchange) -> Step:
        raise RuntimeError("broken")

    monkeypatch.setattr(type(stage), "decide", broken)
    made.snapshot = replace(made.snapshot, mode="report")
    assert said(stage, made) == (Outcome.DENY, Reason.STAGE_ERROR)
    assert_refused(snapshot, made, Reason.STAGE_ERROR)
