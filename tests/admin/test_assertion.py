"""An upstream verifies who asks, with the key that the admin listener publishes; nobody else can say it."""

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mitmgate.keys.assertion import thumbprint
from tests.admin.asking import AdminGateway
from tests.live.harness import Host, mint, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import Recorded, RecordingUpstream

HEADER = "X-Gateway-Assertion"


def write_key(path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def signing(directory: Path, upstream: RecordingUpstream, key: str = "assertion.pem") -> dict[str, Any]:
    """Return the live tests' policy with assertions, and write their key."""
    if not (directory / key).exists():
        write_key(directory / key)
    made = policy(directory, upstream)
    made["identity"]["forward"] = {"assertion": {"header": HEADER, "key_file": key, "lifetime": "30s"}}
    return made


def published(gateway: AdminGateway) -> list[dict[str, str]]:
    answer = gateway.ask("/.well-known/jwks.json")
    assert answer.status == 200
    assert answer.one("content-type") == "application/jwk-set+json"
    keys: list[dict[str, str]] = answer.json["keys"]
    return keys


def verified(request: Recorded, keys: list[dict[str, str]], audience: str) -> dict[str, Any]:
    """Verify as a service does: the key by its id, then everything that PyJWT checks."""
    token = request.one(HEADER)
    assert token is not None
    key_id = jwt.get_unverified_header(token)["kid"]
    (key,) = [key for key in keys if key["kid"] == key_id]
    claims: dict[str, Any] = jwt.decode(
        token, jwt.PyJWK(key), algorithms=["ES256"], audience=audience, issuer="mitmgate", leeway=2
    )
    return claims


def test_a_service_verifies_who_asks_for_what(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    with AdminGateway(tmp_path, signing(tmp_path, upstream), host) as gateway:
        (key,) = published(gateway)
        assert key["kid"] == thumbprint(key)
        assert gateway.get("/api/v1/orders/7?page=2", token=mint("bob", roles=["admin"])).status == 200
        claims = verified(upstream.last(), [key], "orders")
        assert (claims["sub"], claims["sub_iss"], claims["roles"]) == ("bob", "dev", ["admin"])
        assert (claims["htm"], claims["path"]) == ("GET", "/7"), "as the service sees it"
        assert claims["exp"] - claims["iat"] == 30
        assert gateway.request("POST", "/api/v1/users/7", token=mint(), body=b"x").status == 200
        claims = verified(upstream.last(), [key], "users")
        assert (claims["sub"], claims["htm"], claims["path"]) == ("alice", "POST", "/api/v1/users/7")


@pytest.mark.parametrize("name", [HEADER, "x-gateway-assertion", "X_Gateway_Assertion", "X.Gateway.Assertion"])
def test_a_client_can_t_bring_its_own(tmp_path: Path, upstream: RecordingUpstream, name: str) -> None:
    with AdminGateway(tmp_path, signing(tmp_path, upstream)) as gateway:
        (key,) = published(gateway)
        forged = mint("root")
        gateway.get("/api/v1/users/7", token=mint(), headers={name: forged})
        assert verified(upstream.last(), [key], "users")["sub"] == "alice"
        assert forged.encode() not in upstream.last().raw
        gateway.get("/public", headers={name: forged})
        assert upstream.last().one(HEADER) is None, "nobody asks on a public route"
        assert forged.encode() not in upstream.last().raw


def test_a_new_key_is_published_beside_the_former(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with AdminGateway(tmp_path, signing(tmp_path, upstream)) as gateway:
        (first,) = published(gateway)
        gateway.get("/api/v1/users/7", token=mint())
        before = upstream.last()
        write_policy(tmp_path, gateway.with_admin(signing(tmp_path, upstream, "second.pem")))
        wait_for(lambda: len(published(gateway)) == 2, "the second key")
        gateway.get("/api/v1/users/7", token=mint())
        keys = published(gateway)
        assert verified(before, keys, "users")["sub"] == "alice"
        token = upstream.last().one(HEADER)
        assert token is not None
        assert jwt.get_unverified_header(token)["kid"] != first["kid"]
        assert verified(upstream.last(), keys, "users")["sub"] == "alice"


def test_without_assertions_the_set_is_empty(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with AdminGateway(tmp_path, policy(tmp_path, upstream)) as gateway:
        assert published(gateway) == []
        gateway.get("/api/v1/users/7", token=mint())
        assert upstream.last().one(HEADER) is None


def test_no_assertion_is_in_a_log_or_a_recording(tmp_path: Path, upstream: RecordingUpstream) -> None:
    recording = tmp_path / "traffic.mitm"
    made = signing(tmp_path, upstream)
    with AdminGateway(tmp_path, made, arguments=("--record", str(recording))) as gateway:
        gateway.get("/api/v1/users/7", token=mint())
        token = upstream.last().one(HEADER)
        assert token is not None
        gateway.stop()
        assert recording.stat().st_size > 0
        for path in (recording, tmp_path / "audit.jsonl", gateway.stderr, gateway.stdout):
            assert token.encode() not in path.read_bytes(), path.name


def test_a_shadow_signs_nothing_and_finds_no_difference_in_it(tmp_path: Path, upstream: RecordingUpstream) -> None:
    made = signing(tmp_path, upstream)
    candidate = tmp_path / "candidate.json"
    candidate.write_text(json.dumps(made))
    with AdminGateway(tmp_path, made, arguments=("--shadow", str(candidate))) as gateway:
        for at in range(3):
            assert gateway.get(f"/api/v1/users/{at}", token=mint()).status == 200
        assert gateway.get("/public").status == 200
        gateway.stop()
        events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert sum(event["event"] == "request" for event in events) == 4
        assert [event for event in events if event["event"] == "shadow-difference"] == []
