"""The bars of the protocol layer, on real gateway processes: answers, memory, descriptors, slow clients."""

import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness import Gateway, Host, policy, write_policy
from tests.live.harness_http import status_of, wait_for
from tests.protocol.harness import connect, receive
from tests.protocol.test_streaming import read_head

MIB = 1024 * 1024
SIZE = 64 * MIB  # several times the growth that is allowed
BLOCK = b"x" * 65536
CHUNK = b"10000\r\n" + BLOCK + b"\r\n"


class Bulk:
    """An upstream for bulk: GET answers with SIZE bytes, chunked where the query says so; POST counts what comes."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.received = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                link, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            while head := read_head(link):
                head, _, rest = head.partition(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    self._take(link, rest, chunked=b"chunked" in head.lower())
                    link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                elif b"small" in head:
                    link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                else:
                    self._give(link, chunked=b"chunked" in head)

    def _take(self, link: socket.socket, rest: bytes, *, chunked: bool) -> None:
        self.received = len(rest)
        tail = rest[-5:]
        while tail != b"0\r\n\r\n" if chunked else self.received < SIZE:
            data = link.recv(1 << 18)
            if not data:
                return
            self.received += len(data)
            tail = (tail + data)[-5:]

    def _give(self, link: socket.socket, *, chunked: bool) -> None:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % SIZE
        link.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        for _ in range(SIZE // len(BLOCK)):
            link.sendall(CHUNK if chunked else BLOCK)
        if chunked:
            link.sendall(b"0\r\n\r\n")

    def close(self) -> None:
        self._listening.close()


@pytest.fixture(params=["serve", "web"], autouse=True)
def host(request: pytest.FixtureRequest) -> Host:
    """Run in both hosts, as processes."""
    name: Host = request.param
    return name


@pytest.fixture
def running(host: Host, tmp_path: Path) -> Iterator[tuple[Gateway, Bulk]]:
    """Run a gateway process in front of a bulk upstream."""
    bulk = Bulk()
    made = policy(tmp_path, bulk.url, limits={"head_timeout": "2s"})
    made["routes"] = [
        {"name": "closed", "match": {"prefix": "/closed"}, "upstream": "users", "max_body": "1GiB"},
        {"name": "open", "match": {"prefix": "/open"}, "upstream": "users", "auth": "none", "max_body": "1GiB"},
    ]
    with Gateway(write_policy(tmp_path, made), host=host) as gateway:
        for _ in range(20):
            assert gateway.get("/open/small").status == 200
            assert gateway.request("POST", "/closed", body=b"x" * 1000).status == 401
        yield gateway, bulk
    bulk.close()


def memory(gateway: Gateway, name: str) -> float:
    """Read a line of the process's status, in MiB."""
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def growth(gateway: Gateway, action: object) -> float:
    """Return by how many MiB the process's memory grew at its peak during the action."""
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")  # resets the peak
    before = memory(gateway, "VmRSS")
    action()  # type: ignore[operator]
    return memory(gateway, "VmHWM") - before


def descriptors(gateway: Gateway) -> int:
    return len(os.listdir(f"/proc/{gateway.process.pid}/fd"))


def deny(gateway: Gateway, *, whole: bool) -> float:
    """Post 50 MB without a token; returns the seconds until the answer was there."""
    with connect(gateway.port) as link:
        started = time.monotonic()
        link.sendall(b"POST /closed/x HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 1000)
        assert status_of(receive(link, complete=True)) == 401
        seconds = time.monotonic() - started
        if whole:
            with contextlib.suppress(OSError):
                link.sendall(b"x" * 50_000_000)
    return seconds


def test_denials_are_quick_and_cost_nothing_that_stays(running: tuple[Gateway, Bulk]) -> None:
    gateway, _ = running
    deny(gateway, whole=True)
    assert growth(gateway, lambda: deny(gateway, whole=True)) < 2
    before = descriptors(gateway)
    assert statistics.median(deny(gateway, whole=False) for _ in range(200)) < 0.5
    wait_for(lambda: descriptors(gateway) <= before, "descriptors to be closed", 60)


def test_bulk_is_streamed_with_constant_memory(running: tuple[Gateway, Bulk]) -> None:
    gateway, bulk = running

    def download(query: bytes) -> None:
        with connect(gateway.port) as link:
            link.sendall(b"GET /open/bulk" + query + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            count = 0
            while data := link.recv(1 << 18):
                count += len(data)
            assert count > SIZE

    def upload(chunked: bool) -> None:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % SIZE
        with connect(gateway.port) as link:
            link.sendall(b"POST /open/bulk HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
            for _ in range(SIZE // len(BLOCK)):
                link.sendall(CHUNK if chunked else BLOCK)
            if chunked:
                link.sendall(b"0\r\n\r\n")
            assert status_of(receive(link, complete=True)) == 200
        assert bulk.received >= SIZE

    assert growth(gateway, lambda: download(b"")) < 16
    assert growth(gateway, lambda: download(b"?chunked")) < 16
    assert growth(gateway, lambda: upload(False)) < 16
    assert growth(gateway, lambda: upload(True)) < 16


def test_slow_and_idle_clients_are_answered_on_time_and_hold_nobody_up(running: tuple[Gateway, Bulk]) -> None:
    gateway, _ = running
    with contextlib.ExitStack() as links:
        slow = [links.enter_context(connect(gateway.port)) for _ in range(100)]
        for _ in range(100):
            links.enter_context(connect(gateway.port))
        alone = statistics.median(_seconds(gateway) for _ in range(20))
        started = time.monotonic()
        for link in slow:
            link.sendall(b"GET /open/small HTTP/1.1\r\n")
        quick = []
        for octet in b"Host: x\r\nX: a":
            for link in slow:
                with contextlib.suppress(OSError):
                    link.send(bytes([octet]))
            quick.append(_seconds(gateway))
        assert statistics.median(quick) < 10 * alone + 2  # whoever waited for a slow one would wait for minutes
        assert [status_of(link.recv(4096)) for link in slow] == [408] * len(slow)
        assert time.monotonic() - started > 1.5


def _seconds(gateway: Gateway) -> float:
    started = time.monotonic()
    assert gateway.get("/open/small").status == 200
    return time.monotonic() - started
