"""Decisions from elsewhere: AuthZEN, OPA's data API and ext_authz, whose servers behave, or do anything else."""

import json
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mitmgate.cli import main
from tests.keys.jwks_server import JwksServer
from tests.keys.test_fetch import certificate
from tests.live.decision_services import JSON, TOKEN, Pdp, answered
from tests.live.harness import SECRET, Front, Gateway, mint, policy, write_policy
from tests.live.harness_http import Answered, free_port, request, wait_for
from tests.live.harness_upstream import HANG, HANG_UP, Raw, RecordingUpstream, Reply

SERVICES = ("authzen", "opa", "opa-object", "check")
LONG = "20s"
"""For a service that answers at once, on whatever machine."""


def service(url: str, protocol: str, path: str, **members: Any) -> dict[str, Any]:
    return {"protocol": protocol, "url": url + path, "timeout": LONG, **members}


def over_tls(directory: Path) -> tuple[JwksServer, dict[str, Any]]:
    """Run a service with a certificate of its own: it says 200 to a GET; name it with three sets of authorities."""
    files = []
    for name in ("ours", "theirs"):
        (directory / name).mkdir()
        files.append(certificate(directory / name, x509.IPAddress(ip_address("127.0.0.1"))))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[0])
    server = JwksServer(b"ok", tls=context)
    url = server.url.rpartition("/")[0]
    return server, {
        "tls-good": service(url, "ext_authz", "/", ca=str(files[0])),
        "tls-other": service(url, "ext_authz", "/", ca=str(files[1])),
        "tls-system": service(url, "ext_authz", "/"),
    }


def policy_with(
    directory: Path, upstream: RecordingUpstream, url: str, further: dict[str, Any], **members: Any
) -> dict[str, Any]:
    """Make a policy with a route /NAME for each decision service, and /open, which asks none."""
    made = policy(directory, upstream, **members)
    hung = {"timeout": "300ms"}
    made["decision_services"] = {
        "authzen": service(url, "authzen", "/access/v1/evaluation", token_env="DECISIONS", query=True),
        "opa": service(url, "opa", "/v1/data/gateway/allow", headers=["X-Tenant"], claims=["/org/unit"]),
        "opa-object": service(url, "opa", "/v1/data/gateway"),
        "undefined": service(url, "opa", "/v1/data/other"),
        "check": service(url, "ext_authz", "/check/", forward=["X-User-Tier"], query=True),
        "told": service(url, "ext_authz", "", headers=["Authorization", "Cookie"]),
        "cached": service(url, "opa", "/v1/data/gateway/allow", cache="1h"),
        "late": service(url, "opa", "/v1/data/gateway/allow") | hung,
        "late-admit": service(url, "opa", "/v1/data/gateway/allow", on_failure="admit") | hung,
        "gone": service(f"http://127.0.0.1:{free_port()}", "ext_authz", "/"),
        "lenient": service(url, "authzen", "/access/v1/evaluation", token_env="DECISIONS", on_failure="admit"),
        **further,
    }
    made["routes"] += [
        {
            "name": name,
            "match": {"prefix": f"/{name}"},
            "upstream": "users",
            "require": {"scopes_all": ["users.read"]},
            "decision": name,
        }
        for name in made["decision_services"]
    ]
    made["routes"].append({"name": "open", "match": {"prefix": "/open"}, "upstream": "users"})
    made["routes"].append(
        {"name": "anyone", "match": {"prefix": "/anyone"}, "upstream": "users", "auth": "none", "decision": "opa"}
    )
    return made


@dataclass
class Running:
    gateway: Gateway
    upstream: RecordingUpstream
    service: RecordingUpstream
    pdp: Pdp
    directory: Path
    admin: int
    tls: JwksServer | None = None

    def get(self, target: str, subject: str = "alice", **options: Any) -> Answered:
        return self.gateway.get(target, token=mint(subject), **options)

    def last_event(self, request_id: str | None) -> dict[str, Any]:
        """Wait for the event of a request."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            lines = (self.directory / "audit.jsonl").read_bytes().split(b"\n")[:-1]
            found[:] = [
                event
                for line in lines
                if (event := json.loads(line)).get("request_id") == request_id and event["event"] == "request"
            ]
            return bool(found)

        wait_for(there, "the event")
        return found[0]


@pytest.fixture(scope="module", params=["serve", "stock"])
def everywhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from run(tmp_path_factory.mktemp("decisions"), request.param)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run `serve` with a recorder and a shadow that asks nobody on one route."""
    directory = tmp_path_factory.mktemp("recorded")
    yield from run(directory, "serve", "--record", str(directory / "traffic.mitm"), candidate=True)


def run(directory: Path, host: Front, *arguments: str, candidate: bool = False) -> Iterator[Running]:
    pdp, admin = Pdp(), free_port()
    with RecordingUpstream() as upstream, RecordingUpstream(pdp) as asked:
        listed = {} if host != "serve" else {"admin": {"port": admin}}
        tls, further = over_tls(directory) if candidate else (None, {})
        made = policy_with(directory, upstream, asked.url, further, **listed)
        if candidate:
            other = json.loads(json.dumps(made))
            next(route for route in other["routes"] if route["name"] == "opa")["decision"] = "none"
            arguments += ("--shadow", str(write_policy(directory, other, "candidate.yaml")))
        path = write_policy(directory, made)
        with Gateway(path, host=host, arguments=arguments, environment={"DECISIONS": TOKEN}) as gateway:
            yield Running(gateway, upstream, asked, pdp, directory, admin, tls)
        if tls is not None:
            tls.close()


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISIONS", TOKEN)
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    for name in ("everywhere", "recorded"):
        if name in request.fixturenames:
            running: Running = request.getfixturevalue(name)
            running.upstream.forget()
            running.service.forget_requests()
            running.service.reply = running.pdp
            running.pdp.instead = None


@pytest.mark.parametrize("name", SERVICES)
def test_the_service_decides(everywhere: Running, name: str) -> None:
    assert everywhere.get(f"/{name}/7?page=2").status == 200
    assert [asked.target for asked in everywhere.upstream.requests] == [f"/{name}/7?page=2"]
    denied = everywhere.get(f"/{name}/7", "bob")
    assert (denied.status, denied.reason) == (403, "decision-denied")
    assert len(everywhere.service.requests) == 2
    everywhere.upstream.assert_saw_only(1)


def test_an_undefined_document_denies(everywhere: Running) -> None:
    assert everywhere.get("/undefined").reason == "decision-denied"
    everywhere.upstream.assert_saw_nothing()


def test_what_an_evaluation_says(everywhere: Running) -> None:
    everywhere.get("/authzen/a%20b?page=2", headers={"Cookie": "session=secret"})
    asked = everywhere.service.last()
    assert json.loads(asked.body) == {
        "subject": {
            "type": "identity",
            "id": "alice",
            "properties": {"issuer": "dev", "roles": ["user"], "scopes": ["orders.read", "users.read"]},
        },
        "action": {"name": "GET"},
        "resource": {
            "type": "route",
            "id": "/authzen/a%20b",
            "properties": {"route": "authzen", "host": "gateway.test", "scheme": "http", "query": "page=2"},
        },
        "context": {"client_ip": "127.0.0.1"},
    }
    assert (asked.one("host"), asked.one("authorization")) == (everywhere.service.url[7:], f"Bearer {TOKEN}")


def test_what_an_input_says(everywhere: Running) -> None:
    token = mint("alice", org={"unit": "ops", "other": "hidden-claim"})
    fields = [("X-Tenant", "acme"), ("X-Other", "hidden-field"), ("Cookie", "session=hidden-cookie")]
    everywhere.gateway.request("POST", "/opa?q=hidden-query", token=token, headers=fields, body=b"hidden-body")
    asked = everywhere.service.last()
    assert json.loads(asked.body)["input"] == {
        "method": "POST",
        "path": "/opa",
        "host": "gateway.test",
        "scheme": "http",
        "route": "opa",
        "client_ip": "127.0.0.1",
        "headers": {"x-tenant": "acme"},
        "principal": {
            "subject": "alice",
            "issuer": "dev",
            "roles": ["user"],
            "scopes": ["orders.read", "users.read"],
            "claims": {"/org/unit": "ops"},
        },
    }
    assert b"hidden" not in everywhere.service.raw and token.rpartition(".")[2].encode() not in everywhere.service.raw
    assert asked.one("authorization") is None


def test_what_a_check_says(everywhere: Running) -> None:
    token = mint("alice")
    answered = everywhere.gateway.request("PUT", "/check/7?a=1", token=token, body=b"hidden-body")
    assert answered.status == 200
    asked = everywhere.service.last()
    assert (asked.method, asked.target, asked.body) == ("PUT", "/check/check/7?a=1", b"")
    told = {name: asked.one(name) for name in ("host", "x-user-id", "x-user-role", "x-forwarded-for", "authorization")}
    assert told == {
        "host": "gateway.test",
        "x-user-id": "alice",
        "x-user-role": "user",
        "x-forwarded-for": "127.0.0.1",
        "authorization": None,
    }
    assert token.rpartition(".")[2].encode() not in everywhere.service.raw


def test_a_check_is_told_a_credential_that_the_policy_names(everywhere: Running) -> None:
    token = mint("alice")
    everywhere.gateway.get("/told/7?q=1", token=token, headers={"Cookie": "a=1"})
    asked = everywhere.service.last()
    assert (asked.target, asked.one("authorization"), asked.one("cookie")) == ("/told/7", f"Bearer {token}", "a=1")
    assert everywhere.upstream.last().one("authorization") is None


def test_a_field_of_the_answer_goes_on_and_a_clients_own_never(everywhere: Running) -> None:
    everywhere.get("/check", headers={"X-User-Tier": "platinum"})
    sent = everywhere.upstream.last()
    assert (sent.one("x-user-tier"), sent.one("x-other")) == ("gold", None)
    everywhere.get("/open", headers={"X-User-Tier": "platinum"})
    assert everywhere.upstream.last().one("x-user-tier") is None


def test_it_admits_nobody_whom_another_stage_denies(everywhere: Running) -> None:
    token = mint("alice", scope="other")
    assert everywhere.gateway.get("/opa", token=token).reason == "scope-missing"
    assert everywhere.gateway.get("/opa").reason == "credential-missing"
    assert everywhere.get("/opa/..%2Fopen").reason == "path-ambiguous"
    everywhere.service.assert_saw_nothing()
    everywhere.upstream.assert_saw_nothing()


def test_a_public_route_asks_about_nobody(everywhere: Running) -> None:
    assert everywhere.gateway.get("/anyone").reason == "decision-denied"
    assert json.loads(everywhere.service.last().body)["input"]["principal"] is None
    everywhere.upstream.assert_saw_nothing()


def padded(answer: dict[str, Any]) -> Reply:
    return answered({**answer, "pad": "x" * 70_000})


def body(text: bytes, status: int = 200) -> Reply:
    return Reply(status, JSON, text)


YES = {"authzen": {"decision": True}, "opa": {"result": True}, "check": {}}
REDIRECTED = Reply(302, [("Location", "/access/v1/evaluation")], b"")
LIES: dict[str, dict[str, Reply | Raw]] = {
    "any": {
        "garbage": Raw(b"\x16\x03\x01 what?\r\n\r\n"),
        "hangs up": HANG_UP,
        "cut short": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{}"),
        "cut chunk": Raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n{"decision": true}\r\n'),
        "two lengths": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\n{}"),
        "a head without end": Raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000),
        "503": body(b'{"decision": true, "result": true}', 503),
        "500": body(b'{"decision": true, "result": true}', 500),
        "101": Raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
        "larger than any": Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b" " * 99_999),
    },
    "json": {
        "no JSON": body(b"true"),
        "empty": body(b""),
        "a list": body(b"[true]"),
        "text": body(b'{"decision": "true", "result": "true"}'),
        "number": body(b'{"decision": 1, "result": 1}'),
        "null": body(b'{"decision": null, "result": null}'),
        "twice": body(b'{"decision": false, "decision": true, "result": false, "result": true}'),
        "deep": body(b'{"decision": true, "result": true, "x": ' + b"[" * 5000 + b"]" * 5000 + b"}"),
        "nothing of it": body(b'{"result": {"allowed": true}, "allow": true}'),
        "oversized": padded({"decision": True, "result": True}),
        "redirect": REDIRECTED,
        "204": Reply(204),
        "201": body(b'{"decision": true, "result": true}', 201),
        "401": body(b'{"decision": true, "result": true}', 401),
        "403": body(b'{"decision": true, "result": true}', 403),
        "UTF-16": body('{"decision": true, "result": true}'.encode("utf-16")),
    },
    "check": {
        "two of a field": Reply(200, [("X-User-Tier", "a"), ("X-User-Tier", "b")], b""),
        "a field that is none": Reply(200, [("X-User-Tier", "caf\xe9")], b""),
        "a long field": Reply(200, [("X-User-Tier", "x" * 2000)], b""),
    },
}


def lies(*kinds: str) -> list[tuple[str, Reply | Raw]]:
    return [(f"{kind}: {name}", said) for kind in kinds for name, said in LIES[kind].items()]


@pytest.mark.parametrize("name", ["authzen", "opa", "check"])
def test_whatever_is_no_answer_denies(recorded: Running, name: str) -> None:
    kinds = ("any", "check") if name == "check" else ("any", "json")
    for lie, said in lies(*kinds):
        recorded.service.reply = said
        denied = recorded.get(f"/{name}")
        assert (denied.status, denied.reason) == (503, "decision-unavailable"), lie
        assert b"127.0.0.1" not in denied.body, lie
    assert len(recorded.service.requests) == len(lies(*kinds))  # each once: no redirect was followed, nothing repeated
    recorded.upstream.assert_saw_nothing()


def test_a_client_is_not_admitted_for_what_it_may_bring_about(recorded: Running) -> None:
    """With `on_failure: admit` too: only a service that is away, or broken, is passed over."""
    away = {"any: hangs up", "any: 500", "any: 503"}
    admitted = set()
    for lie, said in lies("any", "json"):
        recorded.service.reply = said
        answer = recorded.get("/lenient")
        assert answer.status == 200 or answer.reason == "decision-unavailable", lie
        if answer.status == 200:
            admitted.add(lie)
    assert admitted <= away and {"any: 500", "any: 503"} <= admitted
    recorded.upstream.assert_saw_only(len(admitted))


@pytest.mark.parametrize("status", [204, 301, 302, 307, 401, 403, 404, 429])
def test_whatever_a_check_answers_but_200_denies(recorded: Running, status: int) -> None:
    recorded.service.reply = Reply(status, [("Location", "/elsewhere")], b"")
    denied = recorded.get("/check")
    assert denied.reason == "decision-denied"
    event = recorded.last_event(denied.one("x-request-id"))
    assert (event["decision_service"]["said"], event["decision_service"]["why"]) == ("deny", f"it answered {status}")
    recorded.upstream.assert_saw_nothing()


def test_a_silent_service_and_one_that_is_not_there_deny_in_time(recorded: Running) -> None:
    recorded.service.reply = HANG
    assert recorded.get("/late").reason == "decision-unavailable"
    gone = recorded.get("/gone")
    assert gone.reason == "decision-unavailable"
    assert "refused" in recorded.last_event(gone.one("x-request-id"))["decision_service"]["why"]
    recorded.upstream.assert_saw_nothing()


def test_one_that_sends_an_octet_now_and_then_is_not_waited_for(recorded: Running) -> None:
    recorded.service.reply = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{", close=False)
    assert recorded.get("/late").reason == "decision-unavailable"
    recorded.upstream.assert_saw_nothing()


def test_a_policy_may_admit_without_an_answer_and_it_is_on_record(recorded: Running) -> None:
    recorded.service.reply = HANG
    admitted = recorded.get("/late-admit")
    assert admitted.status == 200
    event = recorded.last_event(admitted.one("x-request-id"))
    assert event["observed"] == ["decision-service/decision-unavailable"]
    assert event["decision_service"]["said"] == "unavailable"
    recorded.service.reply = recorded.pdp
    assert recorded.get("/late-admit", "bob").reason in {"decision-denied", None}  # None: the 300 ms were too short
    assert recorded.get("/lenient", "bob").reason == "decision-denied"


def metrics(running: Running) -> str:
    return request(running.admin, "GET", "/metrics", host="127.0.0.1").body.decode()


def test_equal_questions_at_a_time_are_one(recorded: Running) -> None:
    go = threading.Event()
    recorded.service.reply = Reply(200, JSON, b'{"result": true}', until=go)
    with ThreadPoolExecutor(8) as pool:
        alike = [pool.submit(recorded.get, "/opa/same") for _ in range(6)]
        others = [pool.submit(recorded.get, "/opa/other"), pool.submit(recorded.get, "/opa/same", "carol")]
        wait_for(lambda: "mitmgate_requests_in_flight 8.0" in metrics(recorded), "eight requests that wait")
        wait_for(lambda: len(recorded.service.requests) >= 3, "three questions")
        go.set()
        assert {asked.result().status for asked in (*alike, *others)} == {200}
    assert len(recorded.upstream.requests) == 8
    assert len(recorded.service.requests) == 3


def test_an_answer_is_kept_where_the_policy_says_so(recorded: Running) -> None:
    assert [recorded.get("/cached/1").status for _ in range(3)] == [200, 200, 200]
    assert [recorded.get("/cached/1", "bob").status for _ in range(2)] == [403, 403]
    assert len(recorded.service.requests) == 2
    kept = recorded.get("/cached/1")
    assert recorded.last_event(kept.one("x-request-id"))["decision_service"]["cached"] is True
    recorded.service.reply = HANG_UP
    assert [recorded.get("/cached/2").status for _ in range(2)] == [503, 503]
    assert len(recorded.service.requests) == 4  # a failure is not kept


def test_metrics_count_what_was_said(recorded: Running) -> None:
    recorded.get("/opa")
    recorded.get("/opa", "bob")
    text = metrics(recorded)
    for said in ("allow", "deny"):
        assert f'mitmgate_decision_service_answers_total{{cached="false",said="{said}",service="opa"}}' in text
    assert 'mitmgate_decision_service_duration_seconds_count{service="opa"}' in text


def test_the_shadow_asks_nobody(recorded: Running) -> None:
    denied = recorded.get("/opa/shadow", "bob")
    assert len(recorded.service.requests) == 1
    assert recorded.last_event(denied.one("x-request-id"))["event"] == "request"

    def differences() -> list[dict[str, Any]]:
        lines = (recorded.directory / "audit.jsonl").read_bytes().split(b"\n")[:-1]
        return [event for line in lines if (event := json.loads(line))["event"] == "shadow-difference"]

    wanted = denied.one("x-request-id")
    wait_for(lambda: any(found["request_id"] == wanted for found in differences()), "the difference")
    found = next(found for found in differences() if found["request_id"] == wanted)
    assert (found["kind"], found["before"]) == ("loosened", "deny decision-denied")
    recorded.get("/cached/shadow", "bob")
    recorded.get("/check/shadow", "alice")
    ids = [event["request_id"] for event in differences()]
    assert len(ids) == len(set(ids))


def test_replay_asks_nobody_and_finds_no_difference(recorded: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that this module has done, and with the services gone."""
    recorded.get("/check", headers={"X-User-Tier": "mine"})
    recorded.get("/authzen", "bob")
    recorded.service.reply = HANG_UP
    unavailable = recorded.get("/authzen")
    recorded.service.reply = recorded.pdp
    traffic, path = recorded.directory / "traffic.mitm", recorded.gateway.policy_path
    wait_for(lambda: (unavailable.one("x-request-id") or "-").encode() in traffic.read_bytes(), "the recording")
    before = len(recorded.service.requests)
    assert main(["replay", str(traffic), "--policy", str(path), "--coverage", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["decided"] == told["compared"] > 5
    assert told["decisions"]["deny decision-denied"] >= 1 and told["decisions"]["deny decision-unavailable"] >= 1
    assert len(recorded.service.requests) == before
    never = {(rule["rule"], rule["branch"]) for rule in told["coverage"]["never"]}
    assert not {("decision service authzen", "deny"), ("decision service authzen", "unavailable")} & never
    assert ("decision service undefined", "deny") in never
    text = path.read_text().replace('"decision": "authzen"', '"decision": "none"')
    other = recorded.directory / "other.yaml"
    other.write_text(text)
    assert main(["replay", str(traffic), "--policy", str(other)]) == 1
    assert "deny decision-denied" in capsys.readouterr().out
    assert TOKEN.encode() not in traffic.read_bytes()


def test_explain_says_who_decides(recorded: Running, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "explain",
        "--policy",
        str(recorded.gateway.policy_path),
        "--claims",
        '{"sub": "al", "scope": "users.read"}',
    ]
    assert main([*words, "GET", "/opa"]) == 0
    told = capsys.readouterr().out
    assert "decision-unavailable" in told and "--assume-decision" in told and "decision_services.opa" in told
    assert main([*words, "--assume-decision", "deny", "GET", "/opa"]) == 0
    told = capsys.readouterr().out
    assert "decision-denied" in told and "the decision service opa has to allow it" in told
    assert main([*words, "--assume-decision", "allow", "GET", "/opa"]) == 0
    assert "decision-denied" not in capsys.readouterr().out
    recorded.service.assert_saw_nothing()


def test_a_service_is_verified_by_the_policys_authorities(recorded: Running) -> None:
    assert recorded.get("/tls-good").status == 200
    assert recorded.get("/tls-other").reason == "decision-unavailable"
    assert recorded.get("/tls-system").reason == "decision-unavailable"
    recorded.upstream.assert_saw_only(1)
    assert recorded.tls is not None
    assert recorded.tls.fetches == 1
