"""The policy that is measured: a JWT, a limit for each principal that is never reached, a route, headers, a file."""

import json
import time
from pathlib import Path

import jwt

SECRET = "only-for-measuring-and-long-enough-for-HS256-to-take-it"
SECRET_NAME = "MITMGATE_BENCH_SECRET"
PATH = "/api/v1/users/42"
_ISSUER, _AUDIENCE = "https://bench.example", "api://bench"


def write(directory: Path, upstream_port: int) -> Path:
    """Write the policy, for a service on 127.0.0.1."""
    issuer = {
        "issuer": _ISSUER,
        "audience": [_AUDIENCE],
        "algorithms": ["HS256"],
        "keys": {"secret_env": SECRET_NAME},
    }
    policy = {
        "version": 1,
        "identity": {"default": "bench", "issuers": {"bench": issuer}},
        "upstreams": {"users": {"endpoints": [f"http://127.0.0.1:{upstream_port}"]}},
        "rate_limits": {"per-user": {"limit": 1_000_000_000, "window": "60s", "key": "principal"}},
        "routes": [
            {
                "name": "users",
                "match": {"prefix": "/api/v1/users"},
                "upstream": "users",
                "require": {"scopes_all": ["users.read"]},
                "rate_limits": ["per-user"],
            }
        ],
        "response_headers": {"set": {"X-Content-Type-Options": "nosniff"}, "remove": ["Server"]},
        "audit": {"sinks": [{"file": str(directory / "audit.jsonl"), "fsync": "1s"}]},
    }
    path = directory / "policy.yaml"
    path.write_text(json.dumps(policy))  # JSON is YAML
    return path


def token() -> str:
    """Mint the one token that every request carries."""
    now = int(time.time())
    claims = {"iss": _ISSUER, "aud": _AUDIENCE, "sub": "alice", "iat": now, "exp": now + 3600}
    return jwt.encode(claims | {"role": "user", "scope": "users.read"}, SECRET, "HS256")
