"""docs/stages.md builds a stage in ten minutes; this follows it word by word: each file and each command."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mitmgate.cli import main
from tests.live.harness import ROOT
from tests.live.harness_http import free_port, wait_for
from tests.live.harness_upstream import PATIENCE

PAGE = (ROOT / "docs/stages.md").read_text()
TUTORIAL = PAGE.partition("## One in ten minutes")[2].partition("\n## ")[0]


class Reader:
    """Somebody who reads on, writes what is shown, and types what stands behind `$`. Ports are other ones."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.capsys = capsys
        self.ports = {"8080": str(free_port()), "9000": str(free_port())}
        self.running: list[subprocess.Popen[bytes]] = []
        self.commands = 0
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def own_ports(self, text: str) -> str:
        for port, own in self.ports.items():
            text = text.replace(port, own)
        return text

    def write(self, block: str) -> None:
        """Write a file that a block shows; its first line names it."""
        path = self.directory / block.split("\n", 1)[0].removeprefix("# ")
        path.write_text(self.own_ports(block))

    def type(self, line: str, shown: list[str]) -> None:
        """Run a command, and look for each line that the page shows of what it prints, in their order."""
        self.commands += 1
        words = shlex.split(self.own_ports(line))
        if words[-1] == "&":
            self.begin([sys.executable, "-m", *words[:-1]])
            return
        if words[0] == "kill":
            self.end(int(words[1].removeprefix("%")))
            return
        rest = printed = self.run(words)
        for wanted in map(self.own_ports, shown):
            _, found, rest = rest.partition(wanted)
            assert found, f"$ {line}\n{printed}\n--- does not show {wanted!r} behind what the page shows before it"

    def run(self, words: list[str]) -> str:
        """Run a command to its end; one of mitmgate in this process, which has imported it."""
        if words[0] == "mitmgate":
            main(words[1:])
            said = self.capsys.readouterr()
            return said.out + said.err
        command = [sys.executable, "-m", *words] if words[0] == "pytest" else words
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.stdout

    def begin(self, words: list[str]) -> None:
        log = self.directory / f"{len(self.running)}.log"
        with log.open("wb") as file:
            self.running.append(
                subprocess.Popen(words, cwd=self.directory, env=self.environment, stdout=file, stderr=file)
            )
        wait_for(lambda: any(port in log.read_text() for port in self.ports.values()), f"{words} to listen")

    def end(self, number: int) -> None:
        self.running[number - 1].send_signal(signal.SIGTERM)
        assert self.running[number - 1].wait(PATIENCE) == 0

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE)


def test_the_tutorial(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, capsys)
    try:
        for language, block in re.findall(r"```(\w+)\n(.*?)```", TUTORIAL, re.DOTALL):
            if language != "console":
                reader.write(block)
                continue
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                line, *shown = part.rstrip("\n").split("\n")
                reader.type(line, shown)
    finally:
        reader.close()
    assert reader.commands == 13


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Bot_Guard"], "a name in kebab-case is wanted"),
        (["routing"], "the gateway has a stage of this name"),
        (["bot-guard"], "bot_guard.py is there already"),
    ],
)
def test_nothing_is_written_over(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages").mkdir()
    kept = tmp_path / "stages/test_bot_guard.py"
    kept.write_text("mine")
    assert main(["stage", "new", *words]) == 2
    assert message in capsys.readouterr().err
    assert [*tmp_path.rglob("*.py")] == [kept]
    assert kept.read_text() == "mine"
