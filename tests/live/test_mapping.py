"""Nobody maps the routes without a credential: gateways with and without them answer every probe byte for byte alike.

What may differ is what differs between two requests: ids, times, and the seconds until a limit has room.
"""

import base64
import itertools
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.keys.signing import jwk, jwk_set, private_key, private_pem
from tests.live.harness import AUDIENCE, ISSUER, Gateway, mint, policy, write_policy
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.protocol.certificates import Authority
from tests.protocol.raw_http2 import RawHttp2, request_fields
from tests.rfc.fronts import Front, Kind

APP, TOOL, EVIL = "https://app.example", "https://tool.example", "https://evil.example"
OPS, AWAY = "https://ops.example", "https://away.example"

SECRET: list[dict[str, Any]] = [
    {"name": "plain", "match": {"prefix": "/secret/plain"}},
    {"name": "methods", "match": {"prefix": "/secret/methods", "methods": ["GET", "OPTIONS"]}},
    {"name": "exact", "match": {"exact": "/secret/exact"}},
    {"name": "web", "match": {"prefix": "/secret/web"}, "cors": "web"},
    {"name": "tool", "match": {"prefix": "/secret/tool", "methods": ["PUT"]}, "cors": "tool"},
    {"name": "small", "match": {"prefix": "/secret/small"}, "max_body": "1B"},
    {
        "name": "odd",
        "match": {"prefix": "/secret/odd"},
        "allow_encoded_slash": True,
        "allow_parameters": True,
        "allow_empty_segments": True,
    },
    {"name": "ops", "match": {"prefix": "/secret/ops"}, "auth": {"issuers": ["ops"]}},
    {"name": "away", "match": {"prefix": "/secret/away"}, "auth": {"issuers": ["away"]}},
    {"name": "near", "match": {"prefix": "/secret/near"}, "networks": {"allow": ["198.51.100.0/24"]}},
    {"name": "host", "match": {"prefix": "/", "hosts": ["secret.example"]}},
    {"name": "socket", "match": {"prefix": "/secret/socket"}, "websocket": True, "stream": "always"},
    {"name": "limited", "match": {"prefix": "/secret/limited"}, "rate_limits": ["one"]},
    {"name": "reserved", "match": {"exact": "/public", "methods": ["POST", "DELETE"]}},
    {"name": "broken", "match": {"prefix": "/secret/broken"}, "require": {"when": "principal.claims.level > 3"}},
]
"""Routes that only one of the two gateways has, with all that a route can have."""

PATHS = [
    *("/secret/plain", "/secret/methods/x", "/secret/exact", "/secret/exact/", "/secret/web", "/secret/tool/7"),
    *("/secret/small", "/secret/odd", "/secret/odd/a%2Fx", "/secret/odd/a;x/y", "/secret/odd/a//x", "/secret/ops"),
    *("/secret/away", "/secret/near", "/secret/socket", "/secret/limited", "/secret/broken", "/secret/plain/a%2Fx"),
    *("/secret", "/nowhere", "/nowhere/a%2fx", "/", "/.well-known/oauth-protected-resource/secret/plain"),
]


class Probe(NamedTuple):
    """A request, but for its path. host None: the front's own."""

    method: str = "GET"
    lines: tuple[str, ...] = ()
    host: str = "localhost"
    version: str = "HTTP/1.1"


def forged() -> Iterator[str]:
    """Make credentials that are none: of every issuer that there is, and of one that is not."""
    key = private_pem(private_key("ES256", 7)).decode()
    for issuer in (ISSUER, OPS, AWAY, "https://nobody.example"):
        yield mint(iss=issuer, key="x" * 64)
        yield mint(iss=issuer, key=key, algorithm="ES256", headers={"kid": "k"})
        yield mint(iss=issuer, key="", algorithm="none")
    yield mint(lifetime=-3600)
    yield mint(aud="api://other")
    yield "a.b.c"
    yield base64.b64encode(b"{}").decode()


def probes() -> Iterator[Probe]:
    """Yield what an attacker asks of each path."""
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        yield Probe(method)
    for origin in (APP, TOOL, EVIL, "null", "http://localhost", f"{APP}:443"):
        yield Probe("GET", (f"Origin: {origin}",))
        yield Probe("POST", (f"Origin: {origin}", "Content-Length: 0"))
    for origin, method, headers in itertools.product((APP, TOOL, EVIL), ("GET", "PUT", "DELETE"), ("", "X-Tool")):
        asked = (f"Origin: {origin}", f"Access-Control-Request-Method: {method}")
        yield Probe("OPTIONS", (*asked, f"Access-Control-Request-Headers: {headers}") if headers else asked)
    for length in (1, 2, 1025, 10**9, 10**14):
        yield Probe("POST", (f"Content-Length: {length}", "Expect: 100-continue"))
    yield Probe("POST", ("Content-Length: 2", f"Origin: {EVIL}", "Expect: 100-continue"))
    yield Probe("POST", ("Transfer-Encoding: chunked", "Expect: 100-continue"))
    for token in forged():
        yield Probe("GET", (f"Authorization: Bearer {token}",))
    yield Probe("PUT", (f"Authorization: Bearer {mint(iss=OPS, key='x' * 64)}", "Content-Length: 0"))
    yield Probe("GET", ("Authorization: Basic YTpi",))
    yield Probe("GET", host="secret.example")
    yield Probe("GET", host="other.example")
    yield Probe("GET", ("Connection: Upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Version: 13", WEBSOCKET_KEY))
    yield Probe("GET", ("Connection: close", "X-HTTP-Method-Override: PUT", "X-Original-URL: /public"))
    yield Probe("GET", version="HTTP/1.0")


WEBSOCKET_KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
ALL = list(dict.fromkeys(probes()))
ON_PUBLIC = [
    probe
    for probe in ALL
    if probe.method not in {"GET", "HEAD"} and "Access-Control-Request-Method: GET" not in probe[1]
]
"""Of a path that is public for GET: whatever another method is for is not."""

CHANGING = [
    (rb'(?i)(x-request-id: |"request_id":"?)[0-9a-f-]+', rb"\1"),
    (rb"(?i)(date|x-response-time|server-timing|x-ratelimit-reset|retry-after): [^\r\n]*", rb"\1"),
    (rb"(?i);t=[0-9]+", b";t"),
]


def masked(answer: bytes) -> bytes:
    """Take out what differs between any two requests."""
    for pattern, kept in CHANGING:
        answer = re.sub(pattern, kept, answer)
    return answer


def document(
    directory: Path, upstream: RecordingUpstream, keys: RecordingUpstream, secret: list[dict[str, Any]]
) -> dict[str, Any]:
    """Make a policy of which all but the secret routes is the same."""
    made = policy(directory, upstream)
    issuers = made["identity"]["issuers"]
    issuers["ops"] = {**issuers["dev"], "issuer": OPS, "keys": {"secret_env": "OTHER_SECRET"}}
    issuers["away"] = {
        "issuer": AWAY,
        "audience": [AUDIENCE],
        "algorithms": ["ES256"],
        "keys": {"jwks_url": f"{keys.url}/jwks.json"},
    }
    made["cors"]["tool"] = {"origins": [TOOL, APP], "methods": ["PUT"], "headers": ["X-Tool"], "max_age": "1m"}
    made["rate_limits"] = {
        "one": {"limit": 1, "window": "1h", "key": "principal"},
        "client": {"limit": 1_000_000, "window": "1h", "key": ["client_ip", "route"]},
    }
    made["client_limits"] = ["client"]
    made["identity"]["resources"] = [{"resource": f"https://localhost{path}"} for path in ("/secret", "/nowhere/a")]
    made["routes"] = [
        {"name": "public", "match": {"exact": "/public", "methods": ["GET"]}, "auth": "none", "upstream": "users"},
        *({"upstream": "users", **route} for route in secret),
    ]
    return made


@contextmanager
def running(kind: str, directory: Path) -> Iterator[tuple[Front, Front]]:
    """Run two gateways: with the secret routes, and without."""
    with ExitStack() as stack:
        upstream = stack.enter_context(RecordingUpstream())
        published = Reply(body=jwk_set(jwk("ES256", private_key("ES256", 1), kid="k")))
        keys = stack.enter_context(RecordingUpstream(published))
        fronts = []
        for name, secret in (("with", SECRET), ("without", [])):
            place = directory / name
            place.mkdir()
            authority = Authority(place)
            made = document(place, upstream, keys, secret)
            if kind in {"tls", "h2"}:
                certificate, key = authority.issue("localhost" if kind == "tls" else "gateway.test")
                made["listen"] = {"tls": {"certificate": certificate, "key": key}}
            path = write_policy(place, made)
            other = {"OTHER_SECRET": "another-secret-for-tests-that-is-long-enough"}
            gateway = Gateway(path, host="web" if kind == "web" else "serve", environment=other)
            stack.enter_context(gateway)
            front: Kind = "lane" if kind != "tls" else "tls"
            fronts.append(Front(front, gateway, upstream, authority))
        yield fronts[0], fronts[1]


@pytest.fixture(scope="module", params=["lane", "tls", "web"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Front, Front]]:
    with running(request.param, tmp_path_factory.mktemp(f"mapping-{request.param}")) as fronts:
        yield fronts


def ask(front: Front, path: str, probe: Probe) -> bytes:
    """Send a probe, and return all that comes back until the connection ends."""
    close = () if any(line.startswith("Connection:") for line in probe.lines) else ("Connection: close",)
    lines = (f"Host: {probe.host}", *probe.lines, *close)
    head = "".join(f"{line}\r\n" for line in (f"{probe.method} {path} {probe.version}", *lines))
    return masked(front.raw(head.encode("latin-1") + b"\r\n"))


def compared(pair: tuple[Front, Front], asked: Iterable[tuple[str, Probe]]) -> set[int]:
    """Ask both gateways, and return which statuses there were."""
    statuses = set()
    for path, probe in asked:
        known, unknown = (ask(front, path, probe) for front in pair)
        assert known, (path, probe)
        assert known == unknown, (path, probe)
        statuses.add(int(known.split(b" ", 2)[1]))
    return statuses


@pytest.mark.parametrize("path", PATHS)
def test_a_secret_route_is_not_told_from_none(pair: tuple[Front, Front], path: str) -> None:
    every = pair[0].kind == "lane" and pair[0].gateway.host == "serve"
    pair[0].upstream.forget()
    statuses = compared(pair, ((path, probe) for number, probe in enumerate(ALL) if every or number % 4 == 0))
    assert statuses >= {401}
    if every:
        assert statuses == {204, 401, 403}, "preflights, no credential, foreign preflights"
    pair[0].upstream.assert_saw_nothing()


def test_a_secret_method_of_a_public_path_is_not_told_from_none(pair: tuple[Front, Front]) -> None:
    pair[0].upstream.forget()
    statuses = compared(pair, (("/public", probe) for probe in ON_PUBLIC))
    assert 405 not in statuses and 401 in statuses
    pair[0].upstream.assert_saw_nothing()
    assert pair[0].ask("/public").status == 200


def test_over_http_2_too(tmp_path: Path) -> None:
    with running("h2", tmp_path) as fronts:
        answers: list[list[Any]] = [[], []]
        for front, found in zip(fronts, answers, strict=True):
            with RawHttp2(front.gateway.port, front.authority.ca) as client:
                client.grant(0, 2**30)
                for path, probe in itertools.product(PATHS, ALL[::3]):
                    if any(line.startswith(("Connection", "Transfer-Encoding", "Content-Length")) for line in probe[1]):
                        continue
                    more = [tuple(part.encode() for part in line.split(": ", 1)) for line in probe.lines]
                    fields = [(name.lower(), value) for name, value in more]
                    number = client.request(request_fields(probe.method, path, *fields))
                    stream = client.streams[number]
                    client.response(number)
                    text = b"".join(b"%b: %b\r\n" % field for field in stream.fields) + b"\r\n" + stream.body
                    found.append((path, probe, masked(text), stream.reset))
        assert answers[0] == answers[1]
        assert len(answers[0]) > 300
        fronts[0].upstream.assert_saw_nothing()


def test_with_a_credential_the_routes_are_there(pair: tuple[Front, Front]) -> None:
    """Otherwise all that was compared were two gateways that know no route."""
    known, unknown = pair
    token = f"Authorization: Bearer {mint()}"
    for path, probe, status in [
        ("/secret/plain", Probe("GET", (token,)), 200),
        ("/secret/methods", Probe("PUT", (token, "Content-Length: 0")), 405),
        ("/secret/web", Probe("GET", (token, f"Origin: {EVIL}")), 403),
        ("/secret/tool", Probe("PUT", (token, f"Origin: {TOOL}", "Content-Length: 0")), 200),
        ("/secret/small", Probe("POST", (token, "Content-Length: 2", "Expect: 100-continue")), 413),
        ("/secret/odd/a%2Fx", Probe("GET", (token,)), 200),
        ("/secret/plain/a%2Fx", Probe("GET", (token,)), 400),
        ("/secret/ops", Probe("GET", (token,)), 401),
        ("/secret/near", Probe("GET", (token,)), 403),
        ("/anything", Probe("GET", (token,), host="secret.example"), 200),
        ("/public", Probe("POST", (token, "Content-Length: 0")), 200),
    ]:
        assert ask(known, path, probe).startswith(b"HTTP/1.1 %d " % status), (path, probe)
        assert ask(unknown, path, probe).split(b" ")[1] in {b"404", b"405"}, (path, probe)
