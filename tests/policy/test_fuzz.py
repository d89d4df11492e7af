"""Whatever a file holds, loading it raises PolicyError or nothing; and what it says is one line a problem."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import example as example_of
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mitmgate.policy.loader import PolicyError, Problem, load, load_snapshot
from mitmgate.policy.model import Policy
from mitmgate.policy.section import Section
from mitmgate.review import lint

EXAMPLE: Any = YAML(typ="safe", pure=True).load(Path(__file__).with_name("policy-example.yaml").read_text())
ENVIRON = {"A": "1", "MITMGATE_DEV_SECRET": "s" * 32, "MITMGATE_AUDIT_KEY": "k" * 32}


MEMBERS = sorted({member for section in Section.__subclasses__() for member in section.model_fields})
WORDS = st.sampled_from(
    [
        *("none", "memory", "users", "corp", "dev", "per-user", "principal", "claim:a", "HS256", "ES256", "*", "GET"),
        *("1s", "1KiB", "/", "/a", "10.0.0.0/8", "http://a", "redis://a", "${A}", "${B}", "${A:-b}", "${", "{subject}"),
        *("{claim:x}", "request.method == 'GET'", "true", "X-A", "X_A", "a\nb", "\x1b[31m", "{", "tls/server.pem", "."),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS
KEYS = st.sampled_from([*MEMBERS, "users", "corp"]) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
FEW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def survive(path: Path, content: bytes) -> None:
    """Load, lint and compile; only PolicyError may come out."""
    path.write_bytes(content)
    problems: tuple[Problem, ...] = ()
    try:
        loaded = load(path, ENVIRON)
    except PolicyError as error:
        problems = error.problems
    else:
        lint(loaded)
        assert load_snapshot(path, ENVIRON).digest
        return
    assert any(problem.severity == "error" for problem in problems)
    for problem in problems:
        assert "\n" not in str(problem)
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.message


@FEW
@given(value=VALUES)
@example_of(value={"(": None})
@example_of(value={"[key]": None, "store": {"(redis)": 1, "[key]": 2}})
@example_of(value={"identity": {"forward": {"subject": []}}})
def test_any_document(tmp_path: Path, value: object) -> None:
    survive(tmp_path / "p.yaml", json.dumps(value).encode())


@FEW
@given(value=st.dictionaries(st.sampled_from(sorted(Policy.model_fields)), VALUES))
def test_any_members(tmp_path: Path, value: dict[str, object]) -> None:
    survive(tmp_path / "p.yaml", json.dumps({"version": 1, **value}, ensure_ascii=False).encode(errors="replace"))


def _places(value: Any, location: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [location, *(place for key, member in inner for place in _places(member, (*location, key)))]


PLACES = [place for place in _places(EXAMPLE) if place]


@pytest.fixture
def directory(example: Path) -> Path:
    return example.parent


@FEW
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), SCALARS | VALUES, st.booleans()), min_size=1, max_size=3))
def test_the_example_with_members_changed(directory: Path, changes: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
    policy = copy.deepcopy(EXAMPLE)
    for (*parents, last), value, remove in changes:
        inner = policy
        try:
            for step in parents:
                inner = inner[step]
            if remove:
                del inner[last]
            else:
                inner[last] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    survive(directory / "p.yaml", json.dumps(policy).encode())


@FEW
@given(text=st.text() | st.lists(st.sampled_from(list("[]{}:,-?&*!|>'\"%@`#\n \ta1$<~.")), max_size=40).map("".join))
def test_any_text(tmp_path: Path, text: str) -> None:
    survive(tmp_path / "p.yaml", text.encode())


@FEW
@given(content=st.binary(max_size=60))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    survive(tmp_path / "p.yaml", content)


@FEW
@given(at=st.integers(0, 4800), length=st.integers(0, 40), text=st.text(max_size=5))
def test_the_example_with_text_cut_and_pasted(directory: Path, at: int, length: int, text: str) -> None:
    example = (directory / "policy-example.yaml").read_text()
    survive(directory / "p.yaml", (example[:at] + text + example[at + length :]).encode())
