"""Generated credentials in every position of a request: none is in what the gateway keeps, writes or shows.

Real gateways in every host, of which one records. What they leave, and what `redact`, `explain` and `audit` make of it,
is searched for each credential, in the spellings in which it was sent.
"""

import base64
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

import pytest

from tests.inspect.webapi import WebApi
from tests.live.harness import ROOT, SECRET, Gateway, mint, policy, route, write_policy
from tests.live.harness_http import raw_request, wait_for
from tests.live.harness_upstream import RecordingUpstream, Reply

SEED = 20261130
SERVICE_KEY = "svc-K7wq2-from-the-environment"


def random_bytes(source: random.Random, count: int) -> bytes:
    return bytes(source.randrange(256) for _ in range(count))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


# Credentials that are recognised wherever they stand, by kind.
KINDS: dict[str, Callable[[random.Random], str]] = {
    "jwt": lambda source: mint(f"user-{source.random()}", key=encoded(random_bytes(source, 40))),
    "jwe": lambda source: ".".join(
        [encoded(b'{"alg":"dir","enc":"A128GCM"}'), "", *(encoded(random_bytes(source, size)) for size in (12, 40, 16))]
    ),
    "base64url": lambda source: encoded(random_bytes(source, 32)),
    "hex": lambda source: random_bytes(source, 24).hex(),
    "base32": lambda source: base64.b32encode(random_bytes(source, 25)).decode(),
    "letters and digits": lambda source: "".join(source.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=40)),
    "stripe": lambda source: "sk_live_" + "".join(source.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ012345", k=24)),
    "github": lambda source: "ghp_" + "".join(source.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ012345", k=36)),
}
# … and those that only the place tells.
NAMED: dict[str, Callable[[random.Random], str]] = {
    "a word": lambda source: "".join(source.choices("abcdefgh", k=9)) + "zyx",
    "digits": lambda source: str(source.randrange(10**11, 10**12)),
    "uuid": lambda source: f"{source.randrange(16**8):08x}-aaaa-4bbb-8ccc-{source.randrange(16**12):012x}",
}
QUERY_NAMES = (
    *("token", "access_token", "refresh_token", "id_token", "jwt", "auth", "secret", "client_secret", "code", "sig"),
    *("signature", "session", "sessionid", "key", "api_key", "apikey", "subscription-key", "password", "passwd", "pwd"),
    *("X-Amz-Signature", "X-Amz-Security-Token", "assertion", "SAMLResponse", "ticket", "sid", "otp", "device_code"),
    *("t%6Fken", "%74%6f%6b%65%6e", "api%5Fkey", "token%5B%5D", "token[]", "access%255Ftoken", "TOKEN", "authToken"),
)
HEADER_NAMES = (
    *("X-Api-Key", "Api-Key", "Ocp-Apim-Subscription-Key", "X-Auth-Token", "X-Access-Token", "X-Csrf-Token"),
    *("X-Amz-Security-Token", "X-Goog-Api-Key", "X-Functions-Key", "X-Vault-Token", "Private-Token", "DPoP"),
    *("X-Secret", "X-Session-Id", "X-Signature", "X-Hub-Signature-256", "X-Password", "Proxy-Authorization"),
)


class Sent(NamedTuple):
    """A request, what it shows of a credential, and where."""

    place: str
    credential: str
    data: bytes


def requests() -> Iterator[Sent]:
    """Make one request for each place and kind."""
    source = random.Random(SEED)
    target = "/api/v1/users/7"

    def head(target: str, *fields: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
        lines = [f"{method} {target} {version}", "Host: gateway.test", *fields, "Connection: close"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    valid = f"Authorization: Bearer {mint()}"
    for number, (kind, make) in enumerate({**KINDS, **NAMED}.items()):
        places = {
            **{f"query {name}": (head(f"{target}?a=1&{name}=¦&b=2", valid),) for name in QUERY_NAMES[number % 4 :: 4]},
            **{f"field {name}": (head(target, valid, f"{name}: ¦"),) for name in HEADER_NAMES[number % 4 :: 4]},
            "cookie": (head(target, valid, "Cookie: a=b; id=¦"),),
            "bare cookie": (head(target, valid, "Cookie: ¦"),),
            "bearer": (head(target, "Authorization: Bearer ¦"),),
            "authorization without a scheme": (head(target, "Authorization: ¦"),),
            "an unknown scheme": (head(target, "Authorization: Hawk ¦"),),
            "bearer in another field": (head(target, valid, "X-Forwarded-Authorization: Bearer ¦"),),
            "bearer in any field": (head(target, valid, "X-Any: Bearer ¦"),),
            "a path parameter": (head(f"{target};token=¦/x", valid), head("/public;jsessionid=¦")),
            "user information": (head(f"http://me:¦@gateway.test{target}", valid),),
            "a password in the host": (head(target).replace(b"Host: gateway.test", b"Host: me:\xa6@gateway.test"),),
            "the fragment": (head(f"{target}#access_token=¦", valid),),
            "a refused query": (head(f"{target}\\x?token=¦", valid),),
            "the referer": (head(target, valid, "Referer: https://app.example/cb?code=¦&state=x"),),
            "the user agent": (head(target, valid, "User-Agent: probe/1 (token=¦)"),),
            "an unparsable line": (head(f"{target}?token=¦ x y", valid), head(f"{target}?token=¦", version="HTTP/9.9")),
            "a field as the request line": (
                "Authorization: Bearer ¦\r\n\r\n".encode("latin-1"),
                "X-Any: ¦\r\n\r\n".encode("latin-1"),
                "GET /public HTTP/1.1 X-Any:¦\r\n\r\n".encode("latin-1"),
            ),
            "no target": (head("¦", method="Bearer"), head("¦", method="AUTH"), head("me:¦@h", method="CONNECT")),
            "a target of no form": (head("me:¦@gateway.test"), head("ftp://me:¦@gateway.test/"), head("x:¦ y")),
            "a websocket protocol": (head(target, valid, "Sec-WebSocket-Protocol: chat, bearer, ¦"),),
            "a part of a websocket protocol": (head(target, valid, "Sec-WebSocket-Protocol: x.bearer.io.¦, chat"),),
            "a missing route": (head("/nowhere?secret=¦", valid),),
            "without a token": (head(f"{target}?key=¦"),),
        }
        if kind in KINDS:
            places |= {
                "any parameter": (head(f"{target}?x=¦", valid),),
                "a parameter without a name": (head(f"{target}?¦", valid),),
                "any field": (head(target, valid, "X-Any: ¦"),),
                "a word of a field": (head(target, valid, "X-Any: is ¦ it"),),
                "a segment": (head("/api/v1/users/¦/x", valid), head("/nowhere/¦")),
                "a refused segment": (head("/api/../¦"),),
                "user agent": (head(target, valid, "User-Agent: ¦"),),
                "websocket protocol": (head(target, valid, "Sec-WebSocket-Protocol: bearer, ¦"),),
                "request id": (head(target, valid, "X-Custom-Ref: ¦"),),
            }
        public = ("baggage", "tracestate", "If-None-Match", "X-Request-ID")
        places["a pair of a field of random values"] = tuple(head(target, f"{name}: a=1,token=¦") for name in public)
        if kind in {"jwt", "jwe", "stripe", "github"}:  # whose form tells them
            places["a field of random values"] = tuple(head(target, f"{name}: ¦") for name in public)
            places["a field's name"] = (head("/public", "¦: x"), head(target, "¦: x"))
        for place, templates in places.items():
            for template in templates:
                credential = make(source)
                yield Sent(
                    f"{kind} as {place}", credential, template.replace("¦".encode("latin-1"), credential.encode())
                )
        for name in ("password", "client_secret", "refresh_token"):
            credential = make(source)
            for content, body in (
                ("application/x-www-form-urlencoded", f"a=1&{name}={quote(credential, safe='')}&b=2"),
                ("application/json", json.dumps({"a": 1, name: credential})),
            ):
                fields = (valid, f"Content-Type: {content}", f"Content-Length: {len(body)}")
                data = head(target, *fields, method="POST") + body.encode()
                yield Sent(f"{kind} as {name} in {content}", credential, data)


@dataclass
class Kept:
    """Everything that is searched, by what it is."""

    texts: dict[str, str]
    sent: list[Sent]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    directory = tmp_path_factory.mktemp("credentials")
    sent = list(requests())
    texts: dict[str, str] = {}
    answer = Reply(headers=[("Set-Cookie", f"id={encoded(b'x' * 8)}"), ("X-Api-Key", SERVICE_KEY)])
    environment = {"MITMGATE_TEST_KEY": SERVICE_KEY}
    with RecordingUpstream(answer) as upstream:
        made = route(policy(directory, upstream), "users", rewrite={"set": {"X-Service": "${MITMGATE_TEST_KEY}"}})
        made["rate_limits"]["per-user"]["limit"] = 100_000
        path = write_policy(directory, made)
        recording = directory / "traffic.mitm"
        with Gateway(path, arguments=("--record", str(recording)), environment=environment) as gateway:
            for one in sent:
                raw_request(gateway.port, one.data, until_close=True)
            gateway.stop()
        texts["the log"] = gateway.log
        texts["the recording"] = recording.read_bytes().decode("latin-1")
        texts["the audit file"] = (directory / "audit.jsonl").read_text()
        assert texts["the audit file"].count('"event":"request"') == len(sent)

        (directory / "audit.jsonl").unlink()
        with Gateway(path, host="web", arguments=("--keep", "5000"), environment=environment) as gateway:
            web = WebApi(gateway.web_port)
            for one in sent:
                raw_request(gateway.port, one.data, until_close=True)
            wait_for(lambda: len(web.flows) >= len(sent) - 40, "mitmweb's list")  # unparsable ones are no flows
            status, dump = web.call("GET", "/flows")
            assert status == 200
            texts["mitmweb's flows"] = dump
            bodies = [flow for flow in json.loads(dump) if flow["request"]["method"] == "POST"]
            assert len(bodies) > 50
            shown = [
                web.content(flow, "request", view)
                for flow in bodies[::5]
                for view in ("auto", "raw", "gateway", "hex%20dump")
            ]
            texts["mitmweb's bodies"] = json.dumps(shown)
            reports = [web.command("mitmgate.explain", f"@{flow['id']}") for flow in json.loads(dump)[::7]]
            texts["mitmweb's reports"] = json.dumps(reports)
            gateway.stop()
        texts["mitmweb's log"] = gateway.log
        texts["mitmweb's audit file"] = (directory / "audit.jsonl").read_text()

        arguments = ("--set", "flow_detail=3")
        with Gateway(path, host="stock", arguments=arguments, environment=environment) as gateway:
            for one in sent:
                raw_request(gateway.port, one.data, until_close=True)
            gateway.stop()
        texts["mitmdump's words"] = gateway.stdout.read_text() + gateway.log
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET, **environment}
    for name, words in {
        "redact": ("redact", str(recording), str(directory / "again.mitm")),
        "replay": ("replay", str(recording), "--policy", str(path), "--format", "json"),
        "audit tail": ("audit", "tail", str(directory / "audit.jsonl"), "--lines", "5000"),
        "learn": ("learn", str(recording)),
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", "mitmgate", *words],
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (name, done.stdout[-2000:], done.stderr[-2000:])
        texts[name] = done.stdout + done.stderr
    texts["the redacted recording"] = (directory / "again.mitm").read_bytes().decode("latin-1")
    return Kept(texts, sent)


def spellings(credential: str) -> set[str]:
    """Return what would let somebody use the credential, or most of it: the secret part of a token is its signature."""
    parts = credential.split(".")
    secret = max(parts[2:], key=len) if len(parts) > 2 else credential
    return {secret, quote(secret, safe=""), secret[: len(secret) * 2 // 3]} - {""}


def test_no_credential_is_anywhere(kept: Kept) -> None:
    assert len(kept.sent) > 500
    found: dict[str, list[str]] = {}
    for where, text in kept.texts.items():
        for one in kept.sent:
            if any(spelling in text for spelling in spellings(one.credential)):
                found.setdefault(where, []).append(one.place)
    assert not found, "\n".join(f"{where}: {len(places)}, such as {places[:12]}" for where, places in found.items())


def test_what_the_policy_takes_from_the_environment_is_nowhere(kept: Kept) -> None:
    assert [where for where, text in kept.texts.items() if SERVICE_KEY in text] == []


def test_what_is_no_credential_is_still_said(kept: Kept) -> None:
    """The test above would pass where nothing is written at all."""
    for where, words in {
        "the audit file": ("/api/v1/users/7", "probe/1", "a=1", "&b=2", "/nowhere", '"user":"alice"'),
        "the recording": ("/api/v1/users/7", "probe/1", "Sec-WebSocket-Protocol", "X-Any", "gateway.test"),
        "mitmweb's flows": ("/api/v1/users/7", "probe/1", "X-Any", "state=x"),
        "mitmweb's bodies": ("client_secret", "refresh_token"),
        "mitmdump's words": ("/api/v1/users/7", "probe/1", "X-Any", "client_secret", "upstream says hello"),
        "audit tail": ("/api/v1/users",),
    }.items():
        missing = [word for word in words if word not in kept.texts[where]]
        assert not missing, (where, missing)
