"""Durations, sizes and shares."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.policy.units import UnitError, parse_duration, parse_share, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("100ms", 0.1), ("2s", 2.0), ("5m", 300.0), ("1h", 3600.0), ("24h", 86400.0), ("0s", 0.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("100B", 100), ("512KiB", 524288), ("10MiB", 10485760), ("1GiB", 1 << 30), ("0B", 0)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("30", "write 30s"),
        ("30 s", "write 30s"),
        ("2d", "write 48h"),
        ("5min", "write 5m"),
        ("1.5s", "like 30s"),
        ("-1s", "like 30s"),
        ("", "like 30s"),
        ("1s\n", ""),
        ("\u0661s", ""),
        ("999999999h", ""),
    ],
)
def test_what_is_no_duration(text: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_duration(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"), [("10", "write 10B"), ("1MB", "write 1MiB"), ("1 k", "write 1KiB"), ("x", ""), ("9999999GiB", "")]
)
def test_what_is_no_size(text: str, hint: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_size(text)
    assert hint in caught.value.hint


@given(st.text())
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(UnitError):
            assert parse(text) >= 0


@pytest.mark.parametrize(("text", "share"), [("50%", 0.5), ("0%", 0.0), ("0", 0.0), ("100%", 1.0), ("7%", 0.07)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("50", "write 50%"),
        ("0.5", "write 50%"),
        (".05", "write 5%"),
        ("50 %", "write 50%"),
        *[(text, "like 50%") for text in ("101%", "", "half", "-1%", "5%\n", "\u0665%")],
    ],
)
def test_what_is_no_share(text: str, hint: str) -> None:
    with pytest.raises(UnitError, match="must be a share") as caught:
        parse_share(text)
    assert hint in caught.value.hint
