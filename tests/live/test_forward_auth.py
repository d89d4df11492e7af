"""`serve --decide` behind real nginx and Caddy, as docs/forward-auth.md has them, and asked as Traefik and Envoy do."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509

from mitmgate.core.client_fields import shape
from mitmgate.core.path import Ambiguous, canonical_path
from mitmgate.core.reason import Reason
from tests.command_line import command
from tests.keys.proving import Holder
from tests.live.asking import AskingProxy, printed
from tests.live.harness import ROOT, SECRET, WEB_PASSWORD, Gateway, mint, policy, write_policy
from tests.live.harness_http import Answered, free_port, raw_request, request, status_of, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream, Reply
from tests.live.test_proof import thumbprint
from tests.live.test_reasons import DENIED, OFFICE, bearer, head, made
from tests.protocol.certificates import Authority

HOLDER = Holder()
XFCC = f'Hash={"ab" * 32};Subject="CN=legacy"'
LARGER_HEADS = {"": "large_client_header_buffers 4 64k;"}


@dataclass
class Asking:
    """What the tests share: the gateway, the service, and the proxies between it and clients."""

    gateway: Gateway
    service: RecordingUpstream
    proxies: dict[str, AskingProxy]
    directory: Path
    _at: int = 0
    _events: list[dict[str, Any]] = field(default_factory=list)

    def decided(self, request_id: str | None) -> dict[str, Any]:
        """Wait for the one record of a request."""
        assert request_id
        found: list[dict[str, Any]] = []

        def recorded() -> bool:
            with (self.directory / "audit.jsonl").open("rb") as file:
                file.seek(self._at)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            self._events += [event for line in whole.splitlines() if (event := json.loads(line))["event"] == "request"]
            found[:] = [event for event in self._events if event["request_id"] == request_id]
            return bool(found)

        wait_for(recorded, f"the record of {request_id}")
        assert len(found) == 1, found
        return found[0]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    directory = tmp_path_factory.mktemp("asking")
    with RecordingUpstream(Reply(echo=True)) as service:
        document = made(directory, service.url, f"http://127.0.0.1:{free_port()}")
        document["decide"] = {"trusted": ["127.0.0.1/32"]}
        document["limits"] = {}
        document["identity"]["certificates"] = {
            "dns": "*.jobs.example",
            "subject": "CN=legacy",
            "header": "X-Client-Cert",
        }
        document["identity"]["proofs"] = {"certificate_header": "X-Client-Cert"}
        document["response_headers"] = {"remove": ["X-User-ID"], "set": {"X-User-Role": "of-no-decision"}}
        shutil.copy(ROOT / "docs" / "examples" / "bot_guard.py", directory)
        document["stages"] = {
            "bot-guard": {"use": "bot_guard.py:BotGuard", "after": "routing", "deny": ["evil/*"], "anonymous": True}
        }
        add = document["routes"].append
        add({"name": "odd", "match": {"prefix": "/odd"}, "upstream": "users", "allow_encoded_slash": True})
        add({"name": "machines", "match": {"prefix": "/machines"}, "upstream": "users", "auth": "certificate"})
        add({"name": "sockets", "match": {"exact": "/sockets"}, "upstream": "users", "websocket": True})
        recording = ("--record", str(directory / "traffic.mitm"))
        with (
            Gateway(write_policy(directory, document), arguments=("--decide", "--workers", "1", *recording)) as gateway,
            AskingProxy("nginx", gateway.port, service.port, edit=LARGER_HEADS) as nginx,
            AskingProxy("caddy", gateway.port, service.port) as caddy,
        ):
            yield Asking(gateway, service, {"nginx": nginx, "caddy": caddy}, directory)


@pytest.fixture(params=["nginx", "caddy"])
def front(request: pytest.FixtureRequest, asking: Asking) -> AskingProxy:
    asking.service.forget()
    return asking.proxies[request.param]


def parsed(answer: bytes) -> Answered:
    """Read raw response bytes."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:]]
    return Answered(status_of(answer), tuple((name, value.strip()) for name, _, value in lines), body)


def asked(
    kind: str, target: str = "/public", method: str = "GET", *, client: str = "192.0.2.7", **more: str
) -> tuple[str, str, list[tuple[str, str]]]:
    """Make the method, target and fields of a check. more: fields, with "_" for "-"."""
    host = "api.example"
    fields = {"X-Forwarded-For": client}
    if kind == "envoy":
        fields |= {"X-Forwarded-Proto": "https", "Host": host}
        return method, f"/decide/envoy{target}", list((fields | said(more)).items())
    if kind == "nginx":
        fields |= {"X-Original-Method": method, "X-Original-URL": f"https://{host}:443{target}"}
    else:
        fields |= {"X-Forwarded-Method": method, "X-Forwarded-Proto": "https"}
        fields |= {"X-Forwarded-Host": host, "X-Forwarded-Uri": target}
    return "GET", f"/decide/{kind}", [("Host", "mitmgate"), *(fields | said(more)).items()]


def said(more: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in more.items()}


def ask(port: int, check: tuple[str, str, list[tuple[str, str]]], source: str = "127.0.0.1") -> Answered:
    """Send a check from an address of this machine."""
    method, target, fields = check
    lines = "".join(f"{name}: {value}\r\n" for name, value in [*fields, ("Connection", "close")])
    with socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0)) as link:
        link.sendall(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        got = b""
        while part := link.recv(65536):
            got += part
    return parsed(got)


OTHERWISE = {
    Reason.METHOD_INVALID: head("/public", method="A_B"),
    Reason.FRAMING_AMBIGUOUS: DENIED[Reason.FRAMING_AMBIGUOUS]() + b"0\r\n\r\n",
    Reason.BODY_TOO_LARGE: head("/api/v1/users", bearer(mint()), "Content-Length: 1025", method="POST") + b"x" * 1025,
}
"""Where another request than that of test_reasons comes through a proxy."""

BY_PROXY = {
    "nginx": {
        Reason.HEAD_MALFORMED: 400,
        Reason.FRAMING_AMBIGUOUS: 400,
        Reason.VERSION_UNSUPPORTED: 505,
        Reason.EXPECTATION_REFUSED: 200,
        Reason.TARGET_INVALID: 400,
        Reason.HOST_INVALID: 400,
        Reason.METHOD_INVALID: 400,
        Reason.HEADER_INVALID: 200,
        Reason.UPGRADE_REFUSED: 200,
        Reason.UPSTREAM_UNREACHABLE: 200,
    },
    "caddy": {
        Reason.HEAD_MALFORMED: 400,
        Reason.FRAMING_AMBIGUOUS: 200,
        Reason.VERSION_UNSUPPORTED: 505,
        Reason.EXPECTATION_REFUSED: 417,
        Reason.TARGET_INVALID: 200,
        Reason.HOST_INVALID: 400,
        Reason.HEADER_INVALID: 200,
        Reason.UPSTREAM_UNREACHABLE: 200,
    },
}
"""What is the proxy's own: it refuses the request, or makes another one of it, which is admitted; a dead service is
its to find. The status that it answers with."""


@pytest.mark.parametrize(
    "reason", [each for each in DENIED if each is not Reason.HEAD_TIMEOUT], ids=lambda reason: reason.code
)
def test_a_denial_comes_through_as_it_is(asking: Asking, front: AskingProxy, reason: Reason) -> None:
    data = OTHERWISE.get(reason) or DENIED[reason]()
    answer = raw_request(front.port, data)
    own = BY_PROXY[front.kind].get(reason)
    if own is not None:
        assert status_of(answer) == own
        if own >= 400:
            asking.service.assert_saw_nothing()
        return
    told = parsed(answer)
    assert (told.status, told.reason) == (reason.status, reason.code), answer
    challenged = reason.status == 401 or reason in {Reason.SCOPE_MISSING, Reason.CREDENTIAL_AMBIGUOUS}
    assert (told.all("www-authenticate") != []) is challenged
    assert len(set(told.all("www-authenticate"))) == len(told.all("www-authenticate"))
    if reason is Reason.METHOD_NOT_ALLOWED:
        assert told.one("allow") == "GET, HEAD, OPTIONS, POST" or told.one("allow")
    asking.service.assert_saw_nothing()


def test_what_takes_more_than_one_request(asking: Asking, front: AskingProxy) -> None:
    asked = head("/counted", bearer(mint(f"once-{front.kind}")))
    assert status_of(raw_request(front.port, asked)) == 200
    asking.service.forget()
    told = parsed(raw_request(front.port, asked))
    assert (told.status, told.reason) == (429, "quota-exceeded")
    assert int(told.one("retry-after") or "0") > 3000
    away = head("/away", bearer(mint(iss="https://away.example")))
    assert parsed(raw_request(front.port, away)).status in {401, 503}
    asking.service.assert_saw_nothing()


def test_the_service_is_told_who_asks_by_the_gateway_alone(asking: Asking, front: AskingProxy) -> None:
    forged = [
        ("X-User-ID", "root"),
        ("X-User-Role", "admin"),
        ("x-user-id", "root"),
        ("X_User_ID", "root"),
        ("X.User-ID", "root"),
    ]
    forged += [("X-Request-ID", "chosen-by-a-client"), ("X-Decision-Status", "200")]
    answer = request(front.port, "GET", "/api/v1/users/7?q=1", token=mint(), headers=forged, host="api.example")
    assert answer.status == 200, answer
    (seen,) = asking.service.requests
    event = asking.decided(seen.one("x-request-id"))
    assert (seen.one("x-user-id"), seen.one("x-user-role"), seen.target) == ("alice", "user", "/api/v1/users/7?q=1")
    assert seen.all("authorization") == []
    assert (event["outcome"], event["status"], event["decision"]) == ("allowed", 200, "admit")
    assert (event["method"], event["host"], event["path"], event["query"]) == (
        "GET", "api.example", "/api/v1/users/7", "q=1",
    )  # fmt: skip
    assert (event["client_ip"], event["peer"]) == ("127.0.0.1", "127.0.0.1")
    assert event["check"] == {"kind": front.kind, "peer": "127.0.0.1"}
    assert event["user"] == "alice"
    assert "endpoint" not in event

    asking.service.forget()
    assert request(front.port, "GET", "/public", headers=forged, host="api.example").status == 200
    (seen,) = asking.service.requests
    assert [value for value in seen.all("x-user-id") + seen.all("x-user-role") if value] == []
    folded = [value for name, value in seen.headers if shape(name.lower().encode()) in {b"x-user-id", b"x-user-role"}]
    assert [value for value in folded if value] == []


def test_a_client_cannot_make_another_request_of_it(asking: Asking, front: AskingProxy) -> None:
    """A service that reads these would run another method, or another path, than was decided on."""
    names = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Rewrite-URL", "X-Forwarded-Prefix"]
    names += ["Forwarded", *(["X-Original-URL"] if front.kind == "nginx" else [])]
    other = [(name, "host=x" if name == "Forwarded" else "/admin") for name in names]
    assert request(front.port, "GET", "/public", headers=other, host="api.example").status == 200
    (seen,) = asking.service.requests
    assert [name for name in names if seen.all(name)] == []


@pytest.mark.parametrize("value", ["close, X-User-ID, X-User-Role", "upgrade", "x-forwarded-for, x-original-method"])
def test_a_client_cannot_have_its_identity_removed(asking: Asking, front: AskingProxy, value: str) -> None:
    for lines in ([f"Connection: {value}"], ["Connection: Upgrade", f"Connection: {value}", "Upgrade: websocket"]):
        asking.service.forget()
        raw_request(front.port, head("/api/v1/users", bearer(mint()), *lines))
        for seen in asking.service.requests:
            assert (seen.all("x-user-id"), seen.all("x-user-role")) == (["alice"], ["user"])
            assert seen.all("x-forwarded-for") == ["127.0.0.1"]
        assert asking.service.requests or "Upgrade: websocket" in lines


def test_the_page_has_a_line_for_every_status_that_a_decision_may_have() -> None:
    """Others are of the protocol layer, or of a service, or the proxy's own word for it."""
    lines = set(map(int, re.findall(r"decided_status = (\d+)", printed("nginx")))) | {403}
    of_others = {200, 408, 417, 499, 502, 504, 505}
    assert {reason.status for reason in Reason} - of_others == lines


FORGED = [
    *[(name, value) for name in ("X-Original-URL", "X-Original-URI", "X-Forwarded-Uri") for value in ("/public",)],
    ("X-Original-URL", "http://api.example/public"),
    ("X-Original-Method", "OPTIONS"),
    ("X-Forwarded-Method", "OPTIONS"),
    ("X-Forwarded-Host", "other.example"),
    ("X-Forwarded-Proto", "https"),
    ("X-HTTP-Method-Override", "GET"),
    ("X-Rewrite-URL", "/public"),
    ("X_Original_URL", "http://api.example/public"),
    ("X_Forwarded_Uri", "/public"),
    ("Forwarded", "for=127.0.0.9;host=other.example"),
    ("X-Original-Content-Length", "0"),
    ("X-Envoy-Original-Path", "/public"),
]


@pytest.mark.parametrize(("name", "value"), FORGED, ids=lambda text: text)
def test_a_client_cannot_say_what_it_asks_for_twice(asking: Asking, front: AskingProxy, name: str, value: str) -> None:
    """Forge fields once and doubled, with a path that needs a token: it is what is decided on."""
    for fields in ([(name, value)], [(name, value), (name.lower(), value)]):
        answer = request(front.port, "POST", "/admin/x", headers=fields, host="api.example")
        assert answer.status in {401, 400}, answer
        assert answer.reason in {"credential-missing", "check-unclear"}
        event = asking.decided(answer.one("x-request-id"))
        if answer.reason == "credential-missing":
            assert (event["method"], event["host"], event["path"]) == ("POST", "api.example", "/admin/x")
    asking.service.assert_saw_nothing()


def test_a_client_cannot_say_where_it_is(asking: Asking, front: AskingProxy) -> None:
    fields = [("X-Forwarded-For", "198.51.100.9"), ("X-Real-IP", "198.51.100.9"), ("X-Forwarded-For", "127.0.0.1")]
    answer = request(front.port, "GET", "/public", headers=fields, host="api.example")
    assert answer.status == 200
    (seen,) = asking.service.requests
    assert asking.decided(seen.one("x-request-id"))["client_ip"] == "127.0.0.1"
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]


@dataclass
class OverTls:
    """An nginx that asks its clients for certificates."""

    proxy: AskingProxy
    authority: Authority

    def ask(self, target: str, pair: tuple[str, str] | None = None, **more: str) -> Answered:
        context = ssl.create_default_context(cafile=self.authority.ca)
        if pair is not None:
            context.load_cert_chain(*pair)
        lines = "".join([f"{name}: {value}\r\n" for name, value in said(more).items()])
        with (
            socket.create_connection(("127.0.0.1", self.proxy.port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="api.example") as link,
        ):
            link.sendall(f"GET {target} HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n{lines}\r\n".encode())
            got = b""
            while part := link.recv(65536):
                got += part
        return parsed(got)


@pytest.fixture(scope="module")
def over_tls(asking: Asking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OverTls]:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    certificate, key = authority.issue("api.example")
    tls = (
        f"ssl_certificate {certificate};\n    ssl_certificate_key {key};\n    ssl_client_certificate {authority.ca};\n"
    )
    listen = f"listen 127.0.0.1:8000 ssl;\n    {tls}    ssl_verify_client optional;"
    edit = LARGER_HEADS | {"listen 127.0.0.1:8000;": listen}
    with AskingProxy("nginx", asking.gateway.port, asking.service.port, edit=edit) as proxy:
        yield OverTls(proxy, authority)


def test_a_certificate_that_nginx_has_verified(asking: Asking, over_tls: OverTls) -> None:
    issue, ask_nginx = over_tls.authority.issue, over_tls.ask
    night = issue("night", client=True, names=[x509.DNSName("night.jobs.example")])
    legacy = issue("legacy", client=True, names=[])
    for pair, name in ((night, "night.jobs.example"), (legacy, "CN=legacy")):
        asking.service.forget()
        assert ask_nginx("/machines", pair).status == 200
        seen = asking.service.last()
        assert (seen.one("x-user-id"), seen.one("x-client-cert")) == (name, None)
    token = mint("alice", cnf={"x5t#S256": thumbprint(night[0])})
    bearer_of = f"Bearer {token}"
    assert ask_nginx("/api/v1/users", night, Authorization=bearer_of).status == 200
    asking.service.forget()
    own = quote(Path(night[0]).read_text())
    stranger = issue("stranger", client=True, names=[x509.DNSName("a.jobs.example.evil.example")])
    tries: list[dict[str, str]] = [{}, {"X_Client_Cert": own}, {"X_Forwarded_Client_Cert": XFCC}]
    for shown, reason in ((None, "credential-missing"), (stranger, "certificate-refused")):
        for more in tries:
            answer = ask_nginx("/machines", shown, **more)
            assert (answer.status, answer.reason, answer.one("www-authenticate")) == (401, reason, "Certificate")
    assert ask_nginx("/api/v1/users", legacy, Authorization=bearer_of).reason == "token-proof-invalid"
    assert ask_nginx("/api/v1/users", Authorization=bearer_of, X_Client_Cert=own).reason == "token-proof-missing"
    assert ask_nginx("/machines", issue("night", client=True, signed_by_itself=True)).status == 400, "nginx' own"
    asking.service.assert_saw_nothing()


@pytest.mark.parametrize("kind", ["nginx", "caddy", "traefik", "envoy"])
def test_what_a_check_says_of_a_certificate(asking: Asking, over_tls: OverTls, kind: str) -> None:
    pair = over_tls.authority.issue("night", client=True, names=[x509.DNSName("night.jobs.example")])
    pem = Path(pair[0]).read_text()
    encoded = "".join(pem.strip().splitlines()[1:-1])
    port = asking.gateway.port
    for value in (quote(pem), f":{encoded}:"):
        answer = ask(port, asked(kind, "/machines", X_Client_Cert=value))
        assert (answer.status, answer.one("x-user-id")) == (200, "night.jobs.example")
    refused = {
        "": "credential-missing",
        "::": "credential-missing",
        quote(pem)[:-30]: "certificate-refused",
        f":{encoded[:-8]}:": "certificate-refused",
        f":{encoded}:, :{encoded}:": "certificate-refused",
        "CN=legacy": "certificate-refused",
    }
    for value, reason in refused.items():
        answer = ask(port, asked(kind, "/machines", X_Client_Cert=value))
        assert (answer.status, answer.one("x-user-id")) == (401, None), value
        assert asking.decided(answer.one("x-request-id"))["reason"] == reason
    assert ask(port, asked(kind, "/machines", X_Forwarded_Client_Cert=XFCC)).status == 401


def test_recorded_decisions_are_taken_again(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all that this module has asked so far. What was no check is left out; targets of odd paths are hashed."""
    recording, port = asking.directory / "traffic.mitm", asking.gateway.port
    assert ask(port, asked("nginx", "/api/v1/users?token=hidden", Authorization=f"Bearer {mint()}")).status == 200
    answer = ask(port, asked("nginx", "/public?token=hidden"), "127.0.0.2")
    assert asking.decided(answer.one("x-request-id"))["status"] == 403
    monkeypatch.setenv("MITMGATE_TEST_SECRET", "another secret, for replay has none of the real ones")
    status, said = command(
        capsys, "replay", str(recording), "--policy", str(asking.gateway.policy_path), "--format", "json"
    )
    assert status == 0, said
    report = json.loads(said)
    assert report["differences"]["total"] == 0
    assert report["compared"] == report["decided"] >= 1
    assert b"hidden" not in recording.read_bytes()


TARGETS = [
    "/public", "/public?", "/public?a=/../admin", "/%70ublic", "/public/", "/public/../admin", "/public/..%2fadmin",
    "/public%2f..%2fadmin", "/public%2F%2e%2e%2Fadmin", "/odd/a%2Fb", "/odd/a%2f..%2f..%2fadmin", "//public",
    "/./public", "/public/.", "/admin/..%00/public", "/public%00", "/public%0d%0aX-User-ID:%20root", "/public;x=1",
    "/public#/admin", "/public%23", "/public%3fa", "/public\\..\\admin", "/public%5c..%5cadmin", "/%2570ublic",
    "/public%", "/public%zz", "/pub\u00e9lic", "/PUBLIC", "/public\t", "http://api.example/public",
    "http://other.example/public", "http://api.example/admin", "http://api.example/public/../admin",
    "http://user@api.example/public", "http://api.example:99999/public", "/http://api.example/public", "*", "",
    "/decide/nginx", "/decide/caddy", "/_decide", "/health", "/odd//x", "/odd/x;y", "/odd/%2e%2e/admin",
]  # fmt: skip


@pytest.mark.parametrize("with_token", [False, True], ids=["bare", "token"])
@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_what_the_service_gets_is_what_was_decided(
    asking: Asking, front: AskingProxy, target: str, with_token: bool
) -> None:
    lines = [bearer(mint(role="user"))] if with_token else []
    answer = raw_request(front.port, head(target, "Connection: close", *lines))
    assert status_of(answer) >= 200 or answer.startswith(b"HTTP/1.1 4"), answer
    seen = list(asking.service.requests)
    if not seen:
        return
    (got,) = seen
    event = asking.decided(got.one("x-request-id"))
    assert (event["outcome"], event["method"]) == ("allowed", got.method)
    assert event["host"] == (got.one("host") or "").partition(":")[0]
    path, _, query = got.target.partition("?")
    read = canonical_path(path)
    assert not isinstance(read, Ambiguous), got.target
    assert read.text == event["path"]
    assert query == event.get("query", "")
    assert event["route"] in {"public", "odd", "users"}
    assert with_token or event["route"] == "public"
    if event["route"] == "public":
        assert read.text == "/public"


def test_a_preflight_is_answered_and_never_let_through(asking: Asking, front: AskingProxy) -> None:
    fields = [("Origin", OFFICE), ("Access-Control-Request-Method", "POST")]
    answer = request(front.port, "OPTIONS", "/api/v1/users", headers=fields, host="api.example")
    asking.service.assert_saw_nothing()
    assert answer.status == 204
    assert answer.one("access-control-allow-origin") == OFFICE
    assert "POST" in (answer.one("access-control-allow-methods") or "")
    assert (answer.one("access-control-allow-credentials"), answer.body) == ("true", b"")


def test_a_request_of_a_browser_gets_its_cors_fields(asking: Asking, front: AskingProxy) -> None:
    for token, status in ((mint(), 200), (mint(scope="other"), 403)):
        answer = request(
            front.port, "GET", "/api/v1/users", token=token, headers=[("Origin", OFFICE)], host="api.example"
        )
        assert answer.status == status
        assert answer.one("access-control-allow-origin") == OFFICE


def test_a_body_reaches_the_service_and_not_the_gateway(asking: Asking, front: AskingProxy) -> None:
    answer = request(front.port, "POST", "/api/v1/users", token=mint(), body=b"hello", host="api.example")
    assert answer.status == 200
    (seen,) = asking.service.requests
    assert (seen.method, seen.body) == ("POST", b"hello")
    assert "bytes_in" not in asking.decided(seen.one("x-request-id"))


def test_nobody_is_let_through_where_nobody_answers(asking: Asking, front: AskingProxy) -> None:
    with AskingProxy(front.kind, free_port(), asking.service.port) as alone:
        assert request(alone.port, "GET", "/public", host="api.example").status >= 500
    asking.service.assert_saw_nothing()


KINDS = ["nginx", "caddy", "traefik", "envoy"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_answered(asking: Asking, kind: str) -> None:
    port, token = asking.gateway.port, f"Bearer {mint()}"
    answer = ask(port, asked(kind, "/api/v1/users?a=b", "POST", Authorization=token))
    assert (answer.status, answer.body) == (200, b"")
    assert (answer.one("x-user-id"), answer.one("x-user-role")) == ("alice", "user")
    assert answer.one("cache-control") == "no-store"
    assert answer.one("ratelimit-policy")
    event = asking.decided(answer.one("x-request-id"))
    assert (event["method"], event["host"], event["path"], event["query"]) == (
        "POST", "api.example", "/api/v1/users", "a=b",
    )  # fmt: skip
    assert (event["client_ip"], event["check"]) == ("192.0.2.7", {"kind": kind, "peer": "127.0.0.1"})

    answer = ask(port, asked(kind, "/public", X_User_ID="root"))
    assert (answer.status, answer.one("x-user-id"), answer.one("x-user-role")) == (200, "", "")
    answer = ask(port, asked(kind, "/public", User_Agent="Browser/7", X_Agent_Family="chosen"))
    assert (answer.status, answer.one("x-agent-family")) == (200, "Browser")
    assert ask(port, asked(kind, "/public", X_Agent_Family="chosen")).one("x-agent-family") == ""
    assert ask(port, asked(kind, "/public", User_Agent="evil/1")).reason == "bot-refused"
    denied = ask(port, asked(kind, "/api/v1/usersX", Authorization=token))
    assert denied.reason == "no-route"
    assert (denied.status, denied.one("x-decision-status")) == ((403, "404") if kind == "nginx" else (404, None))
    if kind == "nginx":
        assert json.loads(denied.one("x-decision-body") or "") == denied.json


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_not_trusted_is_told_nothing(asking: Asking, kind: str) -> None:
    for check in (asked(kind), asked(kind, "/api/v1/users?token=secret", Authorization=f"Bearer {mint()}")):
        answer = ask(asking.gateway.port, check, "127.0.0.2")
        assert (answer.status, answer.reason) == (403, "check-untrusted")
        assert answer.all("x-user-id") == []
        event = asking.decided(answer.one("x-request-id"))
        assert (event["outcome"], event["reason"], event["client_ip"]) == ("denied", "check-untrusted", "127.0.0.2")
        assert "secret" not in json.dumps(event)


@pytest.mark.parametrize(
    "check",
    [
        ("GET", "/public", [("Host", "api.example")]),
        ("GET", "/", [("Host", "api.example")]),
        ("POST", "/health", [("Host", "api.example")]),
        ("OPTIONS", "/", []),
        ("GET", "/decide/nginx", [("Host", "api.example")]),
        ("GET", "/decide/haproxy", [("Host", "api.example")]),
        ("GET", "/decide/nginx/../caddy", [("Host", "api.example")]),
        asked("nginx", X_Forwarded_Uri="/admin"),
        asked("caddy", X_Original_URL="https://api.example/admin"),
        asked("traefik", X_Forwarded_Proto="ftp"),
        asked("envoy", client="unknown"),
    ],
    ids=lambda check: f"{check[0]} {check[1]}",
)
def test_what_is_not_understood_is_refused(asking: Asking, check: tuple[str, str, list[tuple[str, str]]]) -> None:
    answer = ask(asking.gateway.port, check)
    assert answer.reason == Reason.CHECK_UNCLEAR.code
    assert answer.status == (403 if check[1] == "/decide/nginx" else 400)
    assert asking.decided(answer.one("x-request-id"))["status"] == 400
    asking.service.assert_saw_nothing()


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_admitted_is_a_2xx(asking: Asking, kind: str) -> None:
    """Answers of the gateway's own, and what a client of gRPC is told in a 200, are no permissions."""
    grpc = {"Content_Type": "application/grpc", "TE": "trailers"}
    preflight = {"Origin": OFFICE, "Access_Control_Request_Method": "GET"}
    for check, real in (
        (asked(kind, "/api/v1/users", "POST", **grpc), 401),
        (asked(kind, "/api/v1/users", "OPTIONS", **preflight), 204),
        (asked(kind, "/health"), 200),
        (asked(kind, "/public", "OPTIONS", Max_Forwards="0"), 204),
        (asked(kind, "/public", "POST", client="junk", **grpc), 400),
    ):
        answer = ask(asking.gateway.port, check)
        assert answer.status == (real if real == 401 or (real == 400 and kind != "nginx") else 403)
        assert asking.decided(answer.one("x-request-id"))["status"] == real
    if kind == "envoy":
        for check in (asked(kind, "/api/v1/users", "POST", **grpc), ("POST", "/decide/none", asked(kind, **grpc)[2])):
            assert over_http2(asking.gateway.port, check) in {400, 401}
            assert over_http2(asking.gateway.port, check, "127.0.0.2") == 403


def over_http2(port: int, check: tuple[str, str, list[tuple[str, str]]], source: str = "127.0.0.1") -> int:
    """Send a check as a client of gRPC would send its call; return the status."""
    method, target, fields = check
    words = ["curl", "-s", "-o", os.devnull, "-w", "%{http_version} %{http_code}", "--http2-prior-knowledge"]
    words += ["--interface", source, "-X", method]
    words += [word for name, value in fields for word in ("-H", f"{name}: {value}")]
    done = subprocess.run([*words, f"http://127.0.0.1:{port}{target}"], capture_output=True, text=True, check=True)
    version, status = done.stdout.split()
    assert version == "2"
    return int(status)


def test_the_gateways_own_health_is_anybodys(asking: Asking) -> None:
    answer = ask(asking.gateway.port, ("GET", "/health", [("Host", "x")]), "127.0.0.2")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


def test_the_handshake_of_a_websocket(asking: Asking) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    upgrade |= {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Authorization": f"Bearer {mint()}"}
    for kind in KINDS:
        method, target, fields = asked(kind, "/sockets", **upgrade)
        assert ask(asking.gateway.port, (method, target, fields)).status == 200
        answer = ask(asking.gateway.port, asked(kind, "/api/v1/users", **upgrade))
        assert answer.reason == "upgrade-refused"


def test_a_proof_is_for_the_address_that_the_client_saw(asking: Asking) -> None:
    token = mint(cnf=HOLDER.cnf)
    for kind in KINDS:
        for target, reason in (("/api/v1/orders", "token-proof-invalid"), ("/api/v1/users", None)):
            proof = HOLDER.prove(token, "https://api.example/api/v1/users")
            answer = ask(asking.gateway.port, asked(kind, target, Authorization=f"DPoP {token}", DPoP=proof))
            assert (answer.status, answer.reason) == (200 if reason is None else 401, reason), kind


def test_mitmweb_shows_the_original_request(tmp_path: Path, asking: Asking) -> None:
    document = policy(tmp_path, asking.service, decide={"trusted": ["127.0.0.1/32"]})
    document["identity"]["certificates"] = {"subject": "CN=legacy", "forwarded": True}
    document["routes"].append(
        {"name": "machines", "match": {"prefix": "/machines"}, "upstream": "users", "auth": "certificate"}
    )
    with Gateway(write_policy(tmp_path, document), host="web", arguments=("--decide",)) as web:
        token = f"Bearer {mint()}"
        assert ask(web.port, asked("nginx", "/api/v1/users?a=b", Authorization=token)).status == 200
        assert ask(web.port, asked("caddy", "/api/v1/users")).reason == "credential-missing"
        assert ask(web.port, asked("caddy", "/api/v1/users"), "127.0.0.2").reason == "check-untrusted"
        shown = request(web.web_port, "GET", "/flows", token=WEB_PASSWORD, host=f"127.0.0.1:{web.web_port}")
        flows = [(flow["request"]["path"], flow["comment"]) for flow in shown.json]
        for kind in KINDS:  # of which Envoy alone writes the field, and so removes its client's
            said_to = ask(web.port, asked(kind, "/machines", X_Forwarded_Client_Cert=XFCC))
            assert (said_to.status, said_to.one("x-user-id")) == (
                (200, "CN=legacy") if kind == "envoy" else (401, None)
            )
    asking.service.assert_saw_nothing()
    assert [path for path, _ in flows] == ["/api/v1/users?a=b", "/api/v1/users", "/decide/caddy"]
    words = ["ADMIT users, asked by nginx 200 ", "DENY 401 credential-missing", "DENY 403 check-untrusted"]
    for (_, comment), word in zip(flows, words, strict=True):
        assert comment.startswith(word), comment


def test_a_policy_that_trusts_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    made = policy(tmp_path, "http://127.0.0.1:9")
    without = str(write_policy(tmp_path, made))
    status, said_to = command(capsys, "serve", "--policy", without, "--decide")
    assert status == 2
    assert "lets nobody ask for decisions; add the addresses" in said_to
    path = write_policy(tmp_path, made | {"decide": {}}, "empty.yaml")
    assert "decides-for-nobody" in command(capsys, "check", str(path))[1]
    path = write_policy(tmp_path, made | {"decide": {"trusted": ["0.0.0.0/0"]}}, "all.yaml")
    assert re.search(
        r"decide.trusted\[0\]: everyone may ask .* \[trusts-everyone\]", command(capsys, "check", str(path))[1]
    )
