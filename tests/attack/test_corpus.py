"""The attack corpus, said on every front to every host: what the origins' own logs show is what got through."""

import base64
import json
import time
from typing import Any

import jwt
import pytest

from tests.attack.gateways import CORP, Ask, Attacked, Rig
from tests.attack.wire import Partial
from tests.live.harness import AUDIENCE, ISSUER, SECRET, mint
from tests.live.harness_http import raw_request, wait_for

MARK = "mallory"
PROBE = "s3cretProbeXq7Lr2Vw9Tz"


def untouched(gate: Attacked) -> None:
    """Check that no request has reached an origin."""
    _, logged = gate.judged()
    assert logged == []


def refused(gate: Attacked, *asked: Ask, statuses: frozenset[int]) -> list[Partial]:
    """Check that each is refused, and that none has reached an origin. The status 0 is an end without a word."""
    answers = gate.ask(*asked)
    for one, answer in zip(asked, answers, strict=True):
        assert answer.status in statuses, (one, answer)
    untouched(gate)
    return answers


# Paths: nothing behind /open (public) may be taken for /admin by anybody.

PATHS = (
    *("/open/../admin", "/open/%2e%2e/admin", "/open/%2E./admin", "/open/.%2e/admin", "/open/./../admin", "/open/.."),
    *("/open/..;/admin", "/open/..;x=y/admin", "/open/..%3b/admin", "/open/..%20/admin", "/open/%20../admin"),
    *(
        "/open/..%00/admin",
        "/open/..%0a/admin",
        "/open/..%09/admin",
        "/open/%252e%252e/admin",
        "/open/%c0%ae%c0%ae/admin",
    ),
    *("/open/..%2fadmin", "/open/%2e%2e%2fadmin", "/open/..%5cadmin", "/open/..\\admin", "/open\\..\\admin", "//admin"),
    *("/open//../admin", "/open/%2f../admin", "/open/%ef%bc%8e%ef%bc%8e/admin", "/open/%u002e%u002e/admin"),
    *(
        "/open/x/../../admin",
        "/open;/../admin",
        "/open%00/../admin",
        "/open/%zz",
        "/open/%",
        "/open/\x7f",
        "/open/\xe9",
    ),
    *("/openX", "/open-admin", "/OPEN/../admin", "/%61dmin", "/admin", "/admin/", "/admin%20", "/admin;x", "/./admin"),
)


def test_paths(gate: Attacked) -> None:
    refused(gate, *(Ask(path) for path in PATHS), statuses=frozenset({0, 400, 401, 404}))


# Hosts: the route /tenant is for the host a.example alone.

HOSTS = (
    *("b.example", "a.example.", "a.example.b.example", "b.example#a.example", "a.example@b.example", "b.example:80"),
    *(
        "a.example/b",
        "xa.example",
        "[::1]",
        "127.0.0.1",
        "a.example:x",
        "a.example:99999",
        "a%2eexample",
    ),
)
CLAIMED = ("X-Forwarded-Host", "X-Host", "Forwarded", "X-Original-Host", "X-HTTP-Host-Override", "X-Forwarded-Server")


def test_hosts(gate: Attacked) -> None:
    token = mint("alice")
    # twice admitted, so that whatever is remembered of these fields is remembered
    allowed = gate.ask(*[Ask("/tenant/alice", token=token, host="a.example")] * 3)
    assert [answer.status for answer in allowed] == [200] * 3
    _, logged = gate.judged()
    assert [one.one("host") for one in logged] == ["a.example"] * 3
    asked = [Ask("/tenant/alice", token=token, host=host) for host in HOSTS if not host.startswith("a.example.")]
    asked += [Ask("/tenant/x", token=token, host="b.example", fields=[(name, "a.example")]) for name in CLAIMED]
    asked += [Ask("/tenant/x", token=token, host="b.example", fields=[("Forwarded", "host=a.example")])]
    refused(gate, *asked, statuses=frozenset({0, 400, 403}))


@pytest.mark.parametrize("front", ["http1"], indirect=True)
def test_hosts_of_targets(gate: Attacked) -> None:
    token = f"Authorization: Bearer {mint('alice')}\r\n"
    allowed = f"GET http://a.example/tenant/x HTTP/1.1\r\nHost: a.example\r\n{token}\r\n".encode()
    client = gate.http1()
    client.link.send(allowed * 3)
    assert [answer.status for answer in client.wait(3)] == [200] * 3
    client.link.close()
    assert len(gate.judged()[1]) == 3
    for lines in (
        f"GET http://b.example/tenant/x HTTP/1.1\r\n{token}",
        f"GET http://b.example/tenant/x HTTP/1.1\r\nHost: a.example\r\n{token}",
        f"GET http://b.example/tenant/x HTTP/1.1\r\nHost: b.example\r\n{token}",
        f"GET http://a.example@b.example/tenant/x HTTP/1.1\r\nHost: a.example\r\n{token}",
        f"GET /tenant/x HTTP/1.1\r\nHost: b.example\r\nHost: a.example\r\n{token}",
        f"GET /tenant/x HTTP/1.1\r\nHost: a.example, b.example\r\n{token}",
        f"GET /tenant/x HTTP/1.1\r\n{token}",
        f"GET /tenant/x HTTP/1.1\r\nHost:\r\n{token}",
        f"GET http:/tenant/x HTTP/1.1\r\nHost: a.example\r\n{token}",
    ):
        got = raw_request(gate.gateway.port, f"{lines}\r\n".encode())
        assert got.split(b" ")[1] in {b"400", b"403"}, (lines, got)
    untouched(gate)


# Identity: what a client says of itself reaches no service.

IDENTITY = (
    *("X-User-ID", "x-user-id", "X-USER-ID", "X_User_ID", "X.User.ID", "X-User_ID", "X-User-Role", "X_User_Role"),
    *("X-User-Issuer", "X-User-Email", "X-Remote-User", "Remote-User", "X-Auth-User", "X-Forwarded-User"),
    *("X-Forwarded-Email", "X-Forwarded-Groups", "X-Auth-Request-User", "X-WebAuth-User", "X-Authenticated-User"),
    *("X-Consumer-Username", "Cf-Access-Authenticated-User-Email", "X-Goog-Authenticated-User-Email"),
    *("X-Amzn-Oidc-Identity", "X-MS-Client-Principal-Name", "X-JWT-Assertion", "X-Client-Cert", "X-Forwarded-For"),
    *(
        "X-Real-IP",
        "X-Client-IP",
        "True-Client-IP",
        "Forwarded",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Original-URL",
    ),
    *("X-Rewrite-URL", "X-Original-URI", "X-Envoy-Original-Path", "X-HTTP-Method-Override", "X-Method-Override"),
    *("X-HTTP-Method", "Proxy", "X-Request-ID", "X-Gateway-Assertion"),
)


def test_identity(gate: Attacked) -> None:
    token = mint("alice")
    asked = [
        Ask(path, token=bearer, fields=[(name, MARK)])
        for path, bearer in (("/open/x", None), ("/node/auto/alice/x", token))
        for name in IDENTITY
    ]
    for one, answer in zip(asked, gate.ask(*asked), strict=True):
        assert answer.status in {200, 400}, (one, answer)
    _, logged = gate.judged()
    assert len(logged) >= len(asked) // 2
    assert [one for one in logged if MARK in str(one.headers)] == []
    for got in logged:
        assert got.one("x-user-id") == ("alice" if "alice" in got.url else None), got


@pytest.mark.parametrize("front", ["http1", "http1-tls"], indirect=True)
def test_identity_that_connection_would_remove(gate: Attacked) -> None:
    names = ("X-User-ID", "X-User-Role", "X-Request-ID", "X-Forwarded-For", "close, x-user-id", "Authorization")
    asked = [Ask("/node/auto/alice/x", token=mint("alice"), fields=[("Connection", name)]) for name in names]
    gate.ask(*asked)
    _, logged = gate.judged()
    assert len(logged) >= 4
    assert {one.one("x-user-id") for one in logged} == {"alice"}
    assert all(one.one("x-request-id") and one.one("x-forwarded-for") for one in logged)


def test_users_of_one_connection(gate: Attacked) -> None:
    tokens = {"alice": mint("alice"), "bob": mint("bob")}
    asked = []
    for turn in range(12):
        user = ("alice", "bob")[turn % 2]
        asked += [Ask(f"/node/always/{user}/{turn}", token=tokens[user]), Ask(f"/node/always/alice/{turn}")]
    for one, answer in zip(asked, gate.ask(*asked), strict=True):
        assert answer.status == (200 if one.token else 401), (one, answer)
        if one.token:
            assert answer.one("x-origin-user") == one.target.split("/")[3]
    assert len(gate.judged()[1]) == 12


# Tokens.


def _encoded(header: dict[str, Any], claims: dict[str, Any] | str, signature: bytes = b"x") -> str:
    parts = [json.dumps(header), claims if isinstance(claims, str) else json.dumps(claims)]
    raw = [base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in parts]
    return b".".join([*raw, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def lies(rig: Rig) -> dict[str, str]:
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "mallory",
        "iat": now,
        "exp": now + 600,
        "role": "admin",
    }
    corp = claims | {"iss": CORP}
    made = {f"alg-{alg}": _encoded({"alg": alg}, claims, b"") for alg in ("none", "None", "NONE", "nOnE", "", "HS257")}
    public = rig.corp_public
    made["public key as secret"] = _hmac({"alg": "HS256"}, corp, public)
    made["public key as secret, stripped"] = _hmac({"alg": "HS256"}, corp, public.strip())
    made["secret of another issuer"] = mint(MARK, iss=CORP)
    made["key of another issuer"] = jwt.encode(claims, rig.corp_key, "ES256")
    headers: dict[str, Any] = {
        "kid": "../../../../dev/null",
        "kid-sql": "x' UNION SELECT 'a' --",
        "jku": "http://127.0.0.1:1/jwks.json",
        "x5u": "http://127.0.0.1:1/x.pem",
        "x5c": ["MIIB"],
        "jwk": {"kty": "oct", "k": base64.urlsafe_b64encode(b"k" * 32).decode()},
    }
    for name, value in headers.items():
        made[name] = _hmac({"alg": "HS256", name.split("-")[0]: value}, claims, b"k" * 32)
    made["empty key"] = _hmac({"alg": "HS256", "kid": "/dev/null"}, claims, b"")
    made["crit"] = mint(MARK, headers={"crit": ["exp"]})
    made["crit-unknown"] = mint(MARK, headers={"crit": ["x"], "x": 1})
    made["b64"] = mint(MARK, headers={"b64": False, "crit": ["b64"]})
    changes: dict[str, dict[str, Any]] = {
        "expired": {"exp": now - 3600},
        "exp text": {"exp": str(now + 600)},
        "exp infinite": {"exp": 1e400},
        "exp list": {"exp": [now + 600]},
        "not yet": {"nbf": now + 3600},
        "issued later": {"iat": now + 3600},
        "other audience": {"aud": "api://other"},
        "audience in part": {"aud": AUDIENCE + "/x"},
        "audience object": {"aud": {AUDIENCE: 1}},
        "other issuer": {"iss": ISSUER + "/"},
        "issuer list": {"iss": [ISSUER]},
        "subject number": {"sub": 1},
        "subject list": {"sub": ["alice"]},
        "no subject": {"sub": None},
        "bound to a certificate": {"cnf": {"x5t#S256": "A" * 43}},
        "bound to a proof": {"cnf": {"jkt": "A" * 43}},
        "bound to a key": {"cnf": {"jwk": {"kty": "oct", "k": "A" * 43}}},
        "bound to nothing": {"cnf": {}},
        "bound oddly": {"cnf": False},
    }
    for name, members in changes.items():
        wrong = {key: value for key, value in (claims | members).items() if value is not None}
        made[name] = _hmac({"alg": "HS256"}, wrong, SECRET.encode())
    made["bound to null"] = _hmac({"alg": "HS256"}, json.dumps(claims)[:-1] + ', "cnf": null}', SECRET.encode())
    made["exp twice"] = _hmac({"alg": "HS256"}, json.dumps(claims)[:-1] + f', "exp": {now + 9999}}}', SECRET.encode())
    made["encrypted"] = _encoded({"alg": "dir", "enc": "A256GCM"}, claims) + ".x.y"
    made["four parts"] = mint(MARK) + ".x"
    made["no signature"] = mint(MARK).rpartition(".")[0] + "."
    made["padded"] = mint(MARK) + "="
    made["spaces"] = mint(MARK).replace(".", " .")
    made["not json"] = _hmac({"alg": "HS256"}, "[" * 5000, SECRET.encode())
    made["long"] = "x." * 40 + "y" * 20000
    return made


def _hmac(header: dict[str, Any], claims: dict[str, Any] | str, key: bytes) -> str:
    import hashlib
    import hmac

    signed = _encoded(header, claims).rpartition(".")[0]
    signature = hmac.digest(key, signed.encode(), hashlib.sha256)
    return signed + "." + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()


def test_tokens(gate: Attacked, rig: Rig) -> None:
    asked = [Ask(f"/node/auto/mallory/{name.replace(' ', '-')}", token=token) for name, token in lies(rig).items()]
    for answer in refused(gate, *asked, statuses=frozenset({0, 400, 401, 431})):
        assert answer.status != 401 or answer.one("www-authenticate"), answer


def test_credentials_in_other_places(gate: Attacked) -> None:
    token = mint("alice")
    path = "/node/auto/alice/x"
    asked = [Ask(f"{path}?{name}={token}") for name in ("access_token", "token", "jwt", "authorization")]
    asked += [
        Ask(path, fields=[(name, f"Bearer {token}")])
        for name in ("X-Authorization", "Proxy-Authorization", "X-Forwarded-Authorization", "Cookie", "X-Auth-Token")
    ]
    asked += [
        Ask(path, fields=[("Authorization", value)]) for value in (token, f"Basic {token}", f"Bearer  x, {token}")
    ]
    asked += [Ask(path, token=token, fields=[("Authorization", "Bearer x")])]
    refused(gate, *asked, statuses=frozenset({0, 400, 401}))


# Routes can't be told apart without a token.

UNKNOWN = "/nothing/is/here"
KNOWN = ("/node/auto/x", "/admin/x", "/few/x", "/browser/x", "/tenant/x", "/socket/x", "/inside/x")


def test_routes_are_not_mapped_without_a_token(gate: Attacked) -> None:
    forged = mint(key="x" * 64)
    ways: list[dict[str, Any]] = [
        {},
        {"token": forged},
        {"method": "DELETE"},
        {"method": "POST", "body": b"x" * 10},
        {"fields": [("Origin", "https://evil.example")]},
        {"fields": [("Origin", "https://app.example")]},
        {"fields": [("Authorization", "Basic YTpi")]},
        {
            "method": "OPTIONS",
            "fields": [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")],
        },
        {
            "method": "OPTIONS",
            "fields": [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "BREW")],
        },
    ]
    for way in ways:
        there, *others = gate.ask(Ask(UNKNOWN, **way), *(Ask(path, **way) for path in KNOWN))
        for path, answer in zip(KNOWN, others, strict=True):
            if path == "/browser/x" and there.status < 300:
                continue  # an allowed origin may be told
            assert _seen(answer) == _seen(there), (way, path, answer, there)
    untouched(gate)


def _seen(answer: Partial) -> tuple[int, str | None, list[str]]:
    return (
        answer.status,
        answer.reason,
        sorted(name.lower() for name, _ in answer.headers if name.lower() != "connection"),
    )


# Records.

FORGERIES = (
    *("\x85", "\u00a0", '"}\x2c{"event":"x', "%0d%0a", "%0A{%22event%22:%22request%22}", "%E2%80%A8"),
    *("\\n", "\\u000a", "%00"),
)


def test_records_can_not_be_forged(gate: Attacked) -> None:
    asked = [Ask("/open/x", fields=[("User-Agent", value)]) for value in FORGERIES if "\x85" not in value]
    asked += [Ask(f"/open/x?q={value}") for value in FORGERIES if value.isascii() and '"' not in value]
    asked += [Ask(f"/nothing{value}") for value in FORGERIES]
    asked += [Ask("/open/x", host=value.replace("%", "")) for value in FORGERIES if value.isascii()]
    answers = gate.ask(*asked)
    assert len(answers) == len(asked)
    events, _ = gate.judged()
    assert len(events) == sum(answer.status > 0 for answer in answers) + sum(not answer.status for answer in answers)
    assert {event["event"] for event in events} == {"request"}


def test_credentials_are_in_no_record(gate: Attacked) -> None:
    names = ("token", "access_token", "api_key", "jwt", "auth", "secret", "code", "sig", "session", "key", "password")
    asked = [Ask(f"/open/x?{name}={PROBE}") for name in names]
    asked += [Ask(f"/open/x?%74oken={PROBE}"), Ask(f"/nothing;token={PROBE}"), Ask(f"/open/x?a=1&TOKEN={PROBE}")]
    fields = (
        "Authorization",
        "Cookie",
        "Proxy-Authorization",
        "X-API-Key",
        "Ocp-Apim-Subscription-Key",
        "X-Auth-Token",
    )
    asked += [Ask("/node/auto/x", fields=[(name, f"Bearer {PROBE}")]) for name in fields]
    asked += [
        Ask("/open/x", host=f"user:{PROBE}@gateway.test"),
        Ask("/open/x", fields=[("User-Agent", f"Bearer {PROBE}")]),
    ]
    gate.ask(*asked)
    gate.settle()
    assert PROBE not in gate.audit.read_text(errors="replace")
    assert PROBE not in gate.gateway.stderr.read_text(errors="replace")
    if gate.gateway.host == "serve":  # mitmproxy's own dumper and mitmweb show requests: that is what they are for
        assert PROBE not in gate.gateway.stdout.read_text(errors="replace")


# WebSockets.

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: gateway.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n{more}\r\n"
)
BEHIND = b"GET /admin/mallory HTTP/1.1\r\nHost: gateway.test\r\nX-User-ID: mallory\r\n\r\n"


@pytest.mark.parametrize("front", ["http1", "http1-tls"], indirect=True)
def test_websockets(gate: Attacked) -> None:
    token = f"Authorization: Bearer {mint('alice')}\r\n"
    for path, more, status in (
        ("/socket/x", "", 401),
        ("/socket/x", f"Authorization: Bearer {mint(key='x' * 64)}\r\n", 401),
        ("/socket/x", "Sec-WebSocket-Protocol: x\r\n", 401),
        ("/nothing", token, 404),
    ):
        client = gate.http1()
        client.link.send(HANDSHAKE.format(path=path, more=more).encode() + BEHIND)
        client.wait(1)
        answers = client.wait(2, seconds=0.1)
        assert answers[0].status == status, (path, more, answers)
        assert all(answer.status in {0, 400, 401} for answer in answers[1:]), answers
        client.link.close()
    untouched(gate)
    client = gate.http1()
    client.link.send(HANDSHAKE.format(path="/socket/alice", more=token).encode())
    wait_for(lambda: client.link.read(0.1) and b"\r\n\r\n" in client.link.received, "the answer to the handshake")
    assert client.link.received.startswith(b"HTTP/1.1 101 ")
    client.link.send(BEHIND)  # no frame of a WebSocket
    wait_for(lambda: client.link.read(0.1) and client.link.ended, "the end of the WebSocket")
    client.link.close()
    _, logged = gate.judged()
    assert [(one.method, one.url, one.one("x-user-id")) for one in logged] == [("GET", "/socket/alice", "alice")]
