"""Every reason code, produced on a real gateway; after a denial the upstream has seen nothing."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate.core.reason import Reason
from tests.live.harness import AUDIENCE, Gateway, Host, mint, policy, write_policy
from tests.live.harness_http import free_port, raw_request
from tests.live.harness_upstream import HANG, HANG_UP, Raw, RecordingUpstream

OFFICE = "https://app.example"


def made(directory: Path, upstream: str, dead: str) -> dict[str, Any]:
    """A policy in which every stage can deny, each on a route of its own."""
    base = policy(directory, upstream)
    base["limits"] = {"head": "32KiB", "head_timeout": "1s", "connections": 64}
    base["upstreams"] |= {
        "dead": {"endpoints": [dead], "connect_timeout": "1s", "retries": 0, "circuit": {"failures": 1000}},
        "slow": {"endpoints": [upstream], "response_timeout": "300ms", "retries": 0, "circuit": {"failures": 1000}},
        "once": {"endpoints": [upstream], "circuit": {"failures": 1, "open_for": "1h"}, "retries": 0},
    }
    base["rate_limits"] |= {
        "none": {"limit": 1, "window": "1h", "key": "principal"},
    }
    base["identity"]["issuers"]["dev"]["max_lifetime"] = "2h"
    base["identity"]["issuers"]["away"] = {
        "issuer": "https://away.example",
        "audience": [AUDIENCE],
        "algorithms": ["ES256"],
        "keys": {"jwks_url": f"{dead}/jwks.json"},
    }
    base["identity"]["issuers"]["strict"] = {
        "issuer": "https://strict.example",
        "audience": [AUDIENCE],
        "algorithms": ["HS256"],
        "keys": {"secret_env": "MITMGATE_TEST_SECRET"},
        "token_type": "at+jwt",
    }

    def add(name: str, **members: Any) -> None:
        base["routes"].append({"name": name, "match": {"prefix": f"/{name}"}, "upstream": "users", **members})

    add("barred", auth="none", networks={"deny": ["127.0.0.0/8"]})
    add("counted", rate_limits=["none"])
    add("away", auth={"issuers": ["away"]})
    add("strict", auth={"issuers": ["strict"]})
    add("admin", require={"roles_any": ["admin"]})
    add("tenant", require={"claims": {"tenant": ["acme"]}})
    add("stepped", require={"acr_values": ["mfa"]})
    add("when", require={"when": "principal.claims.level > 3"})
    add("named", rewrite={"set": {"X-Name": "{claim:name}"}})
    add("dead", upstream="dead", auth="none")
    add("slow", upstream="slow", auth="none")
    add("once", upstream="once", auth="none")
    return base


def head(target: str, *lines: str, method: str = "GET", version: str = "HTTP/1.1", host: str = "api.example") -> bytes:
    fields = "".join(f"{line}\r\n" for line in (f"Host: {host}", *lines))
    return f"{method} {target} {version}\r\n{fields}\r\n".encode("latin-1")


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


Make = Callable[[], bytes]

DENIED: dict[Reason, Make] = {
    Reason.HEAD_MALFORMED: lambda: b"GET /public HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n",
    Reason.FRAMING_AMBIGUOUS: lambda: head("/public", "Content-Length: 1", "Transfer-Encoding: chunked", method="POST"),
    Reason.VERSION_UNSUPPORTED: lambda: head("/public", version="HTTP/3.0"),
    Reason.HEAD_TOO_LARGE: lambda: head("/public", "X-Long: " + "a" * 33000),
    Reason.EXPECTATION_REFUSED: lambda: head("/public", "Expect: miracles"),
    Reason.HEAD_TIMEOUT: lambda: b"GET /public HTTP/1.1\r\nHost: a\r\n",
    Reason.UPGRADE_REFUSED: lambda: head("/public", "Upgrade: websocket", "Connection: upgrade"),
    Reason.METHOD_INVALID: lambda: head("/public", method="TRACE"),
    Reason.TARGET_INVALID: lambda: head("*", method="OPTIONS"),
    Reason.TARGET_TOO_LONG: lambda: head("/" + "a" * 8193),
    Reason.PATH_AMBIGUOUS: lambda: head("/public/../admin"),
    Reason.HOST_INVALID: lambda: head("/public", host="a b"),
    Reason.HEADER_INVALID: lambda: head("/public", "Connection: host"),
    Reason.HEADER_REPEATED: lambda: head("/public", "Origin: a", "Origin: b"),
    Reason.NO_ROUTE: lambda: head("/api/v1/usersX", bearer(mint())),
    Reason.METHOD_NOT_ALLOWED: lambda: head("/api/v1/orders", bearer(mint()), method="PUT"),
    Reason.ORIGIN_NOT_ALLOWED: lambda: head("/api/v1/users", bearer(mint()), "Origin: https://evil.example"),
    Reason.PREFLIGHT_REFUSED: lambda: head(
        "/api/v1/users", f"Origin: {OFFICE}", "Access-Control-Request-Method: DELETE", method="OPTIONS"
    ),
    Reason.ADDRESS_DENIED: lambda: head("/barred"),
    Reason.BODY_TOO_LARGE: lambda: head("/api/v1/users", bearer(mint()), "Content-Length: 1025", method="POST"),
    Reason.CREDENTIAL_MISSING: lambda: head("/api/v1/users"),
    Reason.LOOP_DETECTED: lambda: head("/public", *["Via: 1.1 mitmgate"] * 8),
    Reason.CREDENTIAL_AMBIGUOUS: lambda: head("/api/v1/users?access_token=x", bearer(mint())),
    Reason.SCHEME_UNSUPPORTED: lambda: head("/api/v1/users", "Authorization: Basic YTpi"),
    Reason.TOKEN_TOO_LARGE: lambda: head("/api/v1/users", bearer(mint("a" * 200, pad="x" * 7000))),
    Reason.TOKEN_MALFORMED: lambda: head("/api/v1/users", bearer("a.b.c")),
    Reason.TOKEN_HEADER_INVALID: lambda: head("/api/v1/users", bearer(mint(headers={"crit": ["x"], "x": 1}))),
    Reason.TOKEN_ALGORITHM_REFUSED: lambda: head("/api/v1/users", bearer(mint(algorithm="HS384"))),
    Reason.TOKEN_TYPE_REFUSED: lambda: head("/strict", bearer(mint(iss="https://strict.example"))),
    Reason.TOKEN_ISSUER_UNKNOWN: lambda: head("/api/v1/users", bearer(mint(iss="https://evil.example"))),
    Reason.TOKEN_SIGNATURE_INVALID: lambda: head("/api/v1/users", bearer(mint(key="x" * 64))),
    Reason.TOKEN_AUDIENCE_REFUSED: lambda: head("/api/v1/users", bearer(mint(aud="api://other"))),
    Reason.TOKEN_CLAIM_INVALID: lambda: head("/api/v1/users", bearer(mint(exp=None))),
    Reason.TOKEN_EXPIRED: lambda: head("/api/v1/users", bearer(mint(lifetime=-600))),
    Reason.TOKEN_NOT_YET_VALID: lambda: head("/api/v1/users", bearer(mint(nbf=int(time.time()) + 600))),
    Reason.TOKEN_LIFETIME_EXCEEDED: lambda: head("/api/v1/users", bearer(mint(lifetime=86400))),
    Reason.TOKEN_PROOF_UNSUPPORTED: lambda: head("/api/v1/users", bearer(mint(cnf={"jkt": "x"}))),
    Reason.AUTHENTICATION_INSUFFICIENT: lambda: head("/stepped", bearer(mint(acr="pwd"))),
    Reason.TOKEN_PROOF_MISSING: lambda: head("/api/v1/users", bearer(mint(cnf={"jkt": "A" * 43}))),
    Reason.TOKEN_PROOF_INVALID: lambda: head(
        "/api/v1/users", f"Authorization: DPoP {mint(cnf={'jkt': 'A' * 43})}", "DPoP: a.b.c"
    ),
    Reason.SCOPE_MISSING: lambda: head("/api/v1/users", bearer(mint(scope="other"))),
    Reason.ROLE_MISSING: lambda: head("/admin", bearer(mint())),
    Reason.CLAIM_MISMATCH: lambda: head("/tenant", bearer(mint(tenant="globex"))),
    Reason.CONDITION_FALSE: lambda: head("/when", bearer(mint(level=3))),
    Reason.CONDITION_ERROR: lambda: head("/when", bearer(mint())),
    Reason.REWRITE_REFUSED: lambda: head("/named", bearer(mint(name="a\r\nX-User-ID: root"))),
    Reason.UPSTREAM_UNREACHABLE: lambda: head("/dead"),
}
"""What denies before anything is sent upstream, in one request."""

ELSEWHERE = {
    Reason.OK: "stages/test_network_access",
    Reason.NOT_APPLICABLE: "stages/test_network_access",
    Reason.HEALTH: "stages/test_endpoints",
    Reason.RESOURCE_METADATA: "stages/test_memory",
    Reason.PREFLIGHT: "stages/test_cors",
    Reason.MAX_FORWARDS: "rfc/test_forwarding",
    Reason.OPERATION_UNKNOWN: "live/test_openapi",
    Reason.OPERATION_NOT_ALLOWED: "live/test_openapi",
    Reason.PARAMETER_MISSING: "live/test_openapi",
    Reason.PARAMETER_INVALID: "live/test_openapi",
    Reason.PARAMETER_UNKNOWN: "live/test_openapi",
    Reason.CONTENT_TYPE_REFUSED: "live/test_openapi",
    Reason.BODY_UNEXPECTED: "live/test_openapi",
    Reason.BODY_INVALID: "live/test_openapi",
    Reason.CHECK_UNTRUSTED: "live/test_forward_auth",
    Reason.CHECK_UNCLEAR: "live/test_forward_auth",
    Reason.QUOTA_EXCEEDED: "live/test_reasons",
    Reason.CIRCUIT_OPEN: "live/test_reasons",
    Reason.UPSTREAM_TIMEOUT: "live/test_reasons",
    Reason.UPSTREAM_CLOSED: "live/test_reasons",
    Reason.UPSTREAM_MALFORMED: "live/test_reasons",
    Reason.KEYS_UNAVAILABLE: "live/test_reasons",
    Reason.TOKEN_PROOF_REPLAYED: "live/test_proof",
    Reason.TOKEN_PROOF_NONCE: "live/test_proof",
    Reason.TOKEN_UNBOUND: "live/test_proof",
    Reason.TOKEN_REVOKED: "live/test_revocation",
    Reason.CERTIFICATE_WITHDRAWN: "protocol/test_ending",
    Reason.TICKET: "live/test_browsers",
    Reason.TICKET_INVALID: "live/test_browsers",
    Reason.TICKET_USED: "live/test_browsers",
    Reason.TOKEN_INACTIVE: "live/test_introspection",
    Reason.INTROSPECTION_UNAVAILABLE: "live/test_introspection",
    Reason.REVOCATIONS_UNKNOWN: "live/test_revocation",
    Reason.CERTIFICATE_REFUSED: "live/test_certificates",
    Reason.CERTIFICATE_EXPIRED: "core/test_certificate",
    Reason.API_KEY_MALFORMED: "live/test_api_keys",
    Reason.API_KEY_UNKNOWN: "live/test_api_keys",
    Reason.API_KEY_EXPIRED: "live/test_api_keys",
    Reason.API_KEY_REVOKED: "live/test_api_keys",
    Reason.API_KEYS_UNAVAILABLE: "live/test_api_keys",
    Reason.TOKEN_KEY_UNKNOWN: "keys/test_remote",
    Reason.DECISION_DENIED: "live/test_decisions",
    Reason.DECISION_UNAVAILABLE: "live/test_decisions",
    Reason.CONDITION_TIMEOUT: "core/test_authorize",
    Reason.BODY_MALFORMED: "live/test_reasons",
    Reason.LENGTH_MISMATCH: "protocol/test_http2_messages",
    Reason.FRAMES_EXCESSIVE: "protocol/test_http2_floods",
    Reason.BODY_TIMEOUT: "protocol/test_bounds",
    Reason.CONNECTIONS_EXHAUSTED: "protocol/test_bounds",
    Reason.ADDRESS_UNKNOWN: "live/test_reasons",
    Reason.STORE_UNAVAILABLE: "stages/test_rate_limit",
    Reason.AUDIT_UNAVAILABLE: "stages/test_arrival",
    Reason.STAGE_ERROR: "live/test_stage_failures",
    Reason.POLICY_UNAVAILABLE: "stages/test_enforcer",
    Reason.CLIENT_CLOSED: "protocol/test_upstream",
    Reason.GATEWAY_STOPPING: "workers/test_drain",
    Reason.STREAM_TIMEOUT: "protocol/test_response_time",
    Reason.MEMORY_EXHAUSTED: "live/test_memory",
    Reason.DESCRIPTORS_EXHAUSTED: "live/test_descriptors",
}
"""What is no denial, or needs more than one request: the test that produces it."""


def test_every_code_has_a_test() -> None:
    assert set(Reason) == DENIED.keys() | ELSEWHERE.keys()
    assert not DENIED.keys() & ELSEWHERE.keys()
    tests = Path(__file__).parents[1]
    inventory = re.compile(r"^ELSEWHERE = .*?^}", re.DOTALL | re.MULTILINE)
    naming = {
        reason
        for reason, name in ELSEWHERE.items()
        if re.search(
            rf"Reason\.{reason.name}\b|\"{reason.code}\"", inventory.sub("", (tests / f"{name}.py").read_text())
        )
    }
    assert naming == ELSEWHERE.keys()


@pytest.fixture(scope="module")
def running(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, RecordingUpstream]]:
    directory = tmp_path_factory.mktemp(f"reasons-{host}")
    with RecordingUpstream() as upstream:
        document = made(directory, upstream.url, f"http://127.0.0.1:{free_port()}")
        document["trusted_proxies"] = ["127.0.0.2/32"]
        with Gateway(write_policy(directory, document), host=host) as gateway:
            yield gateway, upstream


def refused(port: int, data: bytes, reason: Reason) -> None:
    answer = raw_request(port, data)
    assert answer.startswith(f"HTTP/1.1 {reason.status} ".encode()), answer
    assert f'"reason":"{reason.code}"'.encode() in answer, answer
    assert b"mitmproxy" not in answer.lower()
    assert (re.search(rb"(?i)\r\nwww-authenticate: (bearer|dpop)", answer) is not None) is (
        reason.status == 401 or reason in {Reason.SCOPE_MISSING, Reason.CREDENTIAL_AMBIGUOUS}
    )


@pytest.mark.parametrize("reason", DENIED, ids=lambda reason: reason.code)
def test_a_denial_never_reaches_the_upstream(running: tuple[Gateway, RecordingUpstream], reason: Reason) -> None:
    gateway, upstream = running
    upstream.forget()
    refused(gateway.port, DENIED[reason](), reason)
    upstream.assert_saw_nothing()


def test_a_used_up_quota(running: tuple[Gateway, RecordingUpstream]) -> None:
    gateway, upstream = running
    asked = head("/counted", bearer(mint("once")))
    assert raw_request(gateway.port, asked).startswith(b"HTTP/1.1 200 ")
    upstream.forget()
    refused(gateway.port, asked, Reason.QUOTA_EXCEEDED)
    upstream.assert_saw_nothing()


def test_an_open_circuit(running: tuple[Gateway, RecordingUpstream]) -> None:
    gateway, upstream = running
    upstream.forget()
    upstream.reply = HANG_UP
    refused(gateway.port, head("/once"), Reason.UPSTREAM_CLOSED)
    upstream.forget()
    refused(gateway.port, head("/once"), Reason.CIRCUIT_OPEN)
    upstream.assert_saw_nothing()


def test_what_upstreams_do_wrong(running: tuple[Gateway, RecordingUpstream]) -> None:
    gateway, upstream = running
    upstream.forget()
    upstream.reply = HANG
    refused(gateway.port, head("/slow"), Reason.UPSTREAM_TIMEOUT)
    upstream.reply = Raw(b"HTTP/1.1 200 OK\r\n folded: x\r\n\r\n")
    refused(gateway.port, head("/slow"), Reason.UPSTREAM_MALFORMED)


def test_a_malformed_chunk(running: tuple[Gateway, RecordingUpstream]) -> None:
    gateway, upstream = running
    upstream.forget()
    data = head("/api/v1/users", bearer(mint()), "Transfer-Encoding: chunked", method="POST") + b"zz\r\n"
    refused(gateway.port, data, Reason.BODY_MALFORMED)
    assert not [seen for seen in upstream.requests if seen.body]


def test_keys_that_nobody_has_yet(running: tuple[Gateway, RecordingUpstream]) -> None:
    gateway, upstream = running
    upstream.forget()
    token = mint(iss="https://away.example", algorithm="ES256", key=_private_key())
    refused(gateway.port, head("/away", bearer(token)), Reason.KEYS_UNAVAILABLE)
    upstream.assert_saw_nothing()


def _private_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def test_a_forwarded_address_that_is_none(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    document = policy(tmp_path, upstream, trusted_proxies=["127.0.0.0/8"])
    with Gateway(write_policy(tmp_path, document), host=host) as gateway:
        refused(gateway.port, head("/public", "X-Forwarded-For: 198.51.100.1, junk"), Reason.ADDRESS_UNKNOWN)
        upstream.assert_saw_nothing()
