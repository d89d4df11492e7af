"""A circuit that no single client can open, on a running gateway in either host."""

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from bench.rare_failures import measure
from tests.live.harness import Gateway, Host, policy, route, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, Recorded, RecordingUpstream, Reply

CLIENTS, EACH = 8, 100


class Refusing:
    """A service that reads the head of an upload, and closes the connection."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.seen = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                link, _ = self.listening.accept()
                with link:
                    link.settimeout(PATIENCE)
                    got = b""
                    while b"\r\n\r\n" not in got and (part := link.recv(65536)):
                        got += part
                    self.seen += 1
                    if not got.startswith(b"POST"):
                        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


@pytest.fixture(scope="module")
def refusing() -> Iterator[Refusing]:
    server = Refusing()
    yield server
    server.listening.close()


@pytest.fixture(scope="module")
def service() -> Iterator[RecordingUpstream]:
    def answer(request: Recorded) -> Reply:
        return Reply(500 if "bad" in request.target else 200)

    with RecordingUpstream(answer) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, service: RecordingUpstream, refusing: Refusing, host: Host
) -> Iterator[Gateway]:
    directory: Path = tmp_path_factory.mktemp(host)
    made = policy(directory, service)
    made["upstreams"]["uploads"] = {"endpoints": [refusing.url], "retries": 0}
    route(made, "public", match={"prefix": "/public"})
    made["routes"].append(
        {"name": "uploads", "match": {"prefix": "/uploads"}, "upstream": "uploads", "auth": "none", "stream": "always"}
    )
    with Gateway(write_policy(directory, made), host=host) as running:
        yield running


def test_a_few_failures_among_many_successes_refuse_nobody(gateway: Gateway, service: RecordingUpstream) -> None:
    before = len(service.requests)

    def client(number: int) -> Counter[int]:
        link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        try:
            targets = ["/public/bad" if number == 0 and 40 <= at < 52 else f"/public/{at}" for at in range(EACH)]
            return Counter(gateway.get(target, connection=link).status for target in targets)
        finally:
            link.close()

    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = sum(pool.map(client, range(CLIENTS)), Counter[int]())
    assert statuses == {200: CLIENTS * EACH - 12, 500: 12}
    assert len(service.requests) - before == CLIENTS * EACH


def test_uploads_that_are_refused_by_closing_open_no_circuit(gateway: Gateway, refusing: Refusing) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 65536

    before = refusing.seen
    for number in range(8):
        with suppress(OSError, http.client.HTTPException):
            answered = gateway.request("POST", "/uploads", body=endless())
            assert answered.reason == "upstream-closed", (number, answered)
    assert refusing.seen == before + 8
    assert gateway.get("/uploads").status == 200


def test_a_service_that_only_fails_is_left_alone(gateway: Gateway, service: RecordingUpstream) -> None:
    assert [gateway.get("/public/bad").status for _ in range(5)] == [500] * 5
    wait_for(lambda: gateway.get("/public/bad").reason == "circuit-open", "the circuit to open")
    before = len(service.requests)
    assert gateway.get("/public").reason == "circuit-open"
    assert len(service.requests) == before


def test_a_service_that_fails_now_and_then(tmp_path: Path) -> None:
    """bench/rare_failures.py runs the same for longer, with fewer failures."""
    found = measure(tmp_path, 1.0, 0.04)
    assert found.failed > 5
    assert found.missed() == []
