"""Hygiene: what is refused, what is stripped, what stays."""

import pytest

from mitmgate.core.client_fields import ClientFields
from mitmgate.core.headers import Headers
from mitmgate.core.hygiene import clean, screen
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Head, Request

FIELDS = ClientFields({b"x-user-id", b"x-user-role"})


def request(
    *fields: tuple[str, str],
    method: str = "GET",
    target: str = "/a",
    host: tuple[str, ...] = ("api.example",),
    authority: str = "",
    version: str = "HTTP/1.1",
) -> Request:
    pairs = [("Host", name) for name in host] + list(fields)
    headers = Headers((name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs)
    return Request(method, target, version, headers, "http", authority, "127.0.0.1", 0)


def read(request: Request) -> Head | Refusal:
    return clean(request, screen(request.headers, FIELDS))


def kept(*fields: tuple[str, str]) -> set[str]:
    head = read(request(*fields))
    assert isinstance(head, Head)
    return {name.decode() for name in head.headers.names()} - {"host"}


STRIPPED = [
    "X-User-ID", "x-user-id", "X_User_ID", "X.User.ID", "X-User_ID", "X--User--ID", "X_USER_ROLE", "Any_Underscore",
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Uri", "X.Forwarded.Host", "X-Forwarded", "X-Real-IP", "X-Original-URL",
    "X-Rewrite-URL", "X-HTTP-Method-Override", "X-Method-Override", "X-Request-ID", "Proxy-Authorization",
    "TE", "Keep-Alive", "Trailer", "Proxy-Connection", "Expect",
]  # fmt: skip


@pytest.mark.parametrize("name", STRIPPED)
def test_what_a_client_must_not_say_is_stripped(name: str) -> None:
    assert kept((name, "admin"), ("Accept", "x")) == {"accept"}


@pytest.mark.parametrize(
    "name", ["Authorization", "Cookie", "Accept", "X-Users", "X-Authentication", "X-My-Header", "Content-Type"]
)
def test_what_is_the_clients_own_stays(name: str) -> None:
    assert kept((name, "x")) == {name.lower()}


def test_connection_strips_what_it_names_but_never_what_the_request_hangs_on() -> None:
    assert kept(("Connection", "close, X-Foo"), ("X-Foo", "1"), ("X-Bar", "2")) == {"x-bar"}
    for name in ("Host", "Authorization", "Content-Length", "Transfer-Encoding", "Cookie", "Origin", "Sec-Fetch-Site"):
        refused = read(request(("Connection", name)))
        assert isinstance(refused, Refusal)
        assert refused.reason is Reason.HEADER_INVALID


REFUSED = [
    (request(host=()), Reason.HOST_INVALID),
    (request(host=("a", "b")), Reason.HOST_INVALID),
    (request(host=("a", "a")), Reason.HOST_INVALID),
    (request(host=("",)), Reason.HOST_INVALID),
    (request(host=("a b",)), Reason.HOST_INVALID),
    (request(host=("user@a",)), Reason.HOST_INVALID),
    (request(host=("a:0",)), Reason.HOST_INVALID),
    (request(host=("a:99999",)), Reason.HOST_INVALID),
    (request(host=("127.1",)), Reason.HOST_INVALID),
    (request(host=("a/b",)), Reason.HOST_INVALID),
    (request(authority="other.example"), Reason.HOST_INVALID),
    (request(method="get"), Reason.METHOD_INVALID),
    (request(method="G T"), Reason.METHOD_INVALID),
    (request(method="CONNECT"), Reason.METHOD_INVALID),
    (request(method="TRACE"), Reason.METHOD_INVALID),
    (request(target="*"), Reason.TARGET_INVALID),
    (request(target="http://api.example/a"), Reason.TARGET_INVALID),
    (request(target="/a?b c"), Reason.TARGET_INVALID),
    (request(target="/a?b#c"), Reason.TARGET_INVALID),
    (request(target="/a/../b"), Reason.PATH_AMBIGUOUS),
    (request(target="/" + "a" * 8192), Reason.TARGET_TOO_LONG),
    (request(("Bad Name", "x")), Reason.HEADER_INVALID),
    (request(("", "x")), Reason.HEADER_INVALID),
    (request(("A", "x\r\nB: y")), Reason.HEADER_INVALID),
    (request(("A", "x\0")), Reason.HEADER_INVALID),
    (request(("Authorization", "a"), ("Authorization", "b")), Reason.HEADER_REPEATED),
    (request(("Origin", "a"), ("Origin", "b")), Reason.HEADER_REPEATED),
    (request(("Upgrade", "websocket"), ("Connection", "upgrade")), Reason.UPGRADE_REFUSED),
]


@pytest.mark.parametrize(("bad", "reason"), REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(bad: Request, reason: Reason) -> None:
    refused = read(bad)
    assert isinstance(refused, Refusal)
    assert refused.reason is reason


@pytest.mark.parametrize("method", ["GET", "PROPFIND", "VERSION-CONTROL", "M" * 32])
def test_a_method_that_few_know_is_a_method(method: str) -> None:
    head = read(request(method=method))
    assert isinstance(head, Head)
    assert head.method == method


@pytest.mark.parametrize(
    ("host", "version", "refused"),
    [
        ((), "HTTP/1.0", False),
        ((), "HTTP/1.1", True),
        ((), "HTTP/2.0", True),
        (("a", "b"), "HTTP/1.0", True),
        (("a", "a"), "HTTP/1.0", True),
        (("a b",), "HTTP/1.0", True),
        (("",), "HTTP/1.0", True),
    ],
)
def test_only_http_1_0_need_not_say_for_whom_it_is(host: tuple[str, ...], version: str, refused: bool) -> None:
    found = read(request(host=host, version=version))
    if refused:
        assert isinstance(found, Refusal)
        assert found.reason is Reason.HOST_INVALID
    else:
        assert isinstance(found, Head)
        assert (found.host, found.port) == ("", None), "Endpoints answers it, or refuses it"


@pytest.mark.parametrize(
    ("host", "authority", "version", "named"),
    [
        (("api.example",), "api.example", "HTTP/1.1", "api.example"),
        (("API.example",), "api.example", "HTTP/1.1", "api.example"),
        (("api.example",), "other.example", "HTTP/1.1", None),
        (("api.example:80",), "api.example", "HTTP/1.1", None),
        (("a b",), "api.example", "HTTP/2.0", None),
        (("a", "a"), "a", "HTTP/2.0", None),
        ((), "api.example", "HTTP/1.1", None),
        ((), "api.example", "HTTP/2.0", "api.example"),
        ((), "api.example", "HTTP/1.0", "api.example"),
        ((), "a b", "HTTP/2.0", None),
        ((), "a b", "HTTP/1.0", None),
        (("a b",), "a b", "HTTP/2.0", None),
    ],
)
def test_host_and_authority_agree(host: tuple[str, ...], authority: str, version: str, named: str | None) -> None:
    found = read(request(host=host, authority=authority, version=version))
    assert (found.host if isinstance(found, Head) else None) == named
    assert isinstance(found, Head) or found.reason is Reason.HOST_INVALID


def test_a_field_that_is_repeated_is_read_as_a_whole() -> None:
    """A condition that saw the last value alone would be met by what the service reads otherwise."""
    head = read(request(("X-Tenant", "acme"), ("Accept", "a"), ("x-tenant", "globex")))
    assert isinstance(head, Head)
    assert head.headers.all(b"x-tenant") == [b"acme", b"globex"]
    assert head.headers.text("X-Tenant") == "acme, globex"
    assert head.headers.one(b"x-tenant") is None
    assert head.headers.one(b"accept") == b"a"


def test_a_target_may_be_as_long_as_it_may() -> None:
    asked = request(target="/" + "a" * 9)
    screened = screen(asked.headers, FIELDS)
    assert isinstance(clean(asked, screened, 10), Head)
    refused = clean(asked, screened, 9)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.TARGET_TOO_LONG


def test_a_head_is_as_large_as_its_fields_are_written() -> None:
    assert screen(request(("A", "bcd")).headers, FIELDS).size == len("Host: api.example\r\nA: bcd\r\n")


def test_a_websocket_handshake_is_told_apart() -> None:
    handshake = request(
        ("Upgrade", "websocket"),
        ("Connection", "keep-alive, Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    )
    head = read(handshake)
    assert isinstance(head, Head)
    assert head.upgrade == "websocket"


def test_host_is_lower_case_without_port_and_the_query_is_untouched() -> None:
    head = read(request(host=("API.Example.:8080",), target="/a?x=%2e%2E/../&y[]=1"))
    assert isinstance(head, Head)
    assert (head.host, head.port, head.path, head.query) == ("api.example", 8080, "/a", "x=%2e%2E/../&y[]=1")
    empty = read(request(target="/a?"))
    assert isinstance(empty, Head)
    assert empty.query == ""
