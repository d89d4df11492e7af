"""What an upstream may do, and what becomes of it: malformed, late, absent, stale, or one of several."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.pipeline.exchange import Exchange
from tests.live.harness_http import free_port, raw_request, request, status_of, wait_for
from tests.live.harness_upstream import HANG, HANG_UP, Raw, RecordingUpstream, Reply
from tests.protocol.harness import PROBLEM, Gate, connect, endpoint, receive, reset, route

GET = b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n"
SECRET = b"secret-of-the-upstream"

MALFORMED = {
    "not-http": b"SSH-2.0-" + SECRET + b"\r\n\r\n",
    "bare-lf": b"HTTP/1.1 200 OK\nX: " + SECRET + b"\n\n",
    "fold": b"HTTP/1.1 200 OK\r\nX: a\r\n " + SECRET + b"\r\n\r\n",
    "nul": b"HTTP/1.1 200 OK\r\nX: \0" + SECRET + b"\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n" + SECRET,
    "length-and-chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + SECRET,
    "gzip-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n" + SECRET,
    "status": b"HTTP/1.1 xyz OK\r\n\r\n" + SECRET,
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + SECRET,
    "version": b"HTTP/3.0 200 OK\r\n\r\n" + SECRET,
    "length-sign": b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n" + SECRET,
    "length-list": b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\n" + SECRET,
    "length-empty": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n" + SECRET,
    "length-huge": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n" + SECRET,
    "length-hexadecimal": b"HTTP/1.1 200 OK\r\nContent-Length: 0x3\r\n\r\n" + SECRET,
    "coding-twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n" + SECRET,
    "coding-not-final": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n" + SECRET,
    "coding-empty": b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\n\r\n" + SECRET,
    "coding-parameter": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked;q=1\r\n\r\n" + SECRET,
    "name-space": b"HTTP/1.1 200 OK\r\nX Y: a\r\n\r\n" + SECRET,
    "name-obs-text": b"HTTP/1.1 200 OK\r\nX\xe9: a\r\n\r\n" + SECRET,
    "name-empty": b"HTTP/1.1 200 OK\r\n: a\r\n\r\n" + SECRET,
    "no-colon": b"HTTP/1.1 200 OK\r\nX\r\n\r\n" + SECRET,
    "bare-cr": b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\n\r\n" + SECRET,
    "value-delete": b"HTTP/1.1 200 OK\r\nX: a\x7f\r\n\r\n" + SECRET,
    "coding-in-http-1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + SECRET,
    "status-four-digits": b"HTTP/1.1 2000 OK\r\n\r\n" + SECRET,
    "status-two-digits": b"HTTP/1.1 20 OK\r\n\r\n" + SECRET,
    "status-below-100": b"HTTP/1.1 099 OK\r\n\r\n" + SECRET,
    "status-sign": b"HTTP/1.1 +20 OK\r\n\r\n" + SECRET,
    "version-lower-case": b"http/1.1 200 OK\r\n\r\n" + SECRET,
    "line-tab": b"HTTP/1.1\t200 OK\r\n\r\n" + SECRET,
    "head-too-large": b"HTTP/1.1 200 OK\r\nX: " + SECRET + b"a" * 70000,
    "interim-for-ever": b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + SECRET,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_response_is_a_502_that_shows_nothing_of_it(
    gate: Gate, upstream: RecordingUpstream, name: str
) -> None:
    upstream.reply = Raw(MALFORMED[name], close=False)
    with connect(gate.port) as link:
        link.sendall(GET)
        got = receive(link, complete=True)
    assert status_of(got) == 502
    assert PROBLEM.encode() in got
    assert SECRET not in got
    assert gate.hooks.wait_ends(1) == [("response", Reason.UPSTREAM_MALFORMED)]


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200 OK\r\nCont", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + SECRET[:5]]
)
def test_response_cut_short_is_a_502(gate: Gate, upstream: RecordingUpstream, data: bytes) -> None:
    upstream.reply = Raw(data, close=True)
    answered = request(gate.port, "POST", "/p", body=b"x")
    assert (answered.status, answered.reason) == (502, "upstream-closed")
    assert len(upstream.requests) == 1
    assert gate.hooks.wait_ends(1) == [("response", Reason.UPSTREAM_CLOSED)]


@pytest.mark.parametrize(
    "head", [b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", b"Content-Length: 3000000\r\n\r\nabcde"]
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_streamed_response_cut_short_is_visibly_aborted(
    gate: Gate, upstream: RecordingUpstream, head: bytes, version: bytes
) -> None:
    upstream.reply = Raw(b"HTTP/1.1 200 OK\r\n" + head, close=True)
    with connect(gate.port) as link:
        link.sendall(GET.replace(b"HTTP/1.1", b"HTTP/" + version))
        try:
            got = receive(link)
        except ConnectionResetError:
            got = b"HTTP/1.1 200 reset"  # a body that lasts until the end of the connection: only a reset tells
        else:
            assert version == b"1.1" or b"Content-Length" in got
    assert status_of(got) == 200
    assert not got.endswith(b"0\r\n\r\n")
    assert gate.hooks.wait_ends(1) == [("error", Reason.UPSTREAM_CLOSED)]


def test_second_response_in_one_answer_is_nobodys(gate: Gate, upstream: RecordingUpstream) -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"
    upstream.script.append(Raw(one + b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n" + SECRET, close=False))
    with connect(gate.port) as link:
        link.sendall(GET)
        assert receive(link, complete=True).endswith(b"\r\n\r\na")
        link.sendall(GET)
        assert receive(link, complete=True).endswith(b"upstream says hello")
    assert upstream.connections == 2


def test_hop_by_hop_fields_of_a_response_are_dropped(gate: Gate, upstream: RecordingUpstream) -> None:
    dropped = [("Connection", "X-Hop"), ("X-Hop", "1"), ("Keep-Alive", "5"), ("Trailer", "X")]
    upstream.reply = Reply(headers=[*dropped, ("Date", "D"), ("X-A", "1")])
    answered = request(gate.port, "GET", "/p")
    assert {name.lower() for name, _ in answered.headers} == {"content-length", "date", "x-a"}


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_responses_without_body(gate: Gate, upstream: RecordingUpstream, method: str, status: int) -> None:
    upstream.reply = Reply(status=status, headers=[("ETag", "1")])
    answered = request(gate.port, method, "/p")
    assert (answered.status, answered.body) == (status, b"")
    assert answered.one("etag") == "1"
    assert answered.one("content-length") == ("19" if method == "HEAD" else None)
    assert request(gate.port, "GET", "/p").status == status


def test_trailers_in_both_directions_are_dropped_cleanly(gate: Gate, upstream: RecordingUpstream) -> None:
    upstream.reply = Raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n3\r\nabc\r\n0\r\nT: u\r\n\r\n", close=False
    )
    sent = (
        b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n2\r\nok\r\n0\r\nT: u\r\n\r\n"
    )
    got = raw_request(gate.port, sent)
    assert got.endswith(b"3\r\nabc\r\n0\r\n\r\n")
    assert upstream.last().body == b"ok"
    assert upstream.last().raw.endswith(b"2\r\nok\r\n0\r\n\r\n")


# Late and absent.


def test_upstream_that_never_answers_is_a_504_on_time(upstream: RecordingUpstream) -> None:
    upstream.reply = HANG
    with Gate(route(upstream.url, response_timeout=0.5)) as gate:
        for body in (None, b"x" * 1000, [b"x", b"y"]):
            started = time.monotonic()
            answered = request(gate.port, "POST", "/p", body=body)
            assert (answered.status, answered.reason) == (504, "upstream-timeout")
            assert 0.45 < time.monotonic() - started < 4.5
        assert gate.hooks.wait_ends(3) == [("response", Reason.UPSTREAM_TIMEOUT)] * 3


def test_upstream_that_drips_its_head_is_a_504(gate: Gate) -> None:
    with Dripping() as dripping, Gate(route(dripping.url, response_timeout=0.5)) as other:
        started = time.monotonic()
        assert request(other.port, "GET", "/p").status == 504
        assert time.monotonic() - started < 7  # its head takes 500 s


class Dripping:
    """An upstream that sends a head one byte at a time."""

    def __enter__(self) -> "Dripping":
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        link, _ = self._listening.accept()
        with link:
            link.recv(65536)
            for octet in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10000:
                if self._stop.wait(0.05):
                    return
                try:
                    link.send(bytes([octet]))
                except OSError:
                    return

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._listening.close()


def test_refused_connection_is_a_502(gate: Gate) -> None:
    with Gate(route(f"http://127.0.0.1:{free_port()}", retries=0)) as other:
        answered = request(other.port, "GET", "/p")
        assert (answered.status, answered.reason) == (502, "upstream-unreachable")
        assert b"127.0.0.1" not in answered.body
        assert other.hooks.wait_ends(1) == [("response", Reason.UPSTREAM_UNREACHABLE)]


def test_connection_that_does_not_open_is_a_504_on_time() -> None:
    with Full() as full, Gate(route(full.url, connect_timeout=0.4, retries=0)) as gate:
        started = time.monotonic()
        answered = request(gate.port, "GET", "/p")
        assert (answered.status, answered.reason) == (504, "upstream-timeout")
        assert 0.35 < time.monotonic() - started < 4


class Full:
    """A listener whose queue is full: a connection to it stays unanswered."""

    def __enter__(self) -> "Full":
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(0)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self._listening.getsockname())
            self._fillers.append(filler)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._fillers, self._listening):
            each.close()


# Retries.


class Rotation:
    """Stands in for the circuit breaker: hands out the other endpoints in turn."""

    def __init__(self, *urls: str) -> None:
        self.left: list[Endpoint] = [endpoint(url) for url in urls]
        self.asked = 0

    def __call__(self, exchange: Exchange, reason: Reason) -> Endpoint | None:
        self.asked += 1
        return self.left.pop(0) if self.left else None


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_refused_connection_goes_to_the_next_endpoint(upstream: RecordingUpstream, method: str) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with Gate(route(dead, upstream.url), fail_over=Rotation(upstream.url)) as gate:
        answered = request(gate.port, method, "/p", body=b"x" * 10 if method == "POST" else None)
        assert answered.status == 200
        assert upstream.last().body == (b"x" * 10 if method == "POST" else b"")
        assert request(gate.port, "POST", "/p", body=[b"x"]).status == 502  # nothing left to turn to


def test_retries_are_bounded_by_the_policy(upstream: RecordingUpstream) -> None:
    dead = [f"http://127.0.0.1:{free_port()}" for _ in range(3)]
    rotation = Rotation(*dead, upstream.url)
    with Gate(route(*dead, retries=2), fail_over=rotation) as gate:
        assert request(gate.port, "GET", "/p").status == 502
    assert rotation.asked == 2
    upstream.assert_saw_nothing()


@pytest.fixture
def other() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as server:
        yield server


def test_hang_up_sends_an_idempotent_request_on_and_no_other(
    upstream: RecordingUpstream, other: RecordingUpstream
) -> None:
    upstream.reply = HANG_UP
    with Gate(route(upstream.url, other.url), fail_over=Rotation(other.url, other.url)) as gate:
        assert request(gate.port, "POST", "/p", body=b"x").status == 502
        other.assert_saw_nothing()
        assert request(gate.port, "PUT", "/p", body=[b"x"]).status == 502  # a streamed body is gone
        other.assert_saw_nothing()
        assert request(gate.port, "PUT", "/p", body=b"xy").status == 200
        assert other.last().body == b"xy"


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_stale_connection_does_not_surface(gate: Gate, upstream: RecordingUpstream, method: bytes) -> None:
    upstream.reply = Reply(close=False)
    data = method + b" /p HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with connect(gate.port) as link:
        link.sendall(data)
        assert status_of(receive(link, complete=True)) == 200
        upstream.hang_up()
        link.sendall(data)
        assert status_of(receive(link, complete=True)) == 200
    assert len(upstream.requests) == 2


def test_connection_that_dies_with_the_second_request_is_replaced_once(gate: Gate, upstream: RecordingUpstream) -> None:
    upstream.script.extend([Reply(), HANG_UP, Reply(body=b"fresh")])
    with connect(gate.port) as link:
        link.sendall(GET)
        receive(link, complete=True)
        link.sendall(GET)
        assert receive(link, complete=True).endswith(b"fresh")
    upstream.script.extend([Reply(), HANG_UP, HANG_UP])
    with connect(gate.port) as link:
        link.sendall(GET)
        receive(link, complete=True)
        link.sendall(GET)
        assert status_of(receive(link, complete=True)) == 502


# The client leaves.


def test_client_that_leaves_closes_the_upstream(gate: Gate, upstream: RecordingUpstream) -> None:
    upstream.reply = HANG
    link = connect(gate.port)
    link.sendall(GET)
    wait_for(lambda: bool(upstream.requests), "the request")
    reset(link)
    assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
    wait_for(lambda: not upstream._transports, "the upstream connection to be closed", 3)


def test_upload_that_is_aborted_closes_the_upstream(gate: Gate, upstream: RecordingUpstream) -> None:
    link = connect(gate.port)
    link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
    wait_for(lambda: b"abcde" in upstream.raw, "the first chunk")
    link.close()
    assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
    wait_for(lambda: not upstream._transports, "the upstream connection to be closed", 3)
    assert upstream.requests == []
