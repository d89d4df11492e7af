"""The repository itself: what may lie in it, what every file says first, that the lock and the README are true."""

import ast
import re
import subprocess
import tomllib
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mitmgate.chain import REQUIRED
from mitmgate.core.reason import Reason
from mitmgate.pipeline.stage import Stage
from mitmgate.stages.own import OwnStage
from mitmgate.stages.quota import Quota

ROOT = Path(__file__).resolve().parents[1]
VISIBLE = {"addons", "policies", "tests", "bench", "deploy", "docs", "run.sh", "pyproject.toml"} | {
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [name for name in listed.decode().split("\0") if name and (ROOT / name).exists()]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


TRACKED = tracked()
PYTHON = [name for name in TRACKED if name.endswith(".py") and text_of(name).strip()]


def test_the_root_holds_what_it_should() -> None:
    top = {name.split("/")[0] for name in TRACKED}
    assert {name for name in top if not name.startswith(".")} <= VISIBLE


def test_no_path_of_a_machine_and_no_address_of_a_registry() -> None:
    machine = re.compile(r"(^|[^A-Za-z0-9_.])/(root|work|farm|home/[a-z]+)/", re.MULTILINE)
    registry = re.compile(
        r"index[-_]url|registry *= *\"?http|(pypi|pythonhosted)\.org|registry\.npm" + r"js|deb\.debian\.org"
    )
    mine = str(Path(__file__).relative_to(ROOT))
    found = [
        f"{name}: {match.group()!r}"
        for name in TRACKED
        if name != mine
        for pattern in (machine, registry)
        for match in [pattern.search(text_of(name))]
        if match
    ]
    assert found == []


def test_nothing_generated_is_tracked() -> None:
    assert [
        name for name in TRACKED if re.search(r"__pycache__|\.pyc$|\.egg-info|(^|/)\.venv|\.(jsonl|log)$", name)
    ] == []


@pytest.mark.parametrize("name", PYTHON)
def test_a_file_says_its_subject_in_its_first_line(name: str) -> None:
    first = (ast.get_docstring(ast.parse(text_of(name))) or "").split("\n")[0]
    assert 10 < len(first) <= 120, f"{name}: a docstring of one line that says what the file is about"


def table(document: str, *heads: str) -> list[tuple[str, ...]]:
    """Return the rows of the table with these heads, without the marks of code."""
    lines = document.split("\n")
    start = next(at for at, line in enumerate(lines) if cells(line)[: len(heads)] == heads) + 2
    rows = takewhile(lambda line: line.startswith("|"), lines[start:])
    return [tuple(cell.strip("`") for cell in cells(line)) for line in rows]


def cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip("|").split(" |"))


def test_the_page_of_reasons_lists_those_that_there_are() -> None:
    """Each once, with its status and title, in the order of the enum; and no other."""
    assert [row[:3] for row in table(text_of("docs/reasons.md"), "code", "status", "title", "stage")] == [
        (reason.code, str(reason.status), reason.title) for reason in Reason
    ]


def test_the_stages_are_the_same_everywhere() -> None:
    """The chain, what Enforcer asks for, the README, the tests, and the classes that there are."""
    found = [*Stage.__subclasses__(), *Quota.__subclasses__()]
    found = [one for one in found if one is not OwnStage]  # the place of operators' stages, whose name is the policy's
    classes = {one.name for one in found if one is not Quota and one.__module__.startswith("mitmgate.stages.")}
    assert len(set(REQUIRED)) == len(REQUIRED)
    silent = {one.name for one in found if one is not Quota and one.goes_by is Stage.goes_by}
    assert silent & set(REQUIRED) == set(), "`explain` asks each stage by which members of the policy it went"
    assert tuple(row[0] for row in table(text_of("README.md"), "stage", "denies with")) == REQUIRED
    assert classes == set(REQUIRED)
    tested = {name for name in REQUIRED if f"tests/stages/test_{name.replace('-', '_')}.py" in TRACKED}
    assert tested == set(REQUIRED)


def test_every_reason_code_has_a_test_that_names_it() -> None:
    mine = str(Path(__file__).relative_to(ROOT))
    tests = "\n".join(text_of(name) for name in PYTHON if name.startswith("tests/") and name != mine)
    assert {r for r in Reason if re.search(rf"Reason\.{r.name}\b|\"{r.code}\"", tests)} == set(Reason)


def locked(name: str) -> dict[str, str]:
    """Return name and version of everything in a lock file, with its hashes checked to be there."""
    blocks = re.split(r"\n(?=\S)", text_of(name).strip())
    assert all("--hash=sha256:" in block for block in blocks)
    pins = [re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", block) for block in blocks]
    assert all(pins)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def test_the_lock_is_what_pyproject_asks_for() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    runtime, dev = locked(".lock/runtime.txt"), locked(".lock/dev.txt")
    for wanted, lock in ((project["dependencies"], runtime), (project["optional-dependencies"]["dev"], dev)):
        for requirement in map(Requirement, wanted):
            version = lock.get(canonicalize_name(requirement.name))
            assert version is not None, f"{requirement} is not in the lock"
            assert requirement.specifier.contains(version), f"{requirement}: {version} is locked"
    assert runtime.items() <= dev.items(), "the development lock holds the runtime's versions"


def test_every_dependency_says_what_for() -> None:
    lines = text_of("pyproject.toml").split("\n")
    unexplained = [
        line.strip()
        for above, line in pairwise(lines)
        if re.match(r'    "[a-z-]+[><=~]', line) and not above.strip().startswith("#")
    ]
    assert unexplained == []


@pytest.mark.parametrize("page", ["docs/rfc.md", "docs/tokens.md"])
def test_the_table_of_requirements_names_tests_that_exist(page: str) -> None:
    rows = re.findall(r"`([a-z0-9]+/test_[a-z0-9_]+)::(test_[a-z0-9_]+)` \|$", text_of(page), re.MULTILINE)
    assert len(rows) > 40
    if page == "docs/tokens.md":
        assert len(rows) == len(re.findall(r"^\| [0-9]", text_of(page), re.MULTILINE)), "a row without a test"
    missing = [f"{file}::{name}" for file, name in rows if f"def {name}(" not in text_of(f"tests/{file}.py")]
    assert missing == []


def numbers() -> dict[str, float]:
    """Return the numbers that what runs is written with: those of modules that have a name in capitals."""
    root, found = ROOT / "addons/mitmgate", {}
    tools = {"demo", "inspect", "replay"}  # these bound nothing that a client meets
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).with_suffix("")
        for node in ast.parse(path.read_text()).body if module.parts[0] not in tools else ():
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id.isupper() and isinstance(node, ast.Assign | ast.AnnAssign):
                try:
                    value = eval(compile(ast.Expression(node.value or ast.Constant(None)), "", "eval"), {})
                except (NameError, TypeError, AttributeError):
                    continue
                if type(value) in {int, float}:
                    found[f"{module}:{target.id}"] = float(value)
    return found


def test_the_list_of_bounds_is_that_of_the_source() -> None:
    """A number that is new needs a row in docs/bounds.md: what it bounds, and what happens beyond it."""
    units = {"": 1, "s": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    rows = re.findall(r"^\| `([\w/]+:\w+)` \| (-?[\d.,]+) ?(\w*) \|", text_of("docs/bounds.md"), re.MULTILINE)
    listed = {name: float(value.replace(",", "")) * units[unit] for name, value, unit in rows}
    found = numbers()
    assert len(found) > 100
    assert {name: value for name, value in found.items() if listed.get(name) != value} == {}, "see docs/bounds.md"
    assert listed.keys() <= found.keys(), "of docs/bounds.md, and not in the source"
