"""An endpoint whose connections take long: no request fails, or waits in a row, for what became of another's."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.rules import UpstreamTls
from tests.live.harness_http import request, wait_for
from tests.live.harness_upstream import PATIENCE
from tests.protocol.certificates import Authority
from tests.protocol.harness import Bounded, Gate, connect, reset, route


class Slow:
    """A service over TLS. let: an event for each connection that came; its handshake goes on when that is set."""

    def __init__(self, authority: Authority) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.issue("127.0.0.1"))
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"https://127.0.0.1:{self.listening.getsockname()[1]}"
        self.let: list[threading.Event] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self.listening.accept()
                event = threading.Event()
                self.let.append(event)
                threading.Thread(target=self._serve, args=(link, event), daemon=True).start()

    def _serve(self, link: socket.socket, let: threading.Event) -> None:
        with contextlib.suppress(OSError), link:
            let.wait(PATIENCE)
            with self._context.wrap_socket(link, server_side=True) as secure:
                while secure.recv(65536):
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("slow"))


@pytest.fixture
def slow(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    monkeypatch.setattr("mitmgate.proxy.pool.UNANSWERED", 0.0)  # others wait for a connection from its beginning
    service = Slow(authority)
    with service.listening:
        yield service
    for event in service.let:
        event.set()


def to(slow: Slow, authority: Authority, within: float) -> Bounded:
    return route(slow.url, tls=UpstreamTls(ca=Path(authority.ca).read_bytes()), connect_timeout=within, retries=0)


def test_who_waited_for_a_connection_that_was_made_waits_for_no_other(slow: Slow, authority: Authority) -> None:
    """Before: each waited for the next one's, and most for the whole connect timeout in vain."""
    with Gate(to(slow, authority, PATIENCE)) as gate, ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(request, gate.port, "GET", "/")]
        wait_for(lambda: len(slow.let) == 1, "the first connection")
        asked += [pool.submit(request, gate.port, "GET", "/") for _ in range(8)]
        wait_for(lambda: gate.layer.connected == 9, "the others")
        slow.let[0].set()
        wait_for(lambda: len(slow.let) == 9, "connections of the others, of which none is made yet")
        for event in slow.let:
            event.set()
        assert {answer.result().status for answer in asked} == {200}


def test_a_client_that_leaves_takes_no_connection_along_that_others_wait_for(slow: Slow, authority: Authority) -> None:
    """Before: the next one began anew, so that a few who leave one after the other were the end of its time."""
    with Gate(to(slow, authority, PATIENCE)) as gate, ThreadPoolExecutor(4) as pool:
        leaving = connect(gate.port)
        leaving.sendall(b"GET /left HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(slow.let) == 1, "the first connection")
        asked = [pool.submit(request, gate.port, "GET", "/") for _ in range(4)]
        wait_for(lambda: gate.layer.connected == 5, "the others")
        reset(leaving)
        assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
        assert len(slow.let) == 1
        slow.let[0].set()
        wait_for(lambda: len(slow.let) == 5, "connections of those who stayed")
        for event in slow.let:
            event.set()
        assert {answer.result().status for answer in asked} == {200}


@pytest.mark.parametrize("speaks", ["https", "h2s"])
def test_who_may_wait_longer_does_not_fail_with_who_may_not(slow: Slow, authority: Authority, speaks: str) -> None:
    """Two upstreams of one address. Before: the patient one failed when the other one's time was over."""
    slow.url = slow.url.replace("https", speaks)
    answers: list[Future[int]] = []
    with Gate(to(slow, authority, 0.5)) as gate, ThreadPoolExecutor(2) as pool:
        answers.append(pool.submit(lambda: request(gate.port, "GET", "/").status))
        wait_for(lambda: len(slow.let) == 1, "the first connection")
        gate.decide.route = to(slow, authority, PATIENCE)
        answers.append(pool.submit(lambda: request(gate.port, "GET", "/").status))
        assert answers[0].result() == 504
        wait_for(lambda: len(slow.let) == 2, "a connection of its own")
        slow.let[1].set()
        assert answers[1].result() == (200 if speaks == "https" else 502)  # no h2 after all
