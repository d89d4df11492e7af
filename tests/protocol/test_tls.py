"""TLS towards clients and upstreams, and client certificates."""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from hyperframe.frame import SettingsFrame

from mitmgate.core.reason import Reason
from mitmgate.core.rules import UpstreamTls
from mitmgate.pipeline.exchange import exchange_of
from mitmgate.proxy.tls import ListenerContexts
from tests.live.harness_http import raw_request, request, status_of
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, Source, connect, receive, route
from tests.protocol.raw_http2 import PREFACE
from tests.protocol.test_streaming import Serving


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def listen(authority: Authority, *, client_ca: str | None = None, client: str | None = None) -> Any:
    certificate, key = authority.issue("gateway.test")
    return SimpleNamespace(certificate=certificate, key=key, client_ca=client_ca, client_certificate=client)


def pem(path: str) -> bytes:
    return Path(path).read_bytes()


def client_context(authority: Authority, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.ca)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def secure(gate: Gate, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(connect(gate.port), server_hostname="gateway.test")


GET = b"GET /p HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\r\n"


@pytest.fixture
def tls_gate(authority: Authority, upstream: RecordingUpstream) -> Iterator[Gate]:
    with Gate(route(upstream.url), tls=listen(authority)) as gate:
        yield gate


def test_https_with_the_policys_certificate(tls_gate: Gate, authority: Authority, upstream: RecordingUpstream) -> None:
    with secure(tls_gate, client_context(authority, "http/1.1")) as link:
        assert link.selected_alpn_protocol() == "http/1.1"
        link.sendall(GET)
        assert status_of(receive(link)) == 200
    assert len(upstream.requests) == 1
    exchange = exchange_of(tls_gate.hooks.seen[0][1])
    assert exchange is not None
    assert (exchange.request.scheme, exchange.request.certificate) == ("https", None)


def test_denial_over_tls_is_read_though_the_body_is_not(tls_gate: Gate, authority: Authority) -> None:
    with secure(tls_gate, client_context(authority)) as link:
        link.sendall(b"POST /deny HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
        assert status_of(receive(link)) == 401


@pytest.mark.parametrize("target", [b"/p", b"https://gateway.test/p"])
def test_http_1_1_without_host_is_refused(
    tls_gate: Gate, authority: Authority, upstream: RecordingUpstream, target: bytes
) -> None:
    with secure(tls_gate, client_context(authority)) as link:
        link.sendall(b"GET %b HTTP/1.1\r\n\r\n" % target)
        answer = receive(link, complete=True)
        assert status_of(answer) == 400
        assert b'"reason":"host-invalid"' in answer
    upstream.assert_saw_nothing()


def test_protocols(tls_gate: Gate, authority: Authority) -> None:
    for offered, chosen in [(("http/1.1", "h2"), "h2"), (("http/1.1",), "http/1.1"), ((), None)]:
        with secure(tls_gate, client_context(authority, *offered)) as link:
            assert link.selected_alpn_protocol() == chosen
    with pytest.raises(ssl.SSLError):
        secure(tls_gate, client_context(authority, "imap"))


def test_old_versions_and_renegotiation_are_refused(tls_gate: Gate, authority: Authority) -> None:
    context = client_context(authority)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with secure(tls_gate, context) as link:
        assert link.version() == "TLSv1.2"
        cipher = link.cipher()
        assert cipher is not None
        assert cipher[0].startswith("ECDHE")
    context = client_context(authority)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        secure(tls_gate, context)


def test_what_is_no_tls_gets_no_answer_on_a_tls_listener(tls_gate: Gate, upstream: RecordingUpstream) -> None:
    assert b"HTTP/" not in raw_request(tls_gate.port, GET, until_close=True)
    upstream.assert_saw_nothing()


def test_tls_on_a_plain_listener_is_refused(gate: Gate, authority: Authority) -> None:
    with pytest.raises(ssl.SSLError):
        secure(gate, client_context(authority))


def test_handshake_that_does_not_come_is_ended(authority: Authority, upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), tls=listen(authority), limits={"head_timeout": 0.4}) as gate:
        for first in (b"", b"\x16\x03\x01"):
            with connect(gate.port) as link:
                started = time.monotonic()
                link.sendall(first)
                assert receive(link) == b""
                assert 0.3 < time.monotonic() - started < 5
        with secure(gate, client_context(authority)) as link:
            link.sendall(GET[:10])
            assert status_of(receive(link)) == 408


# Client certificates.


@pytest.mark.parametrize("required", ["required", "optional"])
def test_client_certificate(authority: Authority, upstream: RecordingUpstream, required: str, tmp_path: Path) -> None:
    with Gate(route(upstream.url), tls=listen(authority, client_ca=authority.ca, client=required)) as gate:
        context = client_context(authority)
        context.load_cert_chain(*authority.issue("alice", client=True))
        with secure(gate, context) as link:
            link.sendall(GET)
            assert status_of(receive(link)) == 200
        exchange = exchange_of(gate.hooks.seen[0][1])
        assert exchange is not None
        assert exchange.request.certificate == "CN=alice"

        if required == "required":
            assert refused(gate, client_context(authority))
        else:
            with secure(gate, client_context(authority)) as link:
                link.sendall(GET)
                assert status_of(receive(link)) == 200
            exchange = exchange_of(gate.hooks.seen[-1][1])
            assert exchange is not None
            assert exchange.request.certificate is None

        for pair in (
            Authority(tmp_path, "stranger").issue("alice", client=True),
            authority.issue("alice", client=True, expired=True),
            authority.issue("alice"),  # a server's
        ):
            context = client_context(authority)
            context.load_cert_chain(*pair)
            assert refused(gate, context)
    upstream.settle()
    assert len(upstream.requests) == (1 if required == "required" else 2)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("required", ["required", "optional"])
def test_a_client_certificate_is_looked_at_for_each_connection(
    authority: Authority, upstream: RecordingUpstream, required: str, version: ssl.TLSVersion
) -> None:
    """Before: the session of a good one let its client in when it had expired, and each use made another session."""
    with Gate(route(upstream.url), tls=listen(authority, client_ca=authority.ca, client=required)) as gate:
        context = client_context(authority)
        context.load_cert_chain(*authority.issue("alice", client=True))
        context.minimum_version = context.maximum_version = version
        session = None
        for _ in range(2):
            with context.wrap_socket(connect(gate.port), server_hostname="gateway.test", session=session) as link:
                link.sendall(GET)
                assert status_of(receive(link)) == 200
                assert link.session_reused is False
                session = link.session


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_connection_ends_with_the_certificate_of_its_client(
    authority: Authority, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Before: it went on for as long as there were requests."""
    pair = authority.issue("alice", client=True)
    ends = x509.load_pem_x509_certificate(Path(pair[0]).read_bytes()).not_valid_after_utc
    nearly = SimpleNamespace(now=lambda zone: ends - timedelta(seconds=0.2))
    monkeypatch.setattr("mitmgate.proxy.listener.datetime", nearly)
    with Gate(route(upstream.url), tls=listen(authority, client_ca=authority.ca)) as gate:
        context = client_context(authority)
        context.load_cert_chain(*pair)
        context.set_alpn_protocols([protocol])
        with secure(gate, context) as link:
            link.settimeout(PATIENCE / 2)  # an idle connection would last for longer
            if protocol == "h2":
                link.sendall(PREFACE + SettingsFrame(0).serialize())
            assert b"HTTP/1.1" not in receive(link)


def refused(gate: Gate, context: ssl.SSLContext) -> bool:
    """Tell whether the handshake fails; with TLS 1.3 the client learns of it when it reads."""
    try:
        with secure(gate, context) as link:
            link.sendall(GET)
            return receive(link) == b""
    except (ssl.SSLError, ConnectionResetError):
        return True


# Upstreams.


class SecureUpstream:
    """An upstream that speaks TLS and answers every request; it keeps the client certificate's name."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listening.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.peers: list[Any] = []
        self.names: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            plain.settimeout(5)
            try:
                with self._context.wrap_socket(plain, server_side=True) as link:
                    got = b""
                    while b"\r\n\r\n" not in got and (part := link.recv(65536)):
                        got += part
                    self.requests.append(got)
                    self.peers.append(link.getpeercert())
                    link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            except OSError:
                plain.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def secure_upstream(authority: Authority) -> Iterator[SecureUpstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("users.internal"))
    context.load_verify_locations(authority.ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    server = SecureUpstream(context)
    yield server
    server.close()


def test_upstream_is_verified(secure_upstream: SecureUpstream, authority: Authority, tmp_path: Path) -> None:
    url = secure_upstream.url
    stranger = Authority(tmp_path, "stranger")
    good = UpstreamTls(ca=pem(authority.ca), server_name="users.internal")
    with Gate(route(url, tls=good)) as gate:
        assert request(gate.port, "GET", "/p").body == b"ok"
        assert secure_upstream.names == ["users.internal"]
    for bad in (
        None,  # the system's authorities
        UpstreamTls(ca=pem(authority.ca)),  # for another name: the endpoint's address
        UpstreamTls(ca=pem(authority.ca), server_name="other.internal"),
        UpstreamTls(ca=pem(stranger.ca), server_name="users.internal"),
    ):
        with Gate(route(url, tls=bad, retries=0)) as gate:
            answered = request(gate.port, "GET", "/p")
            assert (answered.status, answered.reason) == (502, "upstream-unreachable")
            assert gate.hooks.wait_ends(1) == [("response", Reason.UPSTREAM_UNREACHABLE)]
    assert len(secure_upstream.requests) == 1


def dns(*names: str) -> list[x509.GeneralName]:
    return [x509.DNSName(name) for name in names]


LOOPBACK = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
CERTIFICATES: dict[str, tuple[dict[str, Any], str | None, bool]] = {
    "by its name": ({}, "users.internal", True),
    "by one of its names": ({"names": dns("a.internal", "users.internal")}, "users.internal", True),
    "by its name in capitals": ({}, "USERS.internal", True),
    "a wildcard's": ({"names": dns("*.users.internal")}, "a.users.internal", True),
    "by its address": ({"names": LOOPBACK}, None, True),
    "expired": ({"expired": True}, "users.internal", False),
    "not valid yet": ({"early": True}, "users.internal", False),
    "signed by itself": ({"signed_by_itself": True}, "users.internal", False),
    "another name's": ({}, "other.internal", False),
    "a CN alone": ({"names": []}, "users.internal", False),
    "a CN beside another name": ({"names": dns("other.internal")}, "users.internal", False),
    "a CN beside an address": ({"names": LOOPBACK}, "users.internal", False),
    "a name for an address": ({"names": dns("127.0.0.1")}, None, False),
    "another address's": ({"names": [x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]}, None, False),
    "a wildcard of another depth": ({"names": dns("*.users.internal")}, "b.a.users.internal", False),
    "a wildcard for its own parent": ({"names": dns("*.users.internal")}, "users.internal", False),
    "a part of a wildcard": ({"names": dns("a*.users.internal")}, "ab.users.internal", False),
    "a parent's": ({"names": dns("internal")}, "users.internal", False),
    "a client's": ({"client": True}, "users.internal", False),
}


@pytest.mark.parametrize("kind", CERTIFICATES)
def test_which_certificates_of_an_upstream_are_good(authority: Authority, kind: str) -> None:
    members, name, good = CERTIFICATES[kind]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("users.internal", **members))
    server = SecureUpstream(context)
    tls = UpstreamTls(ca=pem(authority.ca), server_name=name)
    try:
        with Gate(route(server.url, tls=tls, retries=0)) as gate:
            answered = request(gate.port, "GET", "/p")
    finally:
        server.close()
    assert (answered.status, answered.reason) == ((200, None) if good else (502, "upstream-unreachable"))
    assert len(server.requests) == good


def test_upstream_gets_our_certificate(secure_upstream: SecureUpstream, authority: Authority) -> None:
    certificate, key = authority.issue("gateway", client=True)
    tls = UpstreamTls(ca=pem(authority.ca), server_name="users.internal", certificate=pem(certificate), key=pem(key))
    with Gate(route(secure_upstream.url, tls=tls)) as gate:
        assert request(gate.port, "GET", "/p").status == 200
    assert secure_upstream.peers[0]["subject"] == ((("commonName", "gateway"),),)


def test_upstream_that_says_nothing_where_tls_is_due_is_a_504(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url.replace("http://", "https://"), retries=0, connect_timeout=0.5)) as gate:
        answered = request(gate.port, "GET", "/p")
    assert (answered.status, answered.reason) == (504, "upstream-timeout")


def test_upstream_that_speaks_no_tls_is_a_502() -> None:
    def serve(link: socket.socket) -> None:
        link.recv(4096)
        link.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with Serving(serve) as plain, Gate(route(plain.url.replace("http://", "https://"), retries=0)) as gate:
        answered = request(gate.port, "GET", "/p")
    assert (answered.status, answered.reason) == (502, "upstream-unreachable")


def test_renewed_certificate_is_taken_at_a_reload(
    authority: Authority, upstream: RecordingUpstream, tmp_path: Path
) -> None:
    tls = listen(authority)
    with Gate(route(upstream.url), tls=tls) as gate:
        context = client_context(authority)

        def serial() -> str:
            with secure(gate, context) as link:
                found = link.getpeercert()
                assert found is not None
                return str(found["serialNumber"])

        before = serial()
        certificate, key = authority.issue("gateway.test")
        Path(tls.certificate).write_bytes(Path(certificate).read_bytes())
        Path(tls.key).write_bytes(Path(key).read_bytes())
        assert serial() == before
        gate.source.reload()
        assert serial() != before
        Path(tls.key).write_text("broken")
        gate.source.reload()
        assert serial() != before


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_from_before_a_renewed_certificate_is_not_resumed(
    authority: Authority, upstream: RecordingUpstream, version: ssl.TLSVersion
) -> None:
    tls = listen(authority)
    with Gate(route(upstream.url), tls=tls) as gate:
        context = client_context(authority)
        context.minimum_version = context.maximum_version = version

        def resumed(session: ssl.SSLSession | None) -> tuple[bool | None, ssl.SSLSession | None]:
            with context.wrap_socket(connect(gate.port), server_hostname="gateway.test", session=session) as link:
                link.sendall(GET)
                assert status_of(receive(link)) == 200
                return link.session_reused, link.session

        _, session = resumed(None)
        assert resumed(session)[0] is True  # the test can see it
        certificate, key = authority.issue("gateway.test")
        Path(tls.certificate).write_bytes(Path(certificate).read_bytes())
        Path(tls.key).write_bytes(Path(key).read_bytes())
        gate.source.reload()
        assert resumed(session)[0] is False


def test_https_client_library_works(tls_gate: Gate, authority: Authority) -> None:
    link = http.client.HTTPSConnection("127.0.0.1", tls_gate.port, context=_unnamed(authority), timeout=5)
    for _ in range(3):
        link.request("POST", "/p", body=b"x" * 100_000, headers={"Host": "gateway.test"})
        assert link.getresponse().read() == b"upstream says hello"
    link.close()


def _unnamed(authority: Authority) -> ssl.SSLContext:
    context = client_context(authority)
    context.check_hostname = False
    return context


def test_a_policy_that_wants_tls_is_never_served_in_plain_text(authority: Authority) -> None:
    """Should its files ever not have been read: reading is another module's."""
    source = Source(tls=listen(authority))
    assert ListenerContexts(source).context() is not None
    source.snapshot.listen_tls = None
    with pytest.raises(ValueError, match="files were not read"):
        ListenerContexts(source).context()
