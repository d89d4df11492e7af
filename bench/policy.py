"""The policies that are measured: from a bare route to everything, a part at a time; and tokens for them."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

SECRET = "only-for-measuring-and-long-enough-for-HS256-to-take-it"
SECRET_NAME = "MITMGATE_BENCH_SECRET"
PREFIX = "/api/v1/users"
PATH = f"{PREFIX}/42"
ISSUER, AUDIENCE = "https://bench.example", "api://bench"
SCOPE, ROLE = "users.read", "user"
NEVER = 1_000_000_000  # a limit that no run reaches
WINDOW = 60  # seconds


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts a policy has. The defaults are the full policy, as the bars mean it.

    store: the URL of a Redis server; None: memory. stream: audit events to Redis too. admin: a port for /metrics.
    certificate: paths of a certificate and its key, to serve over TLS. hosts: a route each, all at one path; empty: one
    route for any host. websocket: the route may be upgraded.
    """

    token: bool = True
    rules: bool = True
    limit: int | None = NEVER
    circuit: bool = True
    rewrite: bool = True
    response_headers: bool = True
    file: bool = True
    store: str | None = None
    stream: bool = False
    admin: int | None = None
    certificate: tuple[str, str] | None = None
    hosts: tuple[str, ...] = ()
    websocket: bool = False


def document(upstream_port: int, parts: Parts) -> dict[str, Any]:
    """Make a policy for a service on 127.0.0.1."""
    upstream: dict[str, Any] = {"endpoints": [f"http://127.0.0.1:{upstream_port}"]}
    route: dict[str, Any] = {"name": "users", "match": {"prefix": PREFIX}, "upstream": "users"}
    policy: dict[str, Any] = {"version": 1, "upstreams": {"users": upstream}, "routes": [route]}
    if parts.token:
        keys = {"secret_env": SECRET_NAME}
        issuer = {"issuer": ISSUER, "audience": [AUDIENCE], "algorithms": ["HS256"], "keys": keys}
        policy["identity"] = {"default": "bench", "issuers": {"bench": issuer}}
    else:
        route["auth"] = "none"
    if parts.rules:
        condition = 'request.method != "DELETE" || "admin" in principal.roles'
        route["require"] = {"scopes_all": [SCOPE], "roles_any": [ROLE], "when": condition}
    if parts.limit is not None:
        policy["rate_limits"] = {"per-user": {"limit": parts.limit, "window": f"{WINDOW}s", "key": "principal"}}
        route["rate_limits"] = ["per-user"]
    if parts.circuit:
        # Every upstream has a circuit; this one also watches how long answers take. It never opens in a measurement.
        upstream["circuit"] = {"failures": 10_000, "window": "1s", "slow": "10s"}
    if parts.rewrite:
        route["rewrite"] = {"strip_prefix": True, "set": {"X-Caller": "{subject}"}, "remove": ["X-Debug"]}
    if parts.response_headers:
        fields = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        policy["response_headers"] = {"set": fields, "remove": ["Server", "X-Powered-By"]}
    sinks: list[dict[str, Any]] = []
    if parts.file:
        sinks.append({"file": "audit.jsonl", "fsync": "1s", "rotate": "50MiB", "keep": 1})
    if parts.stream:
        sinks.append({"redis_stream": "bench:audit", "maxlen": 10_000, "spill": "spill.jsonl"})
    if sinks:
        policy["audit"] = {"sinks": sinks}
    if parts.store is not None:
        policy["store"] = {"url": parts.store, "timeout": "1s"}
    if parts.admin is not None:
        policy["admin"] = {"host": "127.0.0.1", "port": parts.admin}
    _extend(policy, parts)
    return policy


def _extend(policy: dict[str, Any], parts: Parts) -> None:
    """Add what ratios compare: TLS, WebSockets, a route for each host in place of the one for all."""
    (route,) = policy["routes"]
    if parts.certificate is not None:
        policy["listen"] = {"tls": dict(zip(("certificate", "key"), parts.certificate, strict=True))}
    if parts.websocket:
        route["websocket"] = True
    if parts.hosts:
        policy["routes"] = [
            route | {"name": f"users-{number}", "match": {"prefix": PREFIX, "hosts": [host]}}
            for number, host in enumerate(parts.hosts)
        ]


def write(directory: Path, upstream_port: int, parts: Parts) -> Path:
    """Write a policy as policy.yaml; its audit file goes beside it."""
    path = directory / "policy.yaml"
    path.write_text(json.dumps(document(upstream_port, parts)))  # JSON is YAML
    return path


def token(subject: str = "alice", scope: str = SCOPE, lifetime: int = 7200) -> str:
    """Mint a token; by default one that every request of a measurement carries."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now - 1, "exp": now + lifetime}
    return jwt.encode(claims | {"role": ROLE, "scope": scope}, SECRET, "HS256")


def bearer(subject: str = "alice", scope: str = SCOPE, lifetime: int = 7200) -> str:
    """Return the value of Authorization for such a token."""
    return f"Bearer {token(subject, scope, lifetime)}"
