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
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, connect, receive, route
from tests.protocol.test_streaming import Serving, read_head

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
