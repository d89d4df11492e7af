"""--log-level: the least that the log says, and that what libraries say of bytes is never in it."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mitmgate.host.serve import command as serve
from mitmgate.inspect.web import command as web
from tests.live.harness import Gateway, mint, policy_file
from tests.live.harness_upstream import RecordingUpstream


def test_warnings_of_the_policy_are_logged_and_nothing_less(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with Gateway(policy_file(tmp_path, upstream), arguments=("--log-level", "warning")) as gateway:
        assert gateway.get("/api/v1/users/1", token=mint()).status == 200
    events = [json.loads(line) for line in gateway.log.splitlines()]
    assert {event["level"] for event in events} == {"warning"}
    assert any(event["event"].endswith("[public]") for event in events)


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("debug", ["own debug", "own info", "own error", "library info", "library error", "mitmproxy.x error"]),
        ("info", ["own info", "own error", "library info", "library error", "mitmproxy.x error"]),
        ("error", ["own error", "library error", "mitmproxy.x error"]),
    ],
)
def test_who_is_heard_at_which_level(level: str, said: list[str]) -> None:
    code = f"""
import logging
from mitmgate import process_log
process_log.configure({level!r})
for name in ("mitmgate.own", "library", "mitmproxy.x"):
    for level in ("debug", "info", "error"):
        getattr(logging.getLogger(name), level)("%s %s", name.removeprefix("mitmgate."), level)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == said


@pytest.mark.parametrize("command", [serve, web], ids=["serve", "web"])
def test_a_level_that_there_is_not(command: click.Command) -> None:
    done = CliRunner().invoke(command, ["--policy", "none.yaml", "--log-level", "loud"])
    assert done.exit_code == 2
    assert "'loud' is not one of 'debug', 'info', 'warning', 'error'" in done.output
