"""The admin listener with TLS: the status page for who has a certificate, or the secret."""

import http.client
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.admin.asking import AdminGateway
from tests.live.harness import ROOT, policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.certificates import Authority

SECRET = "an operator's secret of 32 bytes!"
Pair = tuple[str, str]


class TlsGateway(AdminGateway):
    """With `admin.tls`, whose certificate is in the files server.pem and server.key."""

    def __init__(self, directory: Path, made: dict[str, Any], *, token: bool) -> None:
        self.token = token
        self.directory = directory
        self.authority, self.other = Authority(directory), Authority(directory, "other")
        self.renew()
        super().__init__(directory, made, environment={"MITMGATE_CONSOLE": SECRET})

    def renew(self) -> None:
        for path, name in zip(self.authority.issue("127.0.0.1"), ("server.pem", "server.key"), strict=True):
            shutil.copy(path, self.directory / f"{name}.new")
            (self.directory / f"{name}.new").rename(self.directory / name)

    def with_admin(self, made: dict[str, Any]) -> dict[str, Any]:
        tls = {"certificate": "server.pem", "key": "server.key", "client_ca": Path(self.authority.ca).name}
        token = {"token_env": "MITMGATE_CONSOLE"} if self.token else {}
        return {**made, "admin": {"port": self.admin_port, "tls": tls, **token}}

    def connect(self, certificate: Pair | None = None) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.authority.ca)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return http.client.HTTPSConnection("127.0.0.1", self.admin_port, timeout=PATIENCE, context=context)

    def seen(self, path: str, certificate: Pair | None = None, **headers: str) -> tuple[int, str]:
        link = self.connect(certificate)
        try:
            link.request("GET", path, headers={"Accept": "application/json", **headers})
            answer = link.getresponse()
            return answer.status, answer.read().decode()
        finally:
            link.close()

    def serial(self) -> str:
        link = self.connect()
        try:
            link.connect()
            assert isinstance(link.sock, ssl.SSLSocket)
            assert link.sock.version() == "TLSv1.3"
            shown = link.sock.getpeercert()
            assert shown is not None
            return str(shown["serialNumber"])
        finally:
            link.close()


@pytest.fixture(scope="module", params=[False, True], ids=["certificate", "certificate-or-secret"])
def gateway(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[TlsGateway]:
    directory = tmp_path_factory.mktemp("tls")
    with (
        RecordingUpstream() as upstream,
        TlsGateway(directory, policy(directory, upstream), token=request.param) as running,
    ):
        yield running


def test_the_page_is_for_who_has_a_certificate_or_the_secret(gateway: TlsGateway) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert gateway.seen(path)[0] == 200, "for everybody"
    assert gateway.seen("/status", gateway.authority.issue("operator", client=True))[0] == 200
    status, told = gateway.seen("/status")
    with_secret = gateway.seen("/status", Authorization=f"Bearer {SECRET}")[0]
    if gateway.token:
        assert (status, with_secret) == (401, 200)
        assert gateway.seen("/status", Authorization=f"Bearer {SECRET[:-1]}?")[0] == 401
    else:
        assert (status, with_secret) == (403, 403)
        assert "a client certificate of admin.tls.client_ca" in told


@pytest.mark.parametrize(
    "issue",
    [
        lambda gateway: gateway.other.issue("operator", client=True),
        lambda gateway: gateway.authority.issue("operator", client=True, expired=True),
        lambda gateway: gateway.authority.issue("operator"),
        lambda gateway: gateway.authority.issue("operator", client=True, signed_by_itself=True),
    ],
    ids=["another authority's", "expired", "a server's", "its own"],
)
def test_a_certificate_that_is_none_of_ours_opens_nothing(
    gateway: TlsGateway, issue: Callable[[TlsGateway], Pair]
) -> None:
    shown = issue(gateway)
    for path in ("/status", "/livez"):
        with pytest.raises((ssl.SSLError, OSError, http.client.RemoteDisconnected)):
            gateway.seen(path, shown)
    assert gateway.seen("/livez")[0] == 200


def test_plain_text_is_not_answered(gateway: TlsGateway) -> None:
    link = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=PATIENCE)
    try:
        link.request("GET", "/livez")
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            link.getresponse()
    finally:
        link.close()


def test_top_shows_its_certificate(gateway: TlsGateway) -> None:
    certificate, key = gateway.authority.issue("operator", client=True)

    def top(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mitmgate", "top", "--once", f"https://127.0.0.1:{gateway.admin_port}", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "COLUMNS": "200"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)

    done = top("--ca", gateway.authority.ca, "--certificate", certificate, "--key", key)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "● Ready" in done.stdout
    assert "no TLS with it: certificate verify failed" in top().stdout
    told = "wants a token" if gateway.token else "refuses: This needs a client certificate"
    assert told in top("--ca", gateway.authority.ca).stdout
    mistake = top("--ca", str(gateway.directory / "nowhere.pem"))
    assert mistake.returncode == 2
    assert "nowhere.pem: can't be used" in mistake.stderr


def test_a_renewed_certificate_is_taken(gateway: TlsGateway) -> None:
    before = gateway.serial()
    gateway.renew()
    wait_for(lambda: gateway.serial() != before, "the other certificate")
