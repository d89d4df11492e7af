"""A real mitmweb with the gateway in it, seen through mitmweb's own HTTP API."""

import http.client
import json
import re
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate.replay.policy_case import PolicyCase
from tests.inspect.webapi import WebApi
from tests.live.harness import WEB_PASSWORD, Gateway, mint, policy, policy_file, route, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import HANG_UP, RecordingUpstream, Reply
from tests.live.test_reload import events


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, RecordingUpstream]]:
    """One mitmweb and one upstream for this module."""
    with RecordingUpstream() as upstream:
        policy = policy_file(tmp_path_factory.mktemp("web"), upstream)
        with Gateway(policy, host="web", arguments=("--keep", "25")) as gateway:
            yield gateway, upstream


@pytest.fixture
def web(shared: tuple[Gateway, RecordingUpstream]) -> WebApi:
    """Mitmweb's API, with an empty flow list."""
    gateway, upstream = shared
    upstream.forget()
    api = WebApi(gateway.web_port)
    assert api.call("POST", "/clear")[0] == 200
    return api


@pytest.fixture
def gateway(shared: tuple[Gateway, RecordingUpstream]) -> Gateway:
    return shared[0]


@pytest.fixture
def upstream(shared: tuple[Gateway, RecordingUpstream]) -> RecordingUpstream:
    return shared[1]


def test_decisions_are_in_the_flow_list(web: WebApi, gateway: Gateway) -> None:
    assert gateway.get("/api/v1/users/7", token=mint()).status == 200
    assert gateway.get("/api/v1/users/7", token=mint(scope="orders.read")).status == 403
    assert gateway.get("/api/v1/users/7").status == 401
    assert gateway.get("/health").status == 200

    def settled() -> bool:
        return [(flow["marked"], flow["comment"].split(" ")[0]) for flow in web.flows] == [
            ("🟢", "ADMIT"),
            ("🔴", "DENY"),
            ("🔴", "DENY"),
            ("🔵", "ANSWER"),
        ]

    wait_for(settled, f"four decisions, not {web.comments}")
    admitted, forbidden, anonymous, health = web.comments
    assert admitted.startswith("ADMIT users → users 200 in ")
    assert " ms (alice); " in admitted
    assert admitted.endswith("of 100 left")
    assert forbidden == "DENY 403 scope-missing at authorization (alice, route users)"
    assert anonymous == "DENY 401 credential-missing at authentication (route users)"
    assert health == "ANSWER 200 health at endpoints"


def test_an_admission_is_visible_while_the_service_is_waited_for(
    web: WebApi, gateway: Gateway, upstream: RecordingUpstream
) -> None:
    answer = threading.Event()
    upstream.script.append(Reply(until=answer))
    client = threading.Thread(target=gateway.get, args=("/api/v1/users/7",), kwargs={"token": mint()})
    client.start()
    try:
        wait_for(lambda: any("waiting for" in comment for comment in web.comments), "an admission that waits")
        (flow,) = web.flows
        assert flow["comment"].startswith(f"ADMIT users → users, waiting for {upstream.url} (alice); ")
        assert flow["marked"] == "⏳"
        assert "response" not in flow
        assert web.content(flow, "request")["view_name"] == "Gateway"
    finally:
        answer.set()
        client.join(20)
    wait_for(lambda: web.comments[0].startswith("ADMIT users → users 200 in "), "the response")


def test_a_denial_is_visible_while_the_client_still_sends(web: WebApi, gateway: Gateway) -> None:
    """The head alone decides: the body never comes."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(b"POST /api/v1/users HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 9\r\n\r\n1234")
        wait_for(lambda: bool(web.comments) and bool(web.comments[0]), "the decision")
        assert web.comments == ["DENY 401 credential-missing at authentication (route users)"]


def test_the_gateway_view_of_a_denial(web: WebApi, gateway: Gateway) -> None:
    token = mint(lifetime=-300)
    answered = gateway.get("/api/v1/users/7?token=hidden-word", token=token)
    assert answered.reason == "token-expired"
    (flow,) = web.flows
    shown = web.content(flow, "response")
    assert (shown["view_name"], shown["syntax_highlight"]) == ("Gateway", "yaml")
    text = shown["text"]
    assert text.startswith("decision: DENY 401 token-expired at authentication (route users)\n")
    assert f"request_id: {answered.one('x-request-id')}" in text
    assert re.search(r"^  authentication +deny +token-expired +\d+$", text, re.MULTILINE)
    assert "Authorization: [redacted]" in text
    assert token not in text
    assert token.split(".")[1] not in text
    assert "hidden-word" not in text
    assert web.content(flow, "response", "json")["view_name"] == "JSON"
    assert json.loads(web.content(flow, "response", "raw")["text"]) == answered.json


def test_the_gateway_view_of_an_admission(web: WebApi, gateway: Gateway, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(echo=True)
    token = mint()
    gateway.get("/api/v1/users/7", token=token, headers={"Cookie": "session=crumbs", "X-User-ID": "root"})
    wait_for(lambda: " 200 in " in web.comments[0], "the response")
    (flow,) = web.flows
    assert web.content(flow, "response")["view_name"] == "JSON"  # a service's own body keeps its view
    text = web.content(flow, "response", "gateway")["text"]
    received, forwarded = text.split("received: |-\n")[1].split("forwarded: |-\n")
    assert "Cookie: [redacted]" in received
    assert "X-User-ID: root" in received
    assert "x-user-id: alice" in forwarded.lower()
    assert "authorization" not in forwarded.lower()
    assert f"endpoint: {upstream.url}" in text
    assert "subject: alice" in text
    assert token not in text
    assert "crumbs" not in text


def test_a_failure_of_the_service_is_not_a_denial(web: WebApi, gateway: Gateway, upstream: RecordingUpstream) -> None:
    upstream.reply = HANG_UP
    answered = gateway.request("POST", "/api/v1/users", token=mint(), body=b"x")
    assert answered.status == 502
    wait_for(lambda: web.comments[0].startswith("FAIL"), f"the failure, not {web.comments}")
    (flow,) = web.flows
    assert flow["comment"] == f"FAIL 502 {answered.reason} (connection-closed) after admission (alice, route users)"
    assert flow["marked"] == "🟠"
    assert f"failure: {answered.reason}" in web.content(flow, "response")["text"]


def test_the_view_is_offered_to_the_browser(web: WebApi) -> None:
    assert "gateway" in web.get("/state")["contentViews"]
    assert "comment" in web.get("/options")["web_columns"]["value"]


def test_commands(web: WebApi, gateway: Gateway) -> None:
    gateway.get("/api/v1/users/7")
    flow_id = web.flows[0]["id"]
    assert "decision: DENY 401 credential-missing" in web.command("mitmgate.explain", f"@{flow_id}")["value"]
    assert "credential-missing" in web.command("mitmgate.stats")["value"]
    assert "users: any method" in web.command("mitmgate.policy")["value"]
    assert web.command("mitmgate.denied", "scope-missing")["value"].startswith("0 of 1 flows")
    assert web.flows == []
    assert web.command("mitmgate.all")["value"] == "1 flows"


def test_the_chosen_flow_is_the_one_that_was_shown_last(web: WebApi, gateway: Gateway) -> None:
    gateway.get("/api/v1/users/7")
    gateway.get("/api/v1/users/7", token=mint(scope="orders.read"))
    for flow, reason in reversed(list(zip(web.flows, ("credential-missing", "scope-missing"), strict=True))):
        web.content(flow, "request")
        for arguments in ((), ("@focus",)):
            assert f" {reason} at " in web.command("mitmgate.explain", *arguments)["value"]


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_denial_is_first_on_both_panes_with_its_why(web: WebApi, gateway: Gateway, body: bytes) -> None:
    assert gateway.request("POST", "/api/v1/users", token=mint(scope="orders.read"), body=body).status == 403
    (flow,) = web.flows
    for message in ("request", "response"):
        shown = web.content(flow, message)
        assert shown["view_name"] == "Gateway", shown
        why = shown["text"].partition("why: |-\n")[2].partition("\nstages:")[0]
        assert "change   the token needs the scope users.read" in why
        assert re.search(r"^  rule +routes\[\d\]\.require\.scopes_all +policy\.yaml:\d+:\d+$", why, re.MULTILINE), why


def test_an_edited_flow_is_decided_again_and_written_as_a_case(
    web: WebApi, gateway: Gateway, upstream: RecordingUpstream
) -> None:
    gateway.get("/api/v1/users/7", token=mint("carol", scope="orders.read"))
    gateway.get("/api/v1/users/7", token=mint())
    wait_for(lambda: " 200 in " in web.comments[1], "the response")
    denied, admitted = web.flows
    asked = len(upstream.requests)

    def decided(flow: dict[str, Any]) -> str:
        return str(web.command("mitmgate.decide", f"@{flow['id']}")["value"]).partition(":")[0]

    def case(flow: dict[str, Any]) -> str:
        """Write a case, and run it."""
        text = str(web.command("mitmgate.case", f"@{flow['id']}")["value"])
        names: dict[str, Any] = {}
        exec(text, names)
        (run,) = [value for name, value in names.items() if name.startswith("test_")]
        run(lambda name: PolicyCase(gateway.policy_path.with_name(name)))
        return text

    assert decided(denied) == "deny scope-missing (403)"
    assert "request.is_denied('scope-missing')" in case(denied)
    assert decided(admitted) == "admit (200)"
    # mitmweb's page sends all fields back when one is edited, the hidden ones as they were shown.
    fields = [*denied["request"]["headers"], ["X-Team", "blue"]]
    assert ["Authorization", "[redacted]"] in fields
    edit = {"request": {"path": "/api/v1/orders/7", "headers": fields}}
    assert web.call("PUT", f"/flows/{denied['id']}", edit)[0] == 200
    assert web.flows[0]["request"]["path"] == "/api/v1/orders/7"
    assert decided(denied) == "admit (200)"
    text = case(denied)
    assert "request.is_admitted(route='orders')" in text
    assert ".header('X-Team', 'blue')" in text
    assert "# was scope-missing" in text
    assert web.call("PUT", f"/flows/{admitted['id']}", {"request": {"path": "/nowhere"}})[0] == 200
    assert decided(admitted) == "deny no-route (404)"
    without = [field for field in denied["request"]["headers"] if field[0] != "Authorization"]
    assert web.call("PUT", f"/flows/{denied['id']}", {"request": {"headers": without}})[0] == 200
    assert decided(denied) == "deny credential-missing (401)"
    assert len(upstream.requests) == asked, "nothing is sent"


def test_limits_and_circuits_are_reset_and_the_policy_is_read_again(
    web: WebApi, gateway: Gateway, upstream: RecordingUpstream
) -> None:
    def left() -> str | None:
        return gateway.get("/api/v1/users/7", token=mint("dora")).one("x-ratelimit-remaining")

    assert [left(), left()] == ["99", "98"]
    assert web.command("mitmgate.reset.limits")["value"].startswith("forgotten: what ")
    assert left() == "99"
    upstream.reply = HANG_UP
    for _ in range(100):
        if gateway.request("POST", "/api/v1/users", token=mint("erin"), body=b"x").reason == "circuit-open":
            break
    upstream.reply = Reply()
    assert gateway.get("/api/v1/users/7", token=mint("erin")).reason == "circuit-open"
    assert web.command("mitmgate.reset.circuits")["value"] == f"closed: users {upstream.url}"
    assert gateway.get("/api/v1/users/7", token=mint("erin")).status == 200
    assert web.command("mitmgate.reset.circuits")["value"] == "no circuit was open"
    log = gateway.policy_path.with_name("audit.jsonl")
    wait_for(lambda: len(events(log, "operator")) == 3, "the events of what was reset")
    assert [(one["act"], one["by"]) for one in events(log, "operator")] == [
        ("limits-reset", "mitmweb"),
        *[("circuits-reset", "mitmweb")] * 2,
    ]
    assert events(log, "operator")[1]["what"] == f"users {upstream.url}"
    before = web.command("mitmgate.policy")["value"].split()[1]
    text = gateway.policy_path.read_text()
    gateway.policy_path.write_text(text.replace('"limit": 100', '"limit": 101'))
    assert "read again" in web.command("mitmgate.reload")["value"]
    wait_for(lambda: web.command("mitmgate.policy")["value"].split()[1] != before, "the other policy")
    assert left() == "99", "of 101, one was used before"
    gateway.policy_path.write_text(text)
    assert "read again" in web.command("mitmgate.reload")["value"]
    wait_for(lambda: web.command("mitmgate.policy")["value"].split()[1] == before, "the policy of before")


@pytest.mark.parametrize(
    "update",
    [
        {"scripts": ["/tmp/evil.py"]},
        {"mode": ["regular"]},
        {"mitmgate_policy": "other.yaml"},
        {"connection_strategy": "eager"},
        {"map_remote": ["|.*|http://127.0.0.1:1/"]},
        {"modify_headers": ["/~q/X-User-ID/root"]},
        {"intercept": "~all"},
        {"web_password": "mine"},
        {"save_stream_file": "/tmp/flows"},
    ],
)
def test_options_that_matter_are_frozen(web: WebApi, gateway: Gateway, update: dict[str, object]) -> None:
    (name,) = update
    before = web.get("/options")[name]["value"]
    status, text = web.call("PUT", "/options", update)
    assert status == 400
    assert re.match(f"{name} can't (be )?change", text), text
    assert web.get("/options")[name]["value"] == before
    assert gateway.get("/api/v1/users/7", token=mint()).status == 200
    assert gateway.get("/api/v1/users/7").status == 401


def test_options_that_only_show_can_change(web: WebApi) -> None:
    assert web.call("PUT", "/options", {"web_theme": "dark"})[0] == 200
    assert web.get("/options")["web_theme"]["value"] == "dark"


@pytest.mark.parametrize("command", ["script.run", "replay.client", "export.file", "options.load", "browser.start"])
def test_commands_that_go_around_the_policy_are_gone(web: WebApi, command: str) -> None:
    assert web.command(command, "x", "y") == {"error": f"Unknown command: {command}"}


def test_a_decided_request_is_not_replayed(web: WebApi, gateway: Gateway, upstream: RecordingUpstream) -> None:
    gateway.get("/api/v1/users/7", token=mint())
    wait_for(lambda: " 200 in " in web.comments[0], "the response")
    upstream.forget()
    assert web.call("POST", f"/flows/{web.flows[0]['id']}/replay")[0] == 409
    assert gateway.get("/api/v1/users/8", token=mint()).status == 200  # whatever was started, this came after it
    assert [request.target for request in upstream.requests] == ["/api/v1/users/8"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "", {"request": {"path": "/api/v1/users/evil", "method": "DELETE", "host": "127.0.0.1"}}),
        ("PUT", "", {"request": {"headers": [["X-User-ID", "root"]], "content": "evil"}, "comment": "mine"}),
        ("PUT", "", {"response": {"code": 200}}),
        ("POST", "/request/content.data", b"evil"),
        ("POST", "/revert", {}),
    ],
)
def test_a_live_request_is_not_edited(
    web: WebApi, gateway: Gateway, upstream: RecordingUpstream, method: str, path: str, body: object
) -> None:
    """The head is decided on, the body is still to come: what the service gets is what was decided."""
    head = f"POST /api/v1/users/7 HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer {mint()}\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(f"{head}Content-Length: 3\r\n\r\na".encode())
        wait_for(lambda: any("waiting for" in comment for comment in web.comments), "the decision")
        (flow,) = web.flows
        assert web.call(method, f"/flows/{flow['id']}{path}", body)[0] == 409
        assert web.call("PUT", f"/flows/{flow['id']}", {"comment": "a person's words"})[0] == 200
        assert web.command("flow.set", f"@{flow['id']}", "path", "/evil") == {"error": "Unknown command: flow.set"}
        client.sendall(b"bc")
        assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    seen = upstream.last()
    assert (seen.method, seen.target, seen.body) == ("POST", "/api/v1/users/7", b"abc")
    assert (seen.one("host"), seen.one("x-user-id")) == ("gateway.test", "alice")
    wait_for(lambda: "response" in web.flows[0], "the end of the request")
    assert web.flows[0]["comment"] == "a person's words"


def test_a_finished_request_can_be_edited(web: WebApi, gateway: Gateway, upstream: RecordingUpstream) -> None:
    gateway.get("/api/v1/users/7", token=mint())
    wait_for(lambda: " 200 in " in web.comments[0], "the response")
    (flow,) = web.flows
    assert web.call("PUT", f"/flows/{flow['id']}", {"request": {"path": "/other"}})[0] == 200
    assert web.flows[0]["request"]["path"] == "/other"
    assert web.call("POST", f"/flows/{flow['id']}/revert")[0] == 200
    assert web.flows[0]["request"]["path"] == "/api/v1/users/7"
    assert len(upstream.requests) == 1


def test_nothing_without_the_password(shared: tuple[Gateway, RecordingUpstream]) -> None:
    stranger = WebApi(shared[0].web_port, "wrong")
    for method, path in [("GET", "/flows"), ("GET", "/options"), ("PUT", "/options"), ("POST", "/commands/set")]:
        assert stranger.call(method, path, {} if method != "GET" else None)[0] == 403
    for method, path in [("PUT", ""), ("POST", "/revert"), ("POST", "/request/content.data")]:
        assert stranger.call(method, f"/flows/{uuid.uuid4()}{path}", {"comment": "x"})[0] == 403


def test_the_password_is_not_in_the_options(web: WebApi) -> None:
    assert WEB_PASSWORD not in json.dumps(web.get("/options"))


def test_old_flows_leave(web: WebApi, gateway: Gateway) -> None:
    for number in range(30):
        gateway.get(f"/api/v1/users/{number}")
    paths = [flow["request"]["path"] for flow in web.flows]
    assert paths == [f"/api/v1/users/{number}" for number in range(5, 30)]


def test_saved_flows_show_the_decisions_of_their_time(web: WebApi, gateway: Gateway) -> None:
    gateway.get("/api/v1/users/7", token=mint(lifetime=-300))
    gateway.get("/api/v1/users/7", token=mint())
    wait_for(lambda: " 200 in " in web.comments[-1], "the response")
    comments = web.comments
    link = http.client.HTTPConnection("127.0.0.1", web.port, timeout=20)
    link.request("GET", "/flows/dump", headers=web.headers)
    saved = link.getresponse().read()
    link.close()
    assert web.call("POST", "/clear")[0] == 200

    assert web.call("POST", "/flows/dump", saved)[0] == 200
    assert web.comments == comments
    denied, admitted = web.flows
    assert [denied["response"]["status_code"], admitted["response"]["status_code"]] == [401, 200]
    text = web.content(denied, "response")["text"]
    assert "token-expired" in text
    assert "eyJ" not in text
    assert "subject: alice" in web.content(admitted, "request", "gateway")["text"]


def test_a_changed_policy_is_taken_on_sighup(tmp_path: Path) -> None:
    with RecordingUpstream() as upstream, Gateway(policy_file(tmp_path, upstream), host="web") as gateway:
        api = WebApi(gateway.web_port)
        before = api.command("mitmgate.policy")["value"]
        changed = route(policy(tmp_path, upstream), "users", match={"prefix": "/people"})
        write_policy(tmp_path, changed)
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "/people/" in api.command("mitmgate.policy")["value"], "the new policy")
        assert "/people/" not in before
        assert gateway.get("/people/7", token=mint()).status == 200


def test_the_row_of_a_refused_request_shows_the_url_that_was_asked_for(web: WebApi, gateway: Gateway) -> None:
    """The flow points to a name that does not resolve, and nobody has asked for that."""
    port = gateway.port
    assert gateway.get("/api/v1/users/7?a=1", host=f"api.test:{port}").status == 401
    assert gateway.get("/nowhere", host="other.test", token=mint()).status == 404
    assert gateway.get(f"http://api.test:{port}/public/../x", host=f"api.test:{port}").status == 400
    assert gateway.get("/health", host="api.test").status == 200
    asked = [{name: flow["request"][name] for name in ("pretty_host", "port", "path", "scheme")} for flow in web.flows]
    assert asked == [
        {"pretty_host": "api.test", "port": port, "path": "/api/v1/users/7?a=1", "scheme": "http"},
        {"pretty_host": "other.test", "port": 80, "path": "/nowhere", "scheme": "http"},
        {"pretty_host": "api.test", "port": port, "path": "/public/../x", "scheme": "http"},
        {"pretty_host": "api.test", "port": 80, "path": "/health", "scheme": "http"},
    ]
    assert "upstream.invalid" not in json.dumps(web.flows)


def test_what_mitmweb_can_not_do_is_a_sentence_not_a_traceback(web: WebApi, gateway: Gateway) -> None:
    """Replay, a body that is not there, a response that is not there, a change that makes no sense."""
    gateway.get("/api/v1/users/7", token=mint())
    wait_for(lambda: " 200 in " in web.comments[0], "the response")
    socket.create_connection(("127.0.0.1", gateway.port), timeout=20).close()
    (flow,) = web.flows
    this = f"/flows/{flow['id']}"
    status, text = web.call("POST", f"{this}/replay")
    assert status == 409 and "can't be replayed" in text
    status, text = web.call("GET", f"{this}/request/content.data")
    assert status == 409 and "no body to download" in text
    assert web.call("GET", f"{this}/response/content.data") == (200, "upstream says hello")
    for change in ({"request": {"port": "no number"}}, {"request": {"headers": [1]}}, {"request": 7}):
        assert web.call("PUT", this, change)[0] == 400, change
    assert web.call("PUT", this, [1])[0] == 400
    saved = web.call("GET", "/flows/dump")[1].encode()
    for content in (b"no flows", saved[:100]):
        status, text = web.call("POST", "/flows/dump", content)
        assert status == 400 and "no file of flows" in text
    assert [shown["id"] for shown in web.flows] == [flow["id"]], "the list is kept"
    assert web.flows[0]["request"] == flow["request"]
    assert web.call("POST", "/flows/dump", saved)[0] == 200
    assert web.flows[0]["request"] == flow["request"]
    assert web.call("GET", f"{this}/messages/content.data")[0] == 409
    log = gateway.log
    assert "Traceback" not in log, log


def test_a_request_without_a_response_has_none_to_show(
    web: WebApi, gateway: Gateway, upstream: RecordingUpstream
) -> None:
    answer = threading.Event()
    upstream.script.append(Reply(until=answer))
    client = threading.Thread(target=gateway.get, args=("/api/v1/users/7",), kwargs={"token": mint()})
    client.start()
    try:
        wait_for(lambda: any("waiting for" in comment for comment in web.comments), "an admission that waits")
        this = f"/flows/{web.flows[0]['id']}"
        for method, path in (("GET", "content/auto.json"), ("GET", "content.data")):
            assert web.call(method, f"{this}/response/{path}")[0] == 409
    finally:
        answer.set()
        client.join(20)
    assert "Traceback" not in gateway.log


def test_a_decision_service_has_said_nothing_of_a_request_that_was_edited(
    tmp_path: Path, upstream: RecordingUpstream
) -> None:
    """And is not asked: what it would say can't be known, and a case says what it is taken to say."""
    with RecordingUpstream(Reply(body=b'{"result": true}', headers=(("Content-Type", "application/json"),))) as service:
        made = policy(tmp_path, upstream)
        made["decision_services"] = {"opa": {"protocol": "opa", "url": f"{service.url}/v1/data/allow"}}
        made["decision"] = "opa"
        path = write_policy(tmp_path, made)
        with Gateway(path, host="web") as gateway:
            web = WebApi(gateway.web_port)
            assert gateway.get("/api/v1/users/7", token=mint()).status == 200
            asked, sent = len(service.requests), len(upstream.requests)
            flow = f"@{web.flows[0]['id']}"

            def decided() -> str:
                names: dict[str, Any] = {}
                exec(str(web.command("mitmgate.case", flow)["value"]), names)
                (run,) = [value for name, value in names.items() if name.startswith("test_")]
                run(lambda name: PolicyCase(path))
                return str(web.command("mitmgate.decide", flow)["value"]).partition(":")[0]

            assert decided() == "admit (200)"
            assert web.call("PUT", f"/flows/{flow[1:]}", {"request": {"path": "/api/v1/users/8"}})[0] == 200
            assert decided() == "deny decision-unavailable (503)"
            assert (len(service.requests), len(upstream.requests)) == (asked, sent)
