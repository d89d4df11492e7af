"""Client certificates as credentials, at a real gateway: of the connection, and of a trusted proxy's word."""

import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mitmgate.cli import main
from tests.live.harness import SECRET, Gateway, mint, policy, write_policy
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.certificates import Authority

EDGE = "127.0.0.2"
HASH = "ab" * 32
SPIFFE = "spiffe://prod.example/ns/orders/sa/api"

Pair = tuple[str, str]


@dataclass
class Running:
    gateway: Gateway
    upstream: RecordingUpstream
    authority: Authority
    path: Path

    def ask(self, target: str, pair: Pair | None = None, *fields: str, source: str = "127.0.0.1") -> tuple[int, str]:
        """Ask over TLS; returns the status and the reason, "" where there is none."""
        context = ssl.create_default_context(cafile=self.authority.ca)
        if pair is not None:
            context.load_cert_chain(*pair)
        lines = "".join([f"{field}\r\n" for field in fields])
        with (
            socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE, source_address=(source, 0)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode())
            got = b""
            while part := link.recv(65536):
                got += part
        head, _, body = got.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 401:
            assert b"www-authenticate:" in head.lower()
        return status, str(json.loads(body)["reason"]) if b"problem+json" in head else ""

    def user(self) -> tuple[str | None, str | None, str | None]:
        seen = self.upstream.last()
        assert not [name for name, _ in seen.headers if name.lower().startswith("x-forwarded-client")]
        return seen.one("x-user-id"), seen.one("x-user-role"), seen.one("x-user-issuer")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory)
    certificate, key = authority.issue("localhost")
    with RecordingUpstream() as upstream:
        made: dict[str, Any] = policy(directory, upstream, trusted_proxies=[EDGE])
        tls = {"certificate": certificate, "key": key, "client_ca": authority.ca, "client_certificate": "optional"}
        made["listen"] = {"tls": tls}
        made["identity"]["certificates"] = {
            "spiffe": "prod.example",
            "dns": "*.jobs.example",
            "email": "*@example.com",
            "subject": ["CN=legacy", "CN=*,O=Corp"],
            "forwarded": True,
            "roles": {"spiffe://prod.example/ns/orders/*/*": ["orders"], "*.jobs.example": ["job"]},
        }
        made["routes"] += [
            {"name": path, "match": {"prefix": f"/{path}"}, "upstream": "users", "auth": auth}
            for path, auth in (
                ("certificate", "certificate"),
                ("either", {"any": ["jwt", "certificate"]}),
                ("both", {"all": ["certificate", "jwt"]}),
            )
        ]
        path = write_policy(directory, made)
        with Gateway(path, arguments=("--record", str(directory / "traffic.mitm"))) as gateway:
            yield Running(gateway, upstream, authority, path)


def names(*found: str) -> list[x509.GeneralName]:
    kinds: list[x509.GeneralName] = []
    for name in found:
        if "://" in name or name.startswith("urn:"):
            kinds.append(x509.UniformResourceIdentifier(name))
        else:
            kinds.append(x509.RFC822Name(name) if "@" in name else x509.DNSName(name))
    return kinds


def test_of_the_connection(running: Running) -> None:
    issue = running.authority.issue
    bearer = f"Authorization: Bearer {mint('alice')}"
    service = issue("orders", client=True, names=names(SPIFFE))
    for alternatives, subject, role in (
        ((SPIFFE,), SPIFFE, "orders"),
        (("night.jobs.example", "other.example"), "night.jobs.example", "job"),
        (("bob@example.com",), "bob@example.com", None),
    ):
        pair = issue("client", client=True, names=names(*alternatives))
        assert running.ask("/certificate", pair) == (200, "")
        assert running.user() == (subject, role, "certificate")
    assert running.ask("/certificate", issue("legacy", client=True, names=[])) == (200, "")
    assert running.user()[0] == "CN=legacy"
    assert running.ask("/both", service, bearer) == (200, "")
    assert running.user()[0] == SPIFFE
    assert running.ask("/either", None, bearer) == (200, "")
    assert running.user()[0] == "alice"
    running.upstream.forget()
    assert running.ask("/certificate") == (401, "credential-missing")
    assert running.ask("/both", service) == (401, "credential-missing")
    assert running.ask("/both", None, bearer) == (401, "credential-missing")
    assert running.ask("/both", service, f"Authorization: Bearer {mint(key='x' * 64)}") == (
        401,
        "token-signature-invalid",
    )
    for alternatives in (
        ("spiffe://evil.example/ns/orders/sa/api", "night.jobs.example"),  # another domain's, whatever else it says
        (SPIFFE, "spiffe://prod.example/other"),
        (SPIFFE, "urn:example:x"),
        ("spiffe://prod.example",),
        ("spiffe://prod.example/../x",),
        ("spiffe://prod.example.evil/ns/orders/sa/api",),
        ("a.jobs.example", "b.jobs.example"),
        ("jobs.example",),
        ("night.jobs.example.evil.example",),
        ("bob@example.com.evil.example",),
        ("legacy",),
    ):
        pair = issue("stranger", client=True, names=names(*alternatives))
        for target in ("/certificate", "/either"):
            assert running.ask(target, pair, bearer) == (401, "certificate-refused"), alternatives
    comma = issue("x,O=Corp", client=True, names=[])  # a common name, and no organization
    assert running.ask("/certificate", comma) == (401, "certificate-refused")
    running.upstream.assert_saw_nothing()


@pytest.mark.parametrize("how", ["expired", "early"])
def test_one_that_does_not_hold_is_no_handshake(running: Running, how: str) -> None:
    pair = running.authority.issue("late", client=True, names=names(SPIFFE), **{how: True})
    running.upstream.forget()
    with pytest.raises((ssl.SSLError, ConnectionResetError, IndexError)):
        running.ask("/certificate", pair)
    running.upstream.assert_saw_nothing()


def test_what_a_trusted_proxy_passes_on(running: Running) -> None:
    edge = running.authority.issue("edge", client=True, names=names("edge.jobs.example"))

    def passed(*values: str, source: str = EDGE, pair: Pair | None = None) -> tuple[int, str]:
        return running.ask("/certificate", pair, *[f"X-Forwarded-Client-Cert: {v}" for v in values], source=source)

    good = f'By=spiffe://prod.example/edge;Hash={HASH};Subject="CN=a\\",O=x;y";URI={SPIFFE}'
    other = f"Hash={HASH};URI=spiffe://prod.example/other"
    for values, subject in (
        ([good], SPIFFE),
        ([f'Hash={HASH};Subject="";URI=;DNS=night.jobs.example;DNS=x.example'], "night.jobs.example"),
        ([f'Hash={HASH};Subject="CN=legacy"'], "CN=legacy"),
        ([f'Hash={HASH};Subject="CN=x,O=Corp"'], "CN=x,O=Corp"),
        ([f"{other},{good}"], SPIFFE),  # the proxy's own word comes last
        ([other, good], SPIFFE),
        ([f"{other}, {good}"], SPIFFE),
    ):
        assert passed(*values) == (200, ""), values
        assert running.user()[0] == subject
    running.upstream.forget()
    # What anybody else says is nothing; a proxy's own certificate is nobody's else, also where it passes none on.
    assert passed(good, source="127.0.0.1") == (401, "credential-missing")
    assert passed(pair=edge) == (401, "credential-missing")
    assert passed("", pair=edge) == (401, "credential-missing")
    for value in (
        *(f"{good},", f"{good};", f",{good}", f"Hash={HASH}", f"URI={SPIFFE}", "x", "Hash", "=", f"{good},Hash={HASH}"),
        *(f'Hash={HASH};Subject="CN=legacy', f'Hash={HASH};Subject="CN=legacy"x', f"Hash={HASH};URI={SPIFFE}\xff"),
        *(f'Hash={HASH};Subject="CN=legacy";Subject="CN=x"', f"{good};URI=spiffe://prod.example/second"),
        *(f"Hash={HASH};URI=spiffe://evil.example/x", f"Hash={HASH};{'DNS=x;' * 4000}DNS=y"),
        *(f'{good},Hash={HASH};Subject="URI={SPIFFE}"', f'Hash={HASH};Subject="CN=x\\,O=Corp"'),
        *(f'Hash={HASH};Subject="{subject}"' for subject in ("CN=x,OU=y,O=Corp", "CN=x+OU=y,O=Corp")),
    ):
        assert passed(value.encode("latin-1").decode("latin-1")) in {
            (401, "certificate-refused"),
            (431, "head-too-large"),
        }
    running.upstream.assert_saw_nothing()
    assert passed(good, pair=edge) == (200, "")
    assert running.user()[0] == SPIFFE


def test_all_of_it_offline(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run last: the recording of what the tests before have asked."""
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    running.gateway.stop()
    traffic = running.path.parent / "traffic.mitm"
    assert main(["replay", str(traffic), "--policy", str(running.path)]) == 0
