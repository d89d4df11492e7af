"""Requirements of RFC 9110 and RFC 9112 on messages as an intermediary takes them and hands them on."""

import ssl

import pytest

from tests.live.harness_upstream import PATIENCE, Raw, Reply
from tests.rfc.fronts import Front, parse

HEAD = b"GET /public HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n\r\n"


def answered_with(front: Front, raw: bytes) -> bytes:
    """Return what a client gets where the service sends these bytes and closes."""
    front.upstream.forget()
    front.upstream.reply = Raw(raw)
    return front.raw(HEAD + CLOSE)


# RFC 9110, section 5: fields.


def test_field_lines_of_one_name_stay_in_order(front: Front) -> None:
    seen = front.seen("/public", "X-A: 1", "X-B: 0", "x-a: 2", "X-A: 3")
    assert seen.all("x-a") == ["1", "2", "3"]
    front.upstream.reply = Reply(headers=[("Set-Cookie", "a=1"), ("X-B", "0"), ("set-cookie", "b=2")])
    assert front.ask("/public").all("set-cookie") == ["a=1", "b=2"]


def test_what_nobody_knows_goes_on(front: Front) -> None:
    seen = front.seen("/public", "X-Nobody-Knows: \xe9\t x", "Priority: u=1")
    assert (seen.all("x-nobody-knows"), seen.all("priority")) == (["\xe9\t x"], ["u=1"])


def test_empty_elements_of_a_list_are_none(front: Front) -> None:
    seen = front.seen("/public", "Connection: , ,X-Hop,, close ,", "X-Hop: 1")
    assert seen.all("x-hop") + seen.all("connection") == []


def test_no_request_is_applied_before_its_whole_head(front: Front) -> None:
    front.upstream.forget()
    with front.connect() as link:
        link.sendall(HEAD + b"X-A: b\r\n")
        front.upstream.assert_saw_nothing()
        link.sendall(b"\r\n")
        assert link.recv(65536).startswith(b"HTTP/1.1 200 ")


# RFC 9110, section 7.6.1: what is of one connection.


def test_a_services_connection_fields_do_not_go_on(front: Front) -> None:
    front.upstream.forget()
    hops = ("Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "TE", "Trailer", "Upgrade", "X-Hop", "x-other")
    fields = [("Connection", "X-Hop, X-Other,"), *((name, "x") for name in hops), ("X-Stays", "1")]
    front.upstream.reply = Reply(headers=fields)
    answered = front.ask("/public")
    assert answered.status == 200
    assert answered.all("x-stays") == ["1"]
    assert [name for name, _ in answered.headers if name in {*hops, "Connection"}] == []


def test_a_services_challenge_is_not_changed(front: Front) -> None:
    """RFC 9110, section 11.6.1."""
    front.upstream.forget()
    challenges = ['Basic realm="a, b"', 'Bearer error="x", Digest realm="y"']
    front.upstream.reply = Reply(401, headers=[("WWW-Authenticate", challenge) for challenge in challenges])
    answered = front.ask("/public")
    assert (answered.status, answered.all("www-authenticate")) == (401, challenges)


# RFC 9110, sections 8.6, 9.3.2 and 15: content, and where there is none.


@pytest.mark.parametrize("status", [204, 304])
def test_there_is_no_content_in(front: Front, status: int) -> None:
    got = answered_with(front, b'HTTP/1.1 %d X\r\nContent-Length: 3\r\nETag: "a"\r\n\r\n' % status)
    answered = parse(got)
    assert (answered.status, answered.body) == (status, b"")
    assert answered.all("transfer-encoding") == []
    assert answered.all("content-length") == ([] if status == 204 else ["3"])


def test_a_response_to_head_has_no_content(front: Front) -> None:
    front.upstream.forget()
    front.upstream.reply = Reply(body=b"seven b")
    answered = parse(front.raw(b"HEAD /public HTTP/1.1\r\nHost: localhost\r\n" + CLOSE))
    assert (answered.status, answered.body, answered.all("content-length")) == (200, b"", ["7"])


def test_interim_responses_are_not_final_and_are_not_sent_to_http_1_0(front: Front) -> None:
    front.upstream.forget()
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    front.upstream.reply = Raw(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    for version in (b"1.0", b"1.1"):
        got = front.raw(b"GET /public HTTP/%b\r\nHost: localhost\r\n" % version + CLOSE)
        assert got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\nok")


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nxyz",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nxyz",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: b\r\n folded: c\r\nContent-Length: 3\r\n\r\nxyz",
        b"HTTP/1.1 600 X\r\nContent-Length: 3\r\n\r\nxyz",
    ],
)
def test_a_response_that_is_none_is_502_and_nothing_of_it_goes_on(front: Front, response: bytes) -> None:
    got = answered_with(front, response)
    answered = parse(got)
    assert (answered.status, answered.reason in {"upstream-malformed", "upstream-closed"}) == (502, True), got
    assert b"xyz" not in got and b"half" not in got
    front.upstream.reply = Reply()
    assert front.ask("/public").status == 200


# RFC 9112, section 2.2 to 5: lines.


def test_an_empty_line_before_a_request_is_ignored(front: Front) -> None:
    assert parse(front.raw(b"\r\n" + HEAD + CLOSE)).status == 200


def test_absolute_form_is_taken(front: Front) -> None:
    """Section 3.2.2; what goes on is the origin-form, with one Host."""
    scheme = "https" if front.kind == "tls" else "http"
    seen = front.seen(f"{scheme}://localhost/odd?a=b")
    assert (seen.target, seen.all("host")) == ("/odd?a=b", ["localhost"])
    front.refused(401, "credential-missing", f"{scheme}://localhost", method="OPTIONS")
    front.refused(400, "host-invalid", f"{scheme}://other/public")


@pytest.mark.parametrize(
    "line", ["X-A : b", "X-A\t: b", "Content-Length : 0", " X-A: b", "X-A: b\r\n folded", "X A: b"]
)
def test_a_space_where_none_may_be_is_400(front: Front, line: str) -> None:
    front.refused(400, "head-malformed", "/public", line)


def test_a_space_before_a_services_colon_is_taken_away(front: Front) -> None:
    """Section 5.1: also of fields that frame the message."""
    got = answered_with(front, b"HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length\t: 2\r\n\r\nok")
    answered = parse(got)
    assert (answered.status, answered.all("x-a"), answered.body) == (200, ["b"], b"ok")


@pytest.mark.parametrize("status", [200, 299, 599])
def test_the_status_line_has_its_last_space(front: Front, status: int) -> None:
    got = answered_with(front, b"HTTP/1.1 %d\r\nContent-Length: 0\r\n\r\n" % status)
    line, _, _ = got.partition(b"\r\n")
    assert line.count(b" ") >= 2 and line.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "get"])
def test_methods_that_are_not_forwarded(front: Front, method: str) -> None:
    front.refused(400, "method-invalid", "/public", method=method)


# RFC 9112, sections 6 and 7: framing.


def test_chunks_are_decoded_and_what_is_beside_them_is_dropped(front: Front) -> None:
    front.upstream.forget()
    chunks = b'3;a="b;c";d\r\nabc\r\n000A;e\r\n0123456789\r\n'
    data = b"POST /public HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-T, X-Sum\r\n" + CLOSE
    trailers = b"X-T: 1\r\nContent-Length: 9\r\nX-Sum: 2\r\nX-User-ID: eve\r\n\r\n"
    assert parse(front.raw(data + chunks + b"0;z\r\n" + trailers)).status == 200
    seen = front.upstream.last()
    assert seen.body == b"abc0123456789"
    assert seen.all("trailer") + seen.all("x-t") == ["x-sum"]
    assert seen.raw.endswith(b"\r\n0\r\nX-Sum: 2\r\n\r\n")
    assert b";" not in seen.raw.partition(b"\r\n\r\n")[2]


def test_http_1_0_never_gets_chunks(front: Front) -> None:
    front.upstream.forget()
    front.upstream.reply = Reply(chunked=True, body=b"parts")
    answered = parse(front.raw(b"GET /public HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n"))
    assert (answered.body, answered.all("transfer-encoding"), answered.all("connection")) == (b"parts", [], ["close"])


@pytest.mark.parametrize("fields", [b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"Content-Length: 3x\r\n"])
def test_ambiguous_framing_is_400_and_the_end_of_the_connection(front: Front, fields: bytes) -> None:
    front.upstream.forget()
    got = front.raw(b"POST /public HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\nabc" + HEAD + b"\r\n")
    assert got.count(b"HTTP/1.1 ") == 1 and got.startswith(b"HTTP/1.1 400 ")
    front.upstream.assert_saw_nothing()


# RFC 9112, section 9: connections.


def test_nothing_is_processed_behind_a_request_that_closes(front: Front) -> None:
    front.upstream.forget()
    got = front.raw(HEAD + CLOSE + HEAD.replace(b"/public", b"/odd/second") + CLOSE)
    assert got.count(b"HTTP/1.1 ") == 1
    assert parse(got).all("connection") == ["close"]
    front.upstream.assert_saw_only(1)


def test_a_service_that_closes_is_not_sent_another_request(front: Front) -> None:
    front.upstream.forget()
    front.upstream.reply = Reply(headers=[("Connection", "close")])
    lines = HEAD + b"\r\n"
    got = front.raw(lines + lines, answers=2)
    assert got.count(b"HTTP/1.1 200 ") == 2
    assert len({request.connection for request in front.upstream.requests}) == 2


def test_tls_ends_with_a_closure_alert(front: Front) -> None:
    """Section 9.8: without it a client can't know that a response which ends with its connection is whole."""
    if front.kind != "tls":
        return
    context = ssl.create_default_context(cafile=front.authority.ca)
    with front.plain() as plain:
        plain.settimeout(PATIENCE)
        link = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
        link.sendall(HEAD + CLOSE)
        got = b""
        while part := link.recv(65536):  # an end without the alert raises SSLEOFError
            got += part
        assert parse(got).status == 200
        link.close()
