"""The command `init`: a folder to begin in: a policy, its schema, a recording, tests of both, and a pipeline."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import click

from mitmgate import __version__
from mitmgate.schema_command import policy_schema
from mitmgate.usage import UserError

POLICY = """\
# yaml-language-server: $schema=gateway.schema.json
version: 1
listen: {host: 127.0.0.1, port: 8080}

# Whose tokens are believed. A development secret is for trying: whoever knows it makes tokens. In production the keys
# of your provider stand here, such as `keys: {discovery: true}` with its algorithms.
identity:
  issuers:
    dev:
      issuer: https://dev.example
      audience: [api://orders]
      algorithms: [HS256]
      keys: {secret_env: MITMGATE_DEV_SECRET}    # at least 32 bytes
      max_lifetime: 24h

upstreams:
  orders: {endpoints: ["http://127.0.0.1:9000"]}

rate_limits:
  per-user: {limit: 100, window: 60s, key: principal}

# What no route names is denied.
routes:
  - name: orders
    match: {prefix: /api/v1/orders, methods: [GET, POST]}
    upstream: orders
    rewrite: {strip_prefix: true}                # the service sees /7 for /api/v1/orders/7
    require:
      scopes_all: [orders.read]
      when: 'request.method != "POST" || "clerk" in principal.roles'
    rate_limits: [per-user]

audit:
  sinks: [{file: audit.jsonl}]
  acknowledge: {unkeyed-chain: "for trying; key_env names a key"}
"""

TESTS = '''\
"""What the policy admits and denies. Run `pytest` here: no gateway, no network, no key is needed."""

ALICE = {"sub": "alice", "scope": "orders.read"}


def test_who_reads_orders(policy_case):
    orders = policy_case("gateway.yaml").request("GET", "/api/v1/orders/7")
    orders.claims(**ALICE).is_admitted(route="orders", target="/7")
    orders.claims(sub="bob").is_denied("scope-missing")
    orders.is_denied("credential-missing")


def test_clerks_alone_make_orders(policy_case):
    orders = policy_case("gateway.yaml").request("POST", "/api/v1/orders")
    orders.claims(**ALICE, roles=["clerk"]).is_admitted()
    orders.claims(**ALICE).is_denied("condition-false")


def test_recorded_traffic(mitmgate_replay):
    """Recorded by `serve --record traffic.mitm`: record your own, and say here what must not change."""
    mitmgate_replay("traffic.mitm", "gateway.yaml").assert_same()
'''

PIPELINE = """\
# A change of the policy goes live when it has no error, no warning, and decides as its tests say.
name: policy
on: [push, pull_request]
permissions: {contents: read}
jobs:
  policy:
    runs-on: ubuntu-latest
    env:
      MITMGATE_DEV_SECRET: no-secret-at-all-but-32-bytes-long
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.13"}
      - run: pip install pytest ./wheels/mitmgate-@VERSION@-py3-none-any.whl  # where your team keeps the wheel
      - run: mitmgate check --strict gateway.yaml
      - run: pytest
"""

NEXT = """
Try it:
  export MITMGATE_DEV_SECRET=$(head -c 32 /dev/urandom | base64)
  mitmgate check gateway.yaml
  pytest                                         # of the same environment: pip install pytest
  mitmgate echo --port 9000 &
  mitmgate serve --policy gateway.yaml &
  TOKEN=$(mitmgate token --policy gateway.yaml --sub alice --scope orders.read)
  curl -i --retry 5 --retry-connrefused http://127.0.0.1:8080/api/v1/orders/7 -H "Authorization: Bearer $TOKEN"
  kill %1 %2
"""


def _folder() -> Mapping[str, bytes]:
    texts = {
        "gateway.yaml": POLICY,
        "gateway.schema.json": policy_schema(),
        "test_gateway.py": TESTS,
        ".github/workflows/policy.yml": PIPELINE.replace("@VERSION@", __version__),
        ".gitignore": "audit.jsonl*\n__pycache__/\n",
    }
    recording = files("mitmgate.demo").joinpath("orders.mitm").read_bytes()
    return {**{name: text.encode() for name, text in texts.items()}, "traffic.mitm": recording}


@click.command("init")
@click.argument("directory", default=".", metavar="[DIRECTORY]")
def init(directory: str) -> None:
    """Begin a folder with a policy that runs, its JSON Schema, tests, recorded traffic and a pipeline.

    DIRECTORY is made where it is missing; without one it is the folder that you are in. No file is written over.
    """
    place = Path(directory)
    made = {place / name: content for name, content in _folder().items()}
    for path in made:
        if path.exists():
            raise UserError(f"init {directory}: {path} is there already")
    try:
        for path, content in made.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise UserError(f"init {directory}: {(error.strerror or str(error)).lower()}") from error
    for path in made:
        click.echo(f"{path}: written")
    click.echo(NEXT if place == Path() else NEXT.replace("Try it:\n", f"Try it:\n  cd {directory}\n"), nl=False)
