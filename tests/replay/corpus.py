"""A corpus of mixed requests for every stage, recorded by a live gateway."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.live.harness import AUDIENCE, ISSUER, ROOT, SECRET, mint
from tests.live.harness_http import free_port, wait_for
from tests.live.harness_upstream import PATIENCE, Recorded, RecordingUpstream, Reply

SECRET_COOKIE = "very-secret-session-cookie"
EMAIL = "alice.private@mail.example"
CLIENTS = 8


def policy(upstream: str, other: str, dead: str) -> dict[str, Any]:
    """Make the policy that the corpus is recorded with: a rule of every kind."""
    token = {"secret_env": "MITMGATE_TEST_SECRET"}
    issuer = {"issuer": ISSUER, "audience": [AUDIENCE], "algorithms": ["HS256"], "keys": token, "leeway": "30s"}
    return {
        "version": 1,
        "identity": {"default": "dev", "issuers": {"dev": {**issuer, "max_lifetime": "24h"}}},
        "networks": {"deny": ["127.0.0.13/32"]},
        "limits": {"head": "16KiB", "body": "64KiB"},
        "upstreams": {
            "users": {"endpoints": [upstream], "retries": 0},
            "orders": {"endpoints": [other], "retries": 0},
            "flaky": {"endpoints": [upstream], "retries": 0, "circuit": {"failures": 5, "open_for": "300ms"}},
            "dead": {"endpoints": [dead], "retries": 0, "circuit": {"failures": 4, "open_for": "500ms"}},
        },
        "rate_limits": {
            "per-user": {"limit": 10, "window": "10m", "key": "principal"},
            "per-bucket": {"limit": 30, "window": "10m", "key": ["client_ip", "header:x-bucket"]},
            "watched": {"limit": 5, "window": "10m", "key": "principal", "mode": "report"},
        },
        "client_limits": ["per-bucket"],
        "cors": {
            "web": {
                "origins": ["https://app.example"],
                "methods": ["GET", "POST"],
                "headers": ["Authorization", "Content-Type"],
                "credentials": True,
                "max_age": "10m",
            }
        },
        "routes": [
            {
                "name": "users",
                "match": {"prefix": "/api/v1/users"},
                "upstream": "users",
                "require": {
                    "scopes_all": ["users.read"],
                    "when": 'request.method != "DELETE" || "admin" in principal.roles',
                },
                "cors": "web",
                "max_body": "1KiB",
            },
            {
                "name": "orders",
                "match": {"prefix": "/api/v1/orders", "methods": ["GET", "POST"]},
                "upstream": "orders",
                "rewrite": {
                    "strip_prefix": True,
                    "set": {"X-Mail": "{claim:email}", "X-Via": "gate"},
                    "remove": ["X-Drop"],
                },
                "require": {"roles_any": ["user", "admin"]},
            },
            {
                "name": "tenants",
                "match": {"prefix": "/api/v1/tenants"},
                "upstream": "users",
                "rewrite": {"replace_prefix": "/svc", "set": {"X-Tenant": "{claim:tenant}"}},
                "require": {"claims": {"tenant": ["acme", "globex"]}},
            },
            {"name": "limited", "match": {"prefix": "/limited"}, "upstream": "users", "rate_limits": ["per-user"]},
            {"name": "watched", "match": {"prefix": "/watched"}, "upstream": "users", "rate_limits": ["watched"]},
            {"name": "public", "match": {"exact": "/public"}, "upstream": "users", "auth": "none"},
            {
                "name": "get-only",
                "match": {"prefix": "/get-only", "methods": ["GET"]},
                "upstream": "users",
                "auth": "none",
            },
            {
                "name": "office",
                "match": {"prefix": "/office"},
                "upstream": "users",
                "auth": "none",
                "networks": {"allow": ["127.0.0.1/32", "127.0.0.4/32"]},
            },
            {"name": "flaky", "match": {"prefix": "/flaky"}, "upstream": "flaky", "auth": "none"},
            {"name": "dead", "match": {"prefix": "/dead"}, "upstream": "dead", "auth": "none"},
            {
                "name": "reported",
                "match": {"prefix": "/reported"},
                "upstream": "users",
                "require": {"scopes_all": ["reports.read"]},
                "mode": "report",
            },
        ],
    }


@dataclass(frozen=True)
class Case:
    """One request of the corpus. tag: what it is for. source: the client's address. who: the token's subject."""

    tag: str
    method: str
    target: str
    token: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    source: str = "127.0.0.1"
    who: str = ""
    bucket: str = ""


class Tokens:
    """The tokens of the corpus; few, and used again and again, as clients do."""

    def __init__(self) -> None:
        good: dict[str, Any] = {"roles": "user", "scope": "users.read orders.read", "tenant": "acme", "email": EMAIL}
        self.user = mint("alice", **good)
        self.admin = mint("root", **good | {"roles": ["admin", "user"]})
        self.globex = mint("gina", **good | {"tenant": "globex"})
        self.initech = mint("ivan", **good | {"tenant": "initech"})
        self.reader = mint("noscope", **good | {"scope": "orders.read"})
        self.roleless = mint("norole", **good | {"roles": "guest"})
        self.umlaut = mint("jürgen", **good)
        self.limited = [mint(f"user-{number}", **good) for number in range(10)]
        self.bad = {
            "token-malformed": "not-a-token",
            "token-signature-invalid": mint("eve", key=SECRET + "!"),
            "token-expired": mint("old", lifetime=-3600),
            "token-audience-refused": mint("elsewhere", aud="api://other"),
            "token-issuer-unknown": mint("stranger", iss="https://evil.example"),
            "token-algorithm-refused": mint("downgrade", algorithm="HS512"),
            "token-claim-invalid": mint("endless", exp=None),
            "token-type-refused": mint("typed", headers={"typ": "dpop+jwt"}),
            "token-lifetime-exceeded": mint("long", lifetime=3 * 86400),
            "token-proof-unsupported": mint("bound", cnf={"kid": "A" * 43}),
            "token-not-yet-valid": mint("early", nbf=int(time.time()) + 7200),
        }


def plan(count: int, seed: int = 4) -> list[Case]:
    """Make the requests, mixed: the same ones for the same count and seed, but for the tokens' times."""
    tokens, chance = Tokens(), random.Random(seed)
    origin = ("Origin", "https://app.example")
    asks = ("Access-Control-Request-Method", "POST")
    cookie = ("Cookie", f"session={SECRET_COOKIE}; theme=dark")

    def users(n: int) -> Case:
        return Case("users", "GET", f"/api/v1/users/{n % 50}?page={n % 7}", tokens.user, (cookie,), who="alice")

    makers: list[tuple[int, Callable[[int], Case]]] = [
        (20, users),
        (4, lambda n: Case("scope", "GET", f"/api/v1/users/{n % 9}", tokens.reader)),
        (3, lambda n: Case("delete-user", "DELETE", f"/api/v1/users/{n % 9}", tokens.user)),
        (3, lambda n: Case("delete-admin", "DELETE", f"/api/v1/users/{n % 9}", tokens.admin)),
        (10, lambda n: Case("orders", "GET", f"/api/v1/orders/{n % 30}", tokens.user, (("X-Drop", "this"),))),
        (3, lambda n: Case("orders-post", "POST", "/api/v1/orders", tokens.user, body=b"x" * 100)),
        (3, lambda n: Case("role", "GET", f"/api/v1/orders/{n % 9}", tokens.roleless)),
        (4, lambda n: Case("tenant-acme", "GET", f"/api/v1/tenants/{n % 9}", tokens.user)),
        (4, lambda n: Case("tenant-globex", "GET", f"/api/v1/tenants/{n % 9}", tokens.globex)),
        (3, lambda n: Case("tenant-initech", "GET", f"/api/v1/tenants/{n % 9}", tokens.initech)),
        (6, lambda n: Case("limited", "GET", "/limited/x", tokens.limited[n % 10], who=f"user-{n % 10}")),
        (2, lambda n: Case("watched", "GET", "/watched/x", tokens.limited[n % 3], who=f"user-{n % 3}")),
        (5, lambda n: Case("public", "GET", "/public")),
        (2, lambda n: Case("public-token", "GET", "/public", tokens.user)),
        (1, lambda n: Case("public-forged", "GET", "/public", tokens.bad["token-signature-invalid"])),
        (2, lambda n: Case("office", "GET", "/office/door")),
        (2, lambda n: Case("office-away", "GET", "/office/door", source="127.0.0.2")),
        (
            1,
            lambda n: Case(
                "spoofed", "GET", "/office/door", headers=(("X-Forwarded-For", "127.0.0.1"),), source="127.0.0.2"
            ),
        ),
        (1, lambda n: Case("barred", "GET", "/public", source="127.0.0.13")),
        (2, lambda n: Case("bucket", "GET", "/public", bucket="full", source="127.0.0.3")),
        (2, lambda n: Case("anonymous", "GET", f"/api/v1/users/{n % 9}")),
        (1, lambda n: Case("basic", "GET", "/api/v1/users/1", headers=(("Authorization", "Basic YTpiCg=="),))),
        (1, lambda n: Case("no-route", "GET", f"/nothing/{n % 5}", tokens.user)),
        (1, lambda n: Case("no-route-anonymous", "GET", f"/nothing/{n % 5}")),
        (1, lambda n: Case("method", "PUT", "/get-only/x", tokens.user, body=b"x")),
        (1, lambda n: Case("health", "GET", "/health")),
        (1, lambda n: Case("preflight", "OPTIONS", "/api/v1/users/1", headers=(origin, asks))),
        (1, lambda n: Case("preflight-no", "OPTIONS", "/api/v1/users/1", headers=(origin, (asks[0], "DELETE")))),
        (2, lambda n: Case("origin", "GET", "/api/v1/users/1", tokens.user, (origin,))),
        (1, lambda n: Case("origin-no", "GET", "/api/v1/users/1", tokens.user, (("Origin", "https://evil.example"),))),
        (1, lambda n: Case("body", "POST", "/api/v1/users", tokens.user, body=b"x" * 2000)),
        (1, lambda n: Case("body-ok", "POST", "/api/v1/users", tokens.user, body=b"x" * 600)),
        (1, lambda n: Case("dots", "GET", "/api/v1/users/../orders", tokens.user)),
        (1, lambda n: Case("slash", "GET", "/api/v1/users/a%2Fb", tokens.user)),
        (1, lambda n: Case("large-head", "GET", "/public", headers=(("X-Large", "l" * 9000),))),
        (1, lambda n: Case("umlaut", "GET", "/api/v1/users/1", tokens.umlaut)),
        (4, lambda n: Case("flaky", "GET", f"/flaky/{'fail' if n % 3 else 'fine'}")),
        (1, lambda n: Case("dead", "GET", "/dead/end")),
        (1, lambda n: Case("reported", "GET", "/reported/x", tokens.user)),
    ]
    for reason, token in tokens.bad.items():
        makers.append((1, lambda n, reason=reason, token=token: Case(reason, "GET", "/api/v1/users/1", token)))  # type: ignore[misc]  # bound here
    weights = [weight for weight, _ in makers]
    chosen = chance.choices([maker for _, maker in makers], weights, k=count)
    return [maker(number) for number, maker in enumerate(chosen)]


@dataclass
class Corpus:
    """A recording, the policy that made it, and what was sent, by the number in X-Number."""

    path: Path
    policy: Path
    made: dict[str, Any]
    cases: list[Case]
    statuses: dict[int, int] = field(default_factory=dict)

    def mutated(self, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
        """Write the policy with one rule changed, beside the policy."""
        made = json.loads(json.dumps(self.made))
        change(made)
        path = self.policy.with_name(f"{name}.yaml")
        path.write_text(json.dumps(made, indent=2))
        return path


def record(
    directory: Path,
    count: int,
    shadow: Callable[[dict[str, Any]], None] | None = None,
    at_end: Callable[[subprocess.Popen[bytes], Path], None] | None = None,
) -> Corpus:
    """Run a gateway with a recorder, send it the plan, and return the recording.

    shadow: makes the candidate of the policy that decides along. at_end: called with the process, before it ends, and
    the file of its words.
    """
    with RecordingUpstream(answer) as upstream, RecordingUpstream(answer) as other:
        made = policy(upstream.url, other.url, f"http://127.0.0.1:{free_port()}")
        path = directory / "policy.yaml"
        path.write_text(json.dumps(made, indent=2))
        corpus = Corpus(directory / "traffic.mitm", path, made, plan(count))
        candidate = () if shadow is None else (str(corpus.mutated("candidate", shadow)),)
        with running(path, corpus.path, directory, candidate) as (port, process, out):
            send(port, corpus)
            if at_end is not None:
                at_end(process, out)
    return corpus


def answer(request: Recorded) -> Reply:
    return Reply(500 if request.target.endswith("/fail") else 200, [("Set-Cookie", f"session={SECRET_COOKIE}")])


@contextlib.contextmanager
def running(
    policy_path: Path, recording: Path, directory: Path, more: tuple[str, ...]
) -> Iterator[tuple[int, subprocess.Popen[bytes], Path]]:
    port = free_port()
    out = directory / f"host-{port}.out"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'addons'}:{ROOT}", "MITMGATE_TEST_SECRET": SECRET}
    command = [sys.executable, "-m", "mitmgate", "serve", "--policy", str(policy_path), "--record", str(recording)]
    command += ["--listen", f"127.0.0.1:{port}"]
    if more:  # a candidate beside it
        command = [sys.executable, "-m", "tests.replay.recording_host", str(policy_path), str(port), str(recording)]
        command += more
    with out.open("wb") as words:
        process = subprocess.Popen(command, stdout=words, stderr=words, env=environment, cwd=ROOT)
        try:
            wait_for(lambda: process.poll() is None and b"listening" in out.read_bytes(), "the host to listen")
            yield port, process, out
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0, out.read_text()
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{out.read_text()}") from None
        finally:
            process.kill()
            process.wait(PATIENCE)


def send(port: int, corpus: Corpus) -> None:
    """Send every case, in several connections at once."""
    failures: list[BaseException] = []

    def work(first: int) -> None:
        links: dict[str, socket.socket] = {}
        try:
            for number in range(first, len(corpus.cases), CLIENTS):
                corpus.statuses[number] = _send(port, number, corpus.cases[number], links)
        except BaseException as failure:
            failures.append(failure)
        finally:
            for link in links.values():
                link.close()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert len(corpus.statuses) == len(corpus.cases)


def _send(port: int, number: int, case: Case, links: dict[str, socket.socket]) -> int:
    fields = [("Host", "gateway.test"), ("X-Number", str(number)), ("X-Case", case.tag)]
    fields.append(("X-Bucket", case.bucket or str(number)))
    if case.token is not None:
        fields.append(("Authorization", f"Bearer {case.token}"))
    fields += case.headers
    if case.body:
        fields.append(("Content-Length", str(len(case.body))))
    head = f"{case.method} {case.target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    data = head.encode("latin-1") + b"\r\n" + case.body
    for attempt in range(2):
        link = links.get(case.source)
        if link is None:
            link = socket.create_connection(("127.0.0.1", port), PATIENCE, source_address=(case.source, 0))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            links[case.source] = link
        try:
            link.sendall(data)
            status, closed = _receive(link, case.method)
        except ConnectionError:
            status, closed = 0, True
        if closed:
            links.pop(case.source).close()
        if status or attempt:
            return status
    return 0


def _receive(link: socket.socket, method: str) -> tuple[int, bool]:
    """Read one response; return its status, 0 where there was none, and whether the connection is over."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = link.recv(65536)
        if not part:
            return 0, True
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    status = int(head[9:12])
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    length = 0 if method == "HEAD" or status in {204, 304} else int(fields.get(b"content-length", b"0"))
    while len(body) < length:
        part = link.recv(65536)
        if not part:
            return status, True
        body += part
    return status, fields.get(b"connection") == b"close"
