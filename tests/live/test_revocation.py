"""Revocation: what was admitted a moment ago is refused in every process, what lasts is cut, and it is on record."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli import main
from tests.live.harness import ISSUER, SECRET, Gateway, Host, mint, policy, write_policy
from tests.live.harness_http import Answered, free_port, request, status_of, wait_for
from tests.live.harness_upstream import PATIENCE, Raw, Recorded, RecordingUpstream, Reply
from tests.protocol.raw_http2 import RawHttp2, request_fields
from tests.protocol.test_upgrade import HANDSHAKE, SWITCHING
from tests.redis_server import RedisServer
from tests.workers.load import Load
from tests.workers.processes import events, workers

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
TOKEN = "a secret of an operator, 32 bytes or more"
WITHIN = 15.0
"""Seconds in which a busy machine has done what takes 1.5 s at most."""


class Late(Reply):
    """An event stream that begins when it may."""

    def wire(self, request: Recorded) -> bytes:
        return EVENTS


def answer(asked: Recorded) -> Reply | Raw:
    if asked.target == "/ws":
        return Raw(SWITCHING, close=False)
    return Raw(EVENTS, close=False) if asked.target == "/events" else Reply()


def policy_with(directory: Path, upstream: RecordingUpstream, **members: Any) -> Path:
    made = policy(directory, upstream, **members)
    made["rate_limits"]["per-user"]["limit"] = 1_000_000
    made["routes"] += [
        {"name": "ws", "match": {"exact": "/ws"}, "upstream": "users", "websocket": True},
        {"name": "events", "match": {"exact": "/events"}, "upstream": "users", "stream": "always"},
        {"name": "kept", "match": {"exact": "/kept"}, "upstream": "users", "stream": "never"},
    ]
    return write_policy(directory, made)


def opened(port: int, target: bytes, token: str) -> socket.socket:
    """Open a WebSocket or an event stream, and read up to its first word."""
    link = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    credential = f"Authorization: Bearer {token}\r\n".encode()
    if target == b"/ws":
        link.sendall(HANDSHAKE.replace(b"Host: x\r\n", b"Host: x\r\n" + credential))
    else:
        link.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (target, credential))
    got = b""
    while b"\r\n\r\n" not in got or (target == b"/events" and b"hello" not in got):
        part = link.recv(65536)
        assert part, got
        got += part
    return link


def ended(link: socket.socket) -> bytes:
    """Read up to the end of a connection, and return what came."""
    got = b""
    with suppress(ConnectionResetError):
        while part := link.recv(65536):
            got += part
    return got


def revoke(path: Path, *words: str) -> None:
    assert main(["revoke", "--policy", str(path), *words]) == 0


def said(path: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in events(path) if event["event"] == kind]


@dataclass
class Running:
    gateway: Gateway
    upstream: RecordingUpstream
    audit: Path
    admin: int = 0


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Running]:
    """Run two workers that share a Redis."""
    directory = tmp_path_factory.mktemp("pair")
    with RecordingUpstream(answer) as upstream:
        store = {"url": redis.url, "timeout": "5s"}
        admin = free_port()
        listed: dict[str, Any] = {"on_failure": "last-known", "token_env": "REVOKING"}
        listed["events"] = {"audience": "https://gateway.example"}
        path = policy_with(directory, upstream, store=store, revocation=listed, admin={"port": admin})
        with Gateway(path, arguments=("--workers", "2"), environment={"REVOKING": TOKEN}) as gateway:
            workers(gateway, 2)
            yield Running(gateway, upstream, directory / "audit.jsonl", admin)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setenv("REVOKING", TOKEN)


def test_a_subject_under_load_in_two_processes(pair: Running) -> None:
    gateway, upstream = pair.gateway, pair.upstream
    alice, bob = mint("alice"), mint("bob")
    with ExitStack() as stack:
        revoked = [
            stack.enter_context(opened(gateway.port, target, alice))
            for target in (b"/ws", b"/events")
            for _ in range(4)
        ]
        others = [stack.enter_context(opened(gateway.port, target, bob)) for target in (b"/ws", b"/events")]
        with (
            Load(gateway.port, alice, target="/api/v1/users", clients=4) as load,
            Load(gateway.port, bob, target="/api/v1/users", clients=2) as bobs,
        ):
            load.go_on(50)
            revoke(gateway.policy_path, "--subject", "alice")
            at = time.monotonic()
            ends = []
            for link in revoked:
                ends.append(ended(link))
            cut = time.monotonic() - at
            wait_for(lambda: len(said(pair.audit, "revoked")) == 2, "both workers to have learnt it")
            load.go_round()  # what each client had on its way
            before = load.statuses[200]
            upstream.forget_requests()
            load.go_on(50)
            bobs.go_on(20)
            assert load.statuses[200] == before
            assert set(load.statuses) == {200, 401}
            assert set(bobs.statuses) == {200}
        upstream.settle()
        assert {seen.one("x-user-id") for seen in upstream.requests} == {"bob"}
        assert cut < WITHIN, cut
        print(f"cut after {cut:.3f} s")
        assert [end[:2] for end in ends[:4]] == [b"\x88\x02"] * 4, "closed by a frame"
        assert all(end[2:] == b"\x03\xf0" for end in ends[:4]), "1008 (RFC 6455, section 7.4.1)"
        assert not any(end.endswith(b"0\r\n\r\n") for end in ends[4:]), "visibly broken off"
        for link in others:
            link.setblocking(False)
            with pytest.raises(BlockingIOError):
                link.recv(1)
    wait_for(lambda: len([one for one in said(pair.audit, "request") if one.get("upgraded")]) >= 4, "the records")
    of_alice = [one for one in said(pair.audit, "request") if one.get("user") == "alice" and one["route"] != "users"]
    assert {(one["reason"], one["outcome"]) for one in of_alice} == {("token-revoked", "failed")}
    assert len(of_alice) == 8
    (event, _) = said(pair.audit, "revoked")
    assert (event["kind"], event["issuer"], event["value"]) == ("sub", "dev", "alice")
    refused = gateway.get("/api/v1/users", token=alice)
    assert (refused.status, refused.reason) == (401, "token-revoked")
    assert 'error="invalid_token"' in (refused.one("www-authenticate") or "")
    again = mint("alice", iat=int(time.time()) + 2)  # issued after that
    assert gateway.get("/api/v1/users", token=again).status == 200


def test_the_token_of_a_request_that_is_on_its_way_is_revoked_before_its_stream_begins(pair: Running) -> None:
    token = mint("carol", jti="c1")
    release = threading.Event()

    with socket.create_connection(("127.0.0.1", pair.gateway.port), timeout=PATIENCE) as link:
        pair.upstream.forget()
        pair.upstream.reply = Late(until=release)
        link.sendall(f"GET /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        wait_for(lambda: len(pair.upstream.requests) == 1, "the request")
        before = len(said(pair.audit, "revoked"))
        revoke(pair.gateway.policy_path, "--token-id", "c1")
        wait_for(lambda: len(said(pair.audit, "revoked")) == before + 2, "both workers to have learnt it")
        release.set()
        got = ended(link)
        assert not got.endswith(b"0\r\n\r\n"), got
        pair.upstream.reply = answer


def post(port: int, members: object, **fields: str) -> Answered:
    given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in fields.items()}
    body = members if isinstance(members, bytes) else json.dumps(members).encode()
    return request(port, "POST", "/revocations", headers=given, body=body, host="localhost")


def test_by_the_admin_listener(pair: Running) -> None:
    token, port = mint("ida"), pair.admin
    members = {"issuer": "dev", "kind": "sub", "value": "ida"}
    for wrong in ("", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer x"):
        answered = post(port, members, Authorization=wrong)
        assert (answered.status, answered.one("www-authenticate")) == (401, "Bearer")
    for status, body in (
        (400, b"x"),
        (400, {}),
        (400, members | {"issuer": "corp"}),
        (400, members | {"kind": "aud"}),
        (400, members | {"value": ""}),
        (400, members | {"value": 1}),
        (400, members | {"before": "now"}),
        (400, members | {"before": True}),
        (400, members | {"for": 5}),
        (400, members | {"lift": 1}),
        (400, members | {"until": 5}),
        (400, {"issuer": "dev", "kind": "iss", "value": "x"}),
        (400, members | {"kind": "jti", "before": 5}),
    ):
        got = post(port, body)
        assert (got.status, got.one("content-type")) == (status, "application/problem+json"), body
        assert got.json["detail"].startswith("Nothing was revoked: ")
    assert post(port, members, Content_Type="text/plain").status == 415
    assert request(port, "GET", "/revocations", host="localhost").status == 405
    assert pair.gateway.get("/api/v1/users", token=token).status == 200
    assert post(port, members).status == 201
    wait_for(lambda: len(said(pair.audit, "revoked")) % 2 == 0, "both workers to have learnt it", WITHIN)
    wait_for(lambda: pair.gateway.get("/api/v1/users", token=token).status == 401, "the revocation", WITHIN)
    assert said(pair.audit, "revoked")[-1]["by"] == "admin 127.0.0.1 with REVOKING"
    assert TOKEN not in pair.audit.read_text() + pair.gateway.log


CAEP = "https://schemas.openid.net/secevent/caep/event-type/"


def event(subject: str, kind: str = "session-revoked", typ: str = "secevent+jwt", **members: Any) -> bytes:
    """Make a token of events (RFC 8417)."""
    claims = {"sub_id": {"format": "iss_sub", "iss": ISSUER, "sub": subject}, "events": {CAEP + kind: {}}, "jti": "e1"}
    given = {"aud": "https://gateway.example", "exp": None, "sub": None, "role": None, "scope": None, **claims}
    return mint(headers={"typ": typ}, roles=None, **dict[str, Any](given | members)).encode()


def push(port: int, token: bytes, media_type: str = "application/secevent+jwt") -> Answered:
    return request(port, "POST", "/events", headers={"Content-Type": media_type}, body=token, host="localhost")


@pytest.mark.parametrize("kind", ["session-revoked", "credential-change"])
def test_by_an_event_of_the_issuer(pair: Running, kind: str) -> None:
    who = f"kim-{kind}"
    token = mint(who)
    for code, wrong in (
        ("authentication_failed", event(who, kind, key="x" * 64)),
        ("invalid_issuer", event(who, kind, iss="https://evil.example")),
        ("invalid_audience", event(who, kind, aud="https://other.example")),
        ("invalid_request", event(who, kind, typ="at+jwt")),
        ("invalid_request", event(who, kind, typ="JWT")),
        ("invalid_request", b"a.b.c"),
    ):
        got = push(pair.admin, wrong)
        assert (got.status, got.json["err"]) == (400, code)
    assert push(pair.admin, event(who, kind), "application/jwt").status == 400
    assert pair.gateway.get("/api/v1/users", token=token).status == 200
    got = push(pair.admin, event(who, kind))
    assert (got.status, got.body) == (202, b"")
    wait_for(lambda: pair.gateway.get("/api/v1/users", token=token).status == 401, "the revocation", WITHIN)
    refused = pair.gateway.get("/api/v1/users", token=event(who, kind).decode())
    assert refused.reason == "token-type-refused", "an event is no access token"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, host: Host) -> Iterator[Running]:
    """Run one process with a file."""
    directory = tmp_path_factory.mktemp("single")
    with RecordingUpstream(answer) as upstream:
        path = policy_with(directory, upstream, revocation={"file": "revoked.jsonl"})
        with Gateway(path, host=host) as gateway:
            yield Running(gateway, upstream, directory / "audit.jsonl")


def refused(running: Running, token: str) -> bool:
    got = running.gateway.get("/api/v1/users", token=token)
    assert (got.status, got.reason) in {(200, None), (401, "token-revoked")}, got
    return got.status == 401


@pytest.mark.parametrize(
    ("words", "claims"),
    [
        (("--token-id", "t 1"), {"jti": "t 1"}),
        (("--session", "s/1"), {"sid": "s/1"}),
        (("--subject", "jürgen"), {"sub": "jürgen.1"}),
    ],
)
def test_each_kind_in_each_host(single: Running, words: tuple[str, str], claims: dict[str, str]) -> None:
    name = {"--token-id": "jti", "--session": "sid", "--subject": "sub"}[words[0]]
    words = (words[0], claims[name].replace("ü", "u"))
    claims = {name: words[1]}
    token, other = mint("dora", **dict[str, Any](claims)), mint("dora", jti="x", sid="y")
    assert not refused(single, token)
    revoke(single.gateway.policy_path, *words)
    wait_for(lambda: refused(single, token), "the revocation", WITHIN)
    single.upstream.forget()
    assert refused(single, token)
    single.upstream.assert_saw_nothing()
    single.upstream.reply = answer
    assert not refused(single, other)
    revoke(single.gateway.policy_path, *words, "--lift")
    wait_for(lambda: not refused(single, token), "the lift", WITHIN)


def posted(running: Running) -> list[dict[str, Any]]:
    return [one for one in said(running.audit, "request") if one["method"] == "POST"]


@pytest.mark.parametrize("target", ["/kept", "/events"])
@pytest.mark.parametrize("wire", ["http/1.1", "h2"])
def test_an_upload_ends_with_the_token_that_admitted_it(single: Running, wire: str, target: str) -> None:
    """/kept is sent on when it is whole, /events as it comes; of neither the service gets all."""
    session = f"{wire} {target} {single.gateway.port}"
    bearer = f"Bearer {mint(sid=session)}"
    single.upstream.forget()
    uploads = len(posted(single))
    port = single.gateway.port
    with ExitStack() as stack:
        if wire == "h2":
            client = stack.enter_context(RawHttp2(port, None))
            fields = request_fields("POST", target, (b"authorization", bearer.encode()))
            number = client.request([*fields, (b"expect", b"100-continue")], end=False)
            client.until(lambda: bool(client.streams[number].fields), "the leave to send")
            client.send(client.data(number, b"half"))
        else:
            link = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
            asked = f"POST {target} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nExpect: 100-continue\r\n"
            link.sendall(f"{asked}Transfer-Encoding: chunked\r\n\r\n".encode())
            assert link.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            link.sendall(b"4\r\nhalf\r\n")
        if target == "/events":
            wait_for(lambda: b"half" in single.upstream.raw, "the first half")
        revoke(single.gateway.policy_path, "--session", session)
        wait_for(
            lambda: any(one["value"] == session for one in said(single.audit, "revoked")), "it to be known", WITHIN
        )
        if wire == "h2":
            if target == "/kept":
                client.send(client.data(number, b"rest", end=True))
            client.until(lambda: client.streams[number].over, "the answer")
            got = dict(client.streams[number].fields)
            assert got[b":status"] == b"401"
            challenge = got[b"www-authenticate"]
        else:
            if target == "/kept":
                link.sendall(b"4\r\nrest\r\n0\r\n\r\n")
            answered = b""
            while b"token-revoked" not in answered:
                part = link.recv(65536)
                assert part, answered
                answered += part
            assert status_of(answered) == 401
            challenge = answered
        assert b'error="invalid_token"' in challenge
    single.upstream.assert_saw_only(0) if target == "/kept" else single.upstream.settle()
    assert single.upstream.requests == []
    wait_for(lambda: len(posted(single)) > uploads, "the record")
    (record,) = posted(single)[uploads:]
    assert (record["reason"], record["outcome"], record["status"]) == ("token-revoked", "failed", 401)
    single.upstream.reply = answer


def test_it_survives_a_restart_and_a_list_that_is_gone_denies(tmp_path: Path, upstream: RecordingUpstream) -> None:
    path = policy_with(tmp_path, upstream, revocation={"file": "revoked.jsonl"})
    token, other = mint("erin"), mint("fred")
    with Gateway(path) as gateway:
        revoke(path, "--all")
        wait_for(lambda: gateway.get("/api/v1/users", token=token).status == 401, "the revocation", WITHIN)
    upstream.forget()
    traffic = tmp_path / "traffic.mitm"
    with Gateway(path, arguments=("--record", str(traffic))) as gateway:
        assert gateway.get("/api/v1/users", token=token).reason == "token-revoked"
        undated = mint("ivan", iat=None)  # nobody could tell when its revocation is over
        assert gateway.get("/api/v1/users", token=undated).reason == "token-claim-invalid"
        upstream.assert_saw_nothing()
        again = mint("fred", iat=int(time.time()) + 2)
        assert gateway.get("/api/v1/users", token=other).reason == "token-revoked"
        assert gateway.get("/api/v1/users", token=again).status == 200
        (tmp_path / "revoked.jsonl").rename(tmp_path / "gone")
        wait_for(lambda: gateway.get("/api/v1/users", token=again).reason == "revocations-unknown", "denials", WITHIN)
        assert gateway.get("/public").status == 200, "without a credential there is nothing to revoke"
        assert said(tmp_path / "audit.jsonl", "revocations-unknown")[-1]["decides"] == "deny"
        (tmp_path / "gone").rename(tmp_path / "revoked.jsonl")
        wait_for(lambda: gateway.get("/api/v1/users", token=again).status == 200, "the list again", WITHIN)
        assert gateway.get("/api/v1/users", token=token).reason == "token-revoked"
    (tmp_path / "revoked.jsonl").unlink()
    assert main(["replay", str(traffic), "--policy", str(path)]) == 0, "a recording says what was revoked then"


@pytest.mark.parametrize("decides", ["deny", "last-known"])
def test_redis_away(tmp_path: Path, upstream: RecordingUpstream, decides: str) -> None:
    token, other = mint("gina"), mint("hans")
    with RedisServer(tmp_path) as redis:
        path = policy_with(
            tmp_path, upstream, store={"url": redis.url, "timeout": "1s"}, revocation={"on_failure": decides}
        )
        with Gateway(path) as gateway:

            def status(token: str) -> str | int:
                got = gateway.get("/api/v1/users", token=token)
                return got.reason or got.status

            revoke(path, "--subject", "gina")
            wait_for(lambda: status(token) == "token-revoked", "the revocation", WITHIN)
            wait_for(lambda: status(other) == 200, "the list", WITHIN)
            redis.stop()
            audit = tmp_path / "audit.jsonl"
            wait_for(lambda: bool(said(audit, "revocations-unknown")), "the record")
            assert said(audit, "revocations-unknown")[-1]["decides"] == decides
            if decides == "deny":
                wait_for(lambda: status(other) == "revocations-unknown", "denials", WITHIN)
                upstream.forget()
                assert status(other) == "revocations-unknown"
                upstream.assert_saw_nothing()
            else:
                assert status(token) == "token-revoked"
                assert status(other) == 200
            redis.start()  # which has forgotten everything
            wait_for(lambda: status(other) == 200, "the list", WITHIN)
            assert status(token) == "token-revoked"
            wait_for(lambda: b"gina" in redis.command("XRANGE", "mitmgate:{revocations}", "-", "+"), "it told again")
        if decides == "last-known":
            with Gateway(path) as gateway:
                assert gateway.get("/api/v1/users", token=token).reason == "token-revoked"


def test_the_issuer_of_a_token_is_found_by_each_of_its_names(
    tmp_path: Path, upstream: RecordingUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    path = policy_with(tmp_path, upstream, revocation={"file": "revoked.jsonl"})
    made = json.loads(path.read_text())
    issuers = made["identity"]["issuers"]
    tenants = {"issuer": ["https://l.example/{tid}", "https://s.example/{tid}/"], "tenants": ["one", "two"]}
    issuers["entra"] = issuers["dev"] | tenants
    path.write_text(json.dumps(made))
    (tmp_path / "token").write_text(mint(iss="https://s.example/two/", jti="t-1"))
    assert main(["revoke", "--policy", str(path), "--token", str(tmp_path / "token")]) == 0
    capsys.readouterr()
    assert main(["revoke", "--policy", str(path), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "entra/two" in listed and "t-1" in listed


def test_a_mistake_is_told(tmp_path: Path, upstream: RecordingUpstream, capsys: pytest.CaptureFixture[str]) -> None:
    path = policy_with(tmp_path, upstream, revocation={"file": "revoked.jsonl"})
    for words, told in (
        ((), "say what to revoke: one of --subject"),
        (("--subject", "a", "--all"), "say what to revoke"),
        (("--subject", "a", "--issuer", "dve"), "no issuer 'dve'; --issuer is one of dev"),
        (("--token-id", "a", "--before", "1"), "a time goes with a subject and with an issuer"),
        (("--subject", "a", "--before", "soon"), "--before soon: must be like 2026-"),
        (("--subject", "a", "--for", "1d"), "--for 1d: must be a duration"),
        (("--key", "k"), "this issuer's keys have no ids"),
        (("--subject", ""), "must have 1 to 255 characters"),
    ):
        assert main(["revoke", "--policy", str(path), *words]) == 2
        assert told in capsys.readouterr().err
    without = policy_with(tmp_path, upstream)
    assert main(["revoke", "--policy", str(without), "--all"]) == 2
    assert "add revocation: {file: FILE}" in capsys.readouterr().err
