"""Trailers of requests (RFC 9110, section 6.5): which a service gets, on each way that a request can take."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from mitmgate.core.client_fields import IDENTITY, NEVER
from mitmgate.core.trailers import FORBIDDEN
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.http2_service import Http2Service
from tests.protocol.test_http2 import Client
from tests.protocol.test_tls import client_context, listen

Fields = list[tuple[bytes, bytes]]
WANTED = frozenset({b"x-sum", b"repr-digest"})
HOSTILE: Fields = [
    *((name, b"5") for name in sorted(FORBIDDEN | NEVER | IDENTITY | {b"content-length", b"transfer-encoding"})),
    (b"x-user-id", b"eve"),  # this policy's own
    (b"x_user_id", b"eve"),
    (b"x.user.id", b"eve"),
    (b"x-forwarded-for", b"6.6.6.6"),
    (b"content-disposition", b"attachment"),
    (b"x-nobody-wants", b"1"),
]


@pytest.fixture
def host() -> None:
    """Run in one host: both have the same listener, and tests/rfc asks real processes of each."""


@dataclass
class Ways:
    """Services of both protocols, and gateways before them, started when one is first asked for."""

    authority: Authority
    stack: ExitStack
    gates: dict[tuple[bool, str, str], Gate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http1 = self.stack.enter_context(RecordingUpstream())
        self.http2 = self.stack.enter_context(Http2Service())

    def gate(self, front: str, speaks: str, stream: str) -> Gate:
        """Return the gateway: its front speaks TLS or not, its service HTTP/1.1 or 2, bodies are held or streamed."""
        key = front != "plain", speaks, stream
        if key not in self.gates:
            url = self.http1.url if speaks == "http1" else self.http2.url
            # Also names that no policy may have: the service is not given them even so.
            wanted = WANTED | {name for name, _ in HOSTILE if name != b"x-nobody-wants"}
            tls = listen(self.authority) if key[0] else None
            self.gates[key] = self.stack.enter_context(Gate(route(url, stream=stream, trailers=wanted), tls=tls))
        return self.gates[key]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with ExitStack() as stack:
        yield Ways(Authority(tmp_path_factory.mktemp("trailers")), stack)


@dataclass
class Got:
    """What a service saw."""

    body: bytes
    announced: bytes | None
    trailers: Fields
    length: bytes | None


@dataclass
class Way:
    """One way of a request: from a client of a kind to a service of a kind."""

    ways: Ways
    front: str
    speaks: str
    stream: str

    def send(self, trailers: Fields, *, body: bytes = b"abc", announce: bytes = b"", length: bytes = b"") -> Got:
        """Send a POST with trailers, and return what the service saw of it."""
        gate = self.ways.gate(self.front, self.speaks, self.stream)
        self.ways.http1.forget()
        self.ways.http2.requests.clear()
        if self.front == "h2":
            head = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/p")]
            head += [(b"trailer", announce)] * bool(announce) + [(b"content-length", length)] * bool(length)
            with Client(gate, self.ways.authority) as client:
                stream_id = client.request(head, end=False)
                for at in range(0, len(body), 16_000):
                    client.h2.send_data(stream_id, body[at : at + 16_000])
                section = [pair for pair in trailers if pair[0] not in _NOT_OF_HTTP2]
                if section:
                    client.h2.send_headers(stream_id, section, end_stream=True)
                else:
                    client.h2.end_stream(stream_id)
                client.flush()
                assert client.answer(stream_id)[0] == 200
        else:
            link = connect(gate.port)
            if self.front == "tls":
                link = client_context(self.ways.authority, "http/1.1").wrap_socket(link, server_hostname="gateway.test")
            with link:
                lines = b"POST /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
                lines += b"Trailer: %b\r\n" % announce if announce else b""
                chunks = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n"
                tail = b"".join(b"%b: %b\r\n" % pair for pair in trailers)
                link.sendall(lines + b"\r\n" + chunks + tail + b"\r\n")
                assert receive(link).startswith(b"HTTP/1.1 200")
        return self._seen()

    def _seen(self) -> Got:
        if self.speaks == "h2":
            wait_for(lambda: bool(self.ways.http2.requests), "the request")
            (two,) = self.ways.http2.requests
            return Got(two.body, two.one(b"trailer"), two.trailers, two.one(b"content-length"))
        self.ways.http1.assert_saw_only(1)
        one = self.ways.http1.last()
        chunked = one.raw.partition(b"\r\n\r\n")[2] if one.one("content-length") is None else b""
        lines = (b"\r\n" + chunked).rpartition(b"\r\n0\r\n")[2].split(b"\r\n")
        announced, length = one.one("trailer"), one.one("content-length")
        return Got(
            one.body,
            None if announced is None else announced.encode(),
            [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines if line)],
            None if length is None else length.encode(),
        )


_NOT_OF_HTTP2 = frozenset(
    b"connection keep-alive proxy-connection transfer-encoding upgrade http2-settings te content-length".split()
)


@pytest.fixture(params=["plain", "tls", "h2"])
def front(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["http1", "h2"])
def speaks(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["never", "always"])
def way(request: pytest.FixtureRequest, ways: Ways, front: str, speaks: str) -> Way:
    return Way(ways, front, speaks, request.param)


def test_the_service_gets_what_it_wants_and_is_told_of_it(way: Way) -> None:
    sent = [(b"x-sum", b"1"), (b"x-nobody-wants", b"1"), (b"repr-digest", b"sha-256=:x:"), (b"x-sum", b"\xe9 2")]
    got = way.send(sent, announce=b"X-Sum ,, Repr-Digest, X-Nobody-Wants, Host")
    assert got == Got(b"abc", b"x-sum, repr-digest", [sent[0], sent[2], sent[3]], None)


def test_what_is_not_announced(way: Way) -> None:
    """It goes on all the same: the field that announces is a courtesy (RFC 9110, section 6.6.2)."""
    got = way.send([(b"x-sum", b"1")])
    assert (got.body, got.trailers) == (b"abc", [(b"x-sum", b"1")])
    assert got.announced == (None if way.stream == "always" else b"x-sum"), "known before the head is sent, or not"


def test_hostile_trailers_reach_nobody(way: Way) -> None:
    for some in (HOSTILE[::2], HOSTILE[1::2]):
        got = way.send([*some, (b"x-sum", b"1")], announce=b", ".join(name for name, _ in some))
        assert (got.body, got.trailers) == (b"abc", [(b"x-sum", b"1")])
        assert got.announced == (None if way.stream == "always" else b"x-sum")


def test_no_trailer_breaks_out_and_none_is_taken_along(way: Way) -> None:
    """Behind a request with trailers: one without, on the same connections."""
    assert way.send([(b"x-sum", b"0, 1;GET /x HTTP/1.1")]).trailers == [(b"x-sum", b"0, 1;GET /x HTTP/1.1")]
    assert way.send([], body=b"").trailers == []
    assert way.send([(b"x-sum", b"1")], body=b"") == Got(
        b"", None if way.stream == "always" else b"x-sum", [(b"x-sum", b"1")], None
    )


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_declared_length_and_trailers(ways: Ways, speaks: str, stream: str, announced: bool) -> None:
    """HTTP/2 may have both; HTTP/1.1 has chunks instead, where the trailers are known of in time."""
    got = Way(ways, "h2", speaks, stream).send([(b"x-sum", b"1")], length=b"3", announce=b"x-sum" if announced else b"")
    late = speaks == "http1" and stream == "always" and not announced
    assert (got.body, got.trailers) == (b"abc", [] if late else [(b"x-sum", b"1")])
    assert got.length == (b"3" if late or speaks == "h2" else None)


def test_pipelined_requests_have_their_own(ways: Ways) -> None:
    gate = ways.gate("plain", "http1", "never")
    ways.http1.forget()
    chunked = b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n%b\r\n"
    rest = b"GET /q HTTP/1.1\r\nHost: x\r\n\r\n" + chunked % b""
    last = b"POST /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\nz"
    with connect(gate.port) as link:
        link.sendall(chunked % b"X-Sum: 1\r\n" + rest + last)
        assert receive(link).count(b"HTTP/1.1 200") == 4
    ways.http1.assert_saw_only(4)
    assert [b"x-sum" in seen.raw.lower() for seen in ways.http1.requests] == [True, False, False, False]


def test_they_come_behind_a_large_body(way: Way) -> None:
    """Which the services' windows let through in parts."""
    body = b"x" * 60_000
    assert way.send([(b"x-sum", b"1")], body=body, announce=b"x-sum") == Got(body, b"x-sum", [(b"x-sum", b"1")], None)
