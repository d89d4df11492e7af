"""The time of a response: its head has one bound, a body that is held back another, one that streams the route's."""

import contextlib
import socket
import threading
import time
from typing import Any, Self

import pytest

from mitmgate.core.reason import Reason
from tests.live.harness_http import request, status_of
from tests.protocol.harness import Gate, connect, receive, route

GET = b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n"


class Dripping:
    """A service that sends its head at once, and then a byte every 50 ms."""

    def __init__(self, framing: bytes, count: int) -> None:
        self._framing, self._count = framing, count
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            link, _ = self._listening.accept()
            with link:
                link.recv(65536)
                link.sendall(b"HTTP/1.1 200 OK\r\n" + self._framing + b"\r\n\r\n")
                chunked = b"chunked" in self._framing
                for _ in range(self._count):
                    if self._stop.wait(0.05):
                        return
                    link.sendall(b"1\r\nx\r\n" if chunked else b"x")
                link.sendall(b"0\r\n\r\n" if chunked else b"")
                self._stop.wait(20)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(20)


def test_body_of_a_held_response_may_take_longer_than_its_head_could() -> None:
    with (
        Dripping(b"Content-Length: 30", 30) as service,
        Gate(route(service.url, response_timeout=0.6, body_timeout=60.0)) as gate,
    ):
        answered = request(gate.port, "GET", "/p")
        assert (answered.status, answered.body) == (200, b"x" * 30)


@pytest.mark.parametrize("bounds", [{"body_timeout": 0.5}, {"response_timeout": 0.5}])
def test_body_of_a_held_response_has_a_bound_of_its_own(bounds: dict[str, Any]) -> None:
    with (
        Dripping(b"Content-Length: 2000", 2000) as service,
        Gate(route(service.url, **{"response_timeout": 60.0, **bounds})) as gate,
    ):
        started = time.monotonic()
        answered = request(gate.port, "GET", "/p")
        assert (answered.status, answered.reason) == (504, "upstream-timeout")
        assert time.monotonic() - started < 10


def test_stream_that_drips_for_ever_ends_at_the_routes_time() -> None:
    with (
        Dripping(b"Transfer-Encoding: chunked", 2000) as service,
        Gate(route(service.url, stream_timeout=0.5)) as gate,
        connect(gate.port) as link,
    ):
        link.sendall(GET)
        got = receive(link)
        assert status_of(got) == 200
        assert not got.endswith(b"0\r\n\r\n")
        assert gate.hooks.wait_ends(1) == [("error", Reason.STREAM_TIMEOUT)]
