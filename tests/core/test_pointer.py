"""Where a claim is found: plain names, and JSON pointers as RFC 6901 has them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.pointer import ABSENT, find, problem, put

DOCUMENT: dict[str, Any] = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
    "/x": 9,
    "https://acme.example/roles": ["a"],
    "null": {"value": None},
}
"""That of RFC 6901, section 5, and more."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
        ("/~1x", 9),
        ("a/b", 1),
        ("m~n", 8),
        ("https://acme.example/roles", ["a"]),
        ("/null/value", None),
    ],
)
def test_what_is_there(name: str, value: object) -> None:
    assert find(DOCUMENT, name, ABSENT) == value


@pytest.mark.parametrize(
    "name",
    ["/x", "/foo/2", "/foo/-", "/foo/00", "/foo/-1", "/foo/0/0", "/foo/99999999999", "/null/value/a", "foo/0", "//"],
)
def test_what_is_not_there(name: str) -> None:
    assert find(DOCUMENT, name, ABSENT) is ABSENT


@pytest.mark.parametrize(("name", "good"), [("/a~2", False), ("/~", False), ("/a~0~1", True), ("a~2", True)])
def test_what_is_no_pointer(name: str, good: bool) -> None:
    assert (problem(name) is None) is good


@given(st.lists(st.text(), min_size=1, max_size=5), st.one_of(st.booleans(), st.text()))
def test_what_was_put_is_found(steps: list[str], value: object) -> None:
    claims: dict[str, Any] = {"a": "in the way"}
    pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)
    assert problem(pointer) is None
    put(claims, pointer, value)
    assert find(claims, pointer) == value
