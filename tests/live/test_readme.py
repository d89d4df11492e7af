"""The README's first policy, its commands and its mitmproxy line, run as they are printed, as a stranger would."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jwt
import pytest

from tests.deploy.hosts import Host, Network
from tests.live.harness import ROOT
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.workers.processes import children

README = "".join((ROOT / name).read_text() for name in ("README.md", "docs/replay.md"))
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


def first_policy() -> str:
    """Return the README's first policy."""
    return next(block for block in blocks("yaml") if "routes:" in block)


def block_with(text: str) -> str:
    """Return the one shell block of the README that has the text."""
    (found,) = (block for block in blocks("sh") if text in block)
    return found


class Stranger:
    """Somebody with a fresh clone, terminals, and a machine on which nothing else runs."""

    def __init__(self, machine: Host, clone: Path) -> None:
        self.machine = machine
        self.clone = clone

    def terminal(self, lines: str, **variables: str) -> subprocess.Popen[bytes]:
        """Paste lines into a terminal that stands in the clone; what they print goes to the machine's log."""
        environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        words = ["env", "-i", *(f"{name}={value}" for name, value in {**environment, **variables}.items())]
        words += [f"HOME={self.machine.directory}", "PYTHONUNBUFFERED=1"]  # as on a terminal
        return self.machine.start([*words, "bash", "-c", f"cd {shlex.quote(str(self.clone))}\n{lines}"])

    def finish(self, lines: str, **variables: str) -> None:
        """Paste lines that come to an end."""
        status = self.terminal(lines, **variables).wait(60)
        assert status == 0, self.machine.log

    def says(self, text: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until something is printed."""
        self.machine.wait_for_log(text, process)

    def listening(self) -> set[str]:
        """Return the addresses that are listened on, as /proc/net/tcp has them."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.machine.namespace, "cat", "/proc/net/tcp", "/proc/net/tcp6"],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split() for line in done.stdout.splitlines()]
        return {row[1].rpartition(":")[0] for row in rows if len(row) > 3 and row[3] == "0A"}


LOOPBACK = {"0100007F"}  # proc(5): the address as a number in the host's order, hexadecimal
PORT = 8000


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    """Clone the working tree, and give it the environment that run.sh would make."""
    clone = tmp_path / "clone"
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    (clone / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (clone / ".venv" / part.name).symlink_to(part)
    stamp = clone / ".venv" / "runtime.lock"
    stamp.unlink(missing_ok=True)
    shutil.copy(clone / ".lock" / "runtime.txt", stamp)
    with Network(tmp_path) as network:
        yield Stranger(network.host("stranger"), clone)


def promises(secret: str) -> None:
    """Check what the README says that the gateway does; the thread stands on the stranger's machine."""

    def token(scope: str) -> str:
        now = int(time.time())
        claims = {"iss": "https://dev.example", "aud": "api://orders", "sub": "bob", "exp": now + 60, "scope": scope}
        return jwt.encode(claims, secret, "HS256")

    assert request(PORT, "GET", "/api/v1/orders/7").status == 401
    assert request(PORT, "GET", "/api/v1/orders/7", token=token("other")).status == 403
    answers = [request(PORT, "GET", "/api/v1/orders/7", token=token("orders.read")) for _ in range(101)]
    assert [answer.status for answer in answers] == [200] * 100 + [429]
    assert int(answers[-1].one("retry-after") or 0) > 0


def test_a_stranger_follows_the_readme(stranger: Stranger) -> None:
    """Every line as it is printed, the demo still running: it takes no port of the first policy."""
    demo, *_ = block_with("# the demo").splitlines()
    stranger.says("# CORS preflight", stranger.terminal(demo))
    (stranger.clone / "gateway.yaml").write_text(first_policy())
    stranger.says("echo is listening on", stranger.terminal(block_with("./run.sh echo")))
    serving = stranger.terminal(block_with("./run.sh serve --policy gateway.yaml\n"))
    stranger.says(f"mitmgate is listening on http://127.0.0.1:{PORT} with policy gateway.yaml", serving)
    assert "gateway.yaml: ok, 1 route, 1 upstream" in stranger.machine.log
    (token,) = re.findall(r"^eyJ[\w.-]+$", stranger.machine.log, re.MULTILINE)
    stranger.finish(block_with("curl -i"), TOKEN=token)
    answer = stranger.machine.log.partition("HTTP/1.1 200")[2]
    echoed = json.loads(answer[answer.index("{") : answer.rindex("}") + 1])
    fields = {name.lower(): value for name, value in echoed["headers"].items()}
    assert (echoed["method"], echoed["path"], fields["x-user-id"]) == ("GET", "/7", "alice")
    assert "authorization" not in fields
    assert stranger.listening() == LOOPBACK
    process, *_ = children(serving.pid) or [serving.pid]  # bash may have left its place to its last command
    variables = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    (secret,) = (
        value for name, _, value in (line.partition("=") for line in variables) if name == "MITMGATE_DEV_SECRET"
    )
    with stranger.machine.inside():
        promises(secret)


def test_a_stranger_runs_the_first_policy_in_stock_mitmweb(stranger: Stranger) -> None:
    (stranger.clone / "gateway.yaml").write_text(first_policy())
    stranger.says("echo is listening on", stranger.terminal(block_with("./run.sh echo")))
    serving = stranger.terminal(block_with("mitmweb --mode"), MITMGATE_DEV_SECRET=SECRET)
    # Before that the port is open already: mitmproxy's own server waits for the script, which takes its place.
    stranger.says(f"mitmgate is listening on http://127.0.0.1:{PORT}", serving)
    assert stranger.listening() == LOOPBACK
    assert "not where the policy says" not in stranger.machine.log
    with stranger.machine.inside():
        promises(SECRET)


def test_stock_mitmproxy_says_what_it_lacks_and_where_it_listens(stranger: Stranger) -> None:
    (stranger.clone / "gateway.yaml").write_text(first_policy())
    line = block_with("mitmweb --mode").replace("mitmweb", "mitmdump").replace("--listen-port 8000", "")
    serving = stranger.terminal(line.replace("--listen-host 127.0.0.1", ""), MITMGATE_DEV_SECRET=SECRET)
    stranger.says("give it --listen-host 127.0.0.1 --listen-port 8000", serving)
    assert "mitmproxy listens on every address, port 8080, and not where the policy says" in stranger.machine.log
    serving.terminate()
    serving.wait(PATIENCE)
    without = stranger.machine.directory / "sitecustomize.py"
    without.write_text("import sys\nsys.modules['pydantic'] = None\n")
    variables = {"MITMGATE_DEV_SECRET": SECRET, "PYTHONPATH": str(without.parent)}
    assert stranger.terminal(line, **variables).wait(60) == 1
    assert "mitmgate needs the package pydantic: install mitmgate into the environment" in stranger.machine.log
    assert f"pip install {stranger.clone}" in stranger.machine.log


@pytest.mark.parametrize("option", ["--shadow", "--canary"])
def test_the_first_policy_with_a_candidate(tmp_path: Path, upstream: RecordingUpstream, option: str) -> None:
    port = free_port()
    text = first_policy().replace("127.0.0.1:9000", f"127.0.0.1:{upstream.port}")
    (tmp_path / "gateway.yaml").write_text(text)
    (tmp_path / "candidate.yaml").write_text(text.replace("orders.read", "orders.write"))
    line = line_with(f"./run.sh serve --policy gateway.yaml {option}")
    with running([*words_of(line), "--listen", f"127.0.0.1:{port}"], tmp_path, port):
        token = run(line_with("./run.sh token"), tmp_path).strip()
        assert request(port, "GET", "/api/v1/orders/7", token=token).status == 200
        assert (upstream.last().target, upstream.last().one("x-user-id")) == ("/7", "alice")
        assert request(port, "GET", "/api/v1/orders/7").status == 401
        upstream.assert_saw_only(1)


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
    assert named - {"test", "mutants"} <= set(COMMANDS)
