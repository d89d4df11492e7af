"""The demo: every line that it prints works when pasted, and Ctrl-C leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mitmgate.demo.examples import examples
from tests.live.harness import ROOT, audit_events
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE

WANTED = {example.title: example.statuses for example in examples("", "", "", "")}


@contextmanager
def demo(directory: Path, port: int) -> Iterator[str]:
    """Run the demo until the block ends; yields what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "addons"),
        "MITMGATE_DEMO_USERS_PORT": str(free_port()),
        "MITMGATE_DEMO_ORDERS_PORT": str(free_port()),
        "MITMGATE_DEMO_AUDIT": "audit.jsonl",
    }
    command = [sys.executable, "-m", "mitmgate", "--port", str(port)]
    out = directory / "out"
    with out.open("wb") as words:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=words, stderr=words)

    def printed() -> bool:
        assert process.poll() is None, out.read_text()
        return f"# {list(WANTED)[-1]}" in out.read_text() and out.read_text().endswith("\n")

    try:
        wait_for(printed, "the demo's lines")
        yield out.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def test_every_line_works_when_pasted(tmp_path: Path) -> None:
    port = free_port()
    with demo(tmp_path, port) as printed:
        lines = dict(re.findall(r"^# (.+)\n(.+)$", printed, re.MULTILINE))
        assert list(lines) == list(WANTED)
        for title, line in lines.items():
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
            got = re.findall(r"^HTTP/1.1 (\d{3})|^ *\d+ (\d{3})$", done.stdout, re.MULTILINE)
            statuses = tuple(int(first or second) for first, second in got)
            assert statuses == WANTED[title], (title, line, done.stdout)
            assert done.stdout.endswith("\n"), (title, "the prompt would stand behind the answer")
        assert request(port, "GET", "/health").status == 200
    events = audit_events(tmp_path / "audit.jsonl", len(WANTED) - 1 + 105 + 1)
    assert {event["reason"] for event in events} >= {"ok", "no-route", "quota-exceeded", "body-too-large", "preflight"}


def test_a_taken_port_ends_the_demo_with_one_message(tmp_path: Path) -> None:
    port = free_port()
    with demo(tmp_path, port):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons")}
        command = [sys.executable, "-m", "mitmgate", "demo", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(port) in done.stderr
    assert done.stdout == ""
