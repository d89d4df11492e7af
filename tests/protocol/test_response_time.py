"""The time of a response: its head has one bound, a body that is held back another, one that streams the route's."""

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any, Self

import pytest

from mitmgate.core.reason import Reason
from tests.live.harness_http import status_of
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Bounded, Gate, connect, receive, route
from tests.protocol.raw_http2 import RawHttp2, request_fields
from tests.protocol.test_tls import client_context, listen

GET = b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n"


class Dripping:
    """A service that sends its head at once, and then a byte every 25 ms."""

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
                    if self._stop.wait(0.025):
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


@pytest.fixture(params=["stock", "lean-tls", "lean-h2"], autouse=True)
def front(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test on each front; both hosts have the same."""
    host, _, name = request.param.partition("-")
    monkeypatch.setattr(Gate, "host", host)
    return name or "plain"


@pytest.fixture(autouse=True)
def host(front: str) -> str:
    """No host beside those of the fronts."""
    return front


class Asking:
    """A gateway with one front, and a client of it. Use it as a context manager; it has the response in the end."""

    def __init__(self, front: str, directory: Path, chosen: Bounded, limits: dict[str, Any] | None = None) -> None:
        self._front, self._authority = front, Authority(directory)
        tls = None if front == "plain" else listen(self._authority)
        self.gate = Gate(chosen, tls=tls, limits=limits)

    def ask(self) -> tuple[int, bytes, bool]:
        """Send a GET; returns status, body, and whether it is whole."""
        if self._front == "h2":
            with RawHttp2(self.gate.port, self._authority.ca) as client:
                number = client.request(request_fields("GET", "/p"))
                client.until(lambda: client.streams[number].over, "the response")
                stream = client.streams[number]
                return stream.status, stream.body, stream.ended
        link = connect(self.gate.port)
        if self._front == "tls":
            link = client_context(self._authority).wrap_socket(link, server_hostname="gateway.test")
        with link:
            link.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            got = receive(link)
        head, _, body = got.partition(b"\r\n\r\n")
        chunked = b"Transfer-Encoding: chunked" in head
        return status_of(got), body, body.endswith(b"0\r\n\r\n") if chunked else True

    def upload(self, count: int, pause: float) -> int:
        """Send a body octet by octet; returns the status."""
        if self._front == "h2":
            with RawHttp2(self.gate.port, self._authority.ca) as client:
                length = (b"content-length", b"%d" % count)
                number = client.request(request_fields("POST", "/p", length), end=False)
                for at in range(count):
                    threading.Event().wait(pause)
                    client.send(client.data(number, b"x", end=at == count - 1))
                client.until(lambda: client.streams[number].over, "the response")
                return client.streams[number].status
        link = connect(self.gate.port)
        if self._front == "tls":
            link = client_context(self._authority).wrap_socket(link, server_hostname="gateway.test")
        with link:
            link.sendall(b"POST /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % count)
            with contextlib.suppress(OSError):
                for _ in range(count):
                    threading.Event().wait(pause)
                    link.sendall(b"x")
            return status_of(receive(link))

    def __enter__(self) -> Self:
        self.gate.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self.gate.__exit__(*failure)


def test_body_of_a_held_response_may_take_longer_than_its_head_could(front: str, tmp_path: Path) -> None:
    with (
        Dripping(b"Content-Length: 30", 30) as service,
        Asking(front, tmp_path, route(service.url, response_timeout=0.6, body_timeout=60.0)) as asking,
    ):
        assert asking.ask() == (200, b"x" * 30, True)


@pytest.mark.parametrize("bounds", [{"body_timeout": 0.3}, {"response_timeout": 0.3}])
def test_body_of_a_held_response_has_a_bound_of_its_own(front: str, tmp_path: Path, bounds: dict[str, Any]) -> None:
    with (
        Dripping(b"Content-Length: 2000", 2000) as service,
        Asking(front, tmp_path, route(service.url, **{"response_timeout": 60.0, **bounds})) as asking,
    ):
        status, body, whole = asking.ask()
        assert (status, whole) == (504, True)
        assert b'"reason":"upstream-timeout"' in body
        assert asking.gate.hooks.wait_ends(1) == [("response", Reason.UPSTREAM_TIMEOUT)]


def test_stream_that_drips_for_ever_ends_at_the_routes_time(front: str, tmp_path: Path) -> None:
    with (
        Dripping(b"Transfer-Encoding: chunked", 2000) as service,
        Asking(front, tmp_path, route(service.url, stream_timeout=0.5)) as asking,
    ):
        status, body, whole = asking.ask()
        assert (status, whole) == (200, False)
        assert body
        assert asking.gate.hooks.wait_ends(1) == [("error", Reason.STREAM_TIMEOUT)]


@pytest.mark.parametrize(("rate", "status"), [(0, 200), (1, 200), (500, 408)])
def test_an_upload_may_be_slow_where_the_policy_says_so(
    front: str, tmp_path: Path, upstream: RecordingUpstream, rate: int, status: int
) -> None:
    """Twenty octets, one after the other, take longer than the time that they have."""
    limits = {"body_timeout": 0.3, "body_rate": rate}
    with Asking(front, tmp_path, route(upstream.url), limits) as asking:
        assert asking.upload(20, 0.025) == status
        assert [request.body for request in upstream.requests] == [b"x" * 20] * (status == 200)
