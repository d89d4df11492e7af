"""Runs of the tests that concern a mutant, each in a forked process which imports the mutant in its module's place."""

import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.mutation.making import PACKAGE, ROOT, Mutant, install

PATIENCE = 120.0
"""Seconds for the tests of one mutant; one that does not end by then was noticed."""

SURVIVED, KILLED = 0, 1
TABLE = ROOT / "docs" / "mutants.md"
_WHOLE = ("tests/stages", "tests/core", "tests/keys/test_verify.py", "tests/keys/test_withdrawal.py")
"""What runs last for a mutant that its own tests have not noticed. None of it starts a process."""


def tests_of(path: str) -> list[str]:
    """Return the test files that name a module, those named like it first."""
    stem = Path(path).stem
    module = ".".join(("mitmgate", *Path(path).with_suffix("").parts))
    named = re.compile(rf"\b{re.escape(module)}\b")
    folders = [ROOT / "tests" / folder for folder in ("core", "stages", "keys", "stores", "proxy", "protocol")]
    found = []
    for file in (file for folder in folders for file in sorted(folder.glob("test_*.py"))):
        like = stem in file.stem or file.stem.removeprefix("test_") in path.replace("/", "_")
        if like or (file.parent.name in {"core", "stages", "proxy", "keys"} and named.search(file.read_text())):
            found.append((not like, file.parent.name != Path(path).parts[0], str(file.relative_to(ROOT))))
    return [name for _, _, name in sorted(found)]


def prepare() -> None:
    """Import in this process what no mutant changes, so that its children need not."""
    for name in ("chain", "policy.loader", "proxy.listener", "host.master"):
        importlib.import_module(f"mitmgate.{name}")
    for name in ("hypothesis", "mitmproxy.test.taddons", "mitmproxy.test.tflow", "mitmproxy.tools.dump", "redis", "h2"):
        importlib.import_module(name)


def _child(mutant: Mutant, groups: list[list[str]], directory: str) -> int:
    os.chdir(ROOT)
    install(mutant)
    for number, tests in enumerate(groups):
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={directory}/{number}"]
        # What `prepare` has imported can't be rewritten any more, and need not be.
        status = pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests])
        if status != pytest.ExitCode.OK:
            return KILLED
    return SURVIVED


@dataclass
class _Running:
    mutant: Mutant
    directory: str
    until: float


@dataclass
class Runs:
    """Runs mutants, so many at once. Results: see `each`."""

    jobs: int
    until: float = float("inf")
    """When (time.monotonic) nothing further is begun."""
    _running: dict[int, _Running] = field(default_factory=dict)

    def each(self, mutants: Iterable[Mutant], *, whole: bool = False) -> Iterator[tuple[Mutant, int]]:
        """Yield each mutant with SURVIVED or KILLED, as they end. whole: see `groups_of`."""
        waiting = iter(mutants)
        ended = False
        while True:
            while not ended and len(self._running) < self.jobs:
                mutant = next(waiting, ...)
                if mutant is ... or time.monotonic() >= self.until:
                    ended = True
                    break
                self._start(mutant, groups_of(mutant, whole=whole))
            if not self._running:
                return
            yield from self._ended()

    def _start(self, mutant: Mutant, groups: list[list[str]]) -> None:
        directory = tempfile.mkdtemp(prefix="mutant-")
        child = os.fork()
        if child == 0:
            status = KILLED
            try:
                os.setsid()
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, 1)
                os.dup2(nothing, 2)
                status = _child(mutant, groups, directory)
            finally:
                os._exit(status)  # whatever was raised: a fork must not go on as its parent
        self._running[child] = _Running(mutant, directory, time.monotonic() + PATIENCE)

    def _ended(self) -> Iterator[tuple[Mutant, int]]:
        time.sleep(0.01)
        for child, running in list(self._running.items()):
            late = time.monotonic() > running.until
            if late:
                os.killpg(child, signal.SIGKILL)
            pid, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if pid == 0:
                continue
            del self._running[child]
            shutil.rmtree(running.directory, ignore_errors=True)
            code = os.waitstatus_to_exitcode(status)
            yield running.mutant, SURVIVED if code == 0 else KILLED

    def stop(self) -> None:
        """End what runs."""
        for child, running in self._running.items():
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            shutil.rmtree(running.directory, ignore_errors=True)
        self._running.clear()


def groups_of(mutant: Mutant, *, whole: bool) -> list[list[str]]:
    """Return the tests of a mutant's module; then, with whole, or where it has none, all that start no process."""
    own, rest = tests_of(mutant.path), list(_WHOLE)
    return [own, rest] if own and whole else [own or rest]


class Known:
    """What earlier runs have found, by the module's and the tests' text: a file of JSON lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, int] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                record = json.loads(line)
                self._found[record["key"]] = record["status"]

    @staticmethod
    def _key(mutant: Mutant) -> str:
        digest = hashlib.sha256((PACKAGE / mutant.path).read_bytes()).hexdigest()[:16]
        return f"{digest} {mutant.name}"

    def status(self, mutant: Mutant) -> int | None:
        """Return what was found of a mutant of the module as it is; None: nothing."""
        return self._found.get(self._key(mutant))

    def note(self, mutant: Mutant, status: int) -> None:
        """Remember what was found."""
        key = self._key(mutant)
        self._found[key] = status
        with self._file.open("a") as file:
            file.write(json.dumps({"key": key, "status": status}, ensure_ascii=False) + "\n")


def accepted() -> dict[str, str]:
    """Read the table of mutants that may survive, with why: docs/mutants.md."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \|$", TABLE.read_text(), re.MULTILINE)
    return dict(rows)
