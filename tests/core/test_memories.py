"""What is remembered of a text says of each text what it would say the first time; docs/memories.md has tests."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core import address, authority, rewrite

ROOT = Path(__file__).resolve().parents[2]
REMEMBERED: list[Callable[..., object]] = [authority._parse, rewrite._header_safe, address.peer_address]
TEXTS = st.text("aA1.:-[] %\u00e9\n", max_size=12) | st.sampled_from(["10.0.0.1", "::1", "[::1]:80", "a.b:80", "a.B"])
ROWS = [line for line in (ROOT / "docs" / "memories.md").read_text().splitlines() if line.startswith("| ")][2:]


@given(st.lists(TEXTS, max_size=8))
def test_what_is_remembered_of_a_text_is_what_it_says(texts: list[str]) -> None:
    for remembered in REMEMBERED:
        for text in texts * 2:
            assert remembered(text) == remembered.__wrapped__(text)  # type: ignore[attr-defined]


@given(st.lists(TEXTS, max_size=8))
def test_an_address_that_is_written_is_the_one_that_was_read(texts: list[str]) -> None:
    for found in map(address.parse_address, texts * 2):
        if found is not None:
            assert address.address_text(found) == str(found)


@pytest.mark.parametrize("row", ROWS, ids=[row[2:30] for row in ROWS])
def test_each_memory_has_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[^`]+)`", row)
    assert named, "no test"
    for name in named:
        path, _, function = name.partition("::")
        text = (ROOT / path).read_text()
        assert not function or f"def {function}(" in text, name
