"""Strict base64url and JSON: one value has one spelling."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.jose import MAX_DEPTH, decode_base64url, parse_object


@given(st.binary(max_size=100))
def test_base64url_is_read_back(data: bytes) -> None:
    text = base64.urlsafe_b64encode(data).rstrip(b"=")
    assert decode_base64url(text) == data


@given(st.binary(max_size=12) | st.text("ABab01-_+/= .", max_size=12).map(str.encode))
def test_what_is_read_has_one_spelling(text: bytes) -> None:
    data = decode_base64url(text)
    assert data is None or base64.urlsafe_b64encode(data).rstrip(b"=") == text


@pytest.mark.parametrize("byte", sorted(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyz"))[:200])
def test_only_the_alphabet_is_read(byte: int) -> None:
    text = bytes([65, byte, 65, 65])
    inside = chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "-_")
    assert (decode_base64url(text) is not None) is inside


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Whole characters only: a lone surrogate has no UTF-8.
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", max_size=3), PLAIN, max_size=4), st.booleans())
def test_plain_objects_are_read_back(value: Any, ascii_only: bool) -> None:
    assert parse_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=40) | st.text('{}[]",:\\u0123eE+-. ntf', max_size=30).map(str.encode))
def test_anything_else_is_none(data: bytes) -> None:
    value = parse_object(data)
    assert value is None or isinstance(value, dict)


@pytest.mark.parametrize("depth", [1, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_depth_is_bounded(depth: int, opening: bytes, closing: bytes) -> None:
    data = b'{"a":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"
    assert (parse_object(data) is not None) is (depth <= MAX_DEPTH)


def test_many_shallow_members_are_not_deep() -> None:
    assert parse_object(json.dumps({"a": [[] for _ in range(200)]}).encode()) is not None


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("18446744073709551615", True),
        ("18446744073709551616", False),
        ("-9223372036854775808", True),
        ("-9223372036854775809", False),
        ("9" * 5000, False),
        ("1e308", True),
        ("1e309", False),
        ("-1e309", False),
        ("NaN", False),
        ("Infinity", False),
        ("01", False),
        ("+1", False),
        ("0x10", False),
    ],
)
def test_numbers(text: str, good: bool) -> None:
    assert (parse_object(f'{{"n":{text}}}'.encode()) is not None) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [(r"\ud83d\ude00", True), (r"\ud83d", False), (r"\ude00\ud83d", False), (r"\\ud83d", True), (r"\u0000", True)],
)
def test_escaped_surrogates_come_in_pairs(text: str, good: bool) -> None:
    assert (parse_object(f'{{"s":"{text}"}}'.encode()) is not None) is good
