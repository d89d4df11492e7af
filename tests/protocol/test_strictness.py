"""What is malformed never reaches an upstream; what is well-formed arrives as exactly one request."""

import h11
import pytest

from tests.live.harness_http import raw_request, status_of
from tests.live.harness_upstream import RecordingUpstream, take_request
from tests.protocol.harness import Gate, connect, receive

P = b"POST /p HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

ATTACKS = {
    "cl-te": P + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-cl": P + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\na\r\n0\r\n\r\n" + SMUGGLED,
    "te-te": P + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-space": P + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-vtab": P + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-folded": P + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-bare-lf": P + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-bare-cr": P + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-identity": P + b"Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
    "te-http-1.0": b"POST /p HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "cl-twice": P + b"Content-Length: 0\r\nContent-Length: 38\r\n\r\n" + SMUGGLED,
    "cl-list": P + b"Content-Length: 0, 38\r\n\r\n" + SMUGGLED,
    "cl-plus": P + b"Content-Length: +38\r\n\r\n" + SMUGGLED,
    "lf-only": b"POST /p HTTP/1.1\nHost: x\nContent-Length: 0\n\n" + SMUGGLED,
    "nul": P + b"X: a\0b\r\n\r\n",
    "fold": P + b"X: a\r\n b\r\n\r\n",
    "space-in-name": P + b"X Y: a\r\n\r\n",
    "version": b"POST /p HTTP/1.9\r\nHost: x\r\n\r\n",
    "http-0.9": b"GET /p\r\n\r\n",
    "target-space": b"GET /p /q HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-fragment": b"GET /p#q HTTP/1.1\r\nHost: x\r\n\r\n",
    "no-host": b"GET /p HTTP/1.1\r\n\r\n",
    "no-host-in-absolute-form": b"GET http://x/p HTTP/1.1\r\n\r\n",
    "no-host-and-upgrade": b"GET http://x/p HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "two-hosts": b"GET /p HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "host-with-path": b"GET /p HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "other-host-in-target": b"GET http://y/p HTTP/1.1\r\nHost: x\r\n\r\n",
    "other-scheme-in-target": b"GET https://x/p HTTP/1.1\r\nHost: x\r\n\r\n",
    "user-in-target": b"GET http://u@x/p HTTP/1.1\r\nHost: x\r\n\r\n",
    "connect": b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
    "trace": b"TRACE /p HTTP/1.1\r\nHost: x\r\n\r\n",
    "preface-like": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
    "preface-with-a-field": b"PRI * HTTP/2.0\r\nHost: x\r\n\r\nSM\r\n\r\n",
    "preface-lower-case": b"pri * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "preface-behind-an-empty-line": b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "preface-of-another-version": b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n",
    "asterisk": b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
    "te-list": P + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-chunked-twice": P + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-not-final": P + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-trailing-comma": P + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-parameter": P + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-quoted": P + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + SMUGGLED,
    "te-empty": P + b"Transfer-Encoding:\r\n\r\n" + SMUGGLED,
    "te-obs-text": P + b"Transfer-Encoding: chunked\xa0\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "te-cased-with-cl": P + b"tRANSFER-eNCODING: CHUNKED\r\ncONTENT-lENGTH: 3\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "cl-minus": P + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "cl-hexadecimal": P + b"Content-Length: 0x26\r\n\r\n" + SMUGGLED,
    "cl-underscore": P + b"Content-Length: 3_8\r\n\r\n" + SMUGGLED,
    "cl-space": P + b"Content-Length: 3 8\r\n\r\n" + SMUGGLED,
    "cl-empty": P + b"Content-Length:\r\n\r\n" + SMUGGLED,
    "cl-huge": P + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + SMUGGLED,
    "cl-fraction": P + b"Content-Length: 3.0\r\n\r\n" + SMUGGLED,
    "cl-other-digits": P + b"Content-Length: \xd9\xa3\r\n\r\n" + SMUGGLED,
    "cl-nul": P + b"Content-Length: 0\0\r\n\r\n" + SMUGGLED,
    "name-empty": P + b": a\r\n\r\n",
    "name-obs-text": P + b"X\xe9: a\r\n\r\n",
    "name-nul": P + b"X\0: a\r\n\r\n",
    "name-tab": P + b"X\t: a\r\n\r\n",
    "no-colon": P + b"X\r\n\r\n",
    "first-field-indented": b"GET /p HTTP/1.1\r\n Host: x\r\n\r\n",
    "value-delete": P + b"X: a\x7fb\r\n\r\n",
    "value-escape": P + b"X: a\x1bb\r\n\r\n",
    "cr-before-crlf": P + b"X: a\r\r\n\r\n",
    "line-tabs": b"GET\t/p\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "line-two-spaces": b"GET  /p HTTP/1.1\r\nHost: x\r\n\r\n",
    "line-trailing-space": b"GET /p HTTP/1.1 \r\nHost: x\r\n\r\n",
    "line-leading-space": b" GET /p HTTP/1.1\r\nHost: x\r\n\r\n",
    "line-without-target": b"GET HTTP/1.1\r\nHost: x\r\n\r\n",
    "version-lower-case": b"GET /p http/1.1\r\nHost: x\r\n\r\n",
    "version-zero-padded": b"GET /p HTTP/01.1\r\nHost: x\r\n\r\n",
    "version-2": b"GET /p HTTP/2.0\r\nHost: x\r\n\r\n",
    "method-not-a-token": b"G(T /p HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-obs-text": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-control": b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-backslash": b"GET /a\\b HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-dot-segments": b"GET /a/../p HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-encoded-dots": b"GET /a/%2e%2e/p HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-encoded-nul": b"GET /a%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-encoded-crlf": b"GET /a%0d%0aX:%20y HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-twice-encoded": b"GET /a%252e HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-bad-percent": b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-empty-segment": b"GET //p HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-relative": b"GET p HTTP/1.1\r\nHost: x\r\n\r\n",
    "target-other-scheme": b"GET ftp://x/p HTTP/1.1\r\nHost: x\r\n\r\n",
    "host-empty": b"GET /p HTTP/1.1\r\nHost:\r\n\r\n",
    "host-list": b"GET /p HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "host-user": b"GET /p HTTP/1.1\r\nHost: u@x\r\n\r\n",
    "host-port": b"GET /p HTTP/1.1\r\nHost: x:99999\r\n\r\n",
    "host-open-bracket": b"GET /p HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "host-control": b"GET /p HTTP/1.1\r\nHost: x\x0cy\r\n\r\n",
    "upgrade-of-two": b"GET /p HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c, websocket\r\n\r\n",
    "expectation": P + b"Expect: x\r\nContent-Length: 1\r\n\r\na",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_malformed_requests_reach_nobody(gate: Gate, upstream: RecordingUpstream, name: str) -> None:
    data = ATTACKS[name]
    with connect(gate.port) as link:
        link.sendall(data)
        got = receive(link)
    assert status_of(got) in {400, 417, 505}, got
    assert got.count(b"\r\n\r\n") == 1
    assert b"application/problem+json" in got
    upstream.assert_saw_nothing()
    assert len(gate.hooks.wait_ends(1)) == 1


CHUNK_ATTACKS = {
    "bare-lf": b"3\nabc\n0\n\n",
    "chunk-too-long": b"3\r\nabcd\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "extension-lf": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "size-sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "size-space": b"3 \r\nabc\r\n0\r\n\r\n",
    "size-empty": b"\r\nabc\r\n0\r\n\r\n",
    "size-huge": b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "size-underscore": b"0_3\r\nabc\r\n0\r\n\r\n",
    "size-line-cr": b"3\rabc\r\n0\r\n\r\n",
    "chunk-without-crlf": b"3\r\nabc0\r\n\r\n",
    "extension-nul": b"3;a=\0\r\nabc\r\n0\r\n\r\n",
    "extension-endless": b"3;" + b"a" * 5000 + b"\r\nabc\r\n0\r\n\r\n",
    "trailer-framing": b"3\r\nabc\r\n0\r\nX\0: y\r\n\r\n",
    "trailer-endless": b"3\r\nabc\r\n0\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    "trailers-too-many": b"3\r\nabc\r\n0\r\n" + b"A: b\r\n" * 101 + b"\r\n",
    "trailer-lf": b"3\r\nabc\r\n0\r\nA: b\nC: d\r\n\r\n",
}


@pytest.mark.parametrize("name", CHUNK_ATTACKS)
def test_malformed_chunks_end_the_exchange(gate: Gate, upstream: RecordingUpstream, name: str) -> None:
    got = raw_request(gate.port, P + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK_ATTACKS[name] + SMUGGLED)
    assert status_of(got) == 400, got
    assert b'"body-malformed"' in got
    upstream.settle()
    assert upstream.requests == []  # a head may have been streamed, but never a complete request
    assert b"smuggled" not in upstream.raw


GOOD = {
    "get": b"GET /p?q=1 HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n\r\n",
    "absolute": b"GET http://x/p HTTP/1.1\r\nHost: x\r\n\r\n",
    "length": P + b"Content-Length: 3\r\n\r\nabc",
    "length-0": P + b"Content-Length: 0\r\n\r\n",
    "no-length": P + b"\r\n",
    "chunked": P + b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nT: u\r\n\r\n",
    "get-with-body": b"GET /p HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    "hop-by-hop": b"GET /p HTTP/1.1\r\nHost: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n"
    b"Keep-Alive: 1\r\n\r\n",
    "obs-text": b"GET /p HTTP/1.1\r\nHost: x\r\nX-A: \xe9\r\n\r\n",
    "http-1.0": b"GET /p HTTP/1.0\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_wellformed_requests_arrive_as_one(gate: Gate, upstream: RecordingUpstream, name: str) -> None:
    assert status_of(raw_request(gate.port, GOOD[name])) == 200
    upstream.assert_saw_only(1)
    lenient = take_request(upstream.raw, 0)
    assert lenient is not None
    assert lenient[1] == b""
    strict = h11.Connection(h11.SERVER)
    strict.receive_data(upstream.raw)
    head = strict.next_event()
    assert isinstance(head, h11.Request)
    assert head.target.startswith(b"/p")
    assert not {name for name, _ in head.headers} & {b"te", b"keep-alive", b"connection", b"x-hop", b"trailer"}
    body = b""
    while isinstance(event := strict.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert body == (b"abc" if name in {"length", "chunked", "get-with-body"} else b"")
    assert strict.trailing_data[0] == b""
