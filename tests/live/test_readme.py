"""The README's first policy, its commands and its mitmproxy line, run as they are printed."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live.harness import ROOT
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream

README = (ROOT / "README.md").read_text()
SECRET = "a-development-secret-of-more-than-256-bits"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def line_with(text: str) -> str:
    """Return the one line of the README's shell blocks that is, or has, the text, with its comment cut off."""
    lines = [line.split(" # ")[0].rstrip() for block in blocks("sh") for line in block.split("\n")]
    found = [line for line in lines if line == text] or [line for line in lines if text in line]
    assert len(found) == 1, found
    return found[0]


def words_of(line: str) -> list[str]:
    return [str(ROOT / word[2:]) if word == "./run.sh" else word for word in shlex.split(line)]


@pytest.fixture
def first_policy(tmp_path: Path, upstream: RecordingUpstream) -> Path:
    """Write the README's policy as gateway.yaml, before a recording upstream."""
    text = next(block for block in blocks("yaml") if "routes:" in block)
    assert text.count("127.0.0.1:9002") == 1
    path = tmp_path / "gateway.yaml"
    path.write_text(text.replace("127.0.0.1:9002", f"127.0.0.1:{upstream.port}"))
    return path


def environment() -> dict[str, str]:
    return {**os.environ, "MITMGATE_DEV_SECRET": SECRET, "PYTHON": sys.executable}


def run(line: str, directory: Path) -> str:
    done = subprocess.run(
        words_of(line), cwd=directory, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running(words: list[str], directory: Path, port: int) -> Iterator[None]:
    """Run a host in the directory until the block ends; it is entered when the port answers."""
    log = directory / "host.log"
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=directory, env=environment(), stdout=out, stderr=out)

    def healthy() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return request(port, "GET", "/health").status == 200
        except OSError:
            return False

    try:
        wait_for(healthy, "the host to be healthy")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def walk(port: int, directory: Path, upstream: RecordingUpstream) -> None:
    """Send what the README sends, and check what it promises."""
    token = run(line_with("./run.sh token"), directory).strip()
    curl = shlex.split(line_with("curl -i").replace("$TOKEN", token).replace("8080", str(port)))
    done = subprocess.run(curl, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.startswith("HTTP/1.1 200")
    seen = upstream.last()
    assert (seen.method, seen.target, seen.one("x-user-id")) == ("GET", "/7", "alice")
    assert seen.all("authorization") == []
    assert request(port, "GET", "/api/v1/orders/7").status == 401
    stranger = run(line_with("./run.sh token").replace("orders.read", "other"), directory).strip()
    assert request(port, "GET", "/api/v1/orders/7", token=stranger).status == 403
    statuses = [request(port, "GET", "/api/v1/orders/7", token=token).status for _ in range(100)]
    assert statuses == [200] * 99 + [429]
    upstream.assert_saw_only(100)


def test_the_first_policy_with_serve(first_policy: Path, upstream: RecordingUpstream) -> None:
    directory, port = first_policy.parent, free_port()
    run(line_with("./run.sh check"), directory)
    with running(
        [*words_of(line_with("./run.sh serve --policy gateway.yaml")), "--listen", f"127.0.0.1:{port}"], directory, port
    ):
        walk(port, directory, upstream)


def test_the_first_policy_in_stock_mitmweb(first_policy: Path, upstream: RecordingUpstream) -> None:
    directory, port = first_policy.parent, free_port()
    command, *words = words_of(line_with("mitmweb --mode"))
    words = [str(ROOT / word) if word == "addons/gateway.py" else word for word in words]
    own = ["--listen-host", "127.0.0.1", "--listen-port", str(port), "--web-port", str(free_port())]
    own += ["--no-web-open-browser", "--set", f"confdir={directory}"]
    with running([str(Path(sys.executable).with_name(command)), *words, *own], directory, port):
        wait_for(lambda: healthy(port), "the gateway in mitmproxy's place")  # whose server listens a moment longer
        walk(port, directory, upstream)


def healthy(port: int) -> bool:
    try:
        return request(port, "GET", "/health").status == 200
    except OSError:
        return False


@pytest.mark.parametrize("option", ["--shadow", "--canary"])
def test_the_first_policy_with_a_candidate(first_policy: Path, upstream: RecordingUpstream, option: str) -> None:
    directory, port = first_policy.parent, free_port()
    (directory / "candidate.yaml").write_text(first_policy.read_text().replace("orders.read", "orders.write"))
    line = line_with(f"./run.sh serve --policy gateway.yaml {option}")
    with running([*words_of(line), "--listen", f"127.0.0.1:{port}"], directory, port):
        walk(port, directory, upstream)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example project where the README has it, with run.sh two directories above."""
    (tmp_path / "run.sh").symlink_to(ROOT / "run.sh")
    copied = shutil.copytree(ROOT / "policies" / "example-tests", tmp_path / "policies" / "example-tests")
    return Path(copied)


def test_the_commands_on_recorded_traffic(example: Path) -> None:
    """Every line runs; the table that the README shows is what --what-if prints."""
    (block,) = [block for block in blocks("sh") if block.startswith("cd policies/example-tests\n")]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=example.parents[1],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = re.findall(r"```\n(change .*?)```", README, re.DOTALL)
    printed = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert [line for line in table.splitlines() if " ".join(line.split()) not in printed] == []
    assert "no difference, 15 the same" in done.stdout and "deny condition-false (403)" in done.stdout
    for made in ("what-if.svg", "proposed.yaml", "shared.mitm", "traffic.mitm.expect.yaml"):
        assert (example / made).stat().st_size > 500, made


def test_the_tests_of_a_policy(example: Path) -> None:
    (code,) = blocks("python")
    (example / "test_gateway.py").write_text(code)
    (example / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mitmgate.replay.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command,
        cwd=example,
        env={**environment(), "PYTHONPATH": str(ROOT / "addons")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_every_command_of_the_table_exists() -> None:
    from mitmgate.cli import COMMANDS

    named = set(re.findall(r"`\./run\.sh ([a-z]+)", README))
    assert named - {"test"} <= set(COMMANDS)
