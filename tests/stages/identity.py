"""A small real policy with one development issuer, requests for it, and tokens that it accepts."""

from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mitmgate.core.headers import Headers
from mitmgate.core.request import Head, Request
from mitmgate.core.routing import NoRoute
from mitmgate.core.verdict import Step, Verdict
from mitmgate.keys.minting import mint
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot

NOW = 1_800_000_000.0
SECRET = "a development secret of 32 bytes or more"
POLICY = """
version: 1
mode: {mode}
identity:
  issuers:
    dev:
      issuer: https://dev.example
      audience: [api://orders]
      algorithms: [HS256]
      keys: {{secret_env: DEV_SECRET}}
upstreams:
  users: {{endpoints: ["http://127.0.0.1:9001"]}}
routes:
  - {{name: plain, match: {{prefix: /plain}}, upstream: users}}
  - {{name: status, match: {{exact: /status, methods: [GET]}}, upstream: users, auth: none}}
  - {{name: trial, match: {{prefix: /trial}}, upstream: users, mode: report, require: {{scopes_all: [never]}}}}
  - name: users
    match: {{prefix: /users, methods: [GET, POST, DELETE]}}
    upstream: users
    require:
      scopes_all: [users.read]
      roles_any: [user, admin]
      claims: {{tenant: [acme]}}
      when: 'request.method != "DELETE" || "admin" in principal.roles'
"""


def snapshot_of(directory: Path, mode: str = "enforce") -> Snapshot:
    path = directory / f"{mode}.yaml"
    path.write_text(POLICY.format(mode=mode))
    return load_snapshot(path, {"DEV_SECRET": SECRET})


def token(snapshot: Snapshot, *, now: float = NOW, **claims: Any) -> str:
    """Mint a token that may do everything, but for what `claims` say."""
    good = {"role": "user", "scope": "users.read", "tenant": "acme"}
    return mint(snapshot.issuers["dev"], "alice", now=now, lifetime=300.0, claims=good | claims)


def exchange(snapshot: Snapshot, method: str, path: str, authorization: str | None = None) -> Exchange:
    """Return the exchange of a request as Routing leaves it."""
    fields = [(b"Host", b"api.example")]
    if authorization is not None:
        fields.append((b"Authorization", authorization.encode("latin-1")))
    headers = Headers(fields)
    request = Request(method, path, "HTTP/1.1", headers, "http", "", "192.0.2.1", 0)
    made = Exchange(snapshot, request, "0123456789abcdef", NOW, 0.0, Verdict(snapshot.digest))
    made.client = ip_address("192.0.2.1")
    made.head = Head(method, path.partition("?")[0], path.partition("?")[2] or None, "api.example", None, headers)
    found = snapshot.routes.match(method, "api.example", made.head.path)
    if isinstance(found, NoRoute):
        made.no_route = found
    else:
        made.route = found
    return made


def decided(stage: Stage, made: Exchange) -> Step:
    """Run a stage that has nothing to wait for, and return the step that it recorded."""
    before = len(made.verdict.steps)
    assert stage.run(made) is None, "the stage waits"
    (step,) = made.verdict.steps[before:]
    return step
