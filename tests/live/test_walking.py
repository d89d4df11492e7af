"""What an edge worker in front of services does, one function after the other, and each hole that such workers have."""

import http.client
import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.live.harness import SECRET, Gateway, Host, audit_events, mint, policy, route, write_policy
from tests.live.harness_http import Answered, free_port, raw_request, status_of, wait_for
from tests.live.harness_upstream import HANG_UP, Recorded, RecordingUpstream, Reply

CLIENTS = 32


class Walk:
    """A gateway with its upstream and its audit file; the upstream's record starts empty in every test."""

    def __init__(self, gateway: Gateway, upstream: RecordingUpstream, fragile: list[RecordingUpstream]) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.flaky, self.healing = fragile
        self.get = gateway.get
        self.request = gateway.request

    def event(self, answered: Answered) -> dict[str, Any]:
        """Wait for the audit event of a response, and return it: exactly one has its request id."""
        path = self.gateway.policy_path.with_name("audit.jsonl")
        request_id = answered.one("x-request-id")
        assert request_id

        def mine() -> list[bytes]:
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            return [line for line in lines if request_id.encode() in line]

        wait_for(lambda: bool(mine()), f"the audit event of {request_id}")
        assert len(mine()) == 1, mine()
        event: dict[str, Any] = json.loads(mine()[0])
        return event


def walking_policy(directory: Path, upstream: str, flaky: str, healing: str, dead: str) -> dict[str, Any]:
    made = policy(directory, upstream)
    made["upstreams"]["flaky"] = {"endpoints": [flaky], "circuit": {"failures": 5, "open_for": "60s"}}
    made["upstreams"]["healing"] = {"endpoints": [healing], "circuit": {"failures": 5, "open_for": "1s"}}
    made["upstreams"]["dead"] = {"endpoints": [dead], "connect_timeout": "1s", "retries": 0}
    made["rate_limits"]["short"] = {"limit": 10, "window": "2s", "key": "principal"}
    common = {"upstream": "users", "auth": "none"}
    made["routes"] += [
        {
            **common,
            "name": "office",
            "match": {"prefix": "/office"},
            "networks": {"allow": ["127.0.0.0/30"]},
        },
        {**common, "name": "away", "match": {"prefix": "/away"}, "networks": {"allow": ["127.0.0.2/31"]}},
        {**common, "name": "barred", "match": {"prefix": "/barred"}, "networks": {"deny": ["127.0.0.1/32"]}},
        {**common, "name": "flaky", "match": {"prefix": "/flaky"}, "upstream": "flaky"},
        {**common, "name": "healing", "match": {"prefix": "/healing"}, "upstream": "healing"},
        {**common, "name": "dead", "match": {"prefix": "/dead"}, "upstream": "dead"},
        {"name": "short", "match": {"prefix": "/short"}, "upstream": "users", "rate_limits": ["short"]},
        {
            "name": "of-a",
            "match": {"prefix": "/of-a"},
            "upstream": "users",
            "require": {"when": 'request.host == "a.example"'},
        },
    ]
    return made


@pytest.fixture(scope="module")
def running(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    directory = tmp_path_factory.mktemp(f"walking-{host}")
    with RecordingUpstream() as upstream, RecordingUpstream() as flaky, RecordingUpstream() as healing:
        dead = f"http://127.0.0.1:{free_port()}"
        path = write_policy(directory, walking_policy(directory, upstream.url, flaky.url, healing.url, dead))
        with Gateway(path, host=host) as gateway:
            yield Walk(gateway, upstream, [flaky, healing])


@pytest.fixture
def walk(running: Walk) -> Walk:
    running.upstream.forget()
    return running


def denied(walk: Walk, answered: Answered, status: int, reason: str) -> None:
    """Check a denial from every side: client, upstream, audit."""
    assert (answered.status, answered.reason) == (status, reason), answered
    assert answered.json["request_id"] == answered.one("x-request-id")
    walk.upstream.assert_saw_nothing()
    event = walk.event(answered)
    assert (event["status"], event["reason"]) == (status, reason)


# What is remembered.


@pytest.mark.parametrize(("version", "status"), [("1.0", 200), ("1.1", 400)])
def test_a_condition_on_the_host_is_asked_for_each_request(walk: Walk, version: str, status: int) -> None:
    """The fields are the same each time, and known from the second time on; the host is in the target alone."""
    token = mint()

    def ask(host: str) -> int:
        head = f"GET http://{host}/of-a HTTP/{version}\r\nAuthorization: Bearer {token}\r\n\r\n"
        return status_of(raw_request(walk.gateway.port, head.encode()))

    assert [ask("a.example") for _ in range(4)] == [status] * 4
    seen = 4 if status == 200 else 0
    walk.upstream.assert_saw_only(seen)
    assert ask("b.example") == (403 if status == 200 else 400)
    walk.upstream.assert_saw_only(seen)
    assert {request.one("host") for request in walk.upstream.requests} <= {"a.example"}


# Bearer tokens.


def test_a_valid_token_is_admitted(walk: Walk) -> None:
    answered = walk.get("/api/v1/users/7?fields=name", token=mint("alice"))
    assert (answered.status, answered.body) == (200, b"upstream says hello")
    assert (walk.upstream.last().method, walk.upstream.last().target) == ("GET", "/api/v1/users/7?fields=name")
    walk.upstream.assert_saw_only(1)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (None, "credential-missing"),
        ("not.a.jwt", "token-malformed"),
        (mint(key=SECRET + "!"), "token-signature-invalid"),
        (mint(lifetime=-3600), "token-expired"),
        (mint(aud="api://other"), "token-audience-refused"),
        (mint(iss="https://evil.example"), "token-issuer-unknown"),
        (mint(algorithm="HS512"), "token-algorithm-refused"),
        (mint(key="", algorithm="none"), "token-algorithm-refused"),
        (mint(exp=None), "token-claim-invalid"),
    ],
    ids=["none", "garbage", "signature", "expired", "audience", "issuer", "algorithm", "unsigned", "no-exp"],
)
def test_without_a_valid_token_it_is_401(walk: Walk, token: str | None, reason: str) -> None:
    answered = walk.get("/api/v1/users/7", token=token)
    challenge = answered.one("www-authenticate") or ""
    assert challenge.startswith("Bearer")
    assert ("invalid_token" in challenge) == (token is not None)
    denied(walk, answered, 401, reason)


def test_without_the_scope_it_is_403(walk: Walk) -> None:
    answered = walk.get("/api/v1/users/7", token=mint(scope="users.reader xusers.read"))
    assert "insufficient_scope" in (answered.one("www-authenticate") or "")
    denied(walk, answered, 403, "scope-missing")


def test_without_the_role_it_is_403(walk: Walk) -> None:
    denied(walk, walk.get("/api/v1/orders", token=mint(roles="users")), 403, "role-missing")


# Prefix routing.


def test_a_prefix_can_be_stripped(walk: Walk) -> None:
    assert walk.get("/api/v1/orders/42/items?x=%20y", token=mint()).status == 200
    assert walk.upstream.last().target == "/42/items?x=%20y"


@pytest.mark.parametrize("target", ["/api/v1/usersX", "/api/v1/users-admin/7", "/api/v1/user", "/api/v1", "/nowhere"])
def test_a_prefix_ends_at_a_segment(walk: Walk, target: str) -> None:
    denied(walk, walk.get(target, token=mint()), 404, "no-route")


def test_unknown_paths_are_not_told_apart_without_a_token(walk: Walk) -> None:
    denied(walk, walk.get("/api/v1/usersX"), 401, "credential-missing")
    denied(walk, walk.get("/nowhere"), 401, "credential-missing")


@pytest.mark.parametrize("target", ["/public/../api/v1/users/7", "/public%2f..%2fapi", "/public/./x"])
def test_a_path_that_reads_in_two_ways_is_refused(walk: Walk, target: str) -> None:
    denied(walk, walk.get(target), 400, "path-ambiguous")


@pytest.mark.parametrize("target", ["/api/v1/users//7", "/api/v1/users/a;b", "/api/v1/users/a%2Fb"])
def test_a_path_that_some_route_could_take_is_refused_once_it_is_known_who_asks(walk: Walk, target: str) -> None:
    denied(walk, walk.get(target), 401, "credential-missing")
    denied(walk, walk.get(target, token=mint()), 400, "path-ambiguous")


def test_a_method_that_no_route_takes_is_405(walk: Walk) -> None:
    answered = walk.request("DELETE", "/api/v1/orders/1", token=mint())
    assert answered.one("allow") == "GET, HEAD, POST"
    denied(walk, answered, 405, "method-not-allowed")


# Identity.


def test_identity_headers_are_the_gateways_and_the_token_stays(walk: Walk) -> None:
    spoofed = [
        ("X-User-ID", "root"),
        ("x-user-id", "root"),
        ("X_User_ID", "root"),
        ("X-User-Role", "admin"),
        ("Connection", "X-User-ID, X-User-Role"),
        ("X-Forwarded-For", "192.0.2.1"),
    ]
    assert walk.get("/api/v1/users", token=mint("alice", roles=["user", "editor"]), headers=spoofed).status == 200
    seen = walk.upstream.last()
    assert (seen.one("x-user-id"), seen.one("x-user-role")) == ("alice", "user,editor")
    assert seen.all("authorization") == []
    assert [name for name, value in seen.headers if "_" in name or value == "root"] == []
    assert "192.0.2.1" not in (seen.one("x-forwarded-for") or "")
    assert walk.get("/public", headers=spoofed).status == 200
    public = walk.upstream.last()
    assert public.all("x-user-id") + public.all("x-user-role") == []


# Request id, response time, audit.


def test_one_request_id_everywhere(walk: Walk) -> None:
    answered = walk.get("/api/v1/users", token=mint(), headers={"X-Request-ID": "chosen-by-a-client"})
    request_id = answered.one("x-request-id")
    assert request_id not in {None, "chosen-by-a-client"}
    assert walk.upstream.last().one("x-request-id") == request_id
    assert walk.event(answered)["request_id"] == request_id


def test_response_time_on_every_answer(walk: Walk) -> None:
    for answered in (walk.get("/public"), walk.get("/api/v1/users"), walk.get("/health"), walk.get("/dead")):
        assert re.fullmatch(r"\d+(\.\d+)?ms", answered.one("x-response-time") or ""), answered


def test_an_audit_event_says_who_what_and_what_came_of_it(walk: Walk) -> None:
    answered = walk.request("POST", "/api/v1/users/7?token=hidden", token=mint("alice"), body=b"hello")
    event = walk.event(answered)
    assert event["method"] == "POST"
    assert event["path"] == "/api/v1/users/7"
    assert event["status"] == 200
    assert event["reason"] == "ok"
    assert event["client_ip"] == "127.0.0.1"
    assert event["user"] == "alice"
    assert event["route"] == "users"
    assert "hidden" not in str(event)


# Rate limit.


def test_the_limit_is_told_and_kept_for_each_principal(walk: Walk) -> None:
    token = mint("counter")
    told = []
    for _ in range(100):
        answered = walk.get("/api/v1/users", token=token)
        assert answered.status == 200
        assert answered.one("x-ratelimit-limit") == "100"
        told.append(int(answered.one("x-ratelimit-remaining") or -1))
        assert int(answered.one("x-ratelimit-reset") or 0) > 0
    assert told == list(range(99, -1, -1))
    walk.upstream.forget()
    answered = walk.get("/api/v1/users", token=token)
    assert 1 <= int(answered.one("retry-after") or 0) <= 60
    assert answered.one("x-ratelimit-remaining") == "0"
    denied(walk, answered, 429, "quota-exceeded")
    assert walk.get("/api/v1/users", token=mint("somebody-else")).status == 200


def race(walk: Walk, target: str, token: str, each: int) -> list[int]:
    """Let CLIENTS clients send `each` requests as fast as they can; return all statuses."""

    def client(_: int) -> list[int]:
        link = http.client.HTTPConnection("127.0.0.1", walk.gateway.port, timeout=20)
        try:
            return [walk.get(target, token=token, connection=link).status for _ in range(each)]
        finally:
            link.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [status for statuses in pool.map(client, range(CLIENTS)) for status in statuses]


def test_clients_that_race_get_the_limit_and_no_more(walk: Walk) -> None:
    statuses = race(walk, "/api/v1/users", mint("racer"), each=5)
    assert Counter(statuses) == {200: 100, 429: CLIENTS * 5 - 100}
    walk.upstream.assert_saw_only(100)


def test_no_window_anywhere_holds_more_than_the_limit(walk: Walk) -> None:
    """A fixed window lets twice the limit through around its border."""
    token = mint("bordercrosser")
    admitted: list[float] = []
    while len(admitted) < 25:
        answered = walk.get("/short", token=token)
        if answered.status == 200:
            admitted.append(datetime.fromisoformat(walk.event(answered)["time"]).timestamp())
    spans = [later - earlier for earlier, later in zip(admitted, admitted[10:], strict=False)]
    assert min(spans) >= 2.0 - 0.001, spans  # both times are cut to milliseconds


# CORS.


def preflight(walk: Walk, origin: str, method: str = "GET", headers: str = "authorization") -> Answered:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return walk.request("OPTIONS", "/api/v1/users/7", headers=asked)


def test_a_preflight_is_answered_here(walk: Walk) -> None:
    answered = preflight(walk, "https://app.example")
    assert answered.status == 204
    assert answered.one("access-control-allow-origin") == "https://app.example"
    assert answered.one("access-control-allow-credentials") == "true"
    assert answered.one("access-control-max-age") == "600"
    assert "GET" in (answered.one("access-control-allow-methods") or "")
    assert "Origin" in ", ".join(answered.all("vary"))
    walk.upstream.assert_saw_nothing()
    assert walk.event(answered)["reason"] == "preflight"


def test_a_preflight_of_a_foreign_origin_is_refused(walk: Walk) -> None:
    answered = preflight(walk, "https://app.example.evil")
    assert answered.all("access-control-allow-origin") == []
    denied(walk, answered, 403, "origin-not-allowed")


def test_options_that_is_no_preflight_needs_a_token(walk: Walk) -> None:
    denied(walk, walk.request("OPTIONS", "/api/v1/users/7"), 401, "credential-missing")


def test_a_response_carries_cors_headers_of_the_gateway_alone(walk: Walk) -> None:
    walk.upstream.reply = Reply(headers=[("Access-Control-Allow-Origin", "*")])
    answered = walk.get("/api/v1/users", token=mint(), headers={"Origin": "https://app.example"})
    assert answered.all("access-control-allow-origin") == ["https://app.example"]


# Health.


def test_health_is_answered_here_and_says_nothing_of_what_is_inside(walk: Walk) -> None:
    answered = walk.get("/health")
    assert answered.status == 200
    assert not re.search(rb"mitm|python|version|127\.0\.0\.1", answered.body, re.IGNORECASE)
    walk.upstream.assert_saw_nothing()
    for near in ("/healthX", "/health/x", "/Health"):
        denied(walk, walk.get(near), 401, "credential-missing")


# Networks.


def test_networks_are_asked_with_the_whole_prefix(walk: Walk) -> None:
    """127.0.0.2/31 shares its text up to the last digit with 127.0.0.1, and 192.0.2.1 was only claimed."""
    assert walk.get("/office").status == 200
    walk.upstream.forget()
    denied(walk, walk.get("/away"), 403, "address-denied")
    denied(walk, walk.get("/away", headers={"X-Forwarded-For": "127.0.0.2"}), 403, "address-denied")
    denied(walk, walk.get("/away", headers={"CF-Connecting-IP": "127.0.0.2"}), 403, "address-denied")
    denied(walk, walk.get("/barred"), 403, "address-denied")


# Size.


def test_a_declared_body_over_the_limit_is_413(walk: Walk) -> None:
    answered = walk.request("POST", "/api/v1/users", token=mint(), body=b"x" * 1025)
    denied(walk, answered, 413, "body-too-large")


def test_a_body_at_the_limit_is_admitted(walk: Walk) -> None:
    assert walk.request("POST", "/api/v1/users", token=mint(), body=b"x" * 1024).status == 200
    assert walk.request("POST", "/api/v1/users", token=mint(), body=[b"x" * 512, b"y" * 512]).status == 200
    assert [len(request.body) for request in walk.upstream.requests] == [1024, 1024]


def test_a_chunked_body_is_counted_while_it_comes(walk: Walk) -> None:
    answered = walk.request("POST", "/api/v1/users", token=mint(), body=[b"x" * 700, b"y" * 700])
    assert (answered.status, answered.reason) == (413, "body-too-large")
    walk.upstream.settle()
    assert walk.upstream.requests == []
    assert walk.event(answered)["reason"] == "body-too-large"


# Circuit.


def test_five_failures_open_the_circuit_and_the_upstream_is_left_alone(walk: Walk) -> None:
    walk.flaky.reply = Reply(500)
    assert [walk.get("/flaky").status for _ in range(5)] == [500] * 5
    walk.flaky.assert_saw_only(5)
    answered = walk.get("/flaky")
    assert 1 <= int(answered.one("retry-after") or 0) <= 60
    denied(walk, answered, 503, "circuit-open")
    walk.flaky.assert_saw_only(5)
    assert walk.get("/public").status == 200, "a circuit is its own upstream's"


def test_a_circuit_closes_after_a_good_probe(walk: Walk) -> None:
    walk.healing.reply = HANG_UP
    assert [walk.get("/healing").status for _ in range(5)] == [502] * 5
    assert walk.get("/healing").reason == "circuit-open"
    walk.healing.reply = Reply()
    wait_for(lambda: walk.get("/healing").status == 200, "the circuit to close")
    assert walk.get("/healing").status == 200


def test_client_errors_do_not_open_the_circuit(walk: Walk) -> None:
    walk.upstream.reply = Reply(404)
    token = mint("searcher")
    assert [walk.get("/api/v1/users/missing", token=token).status for _ in range(10)] == [404] * 10
    walk.upstream.assert_saw_only(10)


def test_an_unreachable_upstream_is_502_and_its_address_is_not_told(walk: Walk) -> None:
    answered = walk.get("/dead")
    assert (answered.status, answered.reason) == (502, "upstream-unreachable")
    assert b"127.0.0.1" not in answered.body
    assert walk.event(answered)["reason"] == "upstream-unreachable"


# And the whole of it.


def test_every_request_leaves_exactly_one_event(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    made = route(policy(tmp_path, upstream), "users", rate_limits=[])
    with Gateway(write_policy(tmp_path, made), host=host) as gateway:
        statuses = [
            gateway.get("/api/v1/users", token=mint()).status,
            gateway.get("/api/v1/users").status,
            gateway.get("/api/v1/users", token=mint(scope=None)).status,
            gateway.get("/nowhere", token=mint()).status,
            gateway.request("POST", "/api/v1/users", token=mint(), body=b"x" * 2000).status,
            gateway.get("/health").status,
            gateway.get("/public/../x").status,
        ]
    assert statuses == [200, 401, 403, 404, 413, 200, 400]
    events = audit_events(tmp_path / "audit.jsonl", len(statuses))
    assert [event["status"] for event in events] == statuses
    assert all(isinstance(request, Recorded) and request.target == "/api/v1/users" for request in upstream.requests)
