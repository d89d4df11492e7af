"""The open-loop generator: latency from the intended time, failures counted, new connections where old ones end."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from bench.load import HERE
from bench.paced import Plan

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
type Answerer = Callable[[int, socket.socket, bytes], bool]
"""Answers the n-th request of the server; False: the connection is to be closed."""


@contextmanager
def server(answer: Answerer) -> Iterator[int]:
    """Serve requests without bodies, one thread a connection."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    counted, lock = 0, threading.Lock()

    def serve(link: socket.socket) -> None:
        nonlocal counted
        with link:
            while request := link.recv(65536):
                with lock:
                    counted += 1
                    number = counted
                if not answer(number, link, request):
                    return

    def accept() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(link,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def paced(plan: Plan) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "paced.py")],
        input=json.dumps(asdict(plan)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def plan(port: int, rate: float = 200, seconds: float = 1, connections: int = 4, close_every: int = 0) -> Plan:
    return Plan(port, rate, seconds, connections, [REQUEST], close_every)


def test_every_request_is_sent_and_answered() -> None:
    def answer(_: int, link: socket.socket, request: bytes) -> bool:
        assert request == REQUEST.encode()
        link.sendall(OK)
        return True

    with server(answer) as port:
        told = paced(plan(port))
    assert told["requests"] == told["answered"] == 200
    assert told["kinds"] == {}
    assert 0 < told["p50"] <= told["p99"] <= told["worst"]


def test_a_stall_is_paid_by_all_who_should_have_been_sent_meanwhile() -> None:
    stalled = threading.Event()

    def answer(number: int, link: socket.socket, _: bytes) -> bool:
        if number == 10:
            time.sleep(0.8)
            stalled.set()
        elif number > 10:
            stalled.wait(5)
        link.sendall(OK)
        return True

    with server(answer) as port:
        told = paced(plan(port))
    # Four connections carry four requests of the 0.8 seconds; 160 were due all the same. Whoever counts from the
    # sending sees four slow ones of 200: a median of nearly nothing.
    assert told["answered"] == 200
    assert told["worst"] >= 800
    assert told["p50"] > 200


def test_other_statuses_and_closed_connections_are_failures_and_the_rest_goes_on() -> None:
    def answer(number: int, link: socket.socket, _: bytes) -> bool:
        if number % 10 == 0:
            link.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return True
        if number % 25 == 1:
            return False
        if number % 25 == 2:
            link.sendall(OK[:-1])
            return False
        link.sendall(OK)
        return True

    with server(answer) as port:
        told = paced(plan(port))
    assert told["kinds"] == {"status 503": 20, "closed before the answer": 8, "closed within the answer": 8}
    assert told["answered"] == 200 - 36
    assert {kind for _, kind, _ in told["failures"]} == set(told["kinds"])
    assert all(local > 0 for _, _, local in told["failures"])


def test_connections_that_were_to_be_closed_are_no_failures() -> None:
    asked: list[bytes] = []

    def answer(_: int, link: socket.socket, request: bytes) -> bool:
        asked.append(request)
        link.sendall(OK)
        return b"Connection: close" not in request

    with server(answer) as port:
        told = paced(plan(port, close_every=4))
    assert told["answered"] == 200
    assert told["kinds"] == {}
    assert sum(b"Connection: close" in request for request in asked) == 50


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    told = paced(replace(plan(port, rate=20, seconds=0.2), drain=0.5))
    assert told["answered"] == 0
    assert any(kind.startswith("connecting: ") for kind in told["kinds"])
    assert told["kinds"]["never sent"] == 4
