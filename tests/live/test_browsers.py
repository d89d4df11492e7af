"""Credentials of browsers at real gateways: no service gets them, and no page of others can use them."""

import json
import socket
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli import main
from tests.keys.introspection_server import CLIENT, IntrospectionServer
from tests.keys.introspection_server import SECRET as INTROSPECTION
from tests.live.harness import Gateway, audit_events, mint, policy, route, write_policy
from tests.live.harness_http import Answered
from tests.live.harness_upstream import PATIENCE, Raw, Recorded, RecordingUpstream, Reply
from tests.redis_server import RedisServer

OWN, ALLOWED, EVIL = "http://gateway.test", "https://app.example", "https://evil.example"
COOKIE = "__Host-token"


def service(asked: Recorded) -> Reply | Raw:
    """Take every WebSocket, with the first subprotocol that is offered; one that asks for `lie` gets another."""
    key = asked.one("sec-websocket-key")
    if key is None:
        return Reply()
    accept = b64encode(sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
    chosen = (asked.one("sec-websocket-protocol") or "").partition(",")[0].replace("lie", "bearer.lie")
    lines = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    lines += f"Sec-WebSocket-Accept: {accept}\r\n"
    lines += f"Sec-WebSocket-Protocol: {chosen}\r\n" if chosen else ""
    return Raw(f"{lines}\r\n".encode(), close=False)


def policy_with(directory: Path, upstream: RecordingUpstream) -> dict[str, Any]:
    made = policy(directory, upstream)
    made["identity"]["browsers"] = {"cookie": COOKIE}
    route(made, "users", credentials=["header", "cookie"])
    made["routes"] += [
        {"name": "page", "match": {"exact": "/page"}, "upstream": "users", "credentials": ["cookie"]},
        {
            "name": "ws",
            "match": {"exact": "/ws"},
            "upstream": "users",
            "websocket": True,
            "credentials": ["header", "cookie", "subprotocol"],
        },
    ]
    return made


@dataclass
class Side:
    """A gateway, and the service behind it."""

    gateway: Gateway
    upstream: RecordingUpstream

    def ask(self, method: str, target: str, **fields: str) -> Answered:
        """Ask with fields; `_` in a name is `-`, and a list repeats it."""
        self.upstream.settle()
        self.upstream.forget_requests()
        headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
        return self.gateway.request(method, target, headers=headers, body=b"{}" if method == "POST" else None)

    def saw_nothing(self) -> None:
        """Look at requests and connections: the end of an earlier WebSocket may come as late as it wants."""
        self.upstream.settle()
        assert (self.upstream.requests, self.upstream.connections) == ([], 0)

    def refused(self, answered: Answered, status: int, reason: str) -> None:
        assert (answered.status, answered.reason) == (status, reason)
        self.saw_nothing()

    def open(self, *fields: str, path: str = "/ws") -> tuple[int, str]:
        """Open a WebSocket; return the status and the head of the answer."""
        self.upstream.settle()
        self.upstream.forget_requests()
        lines = [
            *(f"GET {path} HTTP/1.1", "Host: gateway.test", "Connection: Upgrade", "Upgrade: websocket"),
            *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *fields),
        ]
        with socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE) as link:
            link.sendall("\r\n".join([*lines, "", ""]).encode())
            got = b""
            while b"\r\n\r\n" not in got:
                part = link.recv(65536)
                assert part, got
                got += part
        return int(got[9:12]), got.decode("latin-1").lower()


@pytest.fixture(scope="module", params=["serve", "stock"])
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    directory = tmp_path_factory.mktemp("browsers")
    with (
        RecordingUpstream(service) as upstream,
        Gateway(write_policy(directory, policy_with(directory, upstream)), host=request.param) as gateway,
    ):
        yield Side(gateway, upstream)


def test_a_cookie_counts_where_the_route_says_so_and_goes_nowhere(side: Side) -> None:
    token = mint("alice")
    assert side.ask("GET", "/api/v1/users", Cookie=f"a=1; {COOKIE}={token}; b=2").status == 200
    seen = side.upstream.last()
    assert (seen.one("cookie"), seen.one("x-user-id")) == ("a=1; b=2", "alice")
    assert token.encode() not in seen.raw
    assert side.ask("GET", "/page", Cookie=f"{COOKIE}={token}").status == 200
    assert side.upstream.last().one("cookie") is None
    side.refused(side.ask("GET", "/page", Authorization=f"Bearer {token}"), 401, "credential-missing")
    side.refused(
        side.ask("GET", "/api/v1/users", Cookie=f"{COOKIE}={mint(key='x' * 64)}"), 401, "token-signature-invalid"
    )
    side.refused(side.ask("GET", "/api/v1/users", Cookie=f"{COOKIE.lower()}={token}"), 401, "credential-missing")
    # Nobody else gets it, whatever the route accepts.
    side.refused(side.ask("GET", "/api/v1/orders", Cookie=f"{COOKIE}={token}"), 401, "credential-missing")
    side.refused(side.ask("GET", "/nowhere", Cookie=f"{COOKIE}={token}"), 401, "credential-missing")
    both = {"Authorization": f"Bearer {mint('bob')}", "Cookie": f"{COOKIE}={token}"}
    assert side.ask("GET", "/api/v1/orders", **both).status == 200
    assert side.upstream.last().one("x-user-id") == "bob"
    assert token.encode() not in side.upstream.last().raw
    assert side.ask("GET", "/public", Cookie=f"{COOKIE}={token}; c=3").status == 200
    assert side.upstream.last().one("cookie") == "c=3"


def test_two_credentials_are_ambiguous(side: Side) -> None:
    token = mint()
    for fields in (
        {"Authorization": f"Bearer {token}", "Cookie": f"{COOKIE}={token}"},
        {"Authorization": "Basic YTpi", "Cookie": f"{COOKIE}={token}"},
        {"Cookie": f"{COOKIE}={token}; {COOKIE}={token}"},
        {"Cookie": f"{COOKIE}={token}", "cookie": f"x=1; {COOKIE}="},
    ):
        answered = side.ask("GET", "/api/v1/users", **fields)
        side.refused(answered, 400, "credential-ambiguous")
        assert 'error="invalid_request"' in (answered.one("www-authenticate") or "")
    for words in (
        (f"Sec-WebSocket-Protocol: bearer.{token}, bearer.{token}",),
        (f"Sec-WebSocket-Protocol: bearer.{token}", f"Sec-WebSocket-Protocol: Bearer.{token}, chat"),
        (f"Sec-WebSocket-Protocol: bearer.{token}", f"Cookie: {COOKIE}={token}", f"Origin: {OWN}"),
        (f"Sec-WebSocket-Protocol: bearer.{token}", f"Authorization: Bearer {token}"),
    ):
        assert side.open(*words)[0] == 400
        side.saw_nothing()


@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        ("POST", {}, 403),
        ("POST", {"Origin": EVIL}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Origin": ""}, 403),
        ("POST", {"Origin": f"{OWN}.evil.example"}, 403),
        ("POST", {"Origin": f"{OWN}:8443"}, 403),
        ("POST", {"Origin": EVIL, "Sec_Fetch_Site": "same-origin"}, 403),
        ("POST", {"Sec_Fetch_Site": "same-site"}, 403),
        ("POST", {"Sec_Fetch_Site": "none"}, 403),
        ("POST", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 403),
        ("POST", {"Sec_Fetch_Site": "same-origin"}, 200),
        ("POST", {"Origin": OWN}, 200),
        ("POST", {"Origin": "https://gateway.test"}, 200),
        ("POST", {"Origin": ALLOWED}, 200),
        ("DELETE", {}, 403),
        ("GET", {}, 200),
        ("GET", {"Origin": EVIL}, 403),
        ("GET", {"Origin": ALLOWED}, 200),
        ("GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ("GET", {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ("GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
        ("GET", {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"}, 200),
        ("GET", {"Sec_Fetch_Site": "same-origin"}, 200),
    ],
)
def test_which_pages_may_use_a_cookie(side: Side, method: str, fields: dict[str, str], status: int) -> None:
    answered = side.ask(method, "/api/v1/users", Cookie=f"{COOKIE}={mint()}", **fields)
    if status == 403:
        side.refused(answered, 403, "origin-not-allowed")
    else:
        assert answered.status == status


def test_a_subprotocol_that_is_a_token_is_none_to_anybody(side: Side) -> None:
    token = mint("alice")
    for offered in (f"bearer.{token}, chat, other", f"chat, bearer.{token}, other"):
        status, head = side.open(f"Sec-WebSocket-Protocol: {offered}")
        assert status == 101
        assert "sec-websocket-protocol: chat\r\n" in head
        assert "bearer" not in head
        seen = side.upstream.last()
        assert (seen.one("sec-websocket-protocol"), seen.one("x-user-id")) == ("chat, other", "alice")
        assert token.encode() not in seen.raw
    status, head = side.open(f"Sec-WebSocket-Protocol: bearer.{token}")
    assert (status, "sec-websocket-protocol" in head) == (101, False)
    assert side.open(f"Sec-WebSocket-Protocol: bearer.{token}, chat", f"Origin: {OWN}")[0] == 101
    assert side.open(f"Sec-WebSocket-Protocol: bearer.{token}, lie")[0] == 502, "a subprotocol that nobody has offered"
    for status, *words in (
        (403, f"Sec-WebSocket-Protocol: bearer.{token}, chat", f"Origin: {EVIL}"),
        (401, f"Sec-WebSocket-Protocol: bearer.{mint(lifetime=-3600)}, chat"),
        (401, "Sec-WebSocket-Protocol: bearer., chat"),
        (401, f"Sec-WebSocket-Protocol: bearer, {token}"),
        (401, "Sec-WebSocket-Protocol: chat"),
        (403, f"Cookie: {COOKIE}={token}"),
        (403, f"Cookie: {COOKIE}={token}", f"Origin: {EVIL}"),
        (403, f"Cookie: {COOKIE}={token}", f"Origin: {ALLOWED}"),  # this route has no CORS rule
        (403, f"Cookie: {COOKIE}={token}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: websocket"),
    ):
        assert side.open(*words)[0] == status, words
        side.saw_nothing()
    assert side.open(f"Cookie: {COOKIE}={token}", f"Origin: {OWN}")[0] == 101
    plain = side.ask("GET", "/ws", Sec_WebSocket_Protocol=f"bearer.{token}")
    side.refused(plain, 401, "credential-missing")


def test_nothing_is_left_on_record_and_it_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = tmp_path / "traffic.mitm"
    tokens = [mint(name) for name in ("alice", "bob", "carol")]
    forged = mint("mallory", key="x" * 64)
    with RecordingUpstream(service) as upstream:
        path = write_policy(tmp_path, policy_with(tmp_path, upstream))
        with Gateway(path, arguments=("--record", str(recording))) as gateway:
            side = Side(gateway, upstream)
            assert side.ask("GET", "/api/v1/users", Cookie=f"a=1; {COOKIE}={tokens[0]}").status == 200
            assert side.open(f"Sec-WebSocket-Protocol: bearer.{tokens[1]}, chat")[0] == 101
            assert side.ask("POST", "/api/v1/users", Cookie=f"{COOKIE}={tokens[2]}", Origin=EVIL).status == 403
            assert side.ask("GET", "/api/v1/users", Cookie=f"{COOKIE}={forged}").status == 401
            good = {"Authorization": f"Bearer {tokens[0]}", "Cookie": f"{COOKIE}={forged}"}
            assert side.ask("GET", "/api/v1/orders", **good).status == 200
            assert len(audit_events(tmp_path / "audit.jsonl", 5)) == 5
            log = gateway.log
        content = recording.read_bytes() + (tmp_path / "audit.jsonl").read_bytes() + log.encode()
        for token in (*tokens, forged):
            assert token.encode() not in content
            assert token.rpartition(".")[2].encode() not in content
        monkeypatch.setenv("MITMGATE_TEST_SECRET", "another secret, of somewhere else, that is long enough")
        assert main(["replay", str(recording), "--policy", str(path), "--format", "json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["decided"] == report["same"] == 5
        # Where the route takes no cookie it is no credential, and where it takes one a forged one is found out.
        other = policy_with(tmp_path, upstream)
        route(other, "users", credentials=["header"])
        assert main(["replay", str(recording), "--policy", str(write_policy(tmp_path, other, "other.yaml"))]) == 1
        assert "credential-missing" in capsys.readouterr().out


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy(tmp_path, "http://127.0.0.1:9")
    route(made, "users", credentials=["cookie", "subprotocol"])
    route(made, "public", credentials=["header"])
    path = write_policy(tmp_path, made)
    assert main(["check", str(path)]) == 2
    told = "".join(capsys.readouterr())
    assert "add identity.browsers.cookie" in told
    assert "only a WebSocket has subprotocols" in told
    assert "leave out auth: none" in told
    monkeypatch.setenv("MITMGATE_TEST_SECRET", "x" * 64)
    made = policy(tmp_path, "http://127.0.0.1:9")
    made["identity"]["browsers"] = {"cookie": "token"}
    assert main(["check", str(write_policy(tmp_path, made))]) == 0
    told = "".join(capsys.readouterr())
    assert "name it __Host-token" in told
    assert "no route takes it" in told


TICKETS = "/.well-known/mitmgate-ticket"
SEALS = "a secret that seals tickets, of 32 bytes or more"


def with_tickets(directory: Path, upstream: RecordingUpstream, **members: Any) -> dict[str, Any]:
    made = policy_with(directory, upstream) | members
    made["identity"]["browsers"]["tickets"] = {"secret_env": "TICKETS", "lifetime": "60s"}
    made["routes"].insert(0, {"name": "all", "match": {"prefix": "/"}, "upstream": "users", "auth": "none"})
    made["routes"] += [
        {
            "name": name,
            "match": {"exact": f"/{name}"},
            "upstream": "users",
            "credentials": ["header", "cookie", "ticket"],
        }
        for name in ("events", "other")
    ]
    route(made, "ws", credentials=["ticket"])
    return made


def ticket(gateway: Gateway, token: str, **fields: str) -> str:
    answered = gateway.request("POST", TICKETS, token=token, headers=fields)
    assert answered.status == 200, answered
    assert answered.one("cache-control") == "no-store"
    assert answered.json["expires_in"] == 60
    assert token not in answered.body.decode()
    return str(answered.json["ticket"])


def test_a_ticket_is_good_once_in_whichever_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, environment = tmp_path / "traffic.mitm", {"TICKETS": SEALS}
    token, used = mint("alice"), []
    with RecordingUpstream(service) as upstream, RedisServer(tmp_path) as redis:
        made = with_tickets(tmp_path, upstream, store={"url": redis.url, "timeout": "5s"})
        path = write_policy(tmp_path, made)
        beside = write_policy(tmp_path, made | {"audit": {"sinks": []}}, "beside.yaml")
        with (
            Gateway(path, environment=environment, arguments=("--record", str(recording))) as one,
            Gateway(beside, environment=environment) as other,
        ):
            first, second = Side(one, upstream), Side(other, upstream)
            used.append(ticket(one, token))
            assert second.ask("GET", f"/events?a=1&ticket={used[0]}&b=%20").status == 200
            seen = upstream.last()
            assert (seen.target, seen.one("x-user-id")) == ("/events?a=1&b=%20", "alice")
            for side in (first, second):
                side.refused(side.ask("GET", f"/events?ticket={used[0]}"), 401, "ticket-used")
            used.append(ticket(other, token, Origin=ALLOWED))
            assert first.ask("GET", f"/events?ticket={used[1]}").status == 200
            assert upstream.last().target == "/events"
            used.append(ticket(one, token))
            assert first.open(path=f"/ws?ticket={used[2]}")[0] == 101
            assert upstream.last().target == "/ws"
            # What is no ticket, or not for here.
            fresh = ticket(one, token)
            used.append(fresh)
            changed = fresh[:-8] + ("A" if fresh[-8] != "A" else "B") + fresh[-7:]
            for query, status, reason in (
                (f"ticket={changed}", 401, "ticket-invalid"),
                ("ticket=", 401, "ticket-invalid"),
                (f"ticket={token}", 401, "ticket-invalid"),
                (f"ticket={fresh}%3D", 401, "ticket-invalid"),
                (f"ticket={fresh}&ticket={fresh}", 400, "credential-ambiguous"),
                (f"%74icket={fresh}&ticket={fresh}", 400, "credential-ambiguous"),
            ):
                first.refused(first.ask("GET", f"/events?{query}"), status, reason)
            first.refused(first.ask("GET", f"/api/v1/users?ticket={fresh}"), 401, "credential-missing")
            both = first.ask("GET", f"/events?ticket={fresh}", Authorization=f"Bearer {token}")
            first.refused(both, 400, "credential-ambiguous")
            first.refused(first.ask("GET", f"/events?ticket={fresh}", Origin=EVIL), 403, "origin-not-allowed")
            assert first.ask("GET", f"/public?ticket={fresh}").status == 200
            assert upstream.last().target == "/public", "nobody else gets it"
            assert first.ask("GET", f"/public?a=%20&tic%6Bet={fresh}").status == 200
            assert upstream.last().target == "/public?a=%20"
            assert first.ask("GET", f"/other?ticket={fresh}").status == 200, "what was refused has not used it up"
            # Who gets one: who has a good token in Authorization, and no page of a stranger.
            for fields, status, reason in (
                ({}, 401, "credential-missing"),
                ({"Authorization": f"Bearer {mint(key='x' * 64)}"}, 401, "token-signature-invalid"),
                ({"Authorization": f"Bearer {mint(lifetime=-3600)}"}, 401, "token-expired"),
                ({"Cookie": f"{COOKIE}={token}", "Origin": OWN}, 401, "credential-missing"),
                ({"Authorization": f"Bearer {token}", "Origin": EVIL}, 403, "origin-not-allowed"),
            ):
                first.refused(first.ask("POST", TICKETS, **fields), status, reason)
            asked = {"Origin": ALLOWED, "Access-Control-Request-Method": "POST"}
            preflight = one.request("OPTIONS", TICKETS, headers=asked)
            assert (preflight.status, preflight.one("access-control-allow-origin")) == (204, ALLOWED)
            first.refused(first.ask("GET", TICKETS, Authorization=f"Bearer {token}"), 404, "no-route")
            log = one.log
        content = recording.read_bytes() + (tmp_path / "audit.jsonl").read_bytes() + log.encode()
        reasons = [json.loads(line).get("reason") for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert reasons.count("ticket") == 3
        for text in (token, changed, *used):
            assert text.encode() not in content
        monkeypatch.setenv("MITMGATE_TEST_SECRET", "another secret, of somewhere else, that is long enough")
        assert main(["replay", str(recording), "--policy", str(path), "--format", "json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["decided"] == report["same"] > 15


def test_a_ticket_is_shown_to_no_issuer_of_opaque_tokens(tmp_path: Path) -> None:
    """For its lifetime that issuer could use it, as a user of another issuer; nor is a token of another kind shown."""
    token, opaque = mint("alice"), "an-opaque-token"
    environment = {"TICKETS": SEALS, "INTROSPECTION_SECRET": INTROSPECTION}
    with RecordingUpstream(service) as upstream, IntrospectionServer() as server:
        made = with_tickets(tmp_path, upstream)
        made["identity"]["issuers"]["opaque"] = {
            "issuer": "https://opaque.example",
            "introspection": {"url": server.url, "client_id": CLIENT, "client_secret_env": "INTROSPECTION_SECRET"},
        }
        made["identity"]["default"] = ["dev", "opaque"]
        server.active(opaque, role="user", scope="users.read", aud=None)
        with Gateway(write_policy(tmp_path, made), environment=environment) as gateway:
            side = Side(gateway, upstream)
            fresh = ticket(gateway, token)
            for text in (
                fresh,
                f"{fresh}=",
                f".{fresh}",
                f"a.{fresh}",
                f"{fresh}.b",
                f"a~{fresh}/b",
                f".{token}",
                f"-{token}",
            ):
                for fields in (
                    {"Authorization": f"Bearer {text}"},
                    {"Authorization": f"DPoP {text}"},
                    {"Cookie": f"{COOKIE}={text}"},
                ):
                    side.refused(side.ask("GET", "/events", **fields), 401, "token-malformed")
                side.refused(side.ask("POST", TICKETS, Authorization=f"Bearer {text}"), 401, "token-malformed")
            assert server.asked == []
            assert side.ask("GET", f"/events?ticket={fresh}").status == 200, "what was refused has not used it up"
            assert side.ask("GET", "/events", Authorization=f"Bearer {opaque}").status == 200
            assert server.asked == [opaque]
            sealed = ticket(gateway, opaque)
            assert side.ask("GET", f"/events?ticket={sealed}").status == 200
