"""Services that speak HTTP/2: what they are sent, what they may answer, and what becomes of it."""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h2.events
import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.rules import UpstreamTls
from mitmgate.proxy.http2 import WINDOW
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import Raw, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, crowd, receive, reset, route
from tests.protocol.http2_service import BAD, CRUMBS, LARGE, Http2Service
from tests.protocol.node_origin import NodeOrigin
from tests.protocol.test_http2 import Client
from tests.protocol.test_tls import listen


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("upstream-h2"))


@pytest.fixture
def service() -> Iterator[Http2Service]:
    with Http2Service() as running:
        yield running


@pytest.fixture
def h2_up(service: Http2Service) -> Iterator[Gate]:
    with Gate(route(service.url)) as gate:
        yield gate


def context_of(authority: Authority, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    context.set_alpn_protocols(list(protocols))
    return context


def ask(gate: Gate, path: str, method: str = "GET", body: bytes | None = None, **fields: str) -> tuple[int, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", gate.port, timeout=20)
    try:
        link.request(method, path, body, {name.replace("_", "-"): value for name, value in fields.items()})
        answer = link.getresponse()
        return answer.status, answer.read()
    finally:
        link.close()


def test_a_request_and_its_response(h2_up: Gate, service: Http2Service) -> None:
    for number in range(3):
        status, body = ask(h2_up, "/p?q=1", "POST", b"abc", X_A="b", Connection="X-Hop", X_Hop="1")
        assert (status, body) == (200, b"http2 says abc")
        seen = service.requests[number]
        assert seen.fields[:4] == [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":authority", b"127.0.0.1:%d" % h2_up.port),
            (b":path", b"/p?q=1"),
        ]
        assert (seen.one(b"content-length"), seen.one(b"x-a"), seen.body) == (b"3", b"b", b"abc")
        assert not {name for name, _ in seen.fields} & {b"host", b"connection", b"x-hop", b"te", b"transfer-encoding"}
    assert service.connections == 1
    assert h2_up.hooks.wait_ends(3) == [("response", Reason.OK)] * 3


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [("/large", "GET", LARGE), ("/p", "HEAD", 0), ("/interim", "GET", len(b"http2 says "))],
)
def test_responses(h2_up: Gate, path: str, method: str, expected: int) -> None:
    status, body = ask(h2_up, path, method)
    assert (status, len(body)) == (200, expected)


def test_a_body_of_unknown_length_goes_through_as_it_comes(h2_up: Gate, service: Http2Service) -> None:
    with connect(h2_up.port) as link:
        link.sendall(b"POST /chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        got = b""
        while b"echo:one" not in got:
            got += link.recv(65536)
        assert not service.requests[0].ended, "the answer has begun before the request has ended"
        link.sendall(b"3\r\ntwo\r\n0\r\n\r\n")
        while b"0\r\n\r\n" not in got:
            got += link.recv(65536)
    assert b"echo:two" in got
    assert b"bye" in got
    assert b"grpc-status" not in got, "no TE, no trailers"
    assert (service.requests[0].body, service.requests[0].one(b"content-length")) == (b"onetwo", None)


def test_trailers_go_to_who_takes_them(service: Http2Service, authority: Authority) -> None:
    with Gate(route(service.url), tls=listen(authority)) as gate, Client(gate, authority) as client:
        path = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/trailers")]
        for asked in (True, False):
            stream = client.request([*path, (b"te", b"trailers")] if asked else path)
            status, headers, body = client.answer(stream)
            assert (status, body) == (200, b"http2 says ")
            found = [dict(event.headers) for event in client.of(stream, h2.events.TrailersReceived)]  # type: ignore[attr-defined]
            assert found == ([{b"x-checksum": b"abc"}] if asked else [])
            assert service.requests[-1].one(b"te") == (b"trailers" if asked else None)
            assert b"x-checksum" not in headers


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("speaks", ["h2", "http1"])
def test_trailers_over_http_1_1(service: Http2Service, asked: bool, speaks: str) -> None:
    chunks = b"2\r\nok\r\n0\r\nX-Checksum: abc\r\nContent-Type: no\r\nX-Request-ID: forged\r\n\r\n"
    with RecordingUpstream(Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)) as upstream:
        with Gate(route(service.url if speaks == "h2" else upstream.url)) as gate, connect(gate.port) as link:
            te = b"TE: trailers\r\nConnection: TE, close\r\n" if asked else b"Connection: close\r\n"
            link.sendall(b"GET /trailers HTTP/1.1\r\nHost: x\r\n" + te + b"\r\n")
            got = receive(link)
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        if asked:
            assert b"transfer-encoding: chunked" in head.lower()
            assert body.lower().endswith(b"\r\n0\r\nx-checksum: abc\r\n\r\n")
        else:
            assert b"checksum" not in got.lower()
        if speaks == "http1":
            assert (upstream.last().one("te"), upstream.last().one("connection")) == (
                ("trailers", "TE") if asked else (None, None)
            )


@pytest.mark.parametrize("path", BAD)
def test_a_malformed_response_is_a_502_and_the_others_live(h2_up: Gate, service: Http2Service, path: str) -> None:
    status, body = ask(h2_up, path)
    assert status == 502
    assert json.loads(body)["reason"] == "upstream-malformed"
    assert b"secret" not in body
    assert ask(h2_up, "/p")[0] == 200
    assert h2_up.hooks.wait_ends(2)[0] == ("response", Reason.UPSTREAM_MALFORMED)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/refused", "/goaway"])
def test_what_the_service_has_not_looked_at_is_sent_again(
    h2_up: Gate, service: Http2Service, path: str, method: str
) -> None:
    """RFC 9113, sections 6.8 and 8.7: whatever its method."""
    assert ask(h2_up, path, method, b"once" if method == "POST" else None)[0] == 200
    assert [(seen.connection, seen.body) for seen in service.requests][-1] == (2, b"once" if method == "POST" else b"")


@pytest.mark.parametrize("path", ["/refused", "/goaway"])
@pytest.mark.parametrize(("unwilling", "status"), [(3, 200), (4, 502), (1000, 502)])
def test_it_is_sent_again_so_often_and_no_more(
    h2_up: Gate, service: Http2Service, path: str, unwilling: int, status: int
) -> None:
    service.unwilling = unwilling
    assert ask(h2_up, path, "POST", b"once")[0] == status
    assert [seen.connection for seen in service.requests] == [1, 2, 3, 4]
    assert ask(h2_up, "/p")[0] == 200


@pytest.mark.parametrize("path", ["/refused", "/goaway"])
@pytest.mark.parametrize("urls", [1, 2])
def test_it_is_sent_no_more_often_where_there_is_another_endpoint(service: Http2Service, path: str, urls: int) -> None:
    """The last time is the other's. Where there is one alone, the circuit's fail-over names it again."""
    service.unwilling = 1000
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(Http2Service())
        other.unwilling = 1000
        chosen = route(*(service.url, other.url)[:urls], retries=5)
        gate = stack.enter_context(Gate(chosen, fail_over=lambda exchange, reason: chosen.upstream.endpoints[-1]))
        assert ask(gate, path, "POST", b"once")[0] == 502
        assert (len(service.requests), len(other.requests)) == ((4, 0) if urls == 1 else (3, 1))


@pytest.mark.parametrize("path", ["/closed", "/reset", "/103-refused", "/100-refused", "/102-goaway"])
def test_what_the_service_may_have_done_is_not_sent_again(h2_up: Gate, service: Http2Service, path: str) -> None:
    assert ask(h2_up, "/p")[0] == 200
    status, body = ask(h2_up, path, "POST", b"once")
    assert (status, json.loads(body)["reason"]) == (502, "upstream-closed")
    assert [seen.one(b":path") for seen in service.requests] == [b"/p", path.encode()]
    assert ask(h2_up, "/p")[0] == 200


def test_a_goaway_ends_no_request_that_runs(h2_up: Gate, service: Http2Service) -> None:
    assert ask(h2_up, "/goaway-busy") == (200, b"http2 says ")
    assert ask(h2_up, "/p")[0] == 200
    assert [seen.connection for seen in service.requests] == [1, 2]


def test_an_answer_before_the_end_of_the_request_is_delivered(h2_up: Gate, service: Http2Service) -> None:
    with connect(h2_up.port) as link:
        link.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        got = b""
        while b"early" not in got:
            part = link.recv(65536)
            assert part, got
            got += part
    assert got.startswith(b"HTTP/1.1 413 ")
    wait_for(lambda: service.requests[0].reset is not None, "the rest to be given up")
    assert ask(h2_up, "/p")[0] == 200
    assert service.connections == 1


def test_half_a_response_is_not_taken_for_a_whole_one(service: Http2Service) -> None:
    with Gate(route(service.url, stream="always")) as gate, connect(gate.port) as link:
        link.sendall(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
        got = receive(link)
        assert b"content-length: 10" in got.lower()
        assert got.endswith(b"half")
        assert gate.hooks.wait_ends(1) == [("error", Reason.UPSTREAM_CLOSED)]


def test_requests_at_once_share_one_connection(h2_up: Gate, service: Http2Service) -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(ask(h2_up, "/large")[0])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 20
    assert service.connections == 1


def test_more_than_the_service_takes_at_once_is_another_connection() -> None:
    with Http2Service(streams=2) as service, Gate(route(service.url)) as gate, crowd(gate.port, 6) as links:
        assert ask(gate, "/p")[0] == 200
        for link in links:
            link.sendall(b"POST /chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        for link in links:
            got = b""
            while b"echo:one" not in got:
                part = link.recv(65536)
                assert part, got
                got += part
        assert service.connections == 3


def test_a_client_that_leaves_takes_its_stream_along_alone(h2_up: Gate, service: Http2Service) -> None:
    with connect(h2_up.port) as link:
        link.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: bool(service.requests), "the request")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: service.requests[0].reset is not None, "the reset")
    assert ask(h2_up, "/p")[0] == 200


def test_a_service_that_is_silent_gets_no_more_on_that_connection(service: Http2Service) -> None:
    with Gate(route(service.url, response_timeout=0.3)) as gate:
        assert ask(gate, "/p")[0] == 200
        status, body = ask(gate, "/mute", "POST", b"a")
        assert (status, json.loads(body)["reason"]) == (504, "upstream-timeout")
        assert ask(gate, "/p")[0] == 200
        assert [seen.connection for seen in service.requests] == [1, 1, 2]


def test_slow_clients_do_not_hold_up_others(h2_up: Gate, service: Http2Service) -> None:
    """Each held response waits at the service: the windows of streams are apart, and that of the connection is wide."""
    with crowd(h2_up.port, 30) as stuck:
        for link in stuck:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(service.requests) == 30, "the requests")
        status, body = ask(h2_up, "/large")
        assert (status, len(body)) == (200, LARGE)
    for _ in range(3):  # what was given up has left the window of the connection as it was
        assert len(ask(h2_up, "/large")[1]) == LARGE
    assert service.connections == 1


def test_an_upload_goes_no_faster_than_the_service_takes_it(h2_up: Gate, service: Http2Service) -> None:
    with connect(h2_up.port, 1.0) as link:
        link.sendall(b"POST /window HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100 << 20:
                link.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        assert sent < 30 << 20
        assert len(service.requests[0].body) <= 65535


@pytest.mark.parametrize("protocols", [("h2",), ("http/1.1",), ()])
def test_over_tls_it_is_asked_for(authority: Authority, protocols: tuple[str, ...]) -> None:
    tls = UpstreamTls(ca=Path(authority.ca).read_bytes())
    with Http2Service(context_of(authority, *protocols)) as service, Gate(route(service.url, tls=tls)) as gate:
        status, body = ask(gate, "/p")
        if protocols == ("h2",):
            assert (status, body, service.requests[0].fields[1]) == (200, b"http2 says ", (b":scheme", b"https"))
        else:
            assert (status, json.loads(body)["reason"]) == (502, "upstream-unreachable")
            assert service.requests == []


def test_a_service_that_speaks_http_1_1_after_all(tmp_path: Path) -> None:
    with NodeOrigin(tmp_path) as origin, Gate(route(f"h2://127.0.0.1:{origin.port}")) as gate:
        status, body = ask(gate, "/p")
        assert (status, json.loads(body)["reason"]) == (502, "upstream-unreachable")


def test_a_connection_that_is_idle_is_closed(
    h2_up: Gate, service: Http2Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mitmgate.proxy.pool.LONGEST_IDLE", 0.1)
    assert ask(h2_up, "/p")[0] == 200
    wait_for(lambda: service.closed == 1, "the idle connection to be closed")
    assert ask(h2_up, "/p")[0] == 200
    assert service.connections == 2


def test_responses_that_end_while_their_clients_take_nothing_give_their_window_back(
    service: Http2Service, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one slow client stops the service's answers to all others, who share the connection."""
    monkeypatch.setattr("mitmgate.proxy.upstream_http2.STREAMS", 2)
    path = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/burst")]
    with Gate(route(service.url), tls=listen(authority)) as gate, Client(gate, authority, window=0) as client:
        for number in range(16):
            client.request(path)
            assert gate.hooks.wait_ends(number + 1)[-1] == ("response", Reason.OK)
    assert service.connections == 1


@pytest.mark.parametrize(("path", "body"), [("/crumbs", b"x" * CRUMBS), ("/windows", b"http2 says ")])
def test_frames_that_are_worth_nothing_are_read_slowly(
    h2_up: Gate, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes
) -> None:
    monkeypatch.setattr("mitmgate.proxy.upstream_http2.FRAMES", 100)
    monkeypatch.setattr("mitmgate.proxy.upstream_http2.FRAMES_A_SECOND", CRUMBS)
    begun = time.monotonic()
    assert ask(h2_up, path) == (200, body)
    assert time.monotonic() - begun > 0.75


def test_frames_with_bytes_are_not(h2_up: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmgate.proxy.upstream_http2.FRAMES", 50)
    monkeypatch.setattr("mitmgate.proxy.upstream_http2.FRAMES_A_SECOND", 1)
    assert ask(h2_up, "/large") == (200, b"x" * LARGE)


def test_frames_that_want_answers_end_the_connection(h2_up: Gate) -> None:
    assert ask(h2_up, "/pings")[0] == 502
    assert ask(h2_up, "/p")[0] == 200


@pytest.mark.parametrize("ends", ["given up", "refused"])
def test_uploads_that_end_while_nobody_takes_them_give_their_window_back(
    service: Http2Service, authority: Authority, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Else one user's uploads stop those of all who share a connection to the gateway, behind a proxy."""
    monkeypatch.setattr("mitmgate.proxy.http2.CONNECTION_WINDOW", 3 * WINDOW)
    path = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/window")]
    bound = 10 << 20 if ends == "given up" else 2 * WINDOW // 3
    with (
        Gate(route(service.url, stream="always", max_body=bound), tls=listen(authority)) as gate,
        Client(gate, authority) as client,
    ):
        client.read(lambda: any(isinstance(event, h2.events.SettingsAcknowledged) for event in client.events))
        for _ in range(12):
            stream = client.request(path, end=False)
            client.read(lambda one=stream: client.h2.local_flow_control_window(one) >= WINDOW)  # type: ignore[misc]
            for _ in range(WINDOW // 16384):
                client.h2.send_data(stream, b"x" * 16384)
            client.flush()
            if ends == "given up":
                client.h2.reset_stream(stream)
                client.flush()
            else:
                assert client.answer(stream)[0] == 413


def test_requests_that_are_given_up_do_not_pile_up_on_a_connection(
    h2_up: Gate, service: Http2Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that holds them for an attack (Rapid Reset) ends the connection, and the requests of all on it."""
    monkeypatch.setattr("mitmgate.proxy.upstream_http2.RESETS", 5)
    with connect(h2_up.port) as other:
        other.sendall(b"POST /chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        got = b""
        while b"echo:one" not in got:
            got += other.recv(65536)
        for number in range(12):
            with connect(h2_up.port) as link:
                link.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
                wait_for(lambda number=number: len(service.requests) == number + 2, "the request")  # type: ignore[misc]
                reset(link)
            wait_for(lambda: service.requests[-1].reset is not None, "it to be given up")
        other.sendall(b"0\r\n\r\n")
        while b"0\r\n\r\n" not in got:
            got += other.recv(65536)
        assert b"bye" in got
    given_up = Counter(seen.connection for seen in service.requests if seen.reset is not None)
    assert sum(given_up.values()) == 12
    assert max(given_up.values()) <= 5


def test_answers_go_to_who_asked_while_requests_are_given_up_and_connections_leave(
    h2_up: Gate, service: Http2Service
) -> None:
    """Their frames are mixed on shared connections, of which every tenth request makes the service leave one."""
    answers: dict[bytes, tuple[int, bytes]] = {}

    def ask_on(number: int) -> None:
        for turn in range(20):
            said = b"%d.%d " % (number, turn) * 12_000
            path = "/goaway-busy" if (number + turn) % 10 == 0 else "/p"
            answers[said] = ask(h2_up, path, "POST", said)

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        with connect(h2_up.port) as link:
            link.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            link.recv(1000)
            reset(link)
    for thread in threads:
        thread.join()
    answered = {said for said, (status, _) in answers.items() if status == 200}
    assert [said[:5] for said in answered if answers[said][1] != b"http2 says " + said] == []
    assert len(answered) > 100  # who meets two connections that leave gets a 502
    assert Counter(seen.body for seen in service.requests if seen.one(b":method") == b"POST") == Counter(answered)
    assert service.connections > 1


@pytest.mark.parametrize("how", [{"leaving": True}, {"streams": 0}], ids=["leaves at once", "takes no requests"])
def test_a_service_that_takes_nothing_leaves_nothing_behind(how: dict[str, int]) -> None:
    with Http2Service(**how) as service, Gate(route(service.url)) as gate:  # type: ignore[arg-type]
        for _ in range(3):
            status, body = ask(gate, "/p")
            assert (status, json.loads(body)["reason"]) == (502, "upstream-closed")
        wait_for(lambda: service.closed == service.connections, "its connections to be closed")
        assert service.requests == []
        assert gate.layer.engine.pool.size == 0


def test_a_denied_request_reaches_nobody(h2_up: Gate, service: Http2Service) -> None:
    of_grpc = {"TE": "trailers", "Connection": "te", "Content_Type": "application/grpc"}  # which is HTTP/2
    for fields in ({}, of_grpc):
        status, body = ask(h2_up, "/deny", "POST", b"abc", **fields)
        assert (status, json.loads(body)["reason"]) == (401, "credential-missing")
    assert (service.requests, service.connections) == ([], 0)


@pytest.mark.parametrize(
    ("method", "more", "status"),
    [
        ("POST", {b"te": b"trailers", b"content-type": b"application/grpc+proto"}, 200),
        ("POST", {b"content-type": b"application/grpc"}, 401),
        ("POST", {b"te": b"trailers", b"content-type": b"application/grpc-web+proto"}, 401),
        ("GET", {b"te": b"trailers", b"content-type": b"application/grpc"}, 401),
        ("POST", {b"te": b"trailers", b"content-type": b"application/grpcs"}, 401),
        ("POST", {b"te": b"trailers"}, 401),
    ],
)
def test_a_denial_looks_like_a_success_to_clients_of_grpc_alone(
    service: Http2Service, authority: Authority, method: str, more: dict[bytes, bytes], status: int
) -> None:
    with Gate(route(service.url), tls=listen(authority)) as gate, Client(gate, authority) as client:
        pseudo = {b":method": method.encode(), b":scheme": b"https", b":authority": b"x", b":path": b"/deny"}
        found, headers, _ = client.answer(client.request([*pseudo.items(), *more.items()]))
        assert (found, headers.get(b"grpc-status")) == (status, b"16" if status == 200 else None)
        assert (service.requests, service.connections) == ([], 0)
