"""Whatever goes wrong inside a stage is a denial, in every host: real processes whose stages can each be made to fail.

The process is the one that users start; a `sitecustomize` on its path makes the stage fail that a request's X-Harm
names. What runs the stages is asked here, and not a double of it: changed so that an exception in a stage admits, each
of these tests fails.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mitmgate.chain import REQUIRED
from tests.live.harness import ROOT, Gateway, mint, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.live.test_fail_closed import mitmdump, up
from tests.protocol.certificates import Authority
from tests.rfc.fronts import Front

KINDS = ("lane", "tls", "web", "mitmdump")

HARM = """
import mitmgate.chain
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.stage import Stage

def raises(): raise RuntimeError("harm")
async def later(): raise RuntimeError("harm")
async def nothing_later(): return None
KINDS = {
    b"raises": raises,
    b"raises later": later,
    b"says nothing": lambda: None,
    b"says nothing later": nothing_later,
    b"says true": lambda: True,
    b"says a word": lambda: "admit",
    b"speaks for another": lambda: Step("enforcer", Outcome.ADMIT, Reason.OK),
    b"has no outcome": lambda: Step("NAME", "admit", Reason.OK),
}

def harmed(stage):
    decide = stage.decide
    def harmful(self, exchange):
        who, _, what = (exchange.request.headers.one(b"x-harm") or b"").partition(b" ")
        return KINDS[what]() if who == self.name.encode() else decide(self, exchange)
    stage.decide = harmful

for name in list(vars(mitmgate.chain)):
    stage = vars(mitmgate.chain)[name]
    if isinstance(stage, type) and issubclass(stage, Stage) and stage is not Stage and "decide" in vars(stage):
        harmed(stage)
"""
KIND_NAMES = (
    *("raises", "raises later", "says nothing", "says nothing later", "says true", "says a word"),
    *("speaks for another", "has no outcome"),
)

LOST = {
    "a stage is missing": "mitmgate.chain.REQUIRED = tuple(n for n in mitmgate.chain.REQUIRED if n != 'authorization')",
    "a stage too many is asked": "mitmgate.chain.REQUIRED = (*mitmgate.chain.REQUIRED, 'more')",
    "the order is another": "mitmgate.chain.REQUIRED = mitmgate.chain.REQUIRED[::-1]",
    "a stage has another name": "mitmgate.chain.Authorization.name = 'authorisation'",
}


def environment(directory: Path, code: str) -> dict[str, str]:
    """Make an environment whose Python runs some code before all else."""
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}{os.pathsep}{ROOT / 'addons'}"}


@contextmanager
def stock(directory: Path, upstream: RecordingUpstream, authority: Authority) -> Iterator[Front]:
    """Run stock mitmdump with the gateway's script."""
    path = write_policy(directory, policy(directory, upstream))
    arguments = ["-s", str(ROOT / "addons/gateway.py"), "--set", f"mitmgate_policy={path}"]
    with mitmdump(directory, *arguments, environment=environment(directory, HARM)) as (process, port, log):
        wait_for(lambda: up(process, log), "mitmdump to listen", 5 * PATIENCE)
        gateway = Gateway(path)
        gateway.port = port
        yield Front("lane", gateway, upstream, authority)


@contextmanager
def started(kind: str, directory: Path, upstream: RecordingUpstream, authority: Authority) -> Iterator[Front]:
    made: dict[str, Any] = policy(directory, upstream)
    if kind == "tls":
        certificate, key = authority.issue("localhost")
        made["listen"] = {"tls": {"certificate": certificate, "key": key}}
    path = write_policy(directory, made)
    host: Any = "web" if kind == "web" else "serve"
    with Gateway(path, host=host, environment=environment(directory, HARM)) as gateway:
        yield Front("tls" if kind == "tls" else "lane", gateway, upstream, authority)


@pytest.fixture(scope="module", params=KINDS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp(request.param)
    authority = Authority(directory)
    with RecordingUpstream() as upstream:
        if request.param == "mitmdump":
            with stock(directory, upstream, authority) as running:
                yield running
        else:
            with started(request.param, directory, upstream, authority) as running:
                yield running


def test_without_harm_the_request_is_admitted(front: Front) -> None:
    front.seen("/api/v1/users", f"Authorization: Bearer {mint()}")


@pytest.mark.parametrize("stage", REQUIRED)
def test_a_stage_that_fails_denies(front: Front, stage: str) -> None:
    front.upstream.forget()
    token = mint()
    for kind in KIND_NAMES:
        answered = front.ask("/api/v1/users", f"Authorization: Bearer {token}", f"X-Harm: {stage} {kind}")
        assert (answered.status, answered.reason) == (503, "stage-error"), (stage, kind, answered)
        assert b"harm" not in answered.body
        event = front.event(answered)
        assert (event["decision"], event["stage"], event["reason"]) == ("deny", stage, "stage-error")
    front.upstream.assert_saw_nothing()


@pytest.mark.parametrize(
    ("host", "lost"),
    [*(("serve", lost) for lost in LOST), ("web", "a stage is missing"), ("mitmdump", "a stage is missing")],
)
def test_a_chain_that_is_not_what_must_sign_does_not_start(
    tmp_path: Path, upstream: RecordingUpstream, host: str, lost: str
) -> None:
    path = write_policy(tmp_path, policy(tmp_path, upstream))
    changed = {**os.environ, "MITMGATE_TEST_SECRET": "x" * 64}
    changed |= environment(tmp_path, f"import mitmgate.chain\n{LOST[lost]}")
    if host == "mitmdump":
        command = [str(Path(sys.executable).with_name("mitmdump")), "--mode", "reverse:http://upstream.invalid@0"]
        command += ["-s", str(ROOT / "addons/gateway.py"), "--set", f"mitmgate_policy={path}"]
    else:
        command = [sys.executable, "-m", "mitmgate", host, "--policy", str(path), "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, env=changed, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == (1 if host == "mitmdump" else 2), done
    words = done.stdout + done.stderr
    assert "but what has to sign is" in words
    assert ("Traceback" in words) is (host == "mitmdump")  # which shows one for whatever an addon refuses
    upstream.assert_saw_nothing()
