"""TLS from the policy alone, on a real gateway: towards clients, h2 and HTTP/1.1, and towards upstreams."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.live.harness import Gateway, Host, mint, policy, write_policy
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
