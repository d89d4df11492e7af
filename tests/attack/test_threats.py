"""docs/threats.md: every test that it names exists."""

import re

import pytest

from tests.live.harness import ROOT

PAGE = (ROOT / "docs" / "threats.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| threat", "| ---"))]


@pytest.mark.parametrize("row", ROWS, ids=[row[2:40] for row in ROWS])
def test_threat_has_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[^`]+)`", row)
    assert named, "no test"
    for name in named:
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert not function or f"def {function}(" in (ROOT / path).read_text(), name


def test_attacks_are_all_in_the_table() -> None:
    files = {f"tests/attack/{path.name}" for path in (ROOT / "tests" / "attack").glob("test_*.py")}
    unnamed = {name for name in files if f"`{name}" not in PAGE}
    assert unnamed <= {"tests/attack/test_judge.py", "tests/attack/test_threats.py"}
