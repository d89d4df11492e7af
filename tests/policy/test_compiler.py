"""The digest, defaults, and values from the environment."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from mitmgate.core.proof import ALGORITHMS
from mitmgate.core.rules import Circuit, Requirement, Rewrite
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.model_audit import FileSink
from mitmgate.stages.authorization import Required, Requirements
from mitmgate.stages.size_limit import Bounds

MINIMAL = """\
version: 1
upstreams: {users: {endpoints: ["http://127.0.0.1:9001"]}}
routes: [{name: all, match: {prefix: /}, upstream: users, auth: none}]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_newline_at_a_variables_end_is_no_part_of_it(example: Path, end: str) -> None:
    """As with a file: a secret that was put into the environment with `$(<file)` and the like is the file's."""
    text = example.read_text().replace("host: 127.0.0.1\n", "host: ${HOST}\n", 1)
    example.write_text(text.replace('"redis://127.0.0.1:6379/0"', '"redis://:${PASSWORD}@127.0.0.1:6379/0"'))
    plain = {"MITMGATE_DEV_SECRET": "s" * 40, "MITMGATE_AUDIT_KEY": "k" * 40, "HOST": "127.0.0.2", "PASSWORD": "p%2Fw"}
    ended = load_snapshot(example, {name: value + end for name, value in plain.items()})
    assert ended.issuers["dev"].keys.material == b"s" * 40
    assert ended.audit_key == b"k" * 40
    assert ended.policy.listen.host == "127.0.0.2"
    assert ended.policy.store.url == "redis://:p%2Fw@127.0.0.1:6379/0"  # type: ignore[union-attr]
    assert ended.digest == load_snapshot(example, plain).digest
    twice = {**plain, "MITMGATE_DEV_SECRET": "s" * 40 + "\n\n"}
    assert load_snapshot(example, twice).issuers["dev"].keys.material == b"s" * 40 + b"\n"


def test_everything_else_has_a_default(tmp_path: Path) -> None:
    snapshot = load_snapshot(write(tmp_path, MINIMAL), {})
    policy = snapshot.policy
    assert (policy.listen.host, policy.listen.port, policy.listen.workers) == ("127.0.0.1", 8080, 1)
    assert (policy.admin, policy.store, policy.audit.sinks) == (None, "memory", ())
    assert (snapshot.mode, snapshot.health_path) == ("enforce", "/health")
    assert (snapshot.default_issuers, snapshot.issuers) == (None, {})
    assert snapshot.client_fields.identity == {b"x-user-id", b"x-user-role"}
    (route,) = snapshot.routes.routes
    assert (route.rewrite, route.limits, route.cors) == (Rewrite(), (), None)
    assert snapshot.compiled["authorization"] == Requirements({route.name: Required(Requirement())})
    assert route.upstream.circuit == Circuit()


ISSUERS = """
identity:
  default: one
  forward: {%s}
  issuers:
    one: {issuer: https://one.example, algorithms: HS256, keys: {secret_env: S}}
    two: {issuer: https://two.example, algorithms: HS256, keys: {secret_env: S}}
"""


@pytest.mark.parametrize(
    ("forward", "auth", "rewrite", "header"),
    [
        ("", "{issuers: [one]}", "{}", None),
        ("", "none", "{}", None),
        ("", "{issuers: [one, two]}", "{}", b"x-user-issuer"),
        ("issuer: X-Realm", "{issuers: [one]}", "{}", b"x-realm"),
        ("issuer: X-Realm", "{issuers: [one, two]}", "{}", b"x-realm"),
        ("", "{issuers: [one, two]}", '{set: {X-User-Issuer: "{issuer}"}}', None),  # as policies did it themselves
    ],
)
def test_the_issuer_is_told_as_soon_as_a_route_accepts_two(
    tmp_path: Path, forward: str, auth: str, rewrite: str, header: bytes | None
) -> None:
    routes = f"routes: [{{name: r, match: {{prefix: /r}}, upstream: u, auth: {auth}, rewrite: {rewrite}}}]"
    text = f"version: 1\nupstreams: {{u: {{endpoints: ['http://127.0.0.1:9001']}}}}\n{routes}\n{ISSUERS % forward}"
    snapshot = load_snapshot(write(tmp_path, text), {"S": "s" * 32})
    assert snapshot.forward.issuer == header
    if header is not None or "set" in rewrite:
        assert (header or b"x-user-issuer") in snapshot.client_fields.identity


def test_the_digest_is_that_of_the_policy_in_effect(example: Path, environ: dict[str, str], tmp_path: Path) -> None:
    digest = load_snapshot(example, environ).digest
    assert len(digest) == 71
    assert digest.startswith("sha256:")
    elsewhere = Path(shutil.copytree(example.parent, tmp_path / "elsewhere")) / "other.yaml"
    text = example.read_text()
    # Comments, a default written out, another place and name of the file: the same policy.
    elsewhere.write_text("# hello\n" + text.replace("websocket: false", "").replace("window: 60s", "window: 1m"))
    assert load_snapshot(elsewhere, environ).digest == digest
    for old, new in (("limit: 100,", "limit: 101,"), ("max_age: 24h", "max_age: 23h"), ("[user, admin]", "[admin]")):
        elsewhere.write_text(text.replace(old, new))
        assert load_snapshot(elsewhere, environ).digest != digest


def test_key_material_is_part_of_the_digest(example: Path, environ: dict[str, str]) -> None:
    digests = {load_snapshot(example, environ).digest}
    digests.add(load_snapshot(example, {"MITMGATE_DEV_SECRET": "another secret of more than 32 bytes"}).digest)
    shutil.copy(example.parent / "tls/gw.key", example.parent / "keys/assertion.pem")
    digests.add(load_snapshot(example, environ).digest)
    digests.add(load_snapshot(example, {**environ, "MITMGATE_AUDIT_KEY": "k" * 32}).digest)
    assert len(digests) == 4


def test_an_audit_key_is_read(example: Path, environ: dict[str, str]) -> None:
    snapshot = load_snapshot(example, {**environ, "MITMGATE_AUDIT_KEY": "k" * 32})
    assert snapshot.audit_key == b"k" * 32
    assert "kkkk" not in repr(snapshot)


def test_the_only_issuer_is_the_default(tmp_path: Path) -> None:
    identity = "identity: {issuers: {corp: {issuer: c, algorithms: ES256, keys: {jwks_url: 'https://c/'}}}}\n"
    snapshot = load_snapshot(write(tmp_path, MINIMAL.replace(", auth: none", "") + identity), {})
    assert snapshot.default_issuers == ("corp",)
    assert snapshot.routes.routes[0].issuers == ("corp",)


@pytest.mark.parametrize("newline", [b"", b"\n", b"\r\n"])
def test_a_secret_file_may_end_with_a_newline(tmp_path: Path, newline: bytes) -> None:
    (tmp_path / "secret").write_bytes(b"\x00\xff" * 16 + newline)
    identity = "identity: {issuers: {dev: {issuer: d, algorithms: HS256, keys: {secret_file: secret}}}}\n"
    snapshot = load_snapshot(write(tmp_path, MINIMAL + identity), {})
    assert snapshot.issuers["dev"].keys.material == b"\x00\xff" * 16


def test_numbers_durations_and_words_may_come_from_the_environment(tmp_path: Path) -> None:
    text = MINIMAL.replace("auth: none", "auth: '${AUTH}', websocket: '${WS}', max_body: '${BODY}'") + (
        "mode: ${MODE:-report}\n"
        "listen: {host: '${HOST}', port: '${PORT:-8081}'}\n"
        "limits: {head_timeout: '${TIME}', connections: '${COUNT}'}\n"
        "audit: {sinks: [{file: '${DIR}/a-${HOST}.jsonl'}]}\n"
    )
    environ: Mapping[str, str] = {
        "AUTH": "none",
        "WS": "true",
        "BODY": "2KiB",
        "HOST": "10",  # text where text is wanted
        "TIME": "250ms",
        "COUNT": "7",
        "DIR": "/var",
    }
    snapshot = load_snapshot(write(tmp_path, text), environ)
    policy, (route,) = snapshot.policy, snapshot.routes.routes
    assert (policy.mode, policy.listen.host, policy.listen.port) == ("report", "10", 8081)
    assert (policy.limits.head_timeout, policy.limits.connections) == (0.25, 7)
    assert (route.issuers, route.websocket) == (None, True)
    assert snapshot.compiled["size-limit"] == Bounds({route.name: 2048}, 10 << 20)
    assert policy.audit.sinks == (FileSink(file="/var/a-10.jsonl"),)
    assert snapshot.resolve("/var/a-10.jsonl") == "/var/a-10.jsonl"


def test_a_json_policy_loads(tmp_path: Path) -> None:
    policy = {
        "version": 1,
        "upstreams": {"users": {"endpoints": ["http://127.0.0.1:9001"]}},
        "routes": [{"name": "all", "match": {"prefix": "/"}, "upstream": "users", "auth": "none"}],
    }
    json_file = tmp_path / "p.json"
    json_file.write_text(json.dumps(policy, indent="\t"))
    assert load_snapshot(json_file, {}).digest == load_snapshot(write(tmp_path, MINIMAL), {}).digest


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = """\
version: 1
upstreams:
  a: &upstream {endpoints: ["http://127.0.0.1:9001"], connect_timeout: 1s}
  b: {<<: *upstream, endpoints: ["http://127.0.0.1:9002"]}
routes: [{name: all, match: {prefix: /}, upstream: b, auth: none}]
"""
    upstream = load_snapshot(write(tmp_path, text), {}).upstreams["b"]
    assert (upstream.endpoints[0].port, upstream.connect_timeout) == (9002, 1.0)


def test_hosts_are_canonical_and_headers_are_compared_without_case(tmp_path: Path) -> None:
    text = MINIMAL.replace("{prefix: /}", "{prefix: /, hosts: [API.Example, '*.EXAMPLE']}").replace(
        "auth: none", "auth: none, rewrite: {set: {X-Ip: '{client_ip}'}, remove: [X-DEBUG]}"
    )
    (route,) = load_snapshot(write(tmp_path, text), {}).routes.routes
    assert route.hosts == ("api.example", "*.example")
    assert route.rewrite.remove == {b"x-debug", b"x-ip"}


PROVED = """\
version: 1
upstreams: {{users: {{endpoints: ["http://127.0.0.1:9001"]}}}}
identity:
  default: [one, two]
  proofs: {{certificate_header: {header}}}
  resources: [{{resource: "https://api.example/orders"}}]
  issuers:
    one:
      {{issuer: "https://one.example", audience: a, algorithms: ES256, bound: {one}, keys: {{jwks_url: "https://a"}}}}
    two:
      {{issuer: "https://two.example", audience: a, algorithms: ES256, keys: {{jwks_url: "https://b"}}}}
routes:
  - name: orders
    match: {{prefix: /orders, hosts: api.example}}
    upstream: users
    auth: {{issuers: [one, two], bound: {bound}}}
  - {{name: more, match: {{prefix: /orders/more, hosts: "*.example"}}, upstream: users, auth: {{issuers: [{more}]}}}}
  - {{name: around, match: {{prefix: /}}, upstream: users, auth: {around}}}
  - {{name: exact, match: {{exact: /}}, upstream: users, auth: jwt}}
  - {{name: elsewhere, match: {{prefix: /ordersX}}, upstream: users, auth: jwt}}
  - {{name: other, match: {{prefix: /orders, hosts: other.example}}, upstream: users, auth: jwt}}
"""


@pytest.mark.parametrize(
    ("changes", "required", "certificates"),
    [
        ({}, True, False),
        ({"bound": "optional"}, False, False),
        ({"one": "optional"}, False, False),
        ({"more": "one, two"}, False, False),
        ({"around": "jwt"}, False, False),
        ({"header": "X-Client-Cert"}, False, True),
        ({"header": "X-Client-Cert", "bound": "optional"}, False, True),
    ],
)
def test_the_metadata_of_a_resource_says_which_proofs_are_asked_for(
    tmp_path: Path, changes: dict[str, str], required: bool, certificates: bool
) -> None:
    """RFC 9728, section 2: what is left out is false. A certificate does as well as DPoP, where there may be one."""
    members = {"header": "null", "one": "required", "bound": "required", "more": "one", "around": "none"}
    snapshot = load_snapshot(write(tmp_path, PROVED.format(**members | changes)), {})
    told = json.loads(snapshot.resources.metadata("api.example", "/.well-known/oauth-protected-resource/orders") or b"")
    assert told["dpop_signing_alg_values_supported"] == list(ALGORITHMS)
    assert told.get("dpop_bound_access_tokens_required", False) is required
    assert told.get("tls_client_certificate_bound_access_tokens", False) is certificates
