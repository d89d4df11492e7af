"""Request smuggling: bytes that the gateway and a service might read as different requests."""

import struct
from collections.abc import Callable, Iterator
from itertools import cycle, islice

import pytest

from tests.attack.gateways import FRONTS, HOSTS, Ask, Attacked
from tests.attack.generator import ENCODINGS, SIZES, SMUGGLED
from tests.attack.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    Field,
    Http1,
    Partial,
    block,
    frame,
)
from tests.live.harness import mint

TARGETS = ("/node/always/alice", "/nginx/always/early/alice", "/node/never/alice", "/nginx/auto/alice")
ON_HTTP1 = pytest.mark.parametrize("front", ["http1", "http1-tls"], indirect=True)
ON_HTTP2 = pytest.mark.parametrize("front", ["http2"], indirect=True)

# HTTP/1.1. Each: the request line's method, the lines of framing, and what follows the head.
N = len(SMUGGLED)
HTTP1: dict[str, tuple[str, bytes, bytes]] = {
    "cl-te": ("POST", b"Content-Length: %d\r\nTransfer-Encoding: chunked" % (N + 5), b"0\r\n\r\n" + SMUGGLED),
    "te-cl": ("POST", b"Transfer-Encoding: chunked\r\nContent-Length: 4", b"%x\r\n%s\r\n0\r\n\r\n" % (N, SMUGGLED)),
    "cl-cl": ("POST", b"Content-Length: 0\r\nContent-Length: %d" % N, SMUGGLED),
    "cl-cl-same": ("POST", b"Content-Length: 3\r\nContent-Length: 3", b"abc" + SMUGGLED),
    "cl-list": ("POST", b"Content-Length: 0, %d" % N, SMUGGLED),
    "cl-plus": ("POST", b"Content-Length: +%d" % N, SMUGGLED),
    "cl-minus": ("POST", b"Content-Length: -1", SMUGGLED),
    "cl-hex": ("POST", b"Content-Length: 0x%x" % N, SMUGGLED),
    "cl-float": ("POST", b"Content-Length: %d.0" % N, SMUGGLED),
    "cl-empty": ("POST", b"Content-Length:", SMUGGLED),
    "cl-space-before-colon": ("POST", b"Content-Length : %d" % N, SMUGGLED),
    "cl-huge": ("POST", b"Content-Length: 18446744073709551616", SMUGGLED),
    "cl-wraps": ("POST", b"Content-Length: %d" % (2**64 + 3), b"abc" + SMUGGLED),
    "cl-other-digits": ("POST", b"Content-Length: \xb2", b"ab" + SMUGGLED),
    "cl-folded": ("POST", b"Content-Length: 0\r\n %d" % N, SMUGGLED),
    "cl-underscore": ("POST", b"Content_Length: %d\r\nContent-Length: 0" % N, SMUGGLED),
    "get-with-cl": ("GET", b"Content-Length: %d" % N, SMUGGLED),
    "head-with-cl": ("HEAD", b"Content-Length: %d" % N, SMUGGLED),
    "options-with-chunks": ("OPTIONS", b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (N, SMUGGLED)),
    "delete-without-framing": ("DELETE", b"X: y", SMUGGLED),
    "cl-named-by-connection": ("POST", b"Connection: content-length\r\nContent-Length: %d" % N, SMUGGLED),
    "te-named-by-connection": (
        "POST",
        b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked",
        b"%x\r\n%s\r\n0\r\n\r\n" % (N, SMUGGLED),
    ),
    "host-named-by-connection": ("POST", b"Connection: host\r\nContent-Length: %d" % N, SMUGGLED),
    "expect": ("POST", b"Expect: 100-continue\r\nContent-Length: %d" % N, SMUGGLED),
    "expect-twice": ("POST", b"Expect: 100-continue\r\nExpect: x\r\nContent-Length: %d" % N, SMUGGLED),
    "expect-obfuscated": ("GET", b"Expect: y 100-continue\r\nContent-Length: %d" % N, SMUGGLED),
    "trailer-framing": (
        "POST",
        b"Transfer-Encoding: chunked",
        b"3\r\nabc\r\n0\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%s" % (N, SMUGGLED),
    ),
    "trailer-identity": (
        "POST",
        b"Transfer-Encoding: chunked\r\nTrailer: X-User-ID",
        b"3\r\nabc\r\n0\r\nX-User-ID: mallory\r\nHost: evil.example\r\n\r\n",
    ),
    "trailer-forwarded": (
        "POST",
        b"Transfer-Encoding: chunked\r\nTrailer: X-Trailer, X,Host,, Content-Length",
        b"1\r\na\r\n0\r\nX-Trailer: 0\r\nX: \xff GET /node/auto/mallory HTTP/1.1\r\nX:\r\nHost: x\r\n\r\n" + SMUGGLED,
    ),
    "trailer-broken": ("POST", b"Transfer-Encoding: chunked", b"0\r\nx\r\n\r\n" + SMUGGLED),
    "early-end": ("POST", b"Transfer-Encoding: chunked", b"0\r\n\r\n" + SMUGGLED),
    "no-last-crlf": ("POST", b"Transfer-Encoding: chunked", b"0\r\n" + SMUGGLED),
    "chunk-overrun": ("POST", b"Transfer-Encoding: chunked", b"3\r\nabcdef\r\n0\r\n\r\n" + SMUGGLED),
    "chunk-extension-newline": ("POST", b"Transfer-Encoding: chunked", b"3;\n\r\nabc\r\n0\r\n\r\n" + SMUGGLED),
    "chunk-extension-long": (
        "POST",
        b"Transfer-Encoding: chunked",
        b"3;" + b"x" * 70000 + b"\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
    ),
    "upgrade-h2c": (
        "GET",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    ),
    "upgrade-tls": ("GET", b"Upgrade: TLS/1.0\r\nConnection: Upgrade", SMUGGLED),
    "bare-cr": ("POST", b"X: y\rContent-Length: %d" % N, SMUGGLED),
    "bare-lf": ("POST", b"X: y\nContent-Length: %d" % N, SMUGGLED),
    "nul": ("POST", b"X: \0\r\nContent-Length: %d" % N, SMUGGLED),
    "nul-in-name": ("POST", b"Content-Length\0: %d" % N, SMUGGLED),
    "leading-space": ("POST", b" Content-Length: %d" % N, SMUGGLED),
    "no-colon": ("POST", b"Content-Length %d" % N, SMUGGLED),
    "empty-name": ("POST", b": x\r\nContent-Length: %d" % N, SMUGGLED),
}
for at, encoding in enumerate(ENCODINGS):
    HTTP1[f"te-{at}"] = ("POST", encoding + b"\r\nContent-Length: %d" % (N + 5), b"0\r\n\r\n" + SMUGGLED)
    HTTP1[f"te-alone-{at}"] = ("POST", encoding, b"0\r\n\r\n" + SMUGGLED)
for at, size in enumerate(SIZES):
    HTTP1[f"size-{at}"] = ("POST", b"Transfer-Encoding: chunked", size % 3 + b"\r\nabc\r\n0\r\n\r\n" + SMUGGLED)
    HTTP1[f"size-wraps-{at}"] = (
        "POST",
        b"Transfer-Encoding: chunked",
        size % (2**64 + 3) + b"\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
    )
LINES: dict[str, bytes] = {
    "line-cr": b"GET /node/auto/alice/x HTTP/1.1\r\r\nX: y",
    "line-crlf-in-target": b"GET /node/auto/alice/x\r\nX-User-ID: mallory HTTP/1.1",
    "line-tab": b"GET\t/node/auto/alice/x\tHTTP/1.1",
    "line-spaces": b"GET  /node/auto/alice/x  HTTP/1.1",
    "line-space-in-target": b"GET /node/auto/alice/x HTTP/1.1 HTTP/1.1",
    "line-http-0.9": b"GET /node/auto/alice/x",
    "line-http-1.2": b"GET /node/auto/alice/x HTTP/1.2",
    "line-http-2.0": b"GET /node/auto/alice/x HTTP/2.0",
    "line-http-11": b"GET /node/auto/alice/x HTTP/11",
    "line-pri": b"PRI * HTTP/2.0",
    "line-connect": b"CONNECT 127.0.0.1:80 HTTP/1.1",
    "line-asterisk": b"OPTIONS * HTTP/1.1",
    "line-no-slash": b"GET node/auto/alice/x HTTP/1.1",
    "line-fragment": b"GET /node/auto/alice/x#y HTTP/1.1",
    "line-nul": b"GET /node/auto/alice/x\0 HTTP/1.1",
    "line-high": b"GET /node/auto/alice/\xff HTTP/1.1",
    "line-method-space": b" GET /node/auto/alice/x HTTP/1.1",
    "line-method-lower": b"get /node/auto/alice/x HTTP/1.1",
    "line-method-odd": b"G\x00T /node/auto/alice/x HTTP/1.1",
    "line-empty-before": b"\r\n\r\n\r\nGET /node/auto/alice/x HTTP/1.1",
}


def targets(gate: Attacked) -> Iterator[str]:
    """Take turns, beginning with another one on each front of each host."""
    begin = FRONTS.index("http2" if gate.front == "http2-plain" else gate.front) + HOSTS.index(gate.gateway.host)
    return islice(cycle(TARGETS), begin, None)


def lives(gate: Attacked) -> None:
    """Check that another user, on other connections, is answered by all targets, with their own answers."""
    token = mint("bob")
    asked = [Ask(f"{target.replace('alice', 'bob')}/after", token=token) for target in TARGETS]
    for one, answer in zip(asked, gate.ask(*asked), strict=True):
        assert (answer.status, answer.body, answer.one("x-origin-user")) == (200, one.target.encode(), "bob"), answer


@ON_HTTP1
def test_http1(gate: Attacked) -> None:
    token = mint("alice").encode()
    for (name, (method, lines, rest)), target in zip(HTTP1.items(), targets(gate), strict=False):
        client = gate.http1()
        head = f"{method} {target}/{name} HTTP/1.1\r\nHost: gateway.test\r\n".encode()
        client.link.send(head + b"Authorization: Bearer " + token + b"\r\n" + lines + b"\r\n\r\n" + rest)
        told(name, client, method)
    for name, line in LINES.items():
        client = gate.http1()
        client.link.send(line + b"\r\nHost: gateway.test\r\nAuthorization: Bearer " + token + b"\r\n\r\n" + SMUGGLED)
        told(name, client, "GET")
    lives(gate)
    _, logged = gate.judged()
    # What is pipelined behind a whole request is a request of its own, and has no token.
    assert [one for one in logged if "mallory" in one.url + str(one.headers)] == []


def told(name: str, client: Http1, method: str) -> None:
    """Check that the client has an answer or an end once it says no more; silence would be another's wait."""
    client.link.half_close()
    answers = client.wait(10, [method])
    assert client.link.ended, f"{name}: neither an answer nor an end; so far {answers}"
    assert all(
        answer.status in {0, 200, 400, 401, 404, 405, 408, 411, 413, 417, 431, 501, 505} for answer in answers
    ), (
        name,
        answers,
    )
    client.link.close()


# HTTP/2. Each makes the frames of stream 1 from its head.

Frames = Callable[[list[Field]], list[bytes]]


def _whole(*more: Field, data: bytes | None = None, end: bool = True) -> Frames:
    def made(head: list[Field]) -> list[bytes]:
        flags = END_HEADERS | (END_STREAM if data is None and end else 0)
        frames = [frame(HEADERS, flags, 1, block([*head, *more]))]
        return frames if data is None else [*frames, frame(DATA, END_STREAM if end else 0, 1, data)]

    return made


def _trailers(*trailers: Field, length: int, data: bytes = b"") -> Frames:
    def made(head: list[Field]) -> list[bytes]:
        frames = _whole((b"content-length", b"%d" % length), data=data, end=False)(head)
        return [*frames, frame(HEADERS, END_HEADERS | END_STREAM, 1, block(trailers))]

    return made


def _replaced(name: bytes, value: bytes | None) -> Frames:
    def made(head: list[Field]) -> list[bytes]:
        fields = [(n, value if n == name else v) for n, v in head if n != name or value is not None]
        return [frame(HEADERS, END_HEADERS | END_STREAM, 1, block([(n, v or b"") for n, v in fields]))]

    return made


def _continued(head: list[Field]) -> list[bytes]:
    section = block(head)
    other = frame(DATA, 0, 1, SMUGGLED)
    first = frame(HEADERS, END_STREAM, 1, section[:20])
    return [first, other, frame(CONTINUATION, END_HEADERS, 1, section[20:])]


HTTP2: dict[str, Frames] = {
    **{f"cl-{n}-no-body": _whole((b"content-length", b"%d" % n)) for n in (1, 20, 400, N, 10**6)},
    **{f"cl-{n}-short": _whole((b"content-length", b"%d" % n), data=b"x") for n in (2, 100, N + 1, 10**6)},
    "cl-0-long": _whole((b"content-length", b"0"), data=SMUGGLED),
    "cl-1-long": _whole((b"content-length", b"1"), data=b"x" + SMUGGLED),
    "cl-twice": _whole((b"content-length", b"0"), (b"content-length", b"%d" % N), data=SMUGGLED),
    "cl-list": _whole((b"content-length", b"0, %d" % N), data=SMUGGLED),
    "cl-plus": _whole((b"content-length", b"+%d" % N), data=SMUGGLED),
    "cl-wraps": _whole((b"content-length", b"%d" % (2**64 + 3)), data=b"abc"),
    "trailers-no-body": _trailers((b"x", b"y"), length=N),
    "trailers-short": _trailers((b"x", b"y"), length=N, data=b"abc"),
    "trailers-forwarded": _trailers((b"x", b"0"), (b"x-trailer", b"\xff"), (b"host", b"x"), length=3, data=b"abc"),
    "trailers-length": _trailers((b"content-length", b"0"), length=3, data=b"abc"),
    "trailers-pseudo": _trailers((b":path", b"/admin"), length=3, data=b"abc"),
    "trailers-identity": _trailers((b"x-user-id", b"mallory"), length=3, data=b"abc"),
    "trailers-crlf": _trailers((b"x", b"y\r\n\r\n" + SMUGGLED), length=3, data=b"abc"),
    "te-chunked": _whole((b"transfer-encoding", b"chunked"), data=b"0\r\n\r\n" + SMUGGLED),
    "te-upper": _whole((b"Transfer-Encoding", b"chunked"), data=b"0\r\n\r\n" + SMUGGLED),
    "te-hidden-in-value": _whole((b"x", b"y\r\ntransfer-encoding: chunked"), data=b"0\r\n\r\n" + SMUGGLED),
    "te-hidden-in-name": _whole((b"x: y\r\ntransfer-encoding", b"chunked"), data=b"0\r\n\r\n" + SMUGGLED),
    "te-named-with-space": _whole((b"transfer-encoding ", b"chunked"), data=b"0\r\n\r\n" + SMUGGLED),
    "connection": _whole((b"connection", b"content-length"), (b"content-length", b"%d" % N), data=SMUGGLED),
    "upgrade": _whole((b"upgrade", b"h2c"), (b"http2-settings", b"AAMAAABkAAQAAP__"), data=SMUGGLED),
    "value-ends-head": _whole((b"x", b"y\r\n\r\n" + SMUGGLED)),
    "value-lf": _whole((b"x", b"y\nX-User-ID: mallory")),
    "value-nul": _whole((b"x", b"\0")),
    "name-colon": _whole((b"x-user-id:mallory", b"y")),
    "name-empty": _whole((b"", b"y")),
    "name-high": _whole((b"x\xff", b"y")),
    "path-crlf": _replaced(b":path", b"/node/auto/alice/x HTTP/1.1\r\nHost: gateway.test\r\n\r\n" + SMUGGLED),
    "path-space": _replaced(b":path", b"/node/auto/alice/x HTTP/1.1"),
    "path-absolute": _replaced(b":path", b"http://gateway.test/node/auto/alice/x"),
    "path-empty": _replaced(b":path", b""),
    "path-none": _replaced(b":path", None),
    "path-asterisk": _replaced(b":path", b"*"),
    "method-crlf": _replaced(b":method", b"GET / HTTP/1.1\r\nX-User-ID: mallory\r\n\r\nGET"),
    "method-space": _replaced(b":method", b"GET /x"),
    "method-connect": _replaced(b":method", b"CONNECT"),
    "scheme-crlf": _replaced(b":scheme", b"https\r\nX: y"),
    "scheme-http": _replaced(b":scheme", b"http"),
    "scheme-path": _replaced(b":scheme", b"https://evil.example/?"),
    "authority-crlf": _replaced(b":authority", b"gateway.test\r\n\r\n" + SMUGGLED),
    "authority-user": _replaced(b":authority", b"mallory@gateway.test"),
    "pseudo-twice": _whole((b":path", b"/admin")),
    "pseudo-late": _whole((b"x", b"y"), (b":authority", b"evil.example")),
    "pseudo-unknown": _whole((b":x", b"y")),
    "pseudo-response": _whole((b":status", b"200")),
    "protocol": _whole((b":protocol", b"websocket")),
    "host-other": _whole((b"host", b"evil.example")),
    "data-after-end": lambda head: [*_whole()(head), frame(DATA, END_STREAM, 1, SMUGGLED)],
    "head-twice": lambda head: [*_whole(data=b"x", end=False)(head), *_whole()(head)],
    "head-again-after-end": lambda head: [*_whole()(head), *_whole()(head)],
    "reset-within-body": lambda head: [
        *_whole((b"content-length", b"%d" % (2 * N)), data=SMUGGLED, end=False)(head),
        frame(RST_STREAM, 0, 1, struct.pack(">I", 8)),
    ],
    "no-end": _whole((b"content-length", b"%d" % (2 * N)), data=SMUGGLED, end=False),
    "data-within-head": _continued,
}


@ON_HTTP2
def test_http2(gate: Attacked) -> None:
    token = mint("alice").encode()
    alone: list[tuple[str, Partial]] = []
    # A body that is not what its length says: each on all routes that pass bodies on while they come.
    tried = [(name, target) for name in HTTP2 if name.startswith(("cl-", "trailers-")) for target in TARGETS[:2]]
    tried += zip([name for name in HTTP2 if not name.startswith(("cl-", "trailers-"))], targets(gate), strict=False)
    for name, target in tried:
        head = [(b":method", b"POST"), (b":scheme", gate.scheme), (b":authority", b"gateway.test")]
        head += [(b":path", f"{target}/{name}".encode()), (b"authorization", b"Bearer " + token)]
        client = gate.http2(b"".join(HTTP2[name](head)))
        client.wait([1], 0.03)
        # The next request of the connection would go out behind what is left of the first one.
        client.send(*Ask(f"{target}/next", token=token.decode()).http2(3, gate.scheme))
        client.wait([3])
        alone.append((f"{name} {target}", client.streams.get(3, Partial())))
        answer = client.streams.get(1, Partial())
        assert answer.status in {0, 200, 400, 401, 413, 417, 421}, (name, answer)
        client.link.close()
    lives(gate)
    _, logged = gate.judged()
    assert [one for one in logged if "mallory" in one.url + str(one.headers)] == []
    for name, answer in alone:
        assert answer.status in {0, 200}, (name, answer)
        assert answer.one("x-origin-saw") == answer.one("x-request-id"), (name, answer)
