"""API keys: their form, what a list may say, and that only the whole key is one."""

import json
from collections.abc import Callable
from itertools import permutations
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core import credentials
from mitmgate.core.api_key import (
    EXPIRED,
    LONGEST,
    MALFORMED,
    MOST,
    REVOKED,
    UNKNOWN,
    changed,
    check,
    id_of,
    in_text,
    made,
    make,
    read,
)
from mitmgate.core.principal import Principal

NOW = 1_800_000_000.0
KEY, OTHER = make(), make()
ID = KEY[4:14]
LINE = made(KEY, "job", NOW, NOW + 100, roles=("robot",), scopes=("a", "b"), claims={"plan": "pro"})


def test_a_key_is_what_the_documentation_says() -> None:
    prefix, identifier, rest = KEY.split("_")
    assert (prefix, len(identifier), len(rest)) == ("mgk", 10, 49)
    number, digits = crc32(KEY[:-6].encode()), "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert sum(digits.index(digit) * 62**place for place, digit in enumerate(reversed(KEY[-6:]))) == number
    assert id_of(KEY.encode()) == identifier
    assert len({make() for _ in range(100)}) == 100


def test_who_has_a_key() -> None:
    keys = read([LINE, changed(ID, expires=NOW + 50)])
    principal = check(KEY.encode(), keys, NOW)
    assert isinstance(principal, Principal)
    assert (principal.subject, principal.issuer, principal.roles, principal.token_id) == (
        "job",
        "api-key",
        ("robot",),
        ID,
    )
    assert principal.scopes == {"a", "b"}
    assert principal.claims == {"plan": "pro", "sub": "job", "key_id": ID}
    assert principal.expires == NOW + 50
    assert check(KEY.encode(), keys, NOW + 49.9) is principal
    assert check(KEY.encode(), keys, NOW + 50) is EXPIRED
    assert check(OTHER.encode(), keys, NOW) is UNKNOWN
    # One with this id and another secret, its checksum right: found, and not the same.
    body = f"{KEY[:15]}{OTHER[15:-6]}"
    forged = body + checksum(body)
    assert id_of(forged.encode()) == ID
    for later in (NOW, NOW + 1000):
        assert check(forged.encode(), keys, later) is UNKNOWN
        assert check(forged.encode(), read([LINE, changed(ID, revoked=NOW)]), later) is UNKNOWN


def checksum(body: str) -> str:
    number, text, digits = crc32(body.encode()), "", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    for _ in range(6):
        number, digit = divmod(number, 62)
        text = digits[digit] + text
    return text


@given(st.integers(0, len(KEY) - 1), st.characters(max_codepoint=255))
def test_every_character_counts(at: int, character: str) -> None:
    keys, text = read([LINE]), KEY[:at] + character + KEY[at + 1 :]
    result = check(text.encode("latin-1"), keys, NOW)
    assert isinstance(result, Principal) if text == KEY else result in {MALFORMED, UNKNOWN}


@given(st.binary(max_size=80))
def test_whatever_comes_is_no_key(value: bytes) -> None:
    assert check(value, read([LINE]), NOW) is MALFORMED


def test_the_order_of_lines_makes_no_difference_and_nothing_comes_back() -> None:
    lines = [LINE, changed(ID, revoked=NOW + 1), changed(ID, expires=NOW + 10), changed(ID, expires=NOW + 90)]
    for order in permutations(lines):
        key = read(order)[ID]
        assert (key.revoked, key.expires) == (NOW + 1, NOW + 10)
        assert check(KEY.encode(), {ID: key}, NOW) is REVOKED


def without(name: str) -> Callable[[], list[bytes]]:
    return lambda: [_json({key: value for key, value in json.loads(LINE).items() if key != name})]


def with_(**members: object) -> Callable[[], list[bytes]]:
    return lambda: [_json(json.loads(LINE) | members)]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "lines",
    [
        *(without(name) for name in ("id", "sha256", "principal", "created", "expires")),
        *(with_(id=value) for value in ("", "short", 7, ID + "x", None)),
        *(with_(sha256=value) for value in ("", "00", 7, "G" * 64, json.loads(LINE)["sha256"].upper())),
        *(with_(principal=value) for value in ("", " a", "a\n", 7, "x" * 256, None)),
        *(with_(expires=value) for value in ("soon", -1, True, None, 1e12, NOW + LONGEST + 1)),
        *(with_(roles=value) for value in ("robot", [7], [""], ["x"] * 65)),
        with_(scopes=["a b"]),
        *(with_(claims={name: "x"}) for name in ("sub", "key_id")),
        with_(claims="x"),
        lambda: [LINE, LINE],
        lambda: [LINE, b"{}"],
        lambda: [LINE, b"no JSON"],
        lambda: [LINE[:-1] + b',"id":"0123456789"}'],
        lambda: [LINE, changed(ID)],
        lambda: [LINE, _json({"id": ID, "revoked": "now"})],
        lambda: [LINE, changed("0123456789", revoked=NOW)],
        lambda: [changed(ID, revoked=NOW)],
    ],
)
def test_a_list_that_is_not_understood_is_none(lines: Callable[[], list[bytes]]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read(lines())


def test_a_list_has_a_bound() -> None:
    lines = [LINE.replace(ID.encode(), f"{number:010}".encode()) for number in range(MOST + 1)]
    assert len(read(lines[:MOST])) == MOST
    with pytest.raises(ValueError, match="more than"):
        read(lines)
    with pytest.raises(ValueError, match="16384 bytes"):
        made(KEY, "job", NOW, NOW + 1, claims={"x": "y" * 20_000})


def test_a_key_is_hidden_wherever_it_stands() -> None:
    def put(text: str) -> str:
        return "*"

    for text in (KEY, f"/a/{KEY}/b", f"x={KEY}", f"X-Tenant: {KEY}", f"got {KEY}, and more", f'{{"k": "{KEY}"}}'):
        assert in_text(text)
        for hide in (credentials.hide_in_text, credentials.hide_in_body, credentials.hide_in_url):
            assert KEY[15:] not in hide(text, put)
    assert not in_text(KEY[:-1])
