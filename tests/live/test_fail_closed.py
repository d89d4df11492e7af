"""What mitmproxy would let through by itself: stages that raise, scripts that raise, options that weaken.

Each is a real mitmdump with the gateway's script and a second one that does harm; the upstream must see nothing.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.harness import ROOT, SECRET, mint, policy, write_policy
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import RecordingUpstream

HALT = """
from mitmproxy import exceptions
def requestheaders(flow):
    flow.request.host, flow.request.port = "127.0.0.1", PORT
    raise exceptions.AddonHalt()
"""
HARM = {
    "a stage raises": "Authorization.decide = lambda self, exchange: 1 / 0",
    "a stage raises later": """
async def broken(self, exchange):
    raise RuntimeError("later")
Authorization.decide = broken
""",
    "a stage forgets to answer": "Authorization.decide = lambda self, exchange: None",
    "a stage answers with something else": "Authorization.decide = lambda self, exchange: True",
    "a stage speaks for another": "Authorization.decide = lambda self, _: Step('rewrite', Outcome.ADMIT, Reason.OK)",
    "a stage's hook raises": "Authorization.requestheaders = lambda self, flow: 1 / 0",
    "a stage's hook does nothing": "Authorization.requestheaders = lambda self, flow: None",
    "arrival raises": "Arrival.requestheaders = lambda self, flow: 1 / 0",
    "enforcer can't decide": "Enforcer.enforce = lambda self, exchange: 1 / 0",
    "enforcer is not called": "Enforcer.requestheaders = lambda self, flow: None",
    "an earlier script points elsewhere": """
def requestheaders(flow):
    flow.request.host, flow.request.port = "127.0.0.1", PORT
    raise RuntimeError("and raises")
Authorization.requestheaders = lambda self, flow: None
""",
}

SCRIPT = """
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.authorization import Authorization
from mitmgate.pipeline.enforcer import Enforcer
PORT = {port}
{harm}
"""


@contextmanager
def mitmdump(
    directory: Path,
    *arguments: str,
    target: str = "http://upstream.invalid",
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """Run stock mitmdump in reverse mode with the arguments; its words go to a file."""
    port, log = free_port(), directory / "mitmdump.log"
    command = [
        str(Path(sys.executable).with_name("mitmdump")),
        "--mode",
        f"reverse:{target}@127.0.0.1:{port}",
    ]
    command += ["--set", f"confdir={directory}", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=variables | dict(environment or {}))
    try:
        yield process, port, log
    finally:
        process.terminate()
        process.wait(10)


def up(process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    return "mitmgate is listening on" in log.read_text()


def test_without_harm_the_request_is_admitted(tmp_path: Path, upstream: RecordingUpstream) -> None:
    harmless(tmp_path, upstream, "pass", 200)
    upstream.assert_saw_only(1)


def test_a_script_that_halts_the_chain_and_points_elsewhere_changes_nothing(
    tmp_path: Path, upstream: RecordingUpstream
) -> None:
    """No addon can end an event early, in any host: every stage is asked, and what was decided is what is sent."""
    with RecordingUpstream() as elsewhere:
        harmless(tmp_path, upstream, HALT.replace("PORT", elsewhere.url.rpartition(":")[2]), 200)
        elsewhere.assert_saw_nothing()
    upstream.assert_saw_only(1)
    assert upstream.last().one("x-user-id") == "alice"


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_a_denial_and_the_upstream_sees_nothing(tmp_path: Path, upstream: RecordingUpstream, harm: str) -> None:
    harmless(tmp_path, upstream, HARM[harm], 503)
    upstream.assert_saw_nothing()


def harmless(directory: Path, upstream: RecordingUpstream, harm: str, status: int) -> None:
    path = write_policy(directory, policy(directory, upstream))
    script = directory / "harm.py"
    script.write_text(SCRIPT.format(port=upstream.url.rpartition(":")[2], harm=harm))
    scripts = ["-s", str(script), "-s", str(ROOT / "addons/gateway.py")]
    arguments = [*scripts, "--set", f"mitmgate_policy={path}", "--set", "mitmgate_allow_scripts=true"]
    with mitmdump(directory, *arguments) as (process, port, log):
        wait_for(lambda: up(process, log), "mitmdump to listen")
        answered = request(port, "GET", "/api/v1/users", token=mint())
        assert answered.status == status, (answered, log.read_text())


WEAKENING = [
    ("--set", "stream_large_bodies=1m"),
    ("--set", "map_remote=|//upstream.invalid|http://127.0.0.1:1"),
    ("--set", "modify_headers=/~q/X-User-ID/root"),
    ("--set", "ignore_hosts=."),
    ("--set", "block_list=:~u x:200"),
]


@pytest.mark.parametrize("option", WEAKENING, ids=lambda option: option[1].partition("=")[0])
def test_an_option_that_weakens_the_chain_is_refused(
    tmp_path: Path, upstream: RecordingUpstream, option: tuple[str, str]
) -> None:
    path = write_policy(tmp_path, policy(tmp_path, upstream))
    arguments = ["-s", str(ROOT / "addons/gateway.py"), "--set", f"mitmgate_policy={path}", *option]
    with mitmdump(tmp_path, *arguments) as (process, _, log):
        wait_for(lambda: process.poll() is not None, "mitmdump to refuse to start")
        assert option[1].partition("=")[0] in log.read_text()
    upstream.assert_saw_nothing()


def test_a_target_that_can_be_reached_is_refused(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """A flow that nobody admitted has to point nowhere, whatever else may fail."""
    path = write_policy(tmp_path, policy(tmp_path, upstream))
    arguments = ["-s", str(ROOT / "addons/gateway.py"), "--set", f"mitmgate_policy={path}"]
    with mitmdump(tmp_path, *arguments, target=upstream.url) as (process, _, log):
        wait_for(lambda: process.poll() is not None, "mitmdump to refuse to start")
        assert "takes reverse:http://upstream.invalid alone" in log.read_text()
    upstream.assert_saw_nothing()


@pytest.mark.parametrize("name", ["other.py", "addons/gateway.py"])
def test_a_foreign_script_is_refused_unless_allowed(tmp_path: Path, upstream: RecordingUpstream, name: str) -> None:
    path = write_policy(tmp_path, policy(tmp_path, upstream))
    script = tmp_path / name
    script.parent.mkdir(exist_ok=True)
    script.write_text("")
    arguments = ["-s", str(ROOT / "addons/gateway.py"), "-s", str(script), "--set", f"mitmgate_policy={path}"]
    with mitmdump(tmp_path, *arguments) as (process, _, log):
        wait_for(lambda: process.poll() is not None, "mitmdump to refuse to start")
        assert "mitmgate_allow_scripts" in log.read_text()


def test_without_a_policy_it_does_not_start(tmp_path: Path) -> None:
    with mitmdump(tmp_path, "-s", str(ROOT / "addons/gateway.py")) as (process, _, log):
        wait_for(lambda: process.poll() is not None, "mitmdump to refuse to start")
        assert "no policy is in force" in log.read_text()
