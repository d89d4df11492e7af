"""TLS from the policy alone, on a real gateway: towards clients, h2 and HTTP/1.1, and towards upstreams."""

import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mitmgate.policy.loader import load
from mitmgate.policy.problem import PolicyError
from tests.live.harness import SECRET, Gateway, Host, mint, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.certificates import Authority


def curl(*words: str) -> str:
    command = shutil.which("curl")
    assert command, "curl is not installed"
    done = subprocess.run([command, "-s", "--max-time", "10", *words], capture_output=True, text=True, check=False)
    return f"{done.stdout} exit={done.returncode}"


@pytest.mark.parametrize(("version", "told"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_a_client_over_tls(tmp_path: Path, upstream: RecordingUpstream, host: Host, version: str, told: str) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    document = policy(tmp_path, upstream, listen={"tls": {"certificate": certificate, "key": key}})
    with Gateway(write_policy(tmp_path, document), host=host) as gateway:
        assert f"https://127.0.0.1:{gateway.port}" in gateway.stdout.read_text()
        url = f"https://localhost:{gateway.port}/api/v1/users"
        words = (version, "--cacert", authority.ca, "-w", " %{http_version} %{http_code}")
        assert curl(*words, "-H", f"Authorization: Bearer {mint()}", url) == f"upstream says hello {told} 200 exit=0"
        assert upstream.last().one("x-forwarded-proto") == "https"
        upstream.forget()
        assert f" {told} 401 exit=0" in curl(*words, url)
        upstream.assert_saw_nothing()
        assert "exit=60" in curl(version, url)  # not verified without the authority
        assert gateway.process.poll() is None


def test_a_required_client_certificate(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("localhost")
    mine, my_key = authority.issue("alice", client=True)
    tls = {"certificate": certificate, "key": key, "client_ca": authority.ca, "client_certificate": "required"}
    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream, listen={"tls": tls})), host=host) as gateway:
        url = f"https://localhost:{gateway.port}/public"
        assert "hello" not in curl("--cacert", authority.ca, url)
        upstream.assert_saw_nothing()
        answer = curl("--cacert", authority.ca, "--cert", mine, "--key", my_key, url)
        assert answer == "upstream says hello exit=0"


def test_certificates_by_name(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    authority = Authority(tmp_path)
    names = ["localhost", "shop.example", "*.api.example"]
    pairs = [authority.issue(name) for name in names]
    files = [{"certificate": certificate, "key": key} for certificate, key in pairs]
    tls = {**files[0], "certificates": files[1:], "client_ca": authority.ca, "client_certificate": "optional"}
    mine = authority.issue("alice", client=True)
    context = ssl.create_default_context(cafile=authority.ca)
    context.check_hostname = False
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(*mine)
    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream, listen={"tls": tls})), host=host) as gateway:

        def shown(name: str | None) -> str:
            link = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
            with context.wrap_socket(link, server_hostname=name) as secure:
                assert secure.selected_alpn_protocol() == "http/1.1"
                secure.sendall(b"GET /public HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert secure.recv(65536).startswith(b"HTTP/1.1 200")
                found: Any = secure.getpeercert()
                return str(found["subjectAltName"][0][1])

        asked = [
            None,
            "localhost",
            "elsewhere.example",
            "shop.example",
            "SHOP.example",
            "a.api.example",
            "b.a.api.example",
        ]
        expected = [names[0]] * 3 + [names[1]] * 2 + [names[2], names[0]]
        assert [shown(name) for name in asked] == expected
        renewed, key = authority.issue("shop.example")
        before = serial_of(context, gateway.port)
        Path(pairs[1][0]).write_bytes(Path(renewed).read_bytes())
        Path(pairs[1][1]).write_bytes(Path(key).read_bytes())
        wait_for(lambda: serial_of(context, gateway.port) != before, "the renewed certificate")


def serial_of(context: ssl.SSLContext, port: int) -> str:
    link = socket.create_connection(("127.0.0.1", port), timeout=20)
    with context.wrap_socket(link, server_hostname="shop.example") as secure:
        found: Any = secure.getpeercert()
        return str(found["serialNumber"])


def test_certificates_that_can_not_be_told_apart(tmp_path: Path, upstream: RecordingUpstream) -> None:
    authority = Authority(tmp_path)
    pairs = [authority.issue("localhost"), *(authority.issue("shop.example") for _ in range(2))]
    pairs += [authority.issue("nobody", names=[]), (pairs[0][0], pairs[2][1]), (str(tmp_path / "absent"), pairs[1][1])]
    files = [{"certificate": certificate, "key": key} for certificate, key in pairs]
    tls = {**files[0], "certificates": files[1:]}
    path = write_policy(tmp_path, policy(tmp_path, upstream, listen={"tls": tls}))
    with pytest.raises(PolicyError) as raised:
        load(path, {"MITMGATE_TEST_SECRET": SECRET})
    found = [str(problem) for problem in raised.value.problems if problem.severity == "error"]
    assert len(found) == 4, found
    for problem, words in zip(
        sorted(found),
        [
            "certificates[1].certificate",
            "certificates[2].certificate",
            "certificates[3].key",
            "certificates[4].certificate",
        ],
        strict=True,
    ):
        assert words in problem
    told = " ".join(found)
    assert "certificates[0] is for shop.example, too" in told
    assert "for no DNS name" in told
    assert "the key is not the certificate's" in told
