"""Rewrite: the path and the fields that go up, checked again after every change."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mitmgate.core.headers import Headers
from mitmgate.core.path import Oddity
from mitmgate.core.rewrite import (
    client_fields,
    forwarding_fields,
    header_safe,
    max_forwards,
    percent_encoded,
    upstream_path,
    with_max_forwards,
)
from mitmgate.core.rules import Rewrite
from tests.core.test_routing import route

SLASH, PARAMETER = Oddity.ENCODED_SLASH, Oddity.PARAMETER
STRIP = Rewrite(strip_prefix=True)


@pytest.mark.parametrize(
    ("prefix", "rewrite", "path", "up"),
    [
        ("/a", Rewrite(), "/a/b", "/a/b"),
        ("/a", STRIP, "/a/b", "/b"),
        ("/a", STRIP, "/a", "/"),
        ("/a", STRIP, "/a/", "/"),
        ("/a/", STRIP, "/a", "/"),
        ("/a/", STRIP, "/a/b", "/b"),
        ("/", STRIP, "/a/b", "/a/b"),
        ("/", STRIP, "/", "/"),
        ("/a", Rewrite(replace_prefix="/x"), "/a/b", "/x/b"),
        ("/a", Rewrite(replace_prefix="/x/"), "/a/b", "/x/b"),
        ("/a", Rewrite(replace_prefix="/x"), "/a", "/x"),
        ("/a", Rewrite(replace_prefix="/"), "/a/b", "/b"),
        ("/a", Rewrite(replace_prefix="/"), "/a", "/"),
        ("/", Rewrite(replace_prefix="/x"), "/b", "/x/b"),
    ],
)
def test_the_path_that_goes_up(prefix: str, rewrite: Rewrite, path: str, up: str) -> None:
    assert upstream_path(replace(route("r", prefix), rewrite=rewrite), path) == up


@pytest.mark.parametrize(
    ("path", "odd", "up"),
    [
        ("/a/b%2Fc", frozenset({SLASH}), "/b%2Fc"),
        ("/a/b%2Fc", frozenset({SLASH, PARAMETER}), "/b%2Fc"),
        ("/a/b%2Fc", frozenset(), None),
        ("/a/b%2Fc", frozenset({PARAMETER}), None),
        ("/a/b;c%2Fd", frozenset({SLASH}), None),
        ("/a/b;c%2Fd", frozenset({SLASH, PARAMETER}), "/b;c%2Fd"),
        ("/a//b", frozenset({SLASH}), None),
        ("/a/%C3%A9", frozenset(), "/%C3%A9"),
        ("/a/%c3%a9", frozenset(Oddity), None),  # not canonical, which no Hygiene would leave
        ("/a/%61", frozenset(Oddity), None),
        ("/a/..", frozenset(Oddity), None),
        ("/a/%2E%2E/b", frozenset(Oddity), None),
        ("/a\\b", frozenset(Oddity), None),
    ],
)
def test_a_rewritten_path_has_one_reading_or_goes_nowhere(path: str, odd: frozenset[Oddity], up: str | None) -> None:
    made = route("r", "/a", odd=odd)
    for rewrite, expected in ((STRIP, up), (Rewrite(replace_prefix="/x"), None if up is None else f"/x{up}")):
        assert upstream_path(replace(made, rewrite=rewrite), path) == expected


def test_only_visible_ascii_is_put_into_a_field() -> None:
    for value in ("", "a", "a b", "~!", "a" * 256, "a" * 257):
        assert header_safe(value) == value.encode()
    for value in (" a", "a ", "a\r\nb: c", "a\n", "a\0", "é", "a\t", "\x7f", "é" * 300, "a" * 300 + "\n"):
        assert header_safe(value) is None


def test_percent_encoding_can_be_undone_and_has_no_comma() -> None:
    assert percent_encoded("plain-1_~") == "plain-1_~"
    assert percent_encoded("a b,c%é\n") == "a%20b%2Cc%25%C3%A9%0A"


def test_forwarding_fields() -> None:
    client = ip_address("192.0.2.7")
    assert forwarding_fields(client, "https", b"api.example", None) == (
        (b"X-Forwarded-For", b"192.0.2.7"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"api.example"),
    )
    assert forwarding_fields(client, "http", b"h", "8443")[-1] == (b"X-Forwarded-Port", b"8443")


@pytest.mark.parametrize(
    ("method", "values", "hops"),
    [
        ("OPTIONS", [b"0"], 0),
        ("OPTIONS", [b"12"], 12),
        ("OPTIONS", [], None),
        ("OPTIONS", [b"1", b"2"], None),
        ("OPTIONS", [b"-1"], None),
        ("OPTIONS", [b"1x"], None),
        ("OPTIONS", [b"9" * 10], None),
        ("GET", [b"0"], None),
        ("TRACE", [b"0"], None),
    ],
)
def test_max_forwards(method: str, values: list[bytes], hops: int | None) -> None:
    fields = tuple((b"Max-Forwards", value) for value in values)
    assert max_forwards(method, Headers(fields)) == hops
    assert with_max_forwards(((b"A", b"b"), *fields), 3) == ((b"A", b"b"), (b"Max-Forwards", b"3"))


def test_what_a_client_sent_that_is_the_gateways_to_say_goes_nowhere() -> None:
    sent = [
        (b"Accept", b"a"),
        (b"X-User-ID", b"root"),
        (b"x-tenant", b"b"),
        (b"Authorization", b"Bearer x"),
        (b"X-Forwarded-For", b"127.0.0.1"),
        (b"Connection", b"close"),
        (b"Host", b"other"),
        (b"accept", b"c"),
    ]
    kept = client_fields(Headers(sent), frozenset({b"x-user-id"}), frozenset({b"x-tenant"}))
    assert kept == ((b"Accept", b"a"), (b"accept", b"c"))
    kept = client_fields(Headers(sent), frozenset(), frozenset())
    assert kept == ((b"Accept", b"a"), (b"X-User-ID", b"root"), (b"x-tenant", b"b"), (b"accept", b"c"))
