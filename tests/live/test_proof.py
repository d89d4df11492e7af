"""Tokens that are bound to a key or a certificate, at real gateways: who has stolen one gets nothing."""

import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mitmgate.cli import main
from mitmgate.core.proof import digest_of
from tests.keys.proving import Holder
from tests.live.harness import Gateway, Host, audit_events, mint, policy, write_policy
from tests.live.harness_http import Answered, free_port, raw_request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.redis_server import RedisServer

SECRET = "a secret for nonces, which has 32 bytes or more"
HOLDER = Holder()
URL = "http://gateway.test/api/v1/users"


@dataclass
class Pair:
    """Two gateways that share a Redis, and the service behind both."""

    one: Gateway
    other: Gateway
    upstream: RecordingUpstream
    redis: RedisServer


def policy_with(directory: Path, upstream: RecordingUpstream, *, bound: bool = False, **members: Any) -> dict[str, Any]:
    made = policy(directory, upstream, **{name: value for name, value in members.items() if name != "proofs"})
    made["identity"]["proofs"] = members.get("proofs", {})
    made["routes"].append(
        {
            "name": "bound",
            "match": {"prefix": "/bound"},
            "upstream": "users",
            "auth": {"issuers": ["dev"], "bound": "required"},
        }
    )
    if bound:
        made["identity"]["issuers"]["dev"]["bound"] = "required"
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    with RecordingUpstream() as upstream, RedisServer(directory) as redis:
        made = policy_with(directory, upstream, store={"url": redis.url, "timeout": "5s"})
        one, other = (write_policy(directory, made | {"audit": {"sinks": []}}, f"{name}.yaml") for name in "ab")
        with Gateway(one) as first, Gateway(other) as second:
            yield Pair(first, second, upstream, redis)


def ask(gateway: Gateway, token: str, *proofs: str, target: str = "/api/v1/users", scheme: str = "DPoP") -> Answered:
    fields = [("Authorization", f"{scheme} {token}"), *[("DPoP", proof) for proof in proofs]]
    return gateway.get(target, headers=fields)


def test_a_proof_is_good_once_in_whichever_process(pair: Pair) -> None:
    pair.upstream.forget()
    token = mint("alice", cnf=HOLDER.cnf)
    proof = HOLDER.prove(token, URL)
    assert ask(pair.one, token, proof).status == 200
    seen = pair.upstream.last()
    assert seen.one("x-user-id") == "alice"
    assert token.encode() not in seen.raw
    assert proof.encode() not in seen.raw
    for gateway in (pair.other, pair.one):
        again = ask(gateway, token, proof)
        assert (again.status, again.reason) == (401, "token-proof-replayed")
        assert (again.one("www-authenticate") or "").startswith('DPoP error="invalid_dpop_proof", error_description=')
    pair.upstream.assert_saw_only(1)
    assert ask(pair.other, token, HOLDER.prove(token, URL)).status == 200
    # Another holder's proof of the same id is another one.
    second = Holder("EdDSA")
    bound = mint("bob", cnf=second.cnf)
    assert ask(pair.other, bound, second.prove(bound, URL, jti="same")).status == 200
    assert ask(pair.one, token, HOLDER.prove(token, URL, jti="same")).status == 200


def test_a_redis_that_comes_back_empty_makes_no_used_proof_good(pair: Pair) -> None:
    token = mint("alice", cnf=HOLDER.cnf)
    proof = HOLDER.prove(token, URL)
    assert ask(pair.one, token, proof).status == 200
    pair.redis.command("FLUSHALL")
    pair.upstream.forget()
    assert ask(pair.one, token, proof).reason == "token-proof-replayed", "the process itself remembers"
    for _ in range(2):
        assert ask(pair.other, token, proof).reason in {"store-unavailable", "token-proof-replayed"}
    pair.upstream.assert_saw_nothing()
    wait_for(lambda: ask(pair.other, token, HOLDER.prove(token, URL)).status == 200, "proofs to be taken again")


def test_a_process_that_has_started_since_takes_no_proof_of_before(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """In memory nobody knows what the process before has seen used."""
    path = write_policy(tmp_path, policy_with(tmp_path, upstream))
    token = mint("alice", cnf=HOLDER.cnf)
    with Gateway(path) as gateway:
        proofs = [HOLDER.prove(token, URL), HOLDER.prove(token, URL, iat=int(time.time()))]
        assert ask(gateway, token, proofs[0]).status == 200
        assert ask(gateway, token, proofs[0]).reason == "token-proof-replayed"
        assert ask(gateway, token, proofs[1]).reason == "store-unavailable", "it may have been used before the start"
    upstream.forget()
    with Gateway(path) as gateway:
        for proof in proofs:
            answered = ask(gateway, token, proof)
            assert (answered.status, answered.reason) == (503, "store-unavailable")
        upstream.assert_saw_nothing()
        assert ask(gateway, token, HOLDER.prove(token, URL)).status == 200


def test_without_the_holder_the_service_sees_nothing(pair: Pair) -> None:
    pair.upstream.forget()
    token, thief = mint("alice", cnf=HOLDER.cnf), Holder(number=1)
    other = mint("alice", cnf=HOLDER.cnf, jti="another")
    good = HOLDER.prove(token, URL)
    for reason, answered in (
        ("token-proof-missing", ask(pair.one, token, scheme="Bearer")),
        ("token-proof-missing", ask(pair.one, token, good, scheme="Bearer")),
        ("token-proof-missing", ask(pair.one, token)),
        ("token-proof-missing", ask(pair.one, token, good, HOLDER.prove(token, URL))),
        ("token-proof-invalid", ask(pair.one, token, thief.prove(token, URL))),
        ("token-proof-invalid", ask(pair.one, token, HOLDER.prove(other, URL))),
        ("token-proof-invalid", ask(pair.one, token, HOLDER.prove(token, URL, "POST"))),
        ("token-proof-invalid", ask(pair.one, token, HOLDER.prove(token, "https://gateway.test/api/v1/users"))),
        ("token-proof-invalid", ask(pair.one, token, HOLDER.prove(token, URL, iat=int(time.time()) - 120))),
        ("token-proof-invalid", ask(pair.one, mint("alice"), HOLDER.prove(mint("alice"), URL))),
        ("token-unbound", ask(pair.one, mint("alice"), target="/bound", scheme="Bearer")),
        ("token-signature-invalid", ask(pair.one, mint("alice", key="x" * 64, cnf=HOLDER.cnf), good)),
        ("scheme-unsupported", ask(pair.one, token, good, scheme="GNAP")),
    ):
        assert (answered.status, answered.reason) == (401, reason)
        assert "no-store" in (answered.one("cache-control") or "")
    challenge = ask(pair.one, token, scheme="Bearer").one("www-authenticate") or ""
    assert challenge.startswith('DPoP error="invalid_token"')
    assert 'algs="ES256 ' in challenge
    poor = mint("alice", cnf=HOLDER.cnf, scope="none")
    refused = ask(pair.one, poor, HOLDER.prove(poor, URL))
    assert (refused.status, refused.reason) == (403, "scope-missing")
    assert (refused.one("www-authenticate") or "").startswith('DPoP error="insufficient_scope", scope="')
    pair.upstream.assert_saw_nothing()
    assert ask(pair.one, token, good).status == 200, "what was refused has used no proof up"
    assert ask(pair.one, token, HOLDER.prove(token, "http://gateway.test/bound"), target="/bound").status == 200


def test_a_store_that_is_away_tells_nobody_that_a_proof_is_new(tmp_path: Path, upstream: RecordingUpstream) -> None:
    store = {"url": f"redis://127.0.0.1:{free_port()}/0"}
    made = policy_with(tmp_path, upstream, store=store)
    made["routes"][0]["rate_limits"] = []
    token = mint("alice", cnf=HOLDER.cnf)
    with Gateway(write_policy(tmp_path, made)) as gateway:
        answered = ask(gateway, token, HOLDER.prove(token, URL))
        assert (answered.status, answered.reason) == (503, "store-unavailable")
        upstream.assert_saw_nothing()
        assert gateway.get("/api/v1/users", token=mint("alice")).status == 200


def test_nonces_and_an_issuer_that_binds(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    made = policy_with(tmp_path, upstream, proofs={"nonce_env": "NONCES"}, bound=True)
    token = mint("alice", cnf=HOLDER.cnf)
    with Gateway(write_policy(tmp_path, made), host=host, environment={"NONCES": SECRET}) as gateway:
        assert ask(gateway, mint("alice"), scheme="Bearer").reason == "token-unbound"
        for nonce in ({}, {"nonce": "x" * 32}):
            answered = ask(gateway, token, HOLDER.prove(token, URL, **dict[str, Any](nonce)))
            assert (answered.status, answered.reason) == (401, "token-proof-nonce")
            assert (answered.one("www-authenticate") or "").startswith('DPoP error="use_dpop_nonce"')
        upstream.assert_saw_nothing()
        given = answered.one("dpop-nonce")
        assert ask(gateway, token, HOLDER.prove(token, URL, nonce=given)).status == 200
    assert SECRET not in gateway.log


def der_of(path: str) -> bytes:
    return x509.load_pem_x509_certificate(Path(path).read_bytes()).public_bytes(Encoding.DER)


def thumbprint(path: str) -> str:
    return digest_of(der_of(path))


def test_certificates(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """RFC 8705, section 3: of the connection, or of what a trusted proxy passes on."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    mine, my_key = authority.issue("alice", client=True)
    theirs, their_key = authority.issue("thief", client=True)
    made = policy_with(tmp_path, upstream)
    tls = {"certificate": certificate, "key": key, "client_ca": authority.ca, "client_certificate": "optional"}
    made["listen"] = {"tls": tls}
    token = mint("alice", cnf={"x5t#S256": thumbprint(mine)})
    line = f"GET /api/v1/users HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"

    def tried(gateway: Gateway, pair: tuple[str, str] | None, more: str = "") -> bytes:
        context = ssl.create_default_context(cafile=authority.ca)
        if pair is not None:
            context.load_cert_chain(*pair)

        with (
            socket.create_connection(("127.0.0.1", gateway.port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(f"{line}{more}\r\n".encode())
            got = b""
            while part := link.recv(65536):
                got += part
        return got

    passed = f"Client-Cert: :{b64encode(der_of(mine)).decode()}:"
    with Gateway(write_policy(tmp_path, made)) as gateway:
        assert b" 401 " in (got := tried(gateway, None))
        assert b"token-proof-missing" in got
        assert b"token-proof-invalid" in tried(gateway, (theirs, their_key))
        assert b"token-proof-missing" in tried(gateway, None, f"{passed}\r\n")
        upstream.assert_saw_nothing()
        assert tried(gateway, (mine, my_key)).startswith(b"HTTP/1.1 200 ")
        assert upstream.last().one("x-user-id") == "alice"


def test_a_certificate_that_a_trusted_proxy_passes_on(tmp_path: Path, upstream: RecordingUpstream) -> None:
    authority = Authority(tmp_path)
    mine, _ = authority.issue("alice", client=True)
    from base64 import b64encode

    der = b64encode(der_of(mine))
    token = mint("alice", cnf={"x5t#S256": thumbprint(mine)})
    line = "GET /api/v1/users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n"
    made = policy_with(tmp_path, upstream, proofs={"certificate_header": "Client-Cert"})
    made["identity"]["certificates"] = {"subject": "CN=alice", "header": "Client-Cert"}
    made["routes"].append({"name": "own", "match": {"prefix": "/own"}, "upstream": "users", "auth": "certificate"})
    own = "GET /own HTTP/1.1\r\nHost: x\r\n%s\r\n"
    field = f"Client-Cert: :{der.decode()}:\r\n"
    with Gateway(write_policy(tmp_path, made)) as gateway:
        assert b"token-proof-missing" in raw_request(gateway.port, (line % (token, field)).encode()), "from anybody"
        assert b"credential-missing" in raw_request(gateway.port, (own % field).encode()), "from anybody"
    made["trusted_proxies"] = ["127.0.0.1/32"]
    with Gateway(write_policy(tmp_path, made)) as gateway:
        for more in ("", field + field, "Client-Cert: ::\r\n"):
            assert b"token-proof-missing" in raw_request(gateway.port, (line % (token, more)).encode())
        for more, reason in (("", b"missing"), (field + field, b"refused"), (f"Client-Cert: {mine}\r\n", b"refused")):
            assert reason in raw_request(gateway.port, (own % more).encode())
        upstream.assert_saw_nothing()
        for request in (line % (token, field), own % field):
            assert raw_request(gateway.port, request.encode()).startswith(b"HTTP/1.1 200 ")
            assert der not in upstream.last().raw
        assert upstream.last().one("x-user-id") == "CN=alice"


def test_the_field_of_the_certificate_goes_on_from_nobody(
    tmp_path: Path, upstream: RecordingUpstream, host: Host
) -> None:
    """Whatever its name is, and from a trusted proxy, too: a service may take it for what the gateway has verified."""
    made = policy_with(tmp_path, upstream, proofs={"certificate_header": "X-Edge-Says"})
    made["trusted_proxies"] = ["127.0.0.2/32"]
    made["upstreams"]["users"]["trailers"] = ["x-edge-says", "x-sum"]
    fields = "".join(f"{name}: forged\r\n" for name in ("X-Edge-Says", "X_Edge_Says", "x.edge.says", "X-EDGE--SAYS"))
    body = f"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{fields}X-Sum: 7\r\n\r\n"
    with Gateway(write_policy(tmp_path, made), host=host) as gateway:
        for source in ("127.0.0.1", "127.0.0.2"):
            upstream.forget()
            for method, rest in (("GET", "\r\n"), ("POST", body)):
                head = f"{method} /api/v1/users HTTP/1.1\r\n{fields}Host: x\r\nConnection: close\r\n"
                head += f"Authorization: Bearer {mint('alice')}\r\n{rest}"
                with socket.create_connection(("127.0.0.1", gateway.port), PATIENCE, (source, 0)) as link:
                    link.sendall(head.encode())
                    assert link.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
            upstream.assert_saw_only(2)
            assert b"forged" not in (raw := b"".join([seen.raw for seen in upstream.requests]))
            assert b"7" in raw.rpartition(b"\r\n0\r\n")[2], "the other trailer has come"


def test_a_recording_decides_it_again_without_any_credential(
    tmp_path: Path, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, traffic = policy_with(tmp_path, upstream), tmp_path / "traffic.mitm"
    path = write_policy(tmp_path, made)
    token = mint("alice", cnf=HOLDER.cnf)
    with Gateway(path, arguments=("--record", str(traffic))) as gateway:
        proofs = [HOLDER.prove(token, URL), HOLDER.prove(token, "http://gateway.test/bound")]
        got = [
            ask(gateway, token, proofs[0]),
            ask(gateway, token, proofs[0]),
            ask(gateway, token, scheme="Bearer"),
            ask(gateway, token, proofs[1]),
            ask(gateway, token, proofs[1], target="/bound"),
            ask(gateway, mint("alice"), target="/bound", scheme="Bearer"),
            ask(gateway, mint("alice", cnf={"kid": "x"}), scheme="Bearer"),
        ]
    statuses = [one.reason or one.status for one in got]
    assert statuses == [
        *(200, "token-proof-replayed", "token-proof-missing", "token-proof-invalid", 200),
        *("token-unbound", "token-proof-unsupported"),
    ]
    assert [event["reason"] for event in audit_events(tmp_path / "audit.jsonl", 7)] == [
        "ok" if status == 200 else status for status in statuses
    ]
    kept = traffic.read_bytes()
    for secret in (token, *proofs):
        assert secret.split(".")[2].encode() not in kept, "who has a token or a proof has its signature"
    assert not any(proof.split(".")[1].encode() in kept for proof in proofs)
    monkeypatch.setenv("MITMGATE_TEST_SECRET", "another secret, for replay has none of the real ones")
    assert main(["replay", str(traffic), "--policy", str(path)]) == 0
