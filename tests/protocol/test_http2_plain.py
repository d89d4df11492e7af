"""HTTP/2 without TLS, by prior knowledge (RFC 9113, section 3.3): what begins it, and what only looks like it."""

import re
import socket
import time

import pytest
from hyperframe.frame import SettingsFrame

from mitmgate.core.reason import Reason
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import HANG, RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.raw_http2 import PREFACE, RawHttp2, request_fields
from tests.protocol.test_tls import client_context, listen

GET = request_fields("GET", "/p")


def test_a_connection_that_begins_with_the_preface_is_http2(gate: Gate, upstream: RecordingUpstream) -> None:
    with RawHttp2(gate.port, None) as client:
        for number in range(3):
            assert client.response(client.request(request_fields("POST", f"/p/{number}"), b"abc")).status == 200
        assert gate.layer.connected == len(gate.layer.clients) == 1
    assert [(seen.target, seen.body, seen.one("host")) for seen in upstream.requests] == [
        (f"/p/{number}", b"abc", "gateway.test") for number in range(3)
    ]
    assert gate.hooks.wait_ends(3) == [("response", Reason.OK)] * 3
    request = gate.hooks.seen[0][1].request
    assert (request.http_version, request.scheme) == ("HTTP/2.0", "http")
    wait_for(lambda: not gate.layer.connected and not gate.layer.clients, "the connection to be forgotten")


def test_a_preface_that_comes_in_pieces(gate: Gate, upstream: RecordingUpstream) -> None:
    with RawHttp2(gate.port, None, greet=False) as client:
        for octet in PREFACE + SettingsFrame(0).serialize():
            client.link.sendall(bytes([octet]))
        client.ping()
        assert client.response(client.request(GET)).status == 200
    upstream.assert_saw_only(1)


def test_another_scheme_is_refused(gate: Gate, upstream: RecordingUpstream) -> None:
    with RawHttp2(gate.port, None) as client:
        fields = [(b":scheme", b"HTTPS") if name == b":scheme" else (name, value) for name, value in GET]
        assert client.response(client.request(fields)).status in {0, 400}
    upstream.assert_saw_nothing()


@pytest.mark.parametrize("count", [3, 14, 16, 18, 23])
def test_a_part_of_the_preface_is_a_head_that_does_not_end(upstream: RecordingUpstream, count: int) -> None:
    with Gate(route(upstream.url), limits={"head_timeout": 0.3}) as gate:
        with connect(gate.port) as link:
            link.sendall(PREFACE[:count])
            link.shutdown(socket.SHUT_WR)
            assert b" 400 " in receive(link).partition(b"\r\n")[0]
        with connect(gate.port) as link:
            begun = time.monotonic()
            link.sendall(PREFACE[:count])
            assert b" 408 " in receive(link).partition(b"\r\n")[0]
            assert time.monotonic() - begun > 0.25
        reasons = [reason for _, reason in gate.hooks.wait_ends(2)]
    assert reasons == [Reason.HEAD_MALFORMED, Reason.HEAD_TIMEOUT]
    upstream.assert_saw_nothing()


@pytest.mark.parametrize("before", [b"", b"abc"])
def test_behind_a_request_it_begins_nothing(gate: Gate, upstream: RecordingUpstream, before: bytes) -> None:
    head = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(before)
    with connect(gate.port) as link:
        link.sendall(head + before + PREFACE + SettingsFrame(0).serialize())
        got = receive(link)
    assert re.findall(rb"HTTP/1\.1 (\d+)", got) == [b"200", b"505"]
    upstream.assert_saw_only(1)


def test_over_tls_alpn_alone_says_what_is_spoken(
    upstream: RecordingUpstream, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = Authority(tmp_path_factory.mktemp("plain"))
    with Gate(route(upstream.url), tls=listen(authority)) as gate:
        context = client_context(authority, "http/1.1")
        with context.wrap_socket(connect(gate.port), server_hostname="gateway.test") as link:
            link.sendall(PREFACE + SettingsFrame(0).serialize())
            assert receive(link).startswith(b"HTTP/1.1 505 ")
    upstream.assert_saw_nothing()


def test_it_counts_as_any_connection(upstream: RecordingUpstream) -> None:
    with Gate(route(upstream.url), limits={"connections": 4}) as gate, RawHttp2(gate.port, None) as client:
        client.ping()
        with connect(gate.port) as link:  # a quarter of all may be one address's
            assert receive(link).startswith(b"HTTP/1.1 503 ")
        assert client.response(client.request(GET)).status == 200


def test_the_host_ends_it_in_order(upstream: RecordingUpstream) -> None:
    upstream.reply = HANG
    with Gate(route(upstream.url)) as gate, RawHttp2(gate.port, None) as client:
        client.request(GET)
        wait_for(lambda: bool(upstream.requests), "the request")
        gate.loop.call_soon_threadsafe(gate.layer.retire)
        gate.loop.call_soon_threadsafe(gate.layer.cut_all)
        assert client.end() == 0
        assert client.streams[1].status == 503


def test_a_defect_ends_it(gate: Gate, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no HTTP/2")

    monkeypatch.setattr("mitmgate.proxy.http2.ngh2.Connection", fails)
    with connect(gate.port) as link:
        link.sendall(PREFACE)
        assert receive(link) == b""
    wait_for(lambda: not gate.layer.connected and not gate.layer.clients, "the connection to be forgotten")
