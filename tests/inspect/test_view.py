"""The Gateway content view: what it shows, what it hides, and when it is chosen."""

import io
from typing import Any

import pytest
from mitmproxy import contentviews, http
from mitmproxy.contentviews import Metadata
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.test import taddons, tflow, tutils
from ruamel.yaml import YAML

from mitmgate.core.circuit import Permit
from mitmgate.core.problem import problem_body
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.inspect.annotate import METADATA, Annotate
from mitmgate.inspect.view import GatewayContentview, GatewayView
from tests.inspect.conftest import ADMITTED, EXPIRED, TOKEN, Make


def shown(flow: HTTPFlow) -> Any:
    """Render the view, and read it as the YAML that it is."""
    text = GatewayContentview().prettify(b"", Metadata(flow=flow))
    for secret in (TOKEN, "crumbs", "hidden-word"):
        assert secret not in text
    return YAML(typ="safe", pure=True).load(text)


def chosen(flow: HTTPFlow, message: http.Message) -> str | None:
    with taddons.context() as host:
        view = GatewayView()
        host.master.addons.add(view)
        try:
            return contentviews.prettify_message(message, flow).view_name
        finally:
            view.done()


def test_a_denied_request(decided: Make) -> None:
    flow, exchange = decided(*ADMITTED, EXPIRED)
    made = shown(flow)
    assert made["decision"] == "DENY 401 token-expired at authentication (route users)"
    assert made["detail"] == "The token expired 60 s ago."
    assert made["request_id"] == exchange.request_id
    assert made["client"] == "127.0.0.1"
    assert made["route"] == "users"
    assert made["time"] == "1970-01-01 00:16:40.000000 UTC"
    rows = [row.split() for row in made["stages"].splitlines()]
    assert rows[0] == ["stage", "outcome", "reason", "µs"]
    assert rows[1] == ["arrival", "admit", "ok", "3"]
    assert rows[4][:4] == ["authentication", "deny", "token-expired", "48"]
    assert "forwarded" not in made
    assert made["received"].splitlines() == [
        "GET /api/v1/users/7?page=2&access_token=[redacted] HTTP/1.1",
        "Host: api.example",
        "Authorization: [redacted]",
        "Cookie: [redacted]",
        "X-Other: a [redacted]",
    ]


def test_an_admitted_request(admitted: Make) -> None:
    flow, exchange = admitted()
    made = shown(flow)
    assert made["principal"]["subject"] == "alice"
    assert made["principal"]["scopes"] == ["users.read"]
    assert made["principal"]["expires"] == "300 s after the request"
    assert made["limits"] == {"per-user": "97 of 100 left in any 60 s"}
    assert made["endpoint"] == "http://127.0.0.1:9001"
    assert made["policy"] == {"file": exchange.snapshot.path, "digest": exchange.snapshot.digest}
    assert made["forwarded"].splitlines() == [
        "GET /api/v1/users/7?page=2 HTTP/1.1",
        "Host: api.example",
        "X-User-ID: alice",
        "X-User-Role: user",
    ]


def test_the_circuit(admitted: Make, decided: Make) -> None:
    endpoint = "http://127.0.0.1:9001"
    assert shown(admitted(permit=Permit(endpoint, 0, probe=False))[0])["circuit"] == "closed"
    assert (
        shown(admitted(permit=Permit(endpoint, 2, probe=True))[0])["circuit"] == "half-open, and this request a probe"
    )
    refusal = Step("circuit-breaker", Outcome.DENY, Reason.CIRCUIT_OPEN)
    assert shown(decided(*ADMITTED, refusal)[0])["circuit"] == "open"


def test_control_characters_do_not_break_the_layout(decided: Make) -> None:
    observed = Step("authorization", Outcome.OBSERVE, Reason.SCOPE_MISSING, "two\nstages: forged\x1b[2J")
    step = EXPIRED._replace(detail="one\nstages: forged\x1b[2J")
    made = shown(decided(*ADMITTED, observed, step)[0])
    assert len(made["stages"].splitlines()) == 6
    assert "stages: forged" in made["stages"]
    assert set(made) >= {"decision", "detail", "stages", "received", "policy"}


def test_a_saved_flow_still_shows_its_decision(admitted: Make) -> None:
    flow, _ = admitted()
    Annotate().requestheaders(flow)
    file = io.BytesIO()
    FlowWriter(file).add(flow)
    file.seek(0)
    (loaded,) = FlowReader(file).stream()
    assert isinstance(loaded, HTTPFlow)
    made, live = shown(loaded), shown(flow)
    for member in ("decision", "stages", "request_id", "time", "client", "route", "principal", "received"):
        assert made[member] == live[member]


@pytest.mark.parametrize("saved", [None, {}, {"steps": 1}, [], "x", {"detail": "", "failure": "", "steps": [{}]}])
def test_a_file_may_hold_anything(saved: Any) -> None:
    flow = tflow.tflow(live=False)
    flow.metadata[METADATA] = saved
    text = GatewayContentview().prettify(b"", Metadata(flow=flow))
    assert text == "The verdict that was saved with this flow can't be read."


def test_without_a_decision() -> None:
    view = GatewayContentview()
    assert view.prettify(b"", Metadata(flow=tflow.tflow())) == "The gateway has not decided on this flow."
    assert "decides on nothing else" in view.prettify(b"", Metadata(flow=tflow.ttcpflow()))


def test_it_is_chosen_for_the_gateways_own_errors(decided: Make) -> None:
    flow, exchange = decided(*ADMITTED, EXPIRED)
    body = problem_body(Reason.TOKEN_EXPIRED, "", exchange.request_id)
    flow.response = http.Response.make(401, body, {"Content-Type": "application/problem+json"})
    assert chosen(flow, flow.response) == "Gateway"
    assert chosen(flow, flow.request) == "Gateway"


def test_it_leaves_everything_else_alone(admitted: Make) -> None:
    flow, _ = admitted()
    flow.request.path = "/api/v1/users"
    assert chosen(flow, flow.request) == "Gateway"  # empty, and nothing else to show
    flow.request.path = "/api/v1/users?page=2"
    assert chosen(flow, flow.request) == "Query"
    for body, media_type, view in [
        (b'{"id":7}', "application/json", "JSON"),
        (b'{"type":"about:blank","title":"of the service"}', "application/problem+json", "JSON"),
        (b"<html></html>", "text/html", "XML/HTML"),
        (b"plain", "text/plain", "Raw"),
    ]:
        flow.response = http.Response.make(200, body, {"Content-Type": media_type})
        assert chosen(flow, flow.response) == view
    flow.response = None
    undecided = tflow.tflow(req=tutils.treq(content=b""))
    assert chosen(undecided, undecided.request) == "Raw"


def test_it_is_gone_when_the_gateway_is() -> None:
    with taddons.context() as host:
        first, second = GatewayView(), GatewayView()
        host.master.addons.add(first)
        assert "gateway" in contentviews.registry.available_views()
        second.done()
        assert "gateway" in contentviews.registry.available_views()
        first.done()
        first.done()
        assert "gateway" not in contentviews.registry.available_views()
