"""API keys at real gateways: made and ended by the command while processes run, and what others' keys come to."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli import main
from mitmgate.core.api_key import changed, id_of, made, make
from tests.live.harness import SECRET, Gateway, mint, policy, write_policy
from tests.live.harness_http import Answered, raw_request, wait_for
from tests.live.harness_upstream import PATIENCE, Raw, Recorded, RecordingUpstream, Reply
from tests.redis_server import RedisServer
from tests.workers.processes import events

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
FIELD = "X-API-Key"

Made = Callable[..., str]


def answer(asked: Recorded) -> Reply | Raw:
    return Raw(EVENTS, close=False) if asked.target == "/events" else Reply()


def policy_with(directory: Path, upstream: RecordingUpstream, keys: dict[str, Any], **members: Any) -> Path:
    written = policy(directory, upstream, api_keys=keys, **members)
    written["rate_limits"]["by-key"] = {"limit": 3, "window": "1h", "key": "claim:key_id"}
    written["rate_limits"]["by-principal"] = {"limit": 3, "window": "1h", "key": "principal"}
    needs = {"require": {"scopes_all": ["jobs.write"]}}
    written["routes"] += [
        {"name": path, "match": {"prefix": f"/{path}"}, "upstream": "users", "auth": auth, **more}
        for path, auth, more in (
            ("key", "api-key", {}),
            ("scoped", "api-key", needs),
            ("either", {"any": ["jwt", "api-key"]}, {}),
            ("both", {"all": ["api-key", "jwt"]}, {}),
            ("limited", "api-key", {"rate_limits": ["by-key"]}),
            ("shared", "api-key", {"rate_limits": ["by-principal"]}),
            ("events", "api-key", {"stream": "always"}),
            ("token", "jwt", {}),
        )
    ]
    return write_policy(directory, written)


@dataclass
class Running:
    gateway: Gateway
    upstream: RecordingUpstream
    path: Path
    workers: int

    @property
    def audit(self) -> Path:
        return self.path.parent / "audit.jsonl"

    def ask(self, target: str, *keys: str, token: str | None = None) -> Answered:
        return self.gateway.get(target, token=token, headers=[(FIELD, key) for key in keys])

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in events(self.audit) if event["event"] == kind]

    def learnt(self, key: str, kind: str = "api-key-learnt") -> None:
        """Wait until every process knows a key, or that it has ended."""

        def known() -> int:
            return sum(event["key_id"] == identifier(key) for event in self.said(kind))

        wait_for(lambda: known() == self.workers, f"{kind} of every process")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module", params=["a file, two workers", "Redis, mitmweb"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis: RedisServer
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("keys")
    two = request.param.startswith("a file")
    keys: dict[str, Any] = {"file": "keys.jsonl"} if two else {}
    with RecordingUpstream(answer) as upstream:
        path = policy_with(directory, upstream, keys, store={"url": redis.url, "timeout": "5s"})
        words = ("--workers", "2") if two else ()
        with Gateway(path, host="serve" if two else "web", arguments=words) as gateway:
            yield Running(gateway, upstream, path, 2 if two else 1)


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)


def key_of(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run `mitmgate key`, and return the key that it has printed."""
    assert main(["key", words[0], "--policy", str(path), *words[1:]]) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture
def make_key(running: Running, capsys: pytest.CaptureFixture[str]) -> Made:
    def new(*words: str, principal: str = "job") -> str:
        key = key_of(running.path, capsys, "add", "--principal", principal, *words)
        running.learnt(key)
        return key

    return new


def run(running: Running, *words: str) -> None:
    assert main(["key", words[0], "--policy", str(running.path), *words[1:]]) == 0


def identifier(key: str) -> str:
    found = id_of(key.encode())
    assert found is not None
    return found


def test_what_a_key_admits(running: Running, make_key: Made) -> None:
    key = make_key("--role", "robot", "--scope", "jobs.write", "--claim", "plan=pro")
    running.upstream.forget_requests()
    assert running.ask("/scoped/1", key).status == 200
    seen = running.upstream.last()
    assert (seen.one("x-user-id"), seen.one("x-user-role"), seen.one("x-user-issuer")) == ("job", "robot", "api-key")
    assert key.encode() not in seen.raw
    assert seen.one(FIELD) is None
    poor = make_key(principal="poor")
    running.upstream.forget_requests()
    refused = running.ask("/scoped/1", poor)
    assert (refused.status, refused.reason) == (403, "scope-missing")
    assert refused.one("www-authenticate") is None, "no other token would do"
    running.upstream.assert_saw_nothing()
    # A route of tokens takes no key, and a route of keys no token.
    assert running.ask("/token", key).reason == "credential-missing"
    assert running.ask("/key", token=mint()).reason == "credential-missing"
    assert running.ask("/nowhere", key).status == 404
    assert running.ask("/nowhere").status == 401
    # On routes of others it does not go on either.
    assert running.ask("/token", key, token=mint()).status == 200
    assert running.ask("/public", key).status == 200
    assert [running.upstream.requests[at].one(FIELD) for at in (-1, -2)] == [None, None]


def test_what_is_no_good_key(running: Running, make_key: Made) -> None:
    key = make_key(principal="mallory")
    running.upstream.forget_requests()
    swapped = key[:-1] + ("0" if key[-1] != "0" else "1")
    other = make()
    forged = f"mgk_{identifier(key)}_{other.rpartition('_')[2]}"
    for reason, keys in {
        "credential-missing": [],
        "credential-ambiguous": [key, key],
        "api-key-malformed": [swapped],
        "api-key-unknown": [other],
    }.items():
        answered = running.ask("/key", *keys)
        assert answered.reason == reason
        assert answered.status == (400 if reason == "credential-ambiguous" else 401)
        challenge = answered.one("www-authenticate")
        assert (challenge or "").startswith('ApiKey name="x-api-key"') is (answered.status == 401)
    for value in (
        *(key[:length] for length in (0, 1, 4, 14, 15, 58, 63)),
        *(key.upper(), key.lower(), key.swapcase(), f"{key[:20]} {key[20:]}", f'"{key}"', f"Bearer {key}", forged),
        *(f"{key},{key}", f"{key}; {other}", f"{key}x", key.replace("mgk_", ""), key * 2, "%6d" + key[1:]),
    ):
        assert running.ask("/key", value).reason == "api-key-malformed", value
    # White space around a value is not a part of it (RFC 9110, section 5.5).
    assert running.ask("/key", f"  {key}\t").status == 200
    running.upstream.forget_requests()
    # In the place of a token, in the query, in the path, in a cookie, and under names that some servers take for it.
    head = f"Host: x\r\nX_API_Key: {key}\r\nX-API.Key: {key}\r\n"
    assert b'"credential-missing"' in raw_request(running.gateway.port, f"GET /key HTTP/1.1\r\n{head}\r\n".encode())
    assert running.gateway.get("/key", token=key).reason == "credential-missing"
    assert running.gateway.get("/token", token=key).reason == "token-malformed"
    assert running.gateway.get("/key", headers={"Cookie": f"{FIELD}={key}"}).reason == "credential-missing"
    for target in (f"/key?{FIELD}={key}", f"/key?api_key={key}", f"/key/{key}", f"/key?a=%6d{key[1:]}"):
        assert running.ask(target).reason == "credential-missing"
        answered = running.ask(target, key)
        assert (answered.status, answered.reason) == (400, "credential-ambiguous")
    # On routes that take no keys it would go on to whoever logs addresses.
    for route, token in (("/public", None), ("/token", mint()), ("/either", mint())):
        path = "" if route == "/public" else f"/%6dgk%5f{key[4:]}"
        for target in (f"{route}?a={key}", f"{route}?a=%6Dgk%5f{key[4:]}", f"{route}{path}?{key}"):
            answered = running.ask(target, token=token)
            assert (answered.status, answered.reason) == (400, "credential-ambiguous"), target
    running.upstream.assert_saw_nothing()


def test_in_another_field_it_goes_no_further(running: Running, make_key: Made) -> None:
    """As where clients still use the field of before a reload, or a page with one in its address is left."""
    key = make_key(principal="lost")
    fields = {
        "X-Old-Key": key,
        "Referer": f"https://a.example/?k={key}",
        "X-Both": f"{key};{key}",
        "Other": "mgk_ and _",
    }
    for route, token in (("/public", None), ("/token", mint())):
        running.upstream.forget_requests()
        assert running.gateway.get(route, token=token, headers=fields).status == 200
        seen = running.upstream.last()
        assert key.encode() not in seen.raw
        assert seen.one("other") == "mgk_ and _"
    running.upstream.forget_requests()
    assert running.gateway.get("/public", headers={"Host": key}).status == 400
    running.upstream.assert_saw_nothing()


def test_any_and_all(running: Running, make_key: Made) -> None:
    key, token, bad, worse = make_key(), mint("alice"), make(), mint(key="x" * 64)
    for target, keys, bearer, status, reason in (
        ("/either", [key], None, 200, None),
        ("/either", [], token, 200, None),
        ("/either", [], None, 401, "credential-missing"),
        ("/either", [bad], token, 401, "api-key-unknown"),
        ("/either", [key], worse, 400, "credential-ambiguous"),
        ("/either", [key], token, 400, "credential-ambiguous"),
        ("/either", [], worse, 401, "token-signature-invalid"),
        ("/both", [key], token, 200, None),
        ("/both", [key], None, 401, "credential-missing"),
        ("/both", [], token, 401, "credential-missing"),
        ("/both", [key], worse, 401, "token-signature-invalid"),
        ("/both", [bad], token, 401, "api-key-unknown"),
        ("/both", [key, key], token, 400, "credential-ambiguous"),
    ):
        running.upstream.forget_requests()
        answered = running.ask(target, *keys, token=bearer)
        assert (answered.status, answered.reason) == (status, reason), (target, keys, bearer)
        if status == 200:
            seen = running.upstream.last()
            assert seen.one("x-user-id") == ("job" if keys else "alice")
            assert seen.one("x-user-issuer") == ("api-key" if keys else "dev")
        else:
            running.upstream.assert_saw_nothing()
            assert (answered.one("www-authenticate") is not None) is (status == 401)
    assert running.ask("/either").one("www-authenticate") == 'Bearer, ApiKey name="x-api-key"'


def test_rotated_and_revoked(running: Running, make_key: Made, capsys: pytest.CaptureFixture[str]) -> None:
    old = make_key("--role", "robot", "--claim", "plan=pro", principal="rotor")
    new = key_of(running.path, capsys, "rotate", identifier(old), "--overlap", "1h")
    running.learnt(new)
    running.upstream.forget_requests()
    for key in (old, new):
        assert running.ask("/key", key).status == 200
        assert running.upstream.last().one("x-user-role") == "robot"
    run(running, "list")
    listed = capsys.readouterr().out
    for key in (old, new):
        assert identifier(key) in listed
        assert key.rpartition("_")[2] not in listed
    assert f"in the place of {identifier(old)}" in listed
    with socket.create_connection(("127.0.0.1", running.gateway.port), timeout=PATIENCE) as link:
        link.sendall(f"GET /events HTTP/1.1\r\nHost: x\r\n{FIELD}: {old}\r\n\r\n".encode())
        got = b""
        while b"hello" not in got:
            part = link.recv(65536)
            assert part, got
            got += part
        run(running, "revoke", old)  # whoever finds a key can end it
        with suppress(ConnectionResetError):
            while link.recv(65536):
                pass
    running.learnt(old, "api-key-ended")
    running.upstream.forget_requests()
    for _ in range(2 * running.workers):
        answered = running.ask("/key", old)
        assert (answered.status, answered.reason) == (401, "api-key-revoked")
    running.upstream.assert_saw_nothing()
    assert running.ask("/key", new).status == 200
    ended = running.said("api-key-ended")[-1]
    assert (ended["key_id"], ended["user"], ended["how"]) == (identifier(old), "rotor", "revoked")
    wait_for(lambda: any(event.get("reason") == "api-key-revoked" for event in running.said("request")), "the record")


def test_limits_and_audit_know_the_id_alone(running: Running, make_key: Made) -> None:
    one, other = make_key(principal=f"twin{running.workers}"), make_key(principal=f"twin{running.workers}")
    statuses = [
        [running.ask(target, key).status for _ in range(2)]
        for target in ("/limited", "/shared")
        for key in (one, other)
    ]
    assert statuses == [[200, 200], [200, 200], [200, 200], [200, 429]]
    ids = {identifier(one), identifier(other)}
    wait_for(lambda: ids <= {event.get("key_id") for event in running.said("request")}, "the records")
    written = b"".join(path.read_bytes() for path in running.path.parent.iterdir() if path.is_file())
    for key in (one, other):
        assert key.encode() not in written
        assert key.rpartition("_")[2].encode() not in written


def alone(directory: Path, upstream: RecordingUpstream, keys: dict[str, Any], *words: str, **members: Any) -> Running:
    path = policy_with(directory, upstream, keys, **members)
    return Running(Gateway(path, arguments=words), upstream, path, 1)


@pytest.mark.parametrize("running", ["Redis, mitmweb"], indirect=True)
def ask_all(running: Running, key: str, ended: str) -> list[Answered]:
    return [
        *(running.ask("/scoped", key), running.ask("/either", key), running.ask("/both", key, token=mint())),
        *(running.ask("/key", ended), running.ask("/key", make()), running.ask("/key", key[:-1]), running.ask("/key")),
        *(running.ask("/key", key, key), running.ask("/token", key), running.ask("/public", key)),
        running.ask(f"/key?{key}", key),
        # A token that nobody has looked at is not found good by the key beside it.
        running.ask("/key", key, token=mint(key="x" * 64)),
    ]


def test_replay_decides_them_without_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    traffic = tmp_path / "traffic.mitm"
    with RecordingUpstream() as upstream:
        running = alone(tmp_path, upstream, {"file": "keys.jsonl"}, "--record", str(traffic))
        words = ("--role", "robot", "--scope", "jobs.write", "--claim", "email=job@robots.example")
        key = key_of(running.path, capsys, "add", "--principal", "replayed", *words)
        ended = key_of(running.path, capsys, "add", "--principal", "ended")
        run(running, "revoke", identifier(ended))
        with running.gateway:
            statuses = [answered.status for answered in ask_all(running, key, ended)]
    assert statuses == [200, 200, 200, 401, 401, 401, 401, 400, 401, 200, 400, 200]
    (tmp_path / "keys.jsonl").unlink()
    recorded = traffic.read_bytes()
    for secret in (key, ended, key.rpartition("_")[2], "job@robots.example"):
        assert secret.encode() not in recorded
    capsys.readouterr()
    assert main(["replay", str(traffic), "--policy", str(running.path), "--format", "json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["decisions"].values()) == len(statuses)
    # What another policy would have said: of the token beside the key, which is bad, too.
    other = json.loads(running.path.read_text())
    next(route for route in other["routes"] if route["name"] == "key")["auth"] = "jwt"
    path = str(write_policy(tmp_path, other, "other.yaml"))
    assert main(["replay", str(traffic), "--policy", path, "--format", "json"]) == 1
    assert "token-signature-invalid" in capsys.readouterr().out
    redacted = str(tmp_path / "again.mitm")
    assert main(["redact", str(traffic), redacted]) == 0
    assert main(["replay", redacted, "--policy", str(running.path)]) == 0


def written(path: Path, *lines: bytes) -> None:
    path.write_bytes(b"".join([line + b"\n" for line in lines]))


def test_a_list_that_is_gone_or_damaged_admits_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_ = tmp_path / "keys.jsonl"
    with RecordingUpstream() as upstream:
        running = alone(tmp_path, upstream, {"file": "keys.jsonl"})
        with running.gateway:
            assert running.ask("/key", make()).reason == "api-keys-unavailable", "there is no list yet"
            key = key_of(running.path, capsys, "add", "--principal", "job")
            over, now = make(), time.time()
            line = made(over, "late", now - 90, now - 30)
            with list_.open("ab") as file:
                file.write(line + b"\n")
            wait_for(lambda: running.ask("/key", over).reason == "api-key-expired", "the list")
            content = list_.read_bytes()
            first = content.split(b"\n")[0]

            def damaged(how: Callable[[], object]) -> None:
                how()
                wait_for(lambda: running.ask("/key", key).reason == "api-keys-unavailable", "denials")
                upstream.forget()
                assert running.ask("/key", key).status == 503
                assert running.ask("/either", token=mint()).status == 200, "who has another credential needs no list"
                upstream.assert_saw_only(1)
                list_.unlink(missing_ok=True)
                list_.write_bytes(content)
                wait_for(lambda: running.ask("/key", key).status == 200, "the list")

            def fifo() -> None:
                list_.unlink()
                os.mkfifo(list_)

            damaged(list_.unlink)
            damaged(fifo)
            damaged(lambda: list_.write_bytes(b"{" + content))
            damaged(lambda: written(list_, first, first))  # whose key would it be?
            damaged(lambda: written(list_, first, b'{"id":"0123456789","revoked":1}'))  # of which key?
            damaged(lambda: written(list_, first, first.replace(b'"principal":"job"', b'"principal":""')))
            damaged(lambda: list_.write_bytes(content.replace(b'"expires":', b'"expires":"soon","x":')))
            # What was cut short, as by a crash, was not acknowledged; what is not on the list is no key.
            list_.write_bytes(content[:-20])
            wait_for(lambda: running.ask("/key", over).reason == "api-key-unknown", "the list")
            assert running.ask("/key", key).status == 200
            # Another list takes its place in one step, as an older copy may: what was revoked stays so.
            written(list_, first, changed(identifier(key), revoked=time.time()))
            wait_for(lambda: running.ask("/key", key).reason == "api-key-revoked", "the list")
            beside = tmp_path / "copy"
            written(beside, first, line)
            beside.rename(list_)
            wait_for(lambda: running.ask("/key", over).reason == "api-key-expired", "the older list")
            assert running.ask("/key", key).reason == "api-key-revoked"
            # Or over it, as cp does, which makes it empty first.
            content = list_.read_bytes()
            list_.write_bytes(b"")
            wait_for(lambda: running.ask("/key", over).reason == "api-key-unknown", "the empty list")
            list_.write_bytes(content)
            wait_for(lambda: running.ask("/key", over).reason == "api-key-expired", "the older list")
            assert running.ask("/key", key).reason == "api-key-revoked"
        assert {event["decides"] for event in running.said("api-keys-unknown")} == {"deny"}
        assert running.said("api-keys-known")[-1]["seconds"] > 0
    assert key not in running.gateway.log


@pytest.mark.parametrize("decides", ["deny", "last-known"])
def test_while_redis_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str], decides: str) -> None:
    with RecordingUpstream() as upstream, RedisServer(tmp_path) as redis:
        members = {"store": {"url": redis.url, "timeout": "1s"}, "audit": {"sinks": [{"file": "audit.jsonl"}]}}
        running = alone(tmp_path, upstream, {"on_failure": decides}, **members)
        key, other = (key_of(running.path, capsys, "add", "--principal", name) for name in ("job", "other"))
        with running.gateway:
            assert running.ask("/key", key).status == 200
            redis.stop()
            wait_for(lambda: bool(running.said("api-keys-unknown")), "the record")
            assert running.said("api-keys-unknown")[-1]["decides"] == decides
            assert main(["key", "revoke", "--policy", str(running.path), identifier(other)]) == 2
            if decides == "deny":
                wait_for(lambda: running.ask("/key", key).reason == "api-keys-unavailable", "denials")
                upstream.forget()
                assert running.ask("/key", key).status == 503
                upstream.assert_saw_nothing()
            else:
                assert running.ask("/key", key).status == 200
            redis.start()  # which has forgotten everything: what is on no list is no key
            wait_for(lambda: running.ask("/key", key).reason == "api-key-unknown", "the list")
