"""Heads: what is read, and by class of attack what is refused, whole and byte by byte."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mitmgate.core.http1 import END, Bounds, RequestHead, RequestReader, ResponseHead, ResponseReader
from mitmgate.core.http1.head import parse_line, parse_request, parse_response
from mitmgate.core.http1.target import split_target
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

BOUNDS = Bounds()


def read(data: bytes, step: int = 0) -> list[object]:
    """Feed a reader, whole or in pieces, and return its events."""
    reader = RequestReader(BOUNDS)
    if not step:
        return list(reader.feed(data))
    return [event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])]


def refusal(data: bytes, step: int = 0) -> Refusal:
    events = read(data, step)
    assert len(events) == 1, events
    assert isinstance(events[0], Refusal)
    return events[0]


@pytest.mark.parametrize("step", [0, 1, 3])
def test_head_is_read_in_any_cut(step: int) -> None:
    head, end = read(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-A:  1 \t\r\nx-a:\r\n\r\n", step)
    assert end is END
    assert isinstance(head, RequestHead)
    assert (head.method, head.target, head.version, head.body) == (b"GET", b"/a?b=c", "HTTP/1.1", 0)
    assert head.headers.fields == ((b"Host", b"x"), (b"X-A", b"1"), (b"x-a", b""))
    assert head.headers.all(b"x-a") == [b"1", b""]
    assert head.keep_alive


def test_one_empty_line_before_a_request_is_ignored_and_no_more() -> None:
    assert isinstance(read(b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")[0], RequestHead)
    assert isinstance(read(b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 1)[0], RequestHead)
    assert refusal(b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").reason is Reason.HEAD_MALFORMED
    assert RequestReader(BOUNDS).feed(b"\r\n") == []


GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
REFUSED = {
    "bare-lf-everywhere": (b"GET / HTTP/1.1\nHost: x\n\n", Reason.HEAD_MALFORMED),
    "bare-lf-in-request-line": (b"GET / HTTP/1.1\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "bare-lf-in-field": (GET + b"A: b\nC: d\r\n\r\n", Reason.HEAD_MALFORMED),
    "bare-cr-in-field": (GET + b"A: b\rC: d\r\n\r\n", Reason.HEAD_MALFORMED),
    "bare-cr-before-crlf": (GET + b"A: b\r\r\n\r\n", Reason.HEAD_MALFORMED),
    "lf-cr": (b"GET / HTTP/1.1\n\rHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "nul-in-value": (GET + b"A: b\0c\r\n\r\n", Reason.HEAD_MALFORMED),
    "nul-in-name": (GET + b"A\0: b\r\n\r\n", Reason.HEAD_MALFORMED),
    "control-in-value": (GET + b"A: b\x0bc\r\n\r\n", Reason.HEAD_MALFORMED),
    "delete-in-value": (GET + b"A: b\x7fc\r\n\r\n", Reason.HEAD_MALFORMED),
    "fold-with-space": (GET + b"A: b\r\n c\r\n\r\n", Reason.HEAD_MALFORMED),
    "fold-with-tab": (GET + b"A: b\r\n\tc\r\n\r\n", Reason.HEAD_MALFORMED),
    "fold-first": (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "fold-of-framing": (GET + b"Transfer-Encoding:\r\n chunked\r\n\r\n", Reason.HEAD_MALFORMED),
    "space-before-colon": (GET + b"Content-Length : 5\r\n\r\n", Reason.HEAD_MALFORMED),
    "tab-before-colon": (GET + b"Content-Length\t: 5\r\n\r\n", Reason.HEAD_MALFORMED),
    "no-colon": (GET + b"Content-Length\r\n\r\n", Reason.HEAD_MALFORMED),
    "empty-name": (GET + b": b\r\n\r\n", Reason.HEAD_MALFORMED),
    "name-with-space": (GET + b"A B: c\r\n\r\n", Reason.HEAD_MALFORMED),
    "name-not-ascii": (GET + b"A\xe9: c\r\n\r\n", Reason.HEAD_MALFORMED),
    "name-with-separator": (GET + b"A(b): c\r\n\r\n", Reason.HEAD_MALFORMED),
    "two-spaces": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "space-at-the-end": (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "space-at-the-start": (b" GET / HTTP/1.1\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "tabs-as-spaces": (b"GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "http-0.9": (b"GET /\r\n\r\n", Reason.HEAD_MALFORMED),
    "no-target": (b"GET HTTP/1.1\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "method-no-token": (b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "method-empty": (b" / HTTP/1.1\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "target-fragment": (b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", Reason.TARGET_INVALID),
    "target-not-ascii": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", Reason.TARGET_INVALID),
    "target-with-tab": (b"GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n", Reason.TARGET_INVALID),
    "target-too-long": (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: x\r\n\r\n", Reason.TARGET_TOO_LONG),
    "version-2.0": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", Reason.VERSION_UNSUPPORTED),
    "version-1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", Reason.VERSION_UNSUPPORTED),
    "version-3": (b"GET / HTTP/3\r\nHost: x\r\n\r\n", Reason.VERSION_UNSUPPORTED),
    "preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Reason.VERSION_UNSUPPORTED),
    "version-lower-case": (b"GET / http/1.1\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "version-padded": (b"GET / HTTP/1.01\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "version-other": (b"GET / RTSP/1.0\r\nHost: x\r\n\r\n", Reason.HEAD_MALFORMED),
    "too-many-fields": (GET + b"A: b\r\n" * 100 + b"\r\n", Reason.HEAD_TOO_LARGE),
    "too-large": (GET + b"A: " + b"b" * 40000 + b"\r\n\r\n", Reason.HEAD_TOO_LARGE),
    "endless-target": (b"GET /" + b"a" * 70000, Reason.TARGET_TOO_LONG),
    "endless-head": (GET + b"A: " + b"b" * 70000, Reason.HEAD_TOO_LARGE),
    "tls-hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", Reason.HEAD_MALFORMED),
    "expectation": (GET + b"Expect: 200-ok\r\n\r\n", Reason.EXPECTATION_REFUSED),
    "expectations": (GET + b"Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n", Reason.EXPECTATION_REFUSED),
}


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize("name", REFUSED)
def test_malformed_head_is_refused(name: str, step: int) -> None:
    data, reason = REFUSED[name]
    assert refusal(data, step).reason is reason


FRAMING = {
    "te-and-cl": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "cl-and-te": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "te-twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "te-list": b"Transfer-Encoding: gzip, chunked\r\n",
    "te-chunked-not-last": b"Transfer-Encoding: chunked, identity\r\n",
    "te-identity": b"Transfer-Encoding: identity\r\n",
    "te-empty": b"Transfer-Encoding:\r\n",
    "te-quoted": b'Transfer-Encoding: "chunked"\r\n',
    "te-parameter": b"Transfer-Encoding: chunked;q=1\r\n",
    "te-prefix": b"Transfer-Encoding: xchunked\r\n",
    "te-comma": b"Transfer-Encoding: chunked,\r\n",
    "cl-twice-equal": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "cl-twice-different": b"Content-Length: 5\r\ncontent-length: 6\r\n",
    "cl-list": b"Content-Length: 5, 5\r\n",
    "cl-plus": b"Content-Length: +5\r\n",
    "cl-minus": b"Content-Length: -5\r\n",
    "cl-hex": b"Content-Length: 0x5\r\n",
    "cl-empty": b"Content-Length:\r\n",
    "cl-space-inside": b"Content-Length: 1 1\r\n",
    "cl-padded": b"Content-Length: 005\r\n",
    "cl-fraction": b"Content-Length: 5.0\r\n",
    "cl-underscore": b"Content-Length: 1_0\r\n",
    "cl-other-digits": b"Content-Length: \xd9\xa5\r\n",
    "cl-huge": b"Content-Length: 99999999999999999999\r\n",
}


@pytest.mark.parametrize("name", FRAMING)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_ambiguous_framing_is_refused(name: str, version: bytes) -> None:
    found = refusal(b"POST /p HTTP/" + version + b"\r\nHost: x\r\n" + FRAMING[name] + b"\r\n")
    assert found.reason is Reason.FRAMING_AMBIGUOUS
    assert (found.method, found.target) == (b"POST", b"/p")


def test_transfer_encoding_of_http_1_0_is_refused() -> None:
    found = refusal(b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert found.reason is Reason.FRAMING_AMBIGUOUS


def test_framing_of_requests() -> None:
    def body(fields: bytes) -> int | None:
        head = parse_request(b"POST / HTTP/1.1\r\nHost: x" + fields, BOUNDS)
        assert isinstance(head, RequestHead)
        return head.body

    assert body(b"") == 0
    assert body(b"\r\nContent-Length: 0") == 0
    assert body(b"\r\ncontent-length:\t7 ") == 7
    assert body(b"\r\ntransfer-encoding: Chunked") is None


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: keep-alive\r\n", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: foo, Close\r\n", False),
        (b"1.1", b"Connection: foo\r\nconnection: close\r\n", False),
        (b"1.0", b"Connection: keep-alive\r\n", False),
    ],
)
def test_keep_alive(version: bytes, connection: bytes, stays: bool) -> None:
    head = read(b"GET / HTTP/" + version + b"\r\nHost: x\r\n" + connection + b"\r\n")[0]
    assert isinstance(head, RequestHead)
    assert head.keep_alive is stays


def test_pipelined_requests_wait_for_next() -> None:
    reader = RequestReader(BOUNDS)
    one = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    two = b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n"
    events = reader.feed(one + two + two[:5])
    assert [type(event).__name__ for event in events] == ["RequestHead", "bytes", "_Mark"]
    assert reader.pending == len(two) + 5
    events = reader.next()
    assert isinstance(events[0], RequestHead)
    assert events[0].target == b"/2"
    assert reader.next() == []
    assert isinstance(reader.feed(two[5:])[0], RequestHead)


def test_nothing_is_read_after_a_refusal() -> None:
    reader = RequestReader(BOUNDS)
    assert isinstance(reader.feed(b"\0")[0], Refusal)
    assert reader.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == []
    assert not reader.complete


def test_end_of_connection_inside_a_message() -> None:
    reader = RequestReader(BOUNDS)
    assert reader.eof() is None
    reader.feed(b"GET / HT")
    missing = reader.eof()
    assert missing is not None
    assert missing.reason is Reason.HEAD_MALFORMED
    reader = RequestReader(BOUNDS)
    reader.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab")
    missing = reader.eof()
    assert missing is not None
    assert missing.reason is Reason.BODY_MALFORMED


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"/a?b", (b"", b"", b"/a?b")),
        (b"http://h:1/a?b", (b"http", b"h:1", b"/a?b")),
        (b"HTTPS://h", (b"https", b"h", b"/")),
        (b"http://h?q", (b"http", b"h", b"/?q")),
        (b"http://u@h//x", (b"http", b"u@h", b"//x")),
        (b"*", (b"", b"", b"*")),
        (b"h:443", (b"", b"", b"h:443")),
        (b"ftp://h/", (b"", b"", b"ftp://h/")),
    ],
)
def test_targets_are_taken_apart(target: bytes, parts: tuple[bytes, bytes, bytes]) -> None:
    assert split_target(target) == parts


# Responses.


def respond(data: bytes, method: bytes = b"GET", step: int = 0, eof: bool = False) -> Sequence[object]:
    reader = ResponseReader(method, BOUNDS)
    pieces = [data] if not step else [data[at : at + step] for at in range(0, len(data), step)]
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *(reader.eof() if eof else [])]


@pytest.mark.parametrize("step", [0, 1])
def test_response_is_read(step: int) -> None:
    head, *parts, end = respond(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", step=step)
    assert isinstance(head, ResponseHead)
    assert (head.status, head.phrase, head.body, head.keep_alive) == (200, b"OK", 3, True)
    assert b"".join(part for part in parts if isinstance(part, bytes)) == b"abc"
    assert end is END


def test_response_without_length_lasts_until_the_connection_ends() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nabc"
    assert respond(data)[-1] == b"abc"
    head, *_, end = respond(data, eof=True)
    assert end is END
    assert isinstance(head, ResponseHead)
    assert not head.keep_alive


@pytest.mark.parametrize(
    ("method", "status", "fields"),
    [
        (b"HEAD", b"200", b"Content-Length: 5\r\n"),
        (b"HEAD", b"200", b"Transfer-Encoding: chunked\r\n"),
        (b"GET", b"204", b""),
        (b"GET", b"304", b"Content-Length: 5\r\n"),
    ],
)
def test_responses_without_body(method: bytes, status: bytes, fields: bytes) -> None:
    head, end = respond(b"HTTP/1.1 " + status + b" X\r\n" + fields + b"\r\n", method)
    assert isinstance(head, ResponseHead)
    assert end is END


def test_interim_responses_are_dropped() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    head, end = respond(interim + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(head, ResponseHead)
    assert head.status == 200
    assert end is END
    assert isinstance(respond(b"HTTP/1.1 100 Continue\r\n\r\n" * 40)[0], Refusal)


def test_bytes_after_a_response_are_kept_apart() -> None:
    reader = ResponseReader(b"GET", BOUNDS)
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
    assert reader.pending


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 40000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1001 + b"\r\n",
    ],
)
def test_malformed_response_is_refused(data: bytes) -> None:
    found = respond(data)[-1]
    assert isinstance(found, Refusal)
    assert found.reason is Reason.UPSTREAM_MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nCont",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ],
)
def test_response_cut_short(data: bytes) -> None:
    found = respond(data, eof=True)[-1]
    assert isinstance(found, Refusal)
    assert found.reason is Reason.UPSTREAM_CLOSED


def parsed(raw: bytes, bounds: Bounds = BOUNDS) -> RequestHead | Reason:
    head = parse_request(raw, bounds)
    return head.reason if isinstance(head, Refusal) else head


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"CONNECT x:443 HTTP/1.1", Reason.METHOD_INVALID),
        (b"CONNECT / HTTP/1.1", Reason.METHOD_INVALID),
        (b"GET x HTTP/1.1", Reason.TARGET_INVALID),
        (b"GET ?x HTTP/1.1", Reason.TARGET_INVALID),
        (b"GET ://x HTTP/1.1", Reason.TARGET_INVALID),
        (b"GET  HTTP/1.1", Reason.TARGET_INVALID),
        (b"GET /# HTTP/1.1", Reason.TARGET_INVALID),
        (b"GET /\xe9 HTTP/1.1", Reason.TARGET_INVALID),
        (b"G(T / HTTP/1.1", Reason.HEAD_MALFORMED),
    ],
)
def test_lines_that_name_no_target_here(line: bytes, reason: Reason) -> None:
    assert parsed(line + b"\r\nHost: x") is reason


@pytest.mark.parametrize(
    "line", [b"BREW / HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET http://x/ HTTP/1.1", b"GET / HTTP/1.0"]
)
def test_lines_that_do(line: bytes) -> None:
    assert isinstance(parsed(line + b"\r\nHost: x"), RequestHead)


@pytest.mark.parametrize("more", [0, 1])
def test_a_request_is_as_large_as_it_may_be(more: int) -> None:
    raw = b"GET /" + b"a" * (9 + more) + b" HTTP/1.1\r\nHost: x"
    assert parsed(raw, replace(BOUNDS, target=10)) is Reason.TARGET_TOO_LONG if more else True
    assert isinstance(parsed(raw, replace(BOUNDS, target=10 + more)), RequestHead)
    fields = b"GET / HTTP/1.1\r\n" + b"\r\n".join([b"A: b"] * (3 + more))
    assert isinstance(parsed(fields, replace(BOUNDS, fields=3)), RequestHead) is not more
    assert (parsed(fields, replace(BOUNDS, fields=3)) is Reason.HEAD_TOO_LARGE) is bool(more)
    head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    bounds = replace(BOUNDS, head=len(head) - 4 - more)
    for step in (len(head), 1):
        reader = RequestReader(bounds)
        events = [event for at in range(0, len(head), step) for event in reader.feed(head[at : at + step])]
        assert isinstance(events[0], RequestHead) is not more


@pytest.mark.parametrize(
    ("version", "values", "outcome"),
    [
        (b"1.1", [b"100-continue"], True),
        (b"1.1", [b"100-Continue"], True),
        (b"1.1", [], False),
        (b"1.1", [b"miracles"], Reason.EXPECTATION_REFUSED),
        (b"1.1", [b"100-continue", b"100-continue"], Reason.EXPECTATION_REFUSED),
        (b"1.0", [b"100-continue"], False),  # RFC 9110, section 10.1.1: ignored
        (b"1.0", [b"miracles"], False),
    ],
)
def test_expectations(version: bytes, values: list[bytes], outcome: bool | Reason) -> None:
    fields = b"".join(b"\r\nExpect: " + value for value in values)
    found = parsed(b"POST / HTTP/" + version + b"\r\nHost: x\r\nContent-Length: 1" + fields)
    assert (found.expects_continue if isinstance(found, RequestHead) else found) == outcome


RESPONSE = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        RESPONSE + b"A: b\rSet-Cookie: c",
        RESPONSE + b"A: b\nSet-Cookie: c",
        RESPONSE + b"A: b\0",
        RESPONSE + b"A: b\x7f",
        b"HTTP/1.1 200 O\rK\r\nA: b",
        b"HTTP/1.1 200 O\x01K\r\nA: b",
        RESPONSE + b"A b",
        RESPONSE + b" A: b",
        RESPONSE + b": b",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.1 20 OK",
    ],
)
def test_a_response_that_could_be_taken_for_another_is_refused(raw: bytes) -> None:
    assert isinstance(parse_response(raw, b"GET", BOUNDS), Refusal)


def test_responses_that_are_odd_and_legal() -> None:
    spaced = parse_response(RESPONSE + b"A : b\r\nContent-Length\t: 3", b"GET", BOUNDS)
    assert isinstance(spaced, ResponseHead)  # RFC 9112, section 5.1
    assert spaced.headers.fields == ((b"A", b"b"), (b"Content-Length", b"3"))
    assert spaced.body == 3
    phrase = parse_response(b"HTTP/1.1 200 ", b"GET", BOUNDS)
    assert isinstance(phrase, ResponseHead)
    assert (phrase.phrase, phrase.body, phrase.keep_alive) == (b"", -1, False)
    for count in (3, 4):
        raw = RESPONSE + b"\r\n".join([b"A: b"] * count)
        assert isinstance(parse_response(raw, b"GET", replace(BOUNDS, response_fields=3)), Refusal) is (count == 4)


@pytest.mark.parametrize(
    ("status", "method", "fields", "body", "keeps"),
    [
        (200, b"GET", b"Content-Length: 5", 5, True),
        (200, b"GET", b"Content-Length: 5\r\nConnection: close", 5, False),
        (200, b"GET", b"Content-Length: 5\r\nConnection: keep-alive", 5, True),
        (200, b"GET", b"Content-Length: 5\r\nConnection: Keep-Alive, Close", 5, False),
        (200, b"GET", b"Content-Length: 5\r\nConnection: closed", 5, True),
        (200, b"GET", b"Transfer-Encoding: chunked", None, True),
        (200, b"GET", b"A: b", -1, False),
        (200, b"HEAD", b"Content-Length: 5", 0, True),
        (204, b"GET", b"A: b", 0, True),
        (304, b"GET", b"Content-Length: 5", 0, True),
        (199, b"GET", b"A: b", 0, True),
        (101, b"GET", b"A: b", 0, True),
    ],
)
def test_how_long_a_response_is_and_whether_another_may_follow(
    status: int, method: bytes, fields: bytes, body: int | None, keeps: bool
) -> None:
    found = parse_response(b"HTTP/1.1 %d X\r\n" % status + fields, method, BOUNDS)
    assert isinstance(found, ResponseHead)
    assert (found.body, found.keep_alive) == (body, keeps)


@pytest.mark.parametrize(
    ("line", "read"),
    [
        (b"GET /b HTTP/1.1", True),
        (b"POST /b HTTP/1.1", True),
        (b"BREW /b HTTP/1.1", False),
        (b"GET b HTTP/1.1", False),
        (b"GET * HTTP/1.1", False),
        (b"GET http://x/ HTTP/1.1", False),
        (b"GET /b HTTP/1.0", False),
        (b"GET /b", False),
        (b"GET  /b HTTP/1.1", False),
        (b"GET /# HTTP/1.1", False),
        (b"GET /" + b"a" * 9 + b" HTTP/1.1", True),
        (b"GET /" + b"a" * 10 + b" HTTP/1.1", False),
    ],
)
def test_a_line_whose_fields_are_known_is_read_where_it_is_usual(line: bytes, read: bool) -> None:
    """What is not read so is parsed as a whole, which says what is wrong, if anything is."""
    before = parsed(b"GET /a HTTP/1.1\r\nHost: x\r\nA: b")
    assert isinstance(before, RequestHead)
    found = parse_line(line, before, replace(BOUNDS, target=10, fields=2))
    assert (found is not None) is read
    whole = parsed(line + b"\r\nHost: x\r\nA: b")
    assert found is None or found == whole._replace(headers=found.headers)  # type: ignore[union-attr]
    assert parse_line(b"GET /b HTTP/1.1", before, replace(BOUNDS, fields=1)) is None
