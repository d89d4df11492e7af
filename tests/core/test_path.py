"""The canonical path: one reading, or none."""

import re
import unicodedata
from itertools import product
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.path import _BLANK, _COMPATIBLE, Ambiguous, CanonicalPath, Oddity, canonical_path, readings

SLASH, PARAMETER, EMPTY = Oddity.ENCODED_SLASH, Oddity.PARAMETER, Oddity.EMPTY_SEGMENT
SAME = [
    *("/", "/a", "/a/", "/api/v1/users", "/a/b.c/~x", "/a%20b", "/caf%C3%A9", "/100%25", "/...", "/a:b@c", "/%23%3F"),
    *("/.well-known/x", "/a..b", "/..a", "/a..", "/.%20a", "/a%3Bb", "/%E2%80%A6", "/%E2%92%88", "/a%E2%84%85b"),
]


@pytest.mark.parametrize("path", SAME)
def test_an_ordinary_path_stays_as_it_is(path: str) -> None:
    assert canonical_path(path) == CanonicalPath(path)


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        *(("/%61dmin", "/admin"), ("/%7Ex", "/~x"), ("/caf%c3%a9", "/caf%C3%A9"), ("/a%2db", "/a-b")),
        *(("/post/[id]", "/post/%5Bid%5D"), ("/a|b^c", "/a%7Cb%5Ec")),  # as browsers write them
    ],
)
def test_harmless_differences_are_folded(raw: str, canonical: str) -> None:
    assert canonical_path(raw) == CanonicalPath(canonical)


@pytest.mark.parametrize(
    ("raw", "canonical", "odd"),
    [
        ("/a%2fb", "/a%2Fb", {SLASH}),
        ("/a;v=1/b", "/a;v=1/b", {PARAMETER}),
        ("/;jsessionid=1", "/;jsessionid=1", {PARAMETER}),
        ("/a//b", "/a//b", {EMPTY}),
        ("//", "//", {EMPTY}),
        ("/a/;x/b", "/a/;x/b", {PARAMETER, EMPTY}),
        ("/a%2Fb;c//d", "/a%2Fb;c//d", {SLASH, PARAMETER, EMPTY}),
    ],
)
def test_what_a_route_may_take_is_told_apart(raw: str, canonical: str, odd: set[Oddity]) -> None:
    assert canonical_path(raw) == CanonicalPath(canonical, frozenset(odd))


def test_what_servers_may_read_an_odd_path_as() -> None:
    odd = canonical_path("/a%2Fb;c//d")
    assert isinstance(odd, CanonicalPath)
    assert readings(odd) == {
        *("/a/b;c//d", "/a%2Fb//d", "/a%2Fb;c/d", "/a/b//d", "/a/b;c/d", "/a%2Fb/d", "/a/b/d"),
    }
    assert readings(CanonicalPath("/a")) == set()


AMBIGUOUS = [
    "", "a", "*", "/a/../b", "/..", "/.", "/a/.", "/./a", "/%2e%2e/a", "/a/%2E", "/.%2e/a", "/a\\b",
    "/a%5cb", "/..;/a", "/a%00", "/a%0a", "/a%7f", "/%2561", "/%252e%252e", "/a b", "/a\x00", "/\xe9",
    "/%c0%ae%c0%ae", "/%ff", "/a%", "/a%2", "/a%zz", "/a%2f..%2fb", "/%2f", '/a"b', "/a<b>", "/a{b}", "/a`b",
    # Double encoding whose digits are encoded themselves, and that of IIS.
    "/%25%32%65", "/%25%32%65%25%32%65/a", "/%252%65", "/%25u002e", "/%25%75002e",
    # After cutting parameters, trimming what is blank, and folding compatible characters.
    "/..%3b", "/..%3B/a", "/.%3bx/a", "/..;x=1", "/.;", "/..%20", "/%20..", "/.%20/a", "/..%20%20/a", "/..%09",
    "/..%C2%A0", "/%E3%80%80../a", "/..%C2%85", "/..%E2%80%8B", "/.%E2%80%8B./a", "/.%20.", "/.%20.%20.",
    "/%EF%BB%BF..",
    "/%EF%BC%8E%EF%BC%8E/a", "/.%EF%BC%8E", "/%E2%80%A4%E2%80%A4", "/%E2%80%A5/a", "/%EF%B8%B0", "/%EF%B9%92.",
    "/..%EF%BC%8Fa", "/a%EF%BC%8F..", "/..%EF%BC%BCa", "/..%EF%BC%9Bx", "/..%CD%BE/a", "/%EF%BC%8E%20%EF%BC%9B",
    "/a%2F..%20%2Fb", "/a%2F%EF%BC%8E%2Fb", "/a%2F%2Fb", "/a%2F/b", "/a/%2Fb",
]  # fmt: skip


@pytest.mark.parametrize("raw", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused(raw: str) -> None:
    assert isinstance(canonical_path(raw), Ambiguous)


ATOMS = [
    *("/", ".", "%2e", "%25", "%", "aA", "2", "e", "E", "f", "0", ";", "%3b", "\\", " ", "%20", "~-_", "é", "%2F", "|"),
    *(
        "%c3%a9",
        "%C2%85",
        "%E2%80%8B",
        "%EF%BC%8E",
        "%E2%80%A5",
        "%EF%BC%8F",
        "%EF%BC%9B",
        "%EF%BC%BC",
        "[",
        "%5B",
        "%ff",
        "%c3",
        "=",
    ),
]


def dotted(path: str) -> bool:
    """Tell, by Unicode's own tables and as plainly as can be, whether some server reads a dot segment."""
    text = unicodedata.normalize(
        "NFKC", re.sub("%([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), path).encode("latin-1").decode()
    )
    for part in re.split(r"[/\\]", text):
        cut = part.partition(";")[0]
        if "".join(c for c in cut if unicodedata.category(c) not in {"Zs", "Zl", "Zp", "Cc", "Cf"}) in {".", ".."}:
            return True
    return False


@given(st.lists(st.sampled_from(ATOMS), max_size=12).map("".join))
def test_canonical_is_a_fixed_point_that_nobody_reads_dots_in(raw: str) -> None:
    result = canonical_path(raw)
    if isinstance(result, CanonicalPath):
        assert canonical_path(result.text) == result
        assert not dotted(result.text)
        assert (EMPTY in result.odd) >= ("//" in result.text)
        assert "%25" not in re.sub("%25(?![0-9A-Fa-f]{2})", "", result.text)
        for reading in readings(result):
            again = canonical_path(reading)
            assert isinstance(again, CanonicalPath)
            assert again.odd < result.odd
    elif "UTF-8" in result.detail:
        with pytest.raises(UnicodeDecodeError):
            unquote_to_bytes(raw).decode()
    elif "dot segment" in result.detail and "%2f" not in raw.lower():
        assert dotted(re.sub("%..", lambda m: m[0].upper(), raw))


def every_character() -> list[str]:
    return [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]


def test_the_tables_are_those_of_unicode() -> None:
    characters = every_character()
    blank = {c for c in characters if unicodedata.category(c) in {"Zs", "Zl", "Zp", "Cc", "Cf"}}
    known = re.compile(f"[{_BLANK}]")
    assert {c for c in characters if known.fullmatch(c)} == blank - {c for c in blank if c < " " or c == "\x7f"} | set(
        "\t\n\v\f\r\x1c\x1d\x1e\x1f"
    )
    folded = {c: unicodedata.normalize("NFKC", c) for c in characters if not c.isascii()}
    # What is more than such a character ("1.", "a/c") is part of a longer name, whatever stands beside it.
    meaning = {c: text for c, text in folded.items() if text and set(text) <= set("./\\;")}
    assert {chr(point): text for point, text in _COMPATIBLE.items()} == meaning
    longer = {text for text in folded.values() if set(text) & set("./\\;")} - set(meaning.values())
    for text, (before, after) in product(longer, product(("", ".", ".."), repeat=2)):
        assert not dotted("/" + "".join(f"%{octet:02X}" for octet in f"{before}{text}{after}".encode()))
