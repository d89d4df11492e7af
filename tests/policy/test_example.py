"""The policy that shows every member loads as written, and compiles to what it says."""

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest

from mitmgate.core.limit import Limit
from mitmgate.core.path import Oddity
from mitmgate.core.rules import Circuit, Cors, Endpoint, Route
from mitmgate.policy.loader import PolicyError, load, load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.authorization import Requirements
from mitmgate.stages.size_limit import Bounds


@pytest.fixture
def snapshot(example: Path, environ: Mapping[str, str]) -> Snapshot:
    return load_snapshot(example, environ)


def test_loads_without_any_error(example: Path, environ: Mapping[str, str]) -> None:
    loaded = load(example, environ)
    assert [(problem.line, problem.column, problem.path) for problem in loaded.warnings] == [
        (102, 20, "audit.chain.key_env"),  # MITMGATE_AUDIT_KEY is not set
    ]


def test_takes_a_path_as_text(example: Path, environ: Mapping[str, str]) -> None:
    assert load_snapshot(str(example), environ).path == str(example)


def test_routes(snapshot: Snapshot) -> None:
    route = snapshot.routes.match("GET", "api.example", "/api/v1/users/7")
    assert isinstance(route, Route)
    assert (route.name, route.path, route.exact, route.hosts) == ("users", "/api/v1/users", False, ("api.example",))
    assert route.methods == {"GET", "POST", "DELETE"}
    assert route.upstream is snapshot.upstreams["users"]
    assert route.issuers == ("corp", "dev")
    requirements = snapshot.compiled["authorization"]
    assert isinstance(requirements, Requirements)
    require, _, networks = requirements.of_routes["users"]
    assert require.scopes_all == {"users.read"}
    assert require.roles_any == {"user", "admin"}
    assert require.claims == {"tenant": ("acme", "globex")}
    assert snapshot.compiled["size-limit"] == Bounds({"users": 1 << 20, "status": 10 << 20}, 10 << 20)
    assert (route.websocket, route.stream, route.odd, route.mode) == (
        False,
        "auto",
        frozenset({Oddity.ENCODED_DELIMITER}),
        "enforce",
    )
    assert networks is not None
    for address, inside in (("192.0.2.9", True), ("2001:db8::1", True), ("198.51.100.1", False)):
        assert (ip_address(address) in networks.allow) is inside
    assert not networks.deny


def test_a_public_route_has_no_issuers(snapshot: Snapshot) -> None:
    route = snapshot.routes.match("GET", "any.example", "/status")
    assert isinstance(route, Route)
    assert (route.issuers, route.exact) == (None, True)


def test_rewrite(snapshot: Snapshot) -> None:
    rewrite = snapshot.routes.routes[-1].rewrite if snapshot.routes.routes[-1].name == "users" else None
    assert rewrite is not None
    assert (rewrite.strip_prefix, rewrite.replace_prefix) == (True, None)
    ((name, template),) = rewrite.set
    assert (name, template.placeholders) == (b"x-tenant", ("claim:tenant",))
    # A client's own X-Tenant goes too, also for a token without the claim.
    assert rewrite.remove == {b"x-debug", b"x-tenant"}


def test_identity(snapshot: Snapshot) -> None:
    corp, dev = snapshot.issuers["corp"], snapshot.issuers["dev"]
    assert snapshot.default_issuers == ("corp",)
    assert (corp.issuer, corp.audience, corp.algorithms) == (
        "https://issuer.example",
        ("api://orders",),
        ("ES256", "RS256", "EdDSA"),
    )
    assert (corp.keys.kind, corp.keys.url) == ("jwks_url", "http://127.0.0.1:9100/jwks.json")
    assert (corp.keys.refresh, corp.keys.min_refresh, corp.keys.max_stale) == (300.0, 10.0, 3600.0)
    assert (corp.leeway, corp.token_type, corp.max_lifetime) == (30.0, "any", 86400.0)
    assert (corp.subject, corp.roles, corp.scopes) == (("sub",), ("role", "roles"), ("scope", "scp"))
    assert (dev.keys.kind, dev.keys.material) == ("secret", b"an-hmac-secret-of-more-than-256-bits")
    assert (snapshot.forward.subject, snapshot.forward.roles) == (b"x-user-id", b"x-user-role")
    assertion = snapshot.forward.assertion
    assert assertion is not None
    assert (assertion.header, assertion.lifetime, assertion.issuer) == (b"x-gateway-assertion", 30.0, "mitmgate")
    assert assertion.key.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_every_header_that_speaks_of_the_principal_is_an_identity_header(snapshot: Snapshot) -> None:
    assert snapshot.client_fields.identity == {
        *(b"x-user-id", b"x-user-role", b"x-user-issuer", b"x-gateway-assertion", b"x-tenant"),
    }


def test_upstreams(snapshot: Snapshot, example: Path) -> None:
    users = snapshot.upstreams["users"]
    assert users.endpoints == (Endpoint("http", "127.0.0.1", 9001), Endpoint("http", "127.0.0.1", 9011))
    assert (users.connect_timeout, users.response_timeout, users.retries, users.host) == (2.0, 30.0, 1, "preserve")
    assert users.circuit == Circuit(5, 30.0, 30.0, 1, frozenset({500, 502, 503, 504}), 10.0, 0.5)
    assert users.tls is not None
    assert (users.tls.ca, users.tls.server_name) == (
        (example.parent / "tls/internal.pem").read_bytes(),
        "users.internal",
    )


def test_limits(snapshot: Snapshot) -> None:
    per_client = Limit("per-client", 600, 60.0, ("client_ip",))
    assert snapshot.client_limits == (per_client,)
    route = next(route for route in snapshot.routes.routes if route.name == "users")
    assert route.limits == (
        Limit("per-user", 100, 60.0, ("principal",)),
        Limit("per-tenant", 10000, 3600.0, ("claim:tenant", "route"), 1, "deny", "report"),
    )


def test_cors(snapshot: Snapshot) -> None:
    route = next(route for route in snapshot.routes.routes if route.name == "users")
    assert route.cors == Cors(
        origins=("https://app.example",),
        methods=("GET", "POST"),
        headers=("Authorization", "Content-Type"),
        credentials=True,
        expose=("X-Request-ID",),
        max_age=86400.0,
    )


def test_the_rest(snapshot: Snapshot, example: Path) -> None:
    assert (snapshot.mode, snapshot.health_path, snapshot.max_head) == ("enforce", "/health", 32 << 10)
    assert ip_address("10.1.2.3") in snapshot.trusted_proxies
    assert snapshot.response_headers.set == (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"strict-transport-security", b"max-age=31536000"),
    )
    assert snapshot.response_headers.remove == {b"server", b"x-powered-by"}
    assert snapshot.audit_key is None
    assert snapshot.resolve("audit/audit.jsonl") == str(example.parent / "audit/audit.jsonl")
    assert (snapshot.policy.limits.head_timeout, snapshot.policy.limits.idle_timeout) == (10.0, 75.0)


def test_neither_snapshot_nor_error_shows_a_secret(example: Path, environ: dict[str, str]) -> None:
    assert "an-hmac-secret" not in repr(load_snapshot(example, environ))
    assert "an-hmac-secret" not in repr(load(example, environ))
    with pytest.raises(PolicyError) as caught:
        load(example, {"MITMGATE_DEV_SECRET": "an-hmac-secret"})
    assert "an-hmac-secret" not in str(caught.value)


def test_every_missing_file_and_variable_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(Path(__file__).with_name("policy-example.yaml").read_text())
    with pytest.raises(PolicyError) as caught:
        load(tmp_path / "p.yaml", {})
    assert [(problem.line, problem.path) for problem in caught.value.problems if problem.severity == "error"] == [
        (11, "listen.tls.certificate"),
        (11, "listen.tls.key"),
        (11, "listen.tls.client_ca"),
        (40, "identity.issuers.dev.keys.secret_env"),
        (44, "identity.forward.assertion.key_file"),
        (56, "upstreams.users.tls.ca"),
        (56, "upstreams.users.tls.certificate"),
        (56, "upstreams.users.tls.key"),
    ]
