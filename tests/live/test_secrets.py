"""Nothing that the gateway shows of a policy holds a credential: at start, on reload, to whom it may be shown."""

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.admin.asking import AdminGateway
from tests.inspect.webapi import WebApi
from tests.live.harness import ROOT, SECRET, Host, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream

PASSWORD = "ho/rse@battery"
PIECES = ("ho/rse", "battery", "staple", "correct")
URL = f"redis://:{PASSWORD}@127.0.0.1:6379/0"


def with_secrets(made: dict[str, Any]) -> dict[str, Any]:
    """Put a credential into every kind of member that may have one, each so that the policy is refused for it."""
    made = json.loads(json.dumps(made))
    made["store"] = {"url": URL}
    made["upstreams"]["users"]["endpoints"] = [f"http://staple:{PASSWORD}@127.0.0.1:1/x", "${MITMGATE_TEST_ENDPOINT}"]
    made["identity"]["issuers"]["corp"] = {
        "issuer": "https://corp.example",
        "algorithms": ["ES256"],
        "keys": {"jwks_url": f"https://staple:{PASSWORD}@corp.example/jwks"},
    }
    made["routes"][0]["rewrite"] = {"set": {"X-Api-Key": "correct-staple }", "X-Other": "${MITMGATE_TEST_KEY}"}}
    made["response_headers"] = {"set": {"X-Shared": "correct-staplé"}}
    return made


ENVIRONMENT = {"MITMGATE_TEST_ENDPOINT": "ftp://correct-staple:21", "MITMGATE_TEST_KEY": "{correct-staple}"}


def assert_hidden(said: str, where: str) -> None:
    assert "store.url" in said, f"{where} does not tell of the mistake: {said[:2000]}"
    shown = [piece for piece in PIECES if piece in said]
    assert not shown, f"{where} shows {shown}: {said}"


def test_a_rejected_reload_shows_no_secret_anywhere(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    made = policy(tmp_path, upstream)
    with AdminGateway(tmp_path, made, host, environment=ENVIRONMENT) as gateway:
        write_policy(tmp_path, gateway.with_admin(with_secrets(made)))
        wait_for(lambda: bool(gateway.status()["rejections"]), "the rejection on the status page")
        assert_hidden(gateway.ask("/status", Accept="application/json").body.decode(), "/status as JSON")
        assert_hidden(gateway.ask("/status").body.decode(), "/status as a page")
        audit = tmp_path / "audit.jsonl"
        wait_for(lambda: "policy-rejected" in audit.read_text(), "the event of the rejection")
        assert_hidden(audit.read_text(), "the audit file")
        wait_for(lambda: "store.url" in gateway.log, "the log")
        assert_hidden(gateway.log, "the log")
        if host == "web":
            events = WebApi(gateway.web_port).get("/events")
            assert_hidden(json.dumps(events), "mitmweb's event log")


@pytest.mark.parametrize(
    "command",
    [
        ("check", "--format", "json"),
        ("serve", "--policy"),
        ("explain", "GET", "/public", "--policy"),
    ],
    ids=" ".join,
)
def test_no_command_shows_a_secret_of_a_policy_that_it_refuses(tmp_path: Path, command: tuple[str, ...]) -> None:
    path = write_policy(tmp_path, with_secrets(policy(tmp_path, "http://127.0.0.1:9")))
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET, **ENVIRONMENT}
    words = [sys.executable, "-m", "mitmgate", *command, str(path)]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert_hidden(done.stdout + done.stderr, " ".join(command))


def test_a_store_url_with_a_foreign_option_is_a_users_mistake_without_the_password(tmp_path: Path) -> None:
    made = policy(tmp_path, "http://127.0.0.1:9", store={"url": "redis://:battery@127.0.0.1:1/0?socket_timeout=staple"})
    path = write_policy(tmp_path, made)
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET}
    words = [sys.executable, "-m", "mitmgate", "serve", "--listen", "127.0.0.1:0", "--policy", str(path)]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert_hidden(done.stderr, "serve")
    assert "Traceback" not in done.stderr


def test_a_traceback_on_a_terminal_shows_no_local_variable() -> None:
    """Structlog shows a traceback's variables where rich is installed, and rich is."""
    script = textwrap.dedent("""
        import logging
        from mitmgate import process_log
        process_log.configure()
        def decide(password):
            raise ValueError("redis://:battery@h refused")
        try:
            decide("correct-" + "staple")
        except ValueError:
            logging.getLogger("mitmgate").exception("it failed")
    """)
    near, far = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "COLUMNS": "200"}
    with subprocess.Popen([sys.executable, "-c", script], stderr=far, env=environ) as process:
        os.close(far)
        said = b""
        while chunk := _read(near):
            said += chunk
        assert process.wait(60) == 0
    os.close(near)
    text = said.decode()
    assert "it failed" in text and "in decide" in text and "ValueError" in text
    assert "correct-staple" not in text
    assert "battery" not in text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how a terminal says that nobody is at its other end
        return b""
