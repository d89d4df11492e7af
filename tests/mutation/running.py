"""Tests held against mutants: one session collects them, a forked process runs those that execute a mutant's lines.

The mutant's code takes the place of its function's in that process; only what runs at import (a class, a module) is
imported anew, with its tests.
"""

import gc
import hashlib
import importlib
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

from tests.live import harness_upstream
from tests.mutation.making import PACKAGE, ROOT, Mutant, codes_in, functions, install, module_of, patched

FOLDERS = ("stages", "core", "keys", "proxy", "stores", "policy", "protocol")
"""Of the tests, those that run in pytest's own process, where a mutant can be."""
APART = re.compile(
    "test_(fuzz|fuzz_frames|bars|http2_floods|http2_memory|http2_messages|redis_exact|redis_failures|wall_clock|linear)"
)
"""Tests that take long, measure, or ask processes of their own: left out."""

SLOW = 0.5
"""Seconds; tests that take longer run last."""

PATIENCE = 40.0
"""Seconds beyond ten times what the tests of a mutant take without one; those that do not end by then noticed it."""

HASTE = 8.0
"""Seconds that a test waits for what a mutant may have ended; 20 where there is none."""

TABLE = ROOT / "docs" / "mutants.md"
_ARGUMENTS = ("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:terminal", "--capture=no", "--assert=plain")


@cache
def own_tests(path: str) -> tuple[str, ...]:
    """Return the test files that are named like a module, or name it, those most like it first."""
    stem = Path(path).stem
    named = re.compile(rf"\b{re.escape('.'.join(('mitmgate', *Path(path).with_suffix('').parts)))}\b")
    found = []
    for file in (file for folder in FOLDERS for file in sorted((ROOT / "tests" / folder).glob("test_*.py"))):
        like = stem in file.stem or file.stem.removeprefix("test_") in path.replace("/", "_")
        if not APART.match(file.stem) and (like or named.search(file.read_text())):
            found.append((not like, file.parent.name != Path(path).parts[0], str(file.relative_to(ROOT))))
    return tuple(name for _, _, name in sorted(found))


@cache
def _like(path: str) -> frozenset[str]:
    """Return the test files that are named like a module: all their tests that execute a mutant run, however long."""
    part = Path(path).stem
    files = map(Path, own_tests(path))
    whole = path.replace("/", "_")
    return frozenset(str(file) for file in files if part in file.stem or file.stem.removeprefix("test_") in whole)


@dataclass(frozen=True, slots=True)
class Covered:
    """What one test executes. seconds: how long it takes. lines: of each module, those that it executes."""

    seconds: float
    lines: dict[str, frozenset[int]]
    passed: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a mutant. by: the test that noticed it; empty where none did. tests: a digest of what ran."""

    by: str
    tests: str
    ran: int

    @property
    def noticed(self) -> bool:
        """Whether a test noticed it."""
        return self.by != ""


class Tests:
    """All tests that pytest has collected, what each executes, and processes that run some of them."""

    def __init__(self, session: pytest.Session, paths: Sequence[str], cache_file: Path) -> None:
        """paths: the modules whose lines are of interest."""
        self._items = {item.nodeid: item for item in session.items}
        self._session = session
        self._paths = paths
        self._cache = cache_file
        self._covered: dict[str, Covered] = {}
        files = {name.partition("::")[0] for name in self._items}
        self._texts = {file: hashlib.sha256((ROOT / file).read_bytes()).digest() for file in files}

    def cover(self, note: Callable[[str], None]) -> None:
        """Run the tests as they are, and note what each executes; those of an unchanged file are known from before."""
        for path in self._paths:
            importlib.import_module(module_of(path))
        functions()  # found once, here, for all processes to come
        gc.freeze()
        known: dict[str, tuple[dict[str, bytes], dict[str, Covered]]] = {}
        if self._cache.is_file():
            known = pickle.loads(self._cache.read_bytes())
        by_file: dict[str, list[pytest.Item]] = {}
        for name, item in self._items.items():
            by_file.setdefault(name.partition("::")[0], []).append(item)
        for number, (file, items) in enumerate(by_file.items()):
            of, found = known.get(file, ({}, {}))
            if any(of.get(each) != text for each, text in self._depends(file, found).items()):
                note(f"tests as they are: {file} ({number} of {len(by_file)})")
                found = self._cover(items)
                known[file] = self._depends(file, found), found
                if self._cache.name != "null":
                    self._cache.write_bytes(pickle.dumps(known))
            self._covered.update({name: covered for name, covered in known[file][1].items() if name in self._items})
        failing = [name for name, covered in self._covered.items() if not covered.passed]
        for name in failing:
            note(f"fails without a mutant, and is left out: {name}")
            del self._covered[name]

    def _depends(self, file: str, found: dict[str, Covered]) -> dict[str, bytes]:
        """Return the texts (as digests) that what was found of a test file holds for: its own, and each module's."""
        modules = {path for covered in found.values() for path in covered.lines}
        texts = {path: hashlib.sha256((PACKAGE / path).read_bytes()).digest() for path in modules & set(self._paths)}
        return dict.fromkeys([*modules, *self._paths], b"") | texts | {file: self._texts[file]}

    def _cover(self, items: list[pytest.Item]) -> dict[str, Covered]:
        reading, writing = os.pipe()
        directory = tempfile.mkdtemp(prefix="mutant-")
        child = self._fork(directory)
        if child == 0:
            status = 1
            try:
                os.close(reading)
                with os.fdopen(writing, "wb") as out:
                    pickle.dump(self._traced(items), out)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as found:
            content = found.read()
        os.waitpid(child, 0)
        shutil.rmtree(directory, ignore_errors=True)
        covered: dict[str, Covered] = pickle.loads(content)
        return covered

    def _traced(self, items: list[pytest.Item]) -> dict[str, Covered]:
        """Run tests, and note the lines of each."""
        tool = sys.monitoring.COVERAGE_ID
        events = sys.monitoring.events.LINE
        seen: set[tuple[str, int]] = set()

        def line(code: object, number: int) -> object:
            seen.add((code.co_filename, number))  # type: ignore[attr-defined]  # a code object
            return sys.monitoring.DISABLE

        sys.monitoring.use_tool_id(tool, "mutants")
        sys.monitoring.register_callback(tool, events, line)
        for path in self._paths:
            for function in functions().get(str(PACKAGE / path), ()):
                for code in codes_in(function.__code__):
                    sys.monitoring.set_local_events(tool, code, events)
        found = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            seen.clear()
            sys.monitoring.restart_events()
            started = time.perf_counter()
            passed = self._passes(item, following)
            seconds = time.perf_counter() - started
            lines: dict[str, set[int]] = {}
            for file, number in list(seen):
                lines.setdefault(str(Path(file).relative_to(PACKAGE)), set()).add(number)
            found[item.nodeid] = Covered(seconds, {path: frozenset(of) for path, of in lines.items()}, passed)
        return found

    def _passes(self, item: pytest.Item, following: pytest.Item | None) -> bool:
        return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))

    def of(self, mutant: Mutant, seconds: float) -> list[str]:
        """Choose the tests that execute a mutant's lines, in the order in which they run.

        First those of its module, all of them; then others, so many seconds at most: before a second one that goes the
        same way through the module, one of each other way.
        """
        lines = range(mutant.line, mutant.last + 1)
        ranks = {file: rank for rank, file in enumerate(own_tests(mutant.path))}
        own: list[tuple[bool, int, float, str]] = []
        others: list[tuple[bool, bool, int, float, str]] = []
        ways: set[frozenset[int]] = set()
        for name, covered in sorted(self._covered.items(), key=lambda item: item[1].seconds):
            executed = covered.lines.get(mutant.path)
            if executed is None or executed.isdisjoint(lines):
                continue
            file, cost = name.partition("::")[0], covered.seconds
            if file in _like(mutant.path):
                own.append((cost > SLOW, ranks[file], cost, name))
            else:
                others.append((cost > SLOW, executed in ways, ranks.get(file, len(ranks)), cost, name))
                ways.add(executed)
        taken = [name for *_, name in sorted(own)]
        for *_, cost, name in sorted(others):
            seconds -= cost
            if seconds < 0:
                break
            taken.append(name)
        return taken

    def digest(self, names: Iterable[str]) -> str:
        """Digest tests: their names, and the text of their files."""
        made = hashlib.sha256()
        for name in sorted(names):
            made.update(name.encode())
        for file in sorted({name.partition("::")[0] for name in names}):
            made.update(self._texts[file])
        return made.hexdigest()[:16]

    def seconds(self, names: Iterable[str]) -> float:
        """Return how long tests take."""
        return sum(self._covered[name].seconds for name in names)

    def start(self, mutant: Mutant, names: list[str], directory: str) -> int:
        """Run tests on a mutant, in a process of its own: returns its id. What noticed it is in directory/by."""
        child = self._fork(directory)
        if child == 0:
            status = 1
            try:
                cpu = int(20 + 10 * self.seconds(names))
                resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
                self._run(mutant, names, directory)
                status = 0
            except BaseException:
                Path(directory, "by").write_text(f"a process that ended with {traceback.format_exc(1)}")
            finally:
                os._exit(status)  # whatever was raised: a fork must not go on as its parent
        return child

    def _run(self, mutant: Mutant, names: list[str], directory: str) -> None:
        changed = patched(mutant)
        if not changed:
            # Of a class or of the module: import it anew, and its tests.
            install(mutant)
            arguments = ["-x", "-q", *_ARGUMENTS[:4], "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            if pytest.main([*arguments, *own_tests(mutant.path)]) != pytest.ExitCode.OK:
                Path(directory, "by").write_text("its module's tests")
            return
        for function, code in changed:
            function.__code__ = code
        for name, following in zip(names, [*names[1:], None], strict=True):
            if not self._passes(self._items[name], None if following is None else self._items[following]):
                Path(directory, "by").write_text(name)
                self._session._setupstate.teardown_exact(None)  # servers that its fixtures have started
                return

    def _fork(self, directory: str) -> int:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.environ["PYTEST_DEBUG_TEMPROOT"] = directory
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
        return child


@dataclass
class _Running:
    mutant: Mutant
    names: list[str]
    directory: str
    until: float


@dataclass
class Runs:
    """Runs mutants, so many at once. seconds: of tests for each."""

    tests: Tests
    jobs: int
    seconds: float
    until: float = float("inf")
    """When (time.monotonic) nothing further is begun."""
    _running: dict[int, _Running] = field(default_factory=dict)
    _first: dict[str, list[str]] = field(default_factory=dict)
    """The tests that have noticed mutants of a place: they run first for its other ones."""

    def chosen(self, mutant: Mutant) -> list[str]:
        """Choose a mutant's tests."""
        return self.tests.of(mutant, self.seconds)

    def each(self, mutants: Iterable[Mutant]) -> Iterator[tuple[Mutant, Result]]:
        """Yield each mutant with its result, as they end."""
        waiting = iter(mutants)
        ended = False
        while True:
            while not ended and len(self._running) < self.jobs:
                mutant = next(waiting, None)
                if mutant is None or time.monotonic() >= self.until:
                    ended = True
                    break
                self._start(mutant)
            if not self._running:
                return
            yield from self._ended()

    def _start(self, mutant: Mutant) -> None:
        directory = tempfile.mkdtemp(prefix="mutant-")
        names = self.chosen(mutant)
        likely = [name for name in reversed(self._first.get(f"{mutant.path} {mutant.place}", ())) if name in names]
        names = [*likely, *(name for name in names if name not in likely)]
        child = self.tests.start(mutant, names, directory)
        until = time.monotonic() + PATIENCE + 10 * self.tests.seconds(names)
        self._running[child] = _Running(mutant, names, directory, until)

    def _ended(self) -> Iterator[tuple[Mutant, Result]]:
        time.sleep(0.005)
        for child, running in list(self._running.items()):
            late = time.monotonic() > running.until
            if late:
                os.killpg(child, signal.SIGKILL)
            pid, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if pid == 0:
                continue
            del self._running[child]
            by = Path(running.directory, "by")
            noticed = by.read_text() if by.is_file() else ""
            if not noticed and os.waitstatus_to_exitcode(status) != 0:
                noticed = "its tests do not end"
            shutil.rmtree(running.directory, ignore_errors=True)
            mutant = running.mutant
            if noticed in running.names:
                first = self._first.setdefault(f"{mutant.path} {mutant.place}", [])
                if noticed in first:
                    first.remove(noticed)
                first.append(noticed)
            yield mutant, Result(noticed, self.tests.digest(running.names), len(running.names))

    def stop(self) -> None:
        """End what runs."""
        for child, running in self._running.items():
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            shutil.rmtree(running.directory, ignore_errors=True)
        self._running.clear()


class _Plugin:
    """Takes the place of pytest's own loop."""

    def __init__(self, act: Callable[[pytest.Session], None]) -> None:
        self._act = act

    def pytest_collection(self) -> None:
        """Let properties be the same in each run, and not look for the least example."""
        # After conftest, which loads a profile, and before the tests, which are made with it.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", parent=settings.get_profile("ci"), phases=phases)
        settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what takes long."""
        items[:] = [item for item in items if not APART.match(item.path.stem)]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Do what the command is for."""
        self._act(session)
        return True


def with_tests(files: Sequence[str], act: Callable[[pytest.Session], None]) -> None:
    """Collect test files, or folders of them, in this process, and call act with pytest's session.

    ValueError: they can't be collected.
    """
    os.chdir(ROOT)
    for name in ("chain", "policy.loader", "proxy.listener", "host.master"):
        importlib.import_module(f"mitmgate.{name}")
    harness_upstream.PATIENCE = HASTE  # before the tests are imported, which take it from there
    status = pytest.main([*_ARGUMENTS, "-o", "addopts=--import-mode=importlib", *files], plugins=[_Plugin(act)])
    if status not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        raise ValueError(f"pytest ended with {status!r}")


class Known:
    """What earlier runs have found, by the module's and the tests' text: a file of JSON lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Result] = {}
        if file.is_file():
            for line in file.read_text().splitlines():
                record = json.loads(line)
                if "by" in record:
                    self._found[record["key"]] = Result(record["by"], record["tests"], record["ran"])

    @staticmethod
    def _key(mutant: Mutant) -> str:
        return f"{_digest(mutant.path)} {mutant.name}"

    def result(self, mutant: Mutant) -> Result | None:
        """Return what was found of a mutant of the module as it is; None: nothing."""
        return self._found.get(self._key(mutant))

    def note(self, mutant: Mutant, result: Result) -> None:
        """Remember what was found."""
        key = self._key(mutant)
        self._found[key] = result
        record = {"key": key, "by": result.by, "tests": result.tests, "ran": result.ran}
        with self._file.open("a") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


@cache
def _digest(path: str) -> str:
    return hashlib.sha256((PACKAGE / path).read_bytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of docs/mutants.md: mutants of one function, and words. A `*` in what is changed stands for anything."""

    name: str
    words: str

    def __post_init__(self) -> None:
        """Refuse a row that is for more than one function, or says nothing."""
        place, colon, _ = self.name.partition(": ")
        if not colon or "*" in place or not self.words.strip():
            raise ValueError(f"{TABLE.name}: a row names one function and what is changed in it: {self.name}")

    def takes(self, mutant: Mutant) -> bool:
        """Tell whether a mutant is one of these."""
        return re.fullmatch(".*".join(map(re.escape, self.name.split("*"))), mutant.name) is not None


def rows(section: str) -> list[Row]:
    """Read a table of docs/mutants.md. ValueError: there is no such section, or a row is none."""
    _, heading, text = TABLE.read_text().partition(f"## {section}\n")
    if not heading:
        raise ValueError(f"{TABLE.name} has no section {section}")
    found = re.findall(r"^\| `([^`]+)` \| (.+?) \|$", text.partition("\n## ")[0], re.MULTILINE)
    return [Row(name, words) for name, words in found]
