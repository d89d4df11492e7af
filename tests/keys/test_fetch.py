"""Fetching over TLS: a certificate that is not trusted, or is another host's, brings no keys."""

import asyncio
import datetime
import ipaddress
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from mitmgate.keys import fetch
from mitmgate.keys.fetch import FetchError, fetch_document
from tests.keys.jwks_server import JwksServer
from tests.keys.signing import private_key, private_pem
from tests.live.harness_http import free_port

DOCUMENT = b'{"keys":[]}'
FETCH = (
    "import asyncio, sys; from mitmgate.keys.fetch import fetch_document;"
    "sys.stdout.buffer.write(asyncio.run(fetch_document(sys.argv[1])))"
)


def certificate(directory: Path, name: x509.GeneralName) -> Path:
    """Write a self-signed certificate for a name, and its key, into one file."""
    key = private_key("ES256")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jwks test")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    end = start + datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), start, end)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM) + private_pem(key))
    return path


@pytest.fixture
def pem(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return certificate(tmp_path, getattr(request, "param", x509.IPAddress(ipaddress.ip_address("127.0.0.1"))))


@pytest.fixture
def server(pem: Path) -> Iterator[JwksServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with JwksServer(DOCUMENT, tls=context) as made:
        yield made


def fetched_by_a_process_that_trusts(pem: Path, url: str) -> subprocess.CompletedProcess[bytes]:
    """Fetch in a process of its own: OpenSSL reads SSL_CERT_FILE when the default context is made."""
    environ = {**os.environ, "SSL_CERT_FILE": str(pem), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", FETCH, url], env=environ, capture_output=True, timeout=30, check=False)


@pytest.fixture
def plain() -> Iterator[JwksServer]:
    with JwksServer(DOCUMENT) as made:
        yield made


def test_interim_responses_are_passed_over(plain: JwksServer) -> None:
    plain.raw = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\n\r\n" + DOCUMENT
    assert asyncio.run(fetch_document(plain.url)) == DOCUMENT


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"]
)
def test_an_answer_that_never_comes_is_an_error(plain: JwksServer, raw: bytes) -> None:
    plain.raw = raw
    with pytest.raises(FetchError):
        asyncio.run(fetch_document(plain.url))


def test_the_whole_fetch_has_a_deadline(plain: JwksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FETCH_TIMEOUT", 0.05)
    plain.open.clear()
    with pytest.raises(FetchError, match=r"no complete answer within 0\.05 seconds"):
        asyncio.run(fetch_document(plain.url))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://[::1]:1/", "http://" + "a" * 300])
def test_a_server_that_can_not_be_reached_is_an_error(url: str) -> None:
    with pytest.raises(FetchError):
        asyncio.run(fetch_document(url))


def test_a_certificate_that_is_not_trusted_is_refused(server: JwksServer) -> None:
    with pytest.raises(FetchError, match=r"^certificate-self-signed: .*CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(fetch_document(server.url))
    assert server.fetches == 0


def test_a_private_authority_is_trusted_where_the_environment_says_so(server: JwksServer, pem: Path) -> None:
    done = fetched_by_a_process_that_trusts(pem, server.url)
    assert (done.stdout, done.returncode) == (DOCUMENT, 0)


@pytest.mark.parametrize("pem", [x509.DNSName("other.example")], indirect=True)
def test_a_trusted_certificate_of_another_host_is_refused(server: JwksServer, pem: Path) -> None:
    done = fetched_by_a_process_that_trusts(pem, server.url)
    assert done.returncode == 1
    assert b"FetchError: certificate-wrong-name: " in done.stderr
    assert server.fetches == 0


def test_an_error_begins_with_its_cause() -> None:
    """The words of docs/causes.md, as for services."""
    with pytest.raises(FetchError, match=r"^connect-refused: "):
        asyncio.run(fetch_document(f"http://127.0.0.1:{free_port()}/"))
    with pytest.raises(FetchError, match=r"^connect-unreachable: "):
        asyncio.run(fetch_document("http://255.255.255.255:9/"))
