"""Exchanges as the chain leaves them, on flows as mitmproxy makes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mitmproxy.http import HTTPFlow
from mitmproxy.test import tflow, tutils

from mitmgate.core.address import parse_address
from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward, Request
from mitmgate.core.verdict import Outcome, Step, Verdict
from mitmgate.core.window import Grant
from mitmgate.pipeline.exchange import Exchange, begin
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from tests.live.harness import SECRET, policy, write_policy

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
ADMITTED = [Step(name, Outcome.ADMIT, Reason.OK, "", 3e-6) for name in ("arrival", "hygiene", "routing")]
EXPIRED = Step("authentication", Outcome.DENY, Reason.TOKEN_EXPIRED, "The token expired 60 s ago.", 48e-6)

Make = Callable[..., tuple[HTTPFlow, Exchange]]


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    path = write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9001"))
    return load_snapshot(path, {"MITMGATE_TEST_SECRET": SECRET})


@pytest.fixture
def decided(snapshot: Snapshot) -> Make:
    """Make a live flow with an exchange: the steps that were taken, and members that stages wrote."""

    def make(*steps: Step, **members: object) -> tuple[HTTPFlow, Exchange]:
        flow = tflow.tflow(req=tutils.treq(content=b""), live=True)
        flow.request.timestamp_start = 1000.0
        received = [
            (b"Host", b"api.example"),
            (b"Authorization", f"Bearer {TOKEN}".encode()),
            (b"Cookie", b"session=crumbs"),
            (b"X-Other", f"a {TOKEN}".encode()),
        ]
        request = Request(
            "GET",
            "/api/v1/users/7?page=2&access_token=hidden-word",
            "HTTP/1.1",
            Headers(received),
            "http",
            "",
            "127.0.0.1",
            0,
        )
        verdict = Verdict(snapshot.digest)
        for step in steps:
            verdict.record(step, step.seconds)
        exchange = Exchange(snapshot, request, "4bf92f3577b34da6a3ce929d0e0e4736", 1000.0, 0.0, verdict)
        exchange.client = parse_address("127.0.0.1")
        exchange.route = next(route for route in snapshot.routes.routes if route.name == "users")
        for name, value in members.items():
            setattr(exchange, name, value)
        begin(flow, exchange)
        return flow, exchange

    return make


@pytest.fixture
def admitted(decided: Make, snapshot: Snapshot) -> Make:
    """Make a live flow that was admitted."""

    def make(*steps: Step, **members: object) -> tuple[HTTPFlow, Exchange]:
        principal = Principal("alice", "dev", ("user",), frozenset({"users.read"}), {}, 1300.0)
        route = next(route for route in snapshot.routes.routes if route.name == "users")
        forward = Forward(
            "GET",
            "/api/v1/users/7?page=2",
            "api.example",
            ((b"Host", b"api.example"), (b"X-User-ID", b"alice"), (b"X-User-Role", b"user")),
        )
        written: dict[str, object] = {
            "principal": principal,
            "grants": [Grant(route.limits[0], True, 97, 1.0, 0.0, False)],
            "endpoint": route.upstream.endpoints[0],
            "forward": forward,
            "admitted": True,
        }
        return decided(*(steps or ADMITTED), **(written | members))

    return make
