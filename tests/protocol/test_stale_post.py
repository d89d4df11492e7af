"""A request that may be sent once, and a connection that its service closes at that moment: none is lost or doubled."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.rules import UpstreamTls
from mitmgate.proxy import pool
from mitmgate.proxy.pool import UpstreamPool
from mitmgate.proxy.upstream import UpstreamConnection
from tests.live.harness_http import request, wait_for
from tests.live.harness_upstream import PATIENCE
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, route

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def read_request(link: socket.socket) -> bytes:
    """Read a request with the five octets of its body; what there is, where it ends before."""
    got = b""
    while not got.endswith(b"\r\n\r\n12345"):
        part = link.recv(65536)
        if not part:
            break
        got += part
    return got


class Service:
    """Answers the first request, then does something else. Later connections are answered.

    requests: what its program has read, which is what it may have acted on.
    """

    def __init__(self, then: Callable[["Service", socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        self._then, self._tls = then, tls
        self.requests: list[bytes] = []
        self.connections = 0
        self.go, self.done = threading.Event(), threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listening.accept()
                link.settimeout(PATIENCE)
                with contextlib.suppress(OSError), ExitStack() as closing:
                    closing.enter_context(link)
                    if self._tls is not None:
                        link = closing.enter_context(self._tls.wrap_socket(link, server_side=True))
                    self.connections += 1
                    self.answer(link)
                    if self.connections == 1:
                        assert self.go.wait(PATIENCE)
                        self._then(self, link)
                    else:
                        while self.requests[-1]:
                            self.answer(link)
                self.done.set()

    def read(self, link: socket.socket) -> None:
        self.requests.append(read_request(link))

    def answer(self, link: socket.socket) -> None:
        self.read(link)
        if self.requests[-1]:
            link.sendall(ANSWER)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def closes(service: Service, link: socket.socket) -> None:
    if isinstance(link, ssl.SSLSocket):
        with contextlib.suppress(OSError, ValueError):
            link.settimeout(0)
            link.unwrap()  # says close_notify, and waits for no answer


def reads_and_closes(service: Service, link: socket.socket) -> None:
    service.read(link)


def reads_and_resets(service: Service, link: socket.socket) -> None:
    service.read(link)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def resets(service: Service, link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_closes_and_reads(service: Service, link: socket.socket) -> None:
    link.shutdown(socket.SHUT_WR)
    service.done.set()
    service.read(link)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection be too old on a busy machine."""
    monkeypatch.setattr(pool, "FRESH_SECONDS", 2 * PATIENCE)
    monkeypatch.setattr(pool, "IDLE_SECONDS", 2 * PATIENCE)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the gateway see nothing of an idle connection until it has sent the next request on it."""
    keep, send = UpstreamPool.keep, UpstreamConnection.send

    def kept(pool: UpstreamPool, connection: UpstreamConnection) -> None:
        keep(pool, connection)
        connection.hold(True)

    def sent(connection: UpstreamConnection, *arguments: Any, **named: Any) -> bool:
        done = send(connection, *arguments, **named)
        connection.hold(False)
        return done

    monkeypatch.setattr(UpstreamPool, "keep", kept)
    monkeypatch.setattr(UpstreamConnection, "send", sent)


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ssl.SSLContext | None, UpstreamTls | None]]:
    if request.param == "plain":
        yield None, None
        return
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1"))
    yield context, UpstreamTls(Path(authority.ca).read_bytes())


Tls = tuple[ssl.SSLContext | None, UpstreamTls | None]


def post(gate: Gate, path: str, *, chunked: bool = False) -> int:
    return request(gate.port, "POST", path, body=[b"12345"] if chunked else b"12345").status


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
@pytest.mark.usefixtures("blind")
def test_a_post_at_the_moment_of_the_close_is_sent_anew(monkeypatch: pytest.MonkeyPatch, tls: Tls, seen: bool) -> None:
    """seen: the end lies in the socket before the request is written; unseen: it comes with the request on its way."""
    if not seen:
        monkeypatch.setattr(UpstreamConnection, "ended", False)
    with Service(closes, tls[0]) as service, Gate(route(service.url, tls=tls[1])) as gate:
        assert post(gate, "/first") == 200
        service.go.set()
        assert service.done.wait(PATIENCE)
        assert post(gate, "/second") == 200
        assert [raw.split(b" ", 2)[1] for raw in service.requests] == [b"/first", b"/second"]
        assert service.connections == 2
        assert gate.hooks.wait_ends(2) == [("response", Reason.OK)] * 2


@pytest.mark.parametrize("then", [reads_and_closes, reads_and_resets])
def test_a_post_that_the_service_has_read_is_sent_once(
    tls: Tls, then: Callable[[Service, socket.socket], None]
) -> None:
    with Service(then, tls[0]) as service, Gate(route(service.url, tls=tls[1])) as gate:
        assert post(gate, "/first") == 200
        service.go.set()
        assert post(gate, "/second") == 502
        assert service.done.wait(PATIENCE)
        assert [raw.split(b" ", 2)[1] for raw in service.requests] == [b"/first", b"/second"]
        assert service.connections == 1


@pytest.mark.usefixtures("blind")
def test_a_post_to_a_service_that_has_closed_its_half_and_still_reads_is_sent_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(UpstreamConnection, "ended", False)
    with Service(half_closes_and_reads) as service, Gate(route(service.url)) as gate:
        assert post(gate, "/first") == 200
        service.go.set()
        assert service.done.wait(PATIENCE)
        assert post(gate, "/second") == 502
        wait_for(lambda: len(service.requests) == 2, "the request to be read")
        assert service.connections == 1


@pytest.mark.usefixtures("blind")
def test_a_reset_alone_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpstreamConnection, "ended", False)
    with Service(resets) as service, Gate(route(service.url)) as gate:
        assert post(gate, "/first") == 200
        service.go.set()
        assert service.done.wait(PATIENCE)
        assert post(gate, "/second") == 502
        assert len(service.requests) == 1


@pytest.mark.usefixtures("blind")
def test_a_streamed_body_takes_no_connection_that_has_ended() -> None:
    with Service(closes) as service, Gate(route(service.url, stream="always")) as gate:
        assert post(gate, "/first", chunked=False) == 200
        service.go.set()
        assert service.done.wait(PATIENCE)
        assert request(gate.port, "PUT", "/second", body=b"12345").status == 200
        assert [raw.split(b" ", 2)[1] for raw in service.requests] == [b"/first", b"/second"]


@pytest.mark.usefixtures("blind")
def test_how_long_a_service_waits_is_learnt_from_such_a_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpstreamConnection, "ended", False)
    with Service(closes) as service, Gate(route(service.url)) as gate:
        assert post(gate, "/first") == 200
        service.go.set()
        assert service.done.wait(PATIENCE)
        assert post(gate, "/second") == 200
        (learned,) = gate.layer.engine.pool._learned.values()
        assert 0 < learned[0] < PATIENCE
