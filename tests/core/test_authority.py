"""Host and authority: what is one, exactly, and what only looks like one."""

import pytest

from mitmgate.core.authority import parse_authority

LONGEST_NAME = ".".join(["a" * 63] * 3 + ["a" * 61])


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("api.example", ("api.example", None)),
        ("API.Example.:8080", ("api.example", 8080)),
        ("x:1", ("x", 1)),
        ("x:65535", ("x", 65535)),
        ("x:00080", ("x", 80)),
        ("192.0.2.7:80", ("192.0.2.7", 80)),
        ("[2001:DB8::1]", ("2001:db8::1", None)),
        ("[::1]:443", ("::1", 443)),
        (LONGEST_NAME, (LONGEST_NAME, None)),
        (LONGEST_NAME + ".:65535", (LONGEST_NAME, 65535)),
    ],
)
def test_what_is_one(text: str, parsed: tuple[str, int | None]) -> None:
    assert parse_authority(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "x:", "x:0", "x:65536", "x:99999", "x:080808", "x:-1", "user@x", "x y", "x/", "x..y", ".x", "-x"),
        *("x-", "x:80:80", "a" * 64, LONGEST_NAME + "a", "1.2.3", "01.2.3.4", "256.1.1.1", "0x7f000001", "127.1"),
        *("[192.0.2.7]", "[]", "[:::]", "[::1", "::1]", "[::1%25eth0]", "[1.2.3.4]:80", "[.]", "[abcd]", "é"),
    ],
)
def test_what_is_none(text: str) -> None:
    assert parse_authority(text) is None
