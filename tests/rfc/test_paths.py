"""Paths that servers read differently: refused, or handed on where a route says so, and never around another one."""

import pytest

from tests.rfc.fronts import Front, bearer


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/public/..;/api",
            "/public/..%3b",
            "/public/..%3B/api",
            "/public/.%3bx/a",
            "/public/..%20",
            "/public/%20../a",
        ),
        *("/public/..%C2%A0/a", "/public/..%E2%80%8B", "/public/%EF%BC%8E%EF%BC%8E/a", "/public/.%EF%BC%8E/a"),
        *("/public/%E2%80%A5/a", "/public/..%EF%BC%8Fa", "/public/..%EF%BC%9B/a", "/public/.%20./a", "/odd/..;x/a"),
        *("/public/..%3Fx", "/public/%2e%2e%23/a", "/public/..%EF%B8%8F/a", "/public/%EF%BC%852e%EF%BC%852e/a"),
        *("/public/%25%32%65%25%32%65/a", "/public/%25u002e%25u002e", "/odd/a%2F..%20%2Fb", "/odd//../strict"),
    ],
)
def test_a_segment_that_some_server_reads_as_dots_is_refused(every_front: Front, path: str) -> None:
    every_front.refused(400, "path-ambiguous", path)


@pytest.mark.parametrize(
    ("path", "forwarded"),
    [
        ("/odd/post/[id]", "/odd/post/%5Bid%5D"),
        ("/odd/a|b^c?x=[1]|{2}", "/odd/a%7Cb%5Ec?x=[1]|{2}"),
        ("/odd/a;v=1/b", "/odd/a;v=1/b"),
        ("/odd/a%3bb%3fc%23", "/odd/a%3Bb%3Fc%23"),
        ("/reads/a%3Bb%3Fc", "/reads/a%3Bb%3Fc"),
        ("/odd//a//b", "/odd//a//b"),
        ("/odd/a%2fb", "/odd/a%2Fb"),
        ("/odd/a%2Fb;c//d", "/odd/a%2Fb;c//d"),
        ("/stripped//a;b/c%2Fd", "//a;b/c%2Fd"),
    ],
)
def test_what_a_route_takes_goes_on_as_it_is(every_front: Front, path: str, forwarded: str) -> None:
    assert every_front.seen(path).target == forwarded


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        *((path, 400, "path-ambiguous") for path in ("/odd//strict/x", "/odd/strict;x/y", "/odd/strict%2Fx")),
        *((path, 400, "path-ambiguous") for path in ("/odd/;x/strict", "/odd/a/..;/strict", "/odd//a;b/../strict")),
        *((path, 400, "path-ambiguous") for path in ("/odd/strict%3Bx", "/odd/strict%3Fx/y", "/odd/%3Bx/strict")),
        *((path, 404, "no-route") for path in ("/odd%2Fstrict", "/odd;x/strict//")),
    ],
)
def test_an_odd_path_is_no_way_around_another_route(every_front: Front, path: str, status: int, reason: str) -> None:
    """The service could read each of these as /odd/strict, which wants an administrator."""
    every_front.refused(status, reason, path, bearer())


def test_without_a_credential_nothing_is_told_of_which_routes_take_what(every_front: Front) -> None:
    for path in ("/api/v1/users//x", "/nowhere//x", "/odd//strict/x", "/nowhere/a;b", "/odd/strict;x"):
        every_front.refused(401, "credential-missing", path)
