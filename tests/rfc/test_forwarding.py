"""What services are told of the client and of what it asked for; a trusted proxy is believed, nobody else."""

import pytest

from tests.rfc.fronts import TRUSTED, Front, bearer

SPOOFED = (
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Port: 444",
    "X-Forwarded-Proto: gopher",
)


@pytest.mark.parametrize(
    ("entry", "client"),
    [
        ("203.0.113.5:50123", "203.0.113.5"),
        ("[2001:db8::7]:50123", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("9.9.9.9, 203.0.113.5:1, 127.0.0.2:80", "203.0.113.5"),
    ],
)
def test_the_address_as_load_balancers_write_it(every_front: Front, entry: str, client: str) -> None:
    answered = every_front.ask("/public", f"X-Forwarded-For: {entry}", source=TRUSTED)
    assert answered.status == 200
    assert every_front.upstream.last().all("x-forwarded-for") == [client]
    event = every_front.event(answered)
    assert (event["client_ip"], event["peer"]) == (client, TRUSTED)


@pytest.mark.parametrize("entry", ["203.0.113.5:65536", "[203.0.113.5]", "unknown", "203.0.113.5, "])
def test_an_address_that_can_not_be_read_is_refused(every_front: Front, entry: str) -> None:
    every_front.refused(403, "address-unknown", "/public", f"X-Forwarded-For: {entry}", source=TRUSTED)


def test_what_a_trusted_proxy_says_is_kept(every_front: Front) -> None:
    lines = ("X-Forwarded-For: 203.0.113.5", "X-Forwarded-Host: Shop.example:8443", "X-Forwarded-Port: 8443")
    seen = every_front.seen("/public", *lines, "X-Forwarded-Proto: HTTPS, http", host="inner.example", source=TRUSTED)
    assert seen.all("host") == ["inner.example"]
    assert seen.all("x-forwarded-host") == ["Shop.example:8443"]
    assert seen.all("x-forwarded-port") == ["8443"]
    assert seen.all("x-forwarded-proto") == ["http"]
    seen = every_front.seen("/public", "X-Forwarded-Proto: HttpS", source=TRUSTED)
    assert seen.all("x-forwarded-proto") == ["https"]
    assert seen.all("x-forwarded-host") == ["localhost"]
    assert seen.all("x-forwarded-port") == []


def test_a_client_is_not_believed(every_front: Front) -> None:
    seen = every_front.seen("/public", *SPOOFED, "X_Forwarded_Port: 445", "X.Forwarded.Host: evil.example")
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]
    assert seen.all("x-forwarded-host") == ["localhost"]
    assert seen.all("x-forwarded-port") == []
    assert seen.all("x-forwarded-proto") == ["https" if every_front.kind == "tls" else "http"]
    assert not {value for _, value in seen.headers} & {"evil.example", "444", "445", "203.0.113.9"}


def test_a_proxy_that_says_nothing_that_can_be_read_is_as_one_that_says_nothing(front: Front) -> None:
    lines = ("X-Forwarded-Host: a/b", "X-Forwarded-Port: 0", "X-Forwarded-Proto: gopher")
    seen = front.seen("/public", *lines, source=TRUSTED)
    assert seen.all("x-forwarded-host") == ["localhost"]
    assert seen.all("x-forwarded-port") == []
    assert seen.all("x-forwarded-proto") == ["https" if front.kind == "tls" else "http"]


def test_a_page_is_of_the_same_origin_as_the_host_that_it_was_asked_under(every_front: Front) -> None:
    """A route with a CORS policy refuses foreign origins; behind a proxy that renames Host, its own is none."""
    lines = ("Origin: https://shop.example:8443", "X-Forwarded-Host: shop.example", "X-Forwarded-Port: 8443")
    every_front.seen("/api/v1/users", bearer(), *lines, host="inner.example", source=TRUSTED)
    every_front.refused(403, "origin-not-allowed", "/api/v1/users", bearer(), *lines, host="inner.example")


def test_via_says_what_a_request_came_through(front: Front) -> None:
    for version, received in (("HTTP/1.0", "1.0"), ("HTTP/1.1", "1.1")):
        seen = front.seen("/public", version=version)
        assert seen.all("via") == [f"{received} mitmgate"]
    seen = front.seen("/public", "Via: 1.0 fred (a comment, with a comma)", "via: 2 edge.example")
    assert seen.all("via") == ["1.0 fred (a comment, with a comma)", "2 edge.example", "1.1 mitmgate"]


def test_a_request_does_not_go_in_circles(every_front: Front) -> None:
    """The service of this route is the gateway itself, behind a port that mitmproxy does not know for its own."""
    answered = every_front.ask("/loop/a")
    assert (answered.status, answered.reason) == (508, "loop-detected")
    own = "Via: 1.1 mitmgate"
    every_front.refused(508, "loop-detected", "/public", *[own] * 7, "Via: 1.1 a, 1.0 MITMGATE (again)")
    assert len(every_front.seen("/public", *[own] * 7).all("via")) == 8


def test_options_goes_no_further_than_it_may(every_front: Front) -> None:
    """RFC 9110, section 7.6.2."""
    every_front.upstream.forget()
    answered = every_front.ask("/odd", "Max-Forwards: 0", method="OPTIONS")
    assert (answered.status, answered.body, answered.all("allow")) == (204, b"", [])
    assert every_front.event(answered)["reason"] == "max-forwards"
    every_front.upstream.assert_saw_nothing()
    for sent, forwarded in (("1", "0"), ("10", "9"), ("007", "6")):
        seen = every_front.seen("/odd", f"Max-Forwards: {sent}", method="OPTIONS")
        assert seen.all("max-forwards") == [forwarded]
    assert every_front.seen("/odd", "Max-Forwards: none", method="OPTIONS").all("max-forwards") == ["none"]
    assert every_front.seen("/odd", "Max-Forwards: 0").all("max-forwards") == ["0"]
    every_front.refused(401, "credential-missing", "/api/v1/users", "Max-Forwards: 0", method="OPTIONS")
