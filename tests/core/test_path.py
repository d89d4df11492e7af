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
DELIMITER = Oddity.ENCODED_DELIMITER
SAME = [
    *(
        "/",
        "/a",
        "/a/",
        "/api/v1/users",
        "/a/b.c/~x",
        "/a%20b",
        "/caf%C3%A9",
        "/100%25",
        "/...",
        "/a:b@c",
        "/100%25%EF%BC%85",
    ),
    *("/.well-known/x", "/a..b", "/..a", "/a..", "/.%20a", "/%EF%BC%852x", "/%E2%80%A6", "/%E2%92%88", "/a%E2%84%85b"),
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
        ("/a%3bb", "/a%3Bb", {DELIMITER}),
        ("/%23%3f", "/%23%3F", {DELIMITER}),
        ("/...%3Fa", "/...%3Fa", {DELIMITER}),
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
    for path in ("/a/b%3Bx/c", "/a/%3Bx/b/c", "/a/b/c%3Fx/d", "/a/b/c%23"):
        delimited = canonical_path(path)
        assert isinstance(delimited, CanonicalPath)
        assert readings(delimited) == {"/a/b/c"}


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
    # Of who parses what is decoded already, or drops what is ignored by default.
    "/..%3F", "/..%3fx/y", "/.%23", "/a/..%20%23", "/..%EF%BC%9F", "/..%EF%BC%83a", "/..%E2%81%87", "/..%EF%B8%8F/a",
    "/..%CD%8F", "/.%E3%85%A4./a", "/%EF%BC%852e%EF%BC%852e", "/a%EF%BC%85u002e",
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
        "%EF%BC%85",
        "%3F",
        "%23",
        "%CD%8F",
        "[",
        "%5B",
        "%ff",
        "%c3",
        "=",
    ),
]


IGNORED = re.compile(
    "[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff"
    "\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Default_Ignorable_Code_Point, as DerivedCoreProperties.txt of Unicode 16 has it."""


def invisible(character: str) -> bool:
    return unicodedata.category(character) in {"Zs", "Zl", "Zp", "Cc", "Cf"} or bool(IGNORED.match(character))


def dotted(path: str) -> bool:
    """Tell, by Unicode's own tables and as plainly as can be, whether some server reads a dot segment."""
    text = unicodedata.normalize(
        "NFKC", re.sub("%([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), path).encode("latin-1").decode()
    )
    for part in re.split(r"[/\\]", text):
        cut = re.split("[;?#]", part)[0]
        if "".join(c for c in cut if not invisible(c)) in {".", ".."}:
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
    blank = {c for c in characters if invisible(c)}
    known = re.compile(f"[{_BLANK}]")
    assert {c for c in characters if known.fullmatch(c)} == blank - {c for c in blank if c < " " or c == "\x7f"} | set(
        "\t\n\v\f\r\x1c\x1d\x1e\x1f"
    )
    folded = {c: unicodedata.normalize("NFKC", c) for c in characters if not c.isascii()}
    # What is more than such a character ("1.", "a/c") is part of a longer name, whatever stands beside it.
    meaning = {
        c: text
        for c, text in folded.items()
        if text and set(text) & set("./\\;?#%") and not any(map(str.isalnum, text))
    }
    assert {chr(point): text for point, text in _COMPATIBLE.items()} == meaning
    longer = {text for text in folded.values() if set(text) & set("./\\;?#%")} - set(meaning.values())
    for text, (before, after) in product(longer, product(("", ".", ".."), repeat=2)):
        assert not dotted("/" + "".join(f"%{octet:02X}" for octet in f"{before}{text}{after}".encode()))
