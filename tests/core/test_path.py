"""The canonical path: one reading, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.path import Ambiguous, CanonicalPath, canonical_path

SAME = ["/", "/a", "/a/", "/api/v1/users", "/a/b.c/~x", "/a%20b", "/caf%C3%A9", "/100%25", "/...", "/a:b@c", "/%23%3F"]


@pytest.mark.parametrize("path", SAME)
def test_an_ordinary_path_stays_as_it_is(path: str) -> None:
    assert canonical_path(path) == CanonicalPath(path)


@pytest.mark.parametrize(
    ("raw", "canonical"), [("/%61dmin", "/admin"), ("/%7Ex", "/~x"), ("/caf%c3%a9", "/caf%C3%A9"), ("/a%2db", "/a-b")]
)
def test_harmless_differences_are_folded(raw: str, canonical: str) -> None:
    assert canonical_path(raw) == CanonicalPath(canonical)


def test_an_encoded_slash_is_told_apart() -> None:
    assert canonical_path("/a%2fb") == CanonicalPath("/a%2Fb", encoded_slash=True)


AMBIGUOUS = [
    "", "a", "*", "//", "/a//b", "/a/../b", "/..", "/.", "/a/.", "/./a", "/%2e%2e/a", "/a/%2E", "/.%2e/a", "/a\\b",
    "/a%5cb", "/a;b", "/..;/a", "/a%00", "/a%0a", "/a%7f", "/%2561", "/%252e%252e", "/a b", "/a\x00", "/\xe9",
    "/%c0%ae%c0%ae", "/%ff", "/a%", "/a%2", "/a%zz", "/a%2f..%2fb", "/%2f", "/a|b", '/a"b', "/a<b>",
]  # fmt: skip


@pytest.mark.parametrize("raw", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused(raw: str) -> None:
    assert isinstance(canonical_path(raw), Ambiguous)


@given(st.text(alphabet=st.sampled_from("/.%25aA2eEfF0;\\ ~-_cC3é"), max_size=24))
def test_canonical_is_a_fixed_point_without_dots_or_empty_segments(raw: str) -> None:
    result = canonical_path(raw)
    if isinstance(result, CanonicalPath):
        assert canonical_path(result.text) == result
        segments = result.text.split("/")[1:]
        assert all(segment not in {".", ".."} for segment in segments)
        assert all(segments[:-1])
