"""Every warning of `check`, to the byte (tests/policy/warnings), and that there is none which nothing here raises."""

import ast
import json
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mitmgate.policy.document import Document
from mitmgate.policy.loader import load
from mitmgate.policy.problem import Code, Problem
from mitmgate.review import review
from tests.live.harness import ROOT
from tests.policy import test_lint
from tests.policy.conftest import make_certificate

PINNED = Path(__file__).with_name("warnings")
SOURCES = ROOT / "addons" / "mitmgate"
ENVIRON = {"KEY": "k" * 32, "S": "s" * 32}


def policies() -> Iterator[str]:
    """Yield policies: one that raises nearly everything at once, and what excludes that."""
    yield (PINNED / "many.yaml").read_text()
    clean = test_lint.CLEAN
    yield clean.replace("sinks: [{file: a.jsonl}], ", "")
    yield clean.replace("key_env: KEY", "key_env: NO_KEY")
    yield clean.replace("identity:", "identity:\n  certificates: {dns: a.example, header: X-Client-Cert}")
    yield clean.replace("endpoints:", "tls: {ca: old.pem}, endpoints:").replace("http://127", "https://127")
    yield f"{clean}decide: {{trusted: []}}\n"
    yield clean.replace("{sinks", "{anchors: {file: stages, key_env: S}, sinks")
    yield clean.replace("upstream: users", "upstream: users\n    acknowledge: {public: no longer}")
    twice = clean.replace("prefix: /users", "prefix: /users, methods: [GET, PUT]")
    yield twice.replace("audit:", test_lint.ROUTE % "prefix: /users/, methods: [GET]")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list[Problem]], set[tuple[str, int]]]:
    """Return what each policy is warned of, acknowledged or not, and the lines of the source that made a warning."""
    directory = shutil.copytree(PINNED, tmp_path_factory.mktemp("warnings") / "w")
    make_certificate(directory / "old.pem", directory / "old.key", datetime(2020, 1, 1, tzinfo=UTC), 30)
    lines: set[tuple[str, int]] = set()
    made, warning = [], Document.warning

    def noting(*arguments: object, **named: object) -> Problem:
        frame = sys._getframe(1)
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return warning(*arguments, **named)  # type: ignore[arg-type]  # handed on as they came

    before = os.getcwd()
    os.chdir(directory)
    Document.warning = noting  # type: ignore[method-assign]  # as above
    try:
        for text in policies():
            Path("policy.yaml").write_text(text)
            whole = review(load("policy.yaml", ENVIRON))
            made.append([*whole.warnings, *(problem for problem, _ in whole.acknowledged)])
    finally:
        os.chdir(before)
        Document.warning = warning  # type: ignore[method-assign]  # as it was
    return made, lines


def test_warnings_are_what_they_were(found: tuple[list[list[Problem]], set[tuple[str, int]]]) -> None:
    """A change of a warning, its place or its turn shows here; `MITMGATE_PIN=1` writes what it is now."""
    text = "\n\n".join("\n".join(map(str, problems)) for problems in found[0]) + "\n"
    many = json.dumps([problem.as_dict() for problem in found[0][0]], indent=1) + "\n"
    for name, written in (("warnings.txt", text), ("many.json", many)):
        if "MITMGATE_PIN" in os.environ:
            (PINNED / name).write_text(written)
        assert written.splitlines() == (PINNED / name).read_text().splitlines()


def test_every_warning_is_raised(found: tuple[list[list[Problem]], set[tuple[str, int]]]) -> None:
    """Each code, and each line of the source that makes a warning."""
    raised = {problem.code for problems in found[0] for problem in problems}
    assert set(Code) - raised == set()
    sites = [
        (str(path), node.lineno, node.end_lineno or node.lineno)
        for path in SOURCES.rglob("*.py")
        if "Code." in (text := path.read_text()) and ".warning(" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warning"
        if "Code." in ast.unparse(node)
    ]
    assert len(sites) > 40
    missed = [
        f"{path}:{first}"
        for path, first, last in sites
        if not any(name == path and first <= line <= last for name, line in found[1])
    ]
    assert missed == []
