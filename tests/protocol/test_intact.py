"""A body that lasts as long as the connection is whole only where that ends in order (RFC 9112, 8 and 9.8)."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.rules import UpstreamTls
from mitmgate.proxy import http1
from tests.live.harness_http import wait_for
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.test_streaming import Serving, read_head
from tests.protocol.test_tls import client_context, listen

GET = b"GET /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BODY = b"all of it, or half"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("intact"))


def in_order(link: socket.socket) -> None:
    if isinstance(link, ssl.SSLSocket):
        with contextlib.suppress(OSError):
            link = link.unwrap()  # close_notify
    link.close()


def reset(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def without_notice(link: socket.socket) -> None:
    link.close()  # Python sends no close_notify then


@contextmanager
def serving(
    authority: Authority, secure: bool, end: Callable[[socket.socket], None], go: threading.Event
) -> Iterator[Gate]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))

    def serve(plain: socket.socket) -> None:
        link = context.wrap_socket(plain, server_side=True) if secure else plain
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)
        assert go.wait(20)  # until the client has it: what a reset overtakes is lost
        end(link)

    with Serving(serve) as upstream:
        url = upstream.url.replace("http:", "https:") if secure else upstream.url
        with Gate(route(url, tls=UpstreamTls(ca=Path(authority.ca).read_bytes()) if secure else None)) as gate:
            yield gate


@pytest.mark.parametrize(
    ("secure", "end", "complete"),
    [
        (False, in_order, True),
        (False, reset, False),
        (True, in_order, True),
        (True, without_notice, False),
        (True, reset, False),
    ],
)
def test_only_an_orderly_end_is_one(
    authority: Authority, secure: bool, end: Callable[[socket.socket], None], complete: bool
) -> None:
    go = threading.Event()
    with serving(authority, secure, end, go) as gate, connect(gate.port) as link:
        link.sendall(GET)
        got = b""
        while BODY not in got:
            got += link.recv(65536)
        go.set()
        got += receive(link)
        assert got.endswith(b"0\r\n\r\n") is complete, got
        expected = ("response", Reason.OK) if complete else ("error", Reason.UPSTREAM_CLOSED)
        assert gate.hooks.wait_ends(1) == [expected]


WHOLE = b"w" * 300_000


def until_the_end(link: socket.socket) -> tuple[bytes, bool]:
    """Receive what still comes, and tell whether the connection ended in order."""
    got = b""
    try:
        while part := link.recv(65536):
            got += part
    except OSError:
        return got, False
    return got, True


@pytest.mark.parametrize("secure", [False, True])
def test_a_response_that_is_broken_off_takes_none_before_it_along(authority: Authority, secure: bool) -> None:
    """To a client of HTTP/1.0 only a reset says that a body of unknown length is not whole."""

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(WHOLE) + WHOLE)
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        link.shutdown(socket.SHUT_WR)
        link.recv(1)

    with (
        Serving(serve) as upstream,
        Gate(route(upstream.url), tls=listen(authority) if secure else None) as gate,
        socket.socket() as plain,
    ):
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(20)
        plain.connect(("127.0.0.1", gate.port))
        link: socket.socket = plain
        if secure:
            link = client_context(authority).wrap_socket(
                plain, server_hostname="gateway.test", suppress_ragged_eofs=False
            )
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\nGET /p HTTP/1.0\r\nHost: x\r\n\r\n")
        got = link.recv(1000)
        while len(gate.hooks.ends) < 2:
            got += link.recv(1000)  # slowly: the first response is still on its way when the second is broken off
        rest, orderly = until_the_end(link)
        got += rest
        link.close()
        assert not orderly
        assert gate.hooks.wait_ends(2) == [("response", Reason.OK), ("error", Reason.UPSTREAM_CLOSED)]
        assert got.count(b"w") == len(WHOLE)
        assert got.endswith(b"\r\n\r\nhalf")


def test_a_whole_response_that_its_client_never_takes_ends_with_a_reset(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left of it in the end is dropped, and the rest must not look like all of it."""
    monkeypatch.setattr(http1, "FLUSH_SECONDS", 0.1)

    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + 20 * WHOLE)

    with Serving(serve) as upstream, Gate(route(upstream.url)) as gate, socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.settimeout(20)
        link.connect(("127.0.0.1", gate.port))
        wait_for(lambda: bool(gate.layer.clients), "the connection")
        (connection,) = gate.layer.clients
        assert isinstance(connection, http1.Http1Connection)
        assert connection._transport is not None
        connection._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        link.sendall(b"GET /p HTTP/1.0\r\nHost: x\r\n\r\n")
        got = 0
        while not gate.hooks.ends:
            got += len(link.recv(4000))
        wait_for(lambda: not gate.layer.connected, "the end")
        rest, orderly = until_the_end(link)
        assert gate.hooks.wait_ends(1) == [("response", Reason.OK)]
        assert got + len(rest) < 20 * len(WHOLE)
        assert not orderly


def test_a_service_gets_a_closure_alert(authority: Authority) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    ends: list[str] = []

    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False) as link:
            read_head(link)
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            try:
                ends.append("alert" if link.recv(1) == b"" else "more")
            except OSError as error:
                ends.append(repr(error))

    with (
        Serving(serve) as upstream,
        Gate(
            route(upstream.url.replace("http:", "https:"), tls=UpstreamTls(ca=Path(authority.ca).read_bytes()))
        ) as gate,
        connect(gate.port) as link,
    ):
        link.sendall(GET)
        assert receive(link).endswith(b"ok")
    assert ends == ["alert"]
