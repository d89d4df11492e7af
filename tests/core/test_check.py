"""Checks: what each kind of proxy says of the original request, and what is refused."""

import pytest

from mitmgate.core.address import CidrSet
from mitmgate.core.check import Kind, described, kind_of, original_request, without_description
from mitmgate.core.headers import Headers
from mitmgate.core.request import Request

ORIGINAL = "http", "api.example", "/orders?a=%2F"
SAID = {
    Kind.NGINX: {"X-Original-Method": "PUT", "X-Original-URL": "http://api.example/orders?a=%2F"},
    Kind.CADDY: {
        "X-Forwarded-Method": "PUT",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "api.example",
        "X-Forwarded-Uri": "/orders?a=%2F",
    },
    Kind.ENVOY: {"Host": "api.example", "X-Forwarded-Proto": "http"},
}
SAID[Kind.TRAEFIK] = SAID[Kind.CADDY]
BY_PARTS = {
    "X-Original-Method": "PUT",
    "X-Original-URI": "/orders?a=%2F",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "api.example",
}
CASES = [*SAID.items(), (Kind.NGINX, BY_PARTS)]
EVERY = pytest.mark.parametrize(("kind", "said"), CASES, ids=lambda case: str(case) if isinstance(case, Kind) else "")
TRUSTED = CidrSet(["10.0.0.0/8"])


def check(kind: Kind, fields: list[tuple[str, str]], *, authority: str = "") -> Request:
    target = f"/decide/{kind}" + ("/orders?a=%2F" if kind is Kind.ENVOY else "")
    if kind is not Kind.ENVOY:
        fields = [("Host", "mitmgate:8080"), *fields]
    return Request(
        method="PUT" if kind is Kind.ENVOY else "GET",
        target=target,
        version="HTTP/1.0",
        headers=Headers((name.encode(), value.encode("latin-1")) for name, value in fields),
        scheme="http",
        authority=authority,
        peer="10.0.0.1",
        declared_body=0,
        certificate="CN=the proxy",
        thumbprint="of the proxy",
    )


def read(kind: Kind, said: dict[str, str], *more: tuple[str, str], without: str = "") -> Request:
    fields = [(name, value) for name, value in said.items() if name != without]
    if without != "X-Forwarded-For" and not any(name == "X-Forwarded-For" for name, _ in more):
        fields.append(("X-Forwarded-For", "192.0.2.7"))
    return original_request(check(kind, [*fields, *more]), kind, TRUSTED)


@EVERY
def test_the_request_is_the_clients(kind: Kind, said: dict[str, str]) -> None:
    made = read(kind, said, ("Authorization", "Bearer x"), ("X-Request-ID", "chosen"), ("X-Forwarded-Port", "1"))
    assert (made.method, made.scheme, made.target) == ("PUT", "http", "/orders?a=%2F")
    assert (made.version, made.authority, made.peer, made.declared_body) == ("HTTP/1.1", "", "192.0.2.7", 0)
    assert (made.certificate, made.thumbprint) == (None, None)
    assert made.headers.fields == ((b"Host", b"api.example"), (b"Authorization", b"Bearer x"))


@EVERY
def test_nothing_has_a_default(kind: Kind, said: dict[str, str]) -> None:
    for name in [*said, "X-Forwarded-For"]:
        with pytest.raises(ValueError, match=r"is missing|has no Host"):
            read(kind, said, without=name)
        if name != "X-Forwarded-For":
            with pytest.raises(ValueError, match=r"is missing|has no Host|no absolute URL"):
                read(kind, said | {name: ""})


@EVERY
def test_nothing_is_said_twice(kind: Kind, said: dict[str, str]) -> None:
    for name, value in [*said.items(), ("X-Forwarded-For", "192.0.2.7")]:
        fields = [*said.items(), ("X-Forwarded-For", "192.0.2.7"), (name.lower(), value)]
        with pytest.raises(ValueError, match=r"is repeated|or several"):
            original_request(check(kind, fields), kind, TRUSTED)


CONTRADICTIONS = {
    "X-Original-Method": "GET",
    "X-Forwarded-Method": "GET",
    "X-Original-URL": "http://api.example/public",
    "X-Original-URI": "/public",
    "X-Forwarded-Uri": "/public",
    "X-Forwarded-Host": "other.example",
    "X-Forwarded-Proto": "https",
}


@EVERY
@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_fields_that_contradict_one_another(kind: Kind, said: dict[str, str], name: str) -> None:
    if name in said:
        return  # there it is the word itself, or repeated
    with pytest.raises(ValueError, match=r"X-[A-Za-z-]+ says something else"):
        read(kind, said, (name, CONTRADICTIONS[name]))
    agreeing = {
        "X-Original-Method": "PUT",
        "X-Forwarded-Method": "PUT",
        "X-Original-URL": "http://api.example:80/orders?a=%2F",
        "X-Original-URI": "/orders?a=%2F",
        "X-Forwarded-Uri": "/orders?a=%2F",
        "X-Forwarded-Host": "API.example",
        "X-Forwarded-Proto": "http",
    }
    assert read(kind, said, (name, agreeing[name])).target == "/orders?a=%2F"


@pytest.mark.parametrize(
    "url",
    ["/orders", "ftp://api.example/", "http:///orders", "http://api.example", "http://u@api.example/", "//a/b",
     "http://api.example?x", "http://a\\b/", "http://a#/b", "HTTP://api.example/"],
)  # fmt: skip
def test_what_is_no_absolute_url(url: str) -> None:
    with pytest.raises(ValueError, match="no absolute URL"):
        read(Kind.NGINX, {"X-Original-Method": "GET", "X-Original-URL": url})


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.example:443/", b"api.example"),
        ("http://api.example:80/", b"api.example"),
        ("https://api.example:80/", b"api.example:80"),
        ("https://[2001:db8::1]:443/", b"[2001:db8::1]"),
    ],
)
def test_the_schemes_own_port_is_not_said(url: str, host: bytes) -> None:
    made = read(Kind.NGINX, {"X-Original-Method": "GET", "X-Original-URL": url})
    assert made.headers.one(b"host") == host


@pytest.mark.parametrize(
    ("hops", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("127.0.0.1, 192.0.2.7", "192.0.2.7"),
        ("192.0.2.9, 192.0.2.7, 10.0.0.9", "192.0.2.7"),
        ("10.0.0.2", "10.0.0.2"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("junk, 10.0.0.2", None),
        ("192.0.2.7,", None),
        ("unknown", None),
    ],
)
def test_the_client_is_whom_trusted_proxies_name(hops: str, client: str | None) -> None:
    said = SAID[Kind.NGINX]
    if client is None:
        with pytest.raises(ValueError, match="no address"):
            read(Kind.NGINX, said, ("X-Forwarded-For", hops))
    else:
        assert read(Kind.NGINX, said, ("X-Forwarded-For", hops)).peer == client


def test_the_length_of_the_body() -> None:
    made = read(Kind.NGINX, SAID[Kind.NGINX], ("X-Original-Content-Length", "17"), ("Content-Length", "3"))
    assert (made.declared_body, made.headers.all(b"content-length")) == (17, [b"17"])
    assert read(Kind.NGINX, SAID[Kind.NGINX], ("X-Original-Content-Length", "")).declared_body == 0
    for wrong in ("-1", "1,1", "1e3", "\u00b2", "1" * 19):
        with pytest.raises(ValueError, match="no length"):
            read(Kind.NGINX, SAID[Kind.NGINX], ("X-Original-Content-Length", wrong))


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("/decide/nginx", Kind.NGINX),
        ("/decide/caddy?a=b", Kind.CADDY),
        ("/decide/traefik", Kind.TRAEFIK),
        ("/decide/envoy/", Kind.ENVOY),
        ("/decide/envoy/../nginx", Kind.ENVOY),
        ("/decide/envoy//x?y", Kind.ENVOY),
        ("/decide/envoy", None),
        ("/decide/envoyx", None),
        ("/decide/nginx/", None),
        ("/decide/NGINX", None),
        ("/decide/", None),
        ("/decide", None),
        ("nginx", None),
        ("/nginx", None),
    ],
)
def test_the_path_says_who_asks(target: str, kind: Kind | None) -> None:
    assert kind_of(target) is kind


def test_http2_says_the_host_in_its_own_way() -> None:
    fields = [("X-Forwarded-Proto", "https"), ("X-Forwarded-For", "192.0.2.7")]
    assert described(check(Kind.ENVOY, fields, authority="api.example"), Kind.ENVOY).authority == "api.example"
    with pytest.raises(ValueError, match="or several"):
        described(check(Kind.ENVOY, [*fields, ("Host", "other.example")], authority="api.example"), Kind.ENVOY)


def test_what_is_shown_of_a_refused_check_is_no_description() -> None:
    headers = Headers([(b"X-Original-URL", b"http://a/?token=x"), (b"x-forwarded-uri", b"/?token=x"), (b"Host", b"a")])
    assert without_description(headers) == ((b"Host", b"a"),)
