"""Files that the policy names are rotated under a running gateway: what TLS is made of follows them, or stays."""

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key
from tests.live.harness import Gateway, Host, mint, policy, policy_file, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.test_tls import SecureUpstream

KEY = private_key("ES256", 30)


def put(target: Path, source: str) -> None:
    """Replace a file as rotation does: renamed over it."""
    fresh = target.with_suffix(".new")
    fresh.write_bytes(Path(source).read_bytes())
    fresh.rename(target)


@contextmanager
def secure_upstream(authority: Authority, clients: Authority) -> Iterator[SecureUpstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    context.load_verify_locations(clients.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    server = SecureUpstream(context)
    yield server
    server.close()


def test_an_upstreams_authority_and_our_certificate(tmp_path: Path, host: Host) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "mine.pem", "mine.key"))
    put(ca, old.ca)
    for path, source in zip((certificate, key), old.issue("first", client=True), strict=True):
        put(path, source)
    with secure_upstream(old, old) as before, secure_upstream(new, new) as after:
        made = policy(tmp_path, before.url)
        tls = {"ca": "ca.pem", "certificate": "mine.pem", "key": "mine.key"}
        circuit = {"failures": 10_000}
        for name, server in (("users", before), ("orders", after)):
            made["upstreams"][name] = {"endpoints": [server.url], "tls": tls, "circuit": circuit}
        made["routes"][1] |= {"auth": "none", "require": {}}
        with Gateway(write_policy(tmp_path, made), host=host) as gateway:

            def ask(path: str) -> int:
                return gateway.get(path).status

            def names(server: SecureUpstream) -> set[Any]:
                return {peer["subject"][0][0][1] for peer in server.peers}

            assert (ask("/public"), ask("/api/v1/orders")) == (200, 502)
            assert names(before) == {"first"}

            # What can't be read changes nothing, and holds nobody up.
            def rejections() -> int:
                return (tmp_path / "audit.jsonl").read_bytes().count(b'"policy-rejected"')

            spoiling: list[Callable[[], object]] = [ca.mkdir, lambda: ca.write_text("broken")]
            if host == "serve":  # a pipe is waited for, in a thread, for some seconds
                spoiling.append(lambda: os.mkfifo(ca))
            for spoil in spoiling:
                before_it = rejections()
                ca.rmdir() if ca.is_dir() else ca.unlink()
                spoil()
                wait_for(lambda seen=before_it: ask("/public") == 200 and rejections() > seen, "the refusal")  # type: ignore[misc]
                assert ask("/public") == 200

            put(ca, new.ca)
            for path, source in zip((certificate, key), new.issue("second", client=True), strict=True):
                put(path, source)
            wait_for(lambda: ask("/api/v1/orders") == 200, "the new files")
            assert names(after) == {"second"}
            seen = len(before.requests)
            assert ask("/public") == 502
            assert (len(before.requests), names(before)) == (seen, {"first"})


def test_a_connection_outlives_no_authority_of_its_client(tmp_path: Path) -> None:
    """Before: what was connected when an authority was taken out of `client_ca` went on for as long as it liked."""
    old, new, listening = (Authority(tmp_path, name) for name in ("old", "new", "listening"))
    ca = tmp_path / "clients.pem"
    put(ca, old.ca)
    certificate, key = listening.issue("gateway.test")
    tls = {"certificate": certificate, "key": key, "client_ca": "clients.pem", "client_certificate": "required"}
    context = ssl.create_default_context(cafile=listening.ca)
    context.load_cert_chain(*old.issue("alice", client=True))
    with RecordingUpstream() as upstream:
        path = policy_file(tmp_path, upstream, listen={"tls": tls})
        with (
            Gateway(path) as gateway,
            socket.create_connection(("127.0.0.1", gateway.port), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname="gateway.test") as link,
        ):
            link.sendall(b"GET /public HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
            assert link.recv(65536).startswith(b"HTTP/1.1 200")
            put(ca, new.ca)
            rest = b""
            while data := link.recv(65536):  # the rest of that answer, and then the end, while it is idle
                rest += data
            assert b"HTTP/1.1" not in rest


def test_the_systems_authorities(tmp_path: Path) -> None:
    """SSL_CERT_FILE, which upstreams without an authority of their own and key sets are verified by."""
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes("# Ärger & Söhne\n".encode("latin-1") + Path(old.ca).read_bytes())

    def context(authority: Authority) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(*authority.issue("127.0.0.1"))
        return made

    document = jwk_set(jwk("ES256", KEY, kid="one"))
    upstream = SecureUpstream(context(new))
    with JwksServer(document, tls=context(old)) as first, JwksServer(document, tls=context(new)) as second:
        made = policy(tmp_path, upstream.url)
        for server in made["upstreams"].values():
            server["circuit"] = {"failures": 10_000}
        dev = made["identity"]["issuers"]["dev"] | {"algorithms": ["ES256"]}
        for name, server in (("dev", first), ("other", second)):
            keys = {"jwks_url": server.url, "refresh": "1s", "min_refresh": "100ms", "max_stale": "1h"}
            made["identity"]["issuers"][name] = dev | {"issuer": f"https://{name}.example", "keys": keys}
        made["routes"][0] |= {"auth": {"issuers": ["dev", "other"]}, "require": {}}
        with Gateway(write_policy(tmp_path, made), environment={"SSL_CERT_FILE": str(bundle)}) as gateway:

            def ask(issuer: str) -> str | None:
                token = mint(key=KEY, algorithm="ES256", headers={"kid": "one"}, iss=f"https://{issuer}.example")
                answered = gateway.get("/api/v1/users", token=token)
                return None if answered.status == 200 else answered.reason

            assert (ask("dev"), ask("other")) == ("upstream-unreachable", "keys-unavailable")
            put(bundle, new.ca)
            wait_for(lambda: ask("other") is None, "the new authority")
            assert ask("dev") is None, "the keys that are there serve"
            fetches = second.fetches
            wait_for(lambda: second.fetches > fetches, "the key set to be fetched again")
            bundle.unlink()
            bundle.mkdir()
            wait_for(lambda: "the system's authorities" in gateway.log, "the refusal")
            assert (ask("dev"), ask("other")) == (None, None)
    upstream.close()


@pytest.mark.parametrize("spoil", [lambda path: None, Path.mkdir, lambda path: path.write_text("none")])
def test_without_authorities_from_the_start_there_is_no_start(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    bundle = tmp_path / "bundle.pem"
    spoil(bundle)
    with RecordingUpstream() as upstream:
        made = policy(tmp_path, upstream.url.replace("http:", "https:"))
        gateway = Gateway(write_policy(tmp_path, made), environment={"SSL_CERT_FILE": str(bundle)})
        gateway.launch()
        assert gateway.process.wait(60) == 2
        assert "upstreams.users.endpoints" in gateway.log
        assert "SSL_CERT_FILE" in gateway.log
