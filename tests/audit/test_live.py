"""A running gateway: whatever a client or an upstream does, each request leaves exactly one event."""

import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.harness import Front, Gateway, mint, policy, policy_file, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import HANG_UP, PATIENCE, Raw, RecordingUpstream, Reply

BIG = 8 << 20
RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER of who leaves at once, and does not wait for an answer."""


def head(method: str, path: str, *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


class Live:
    def __init__(self, gateway: Gateway, upstream: RecordingUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.path = gateway.policy_path.with_name("audit.jsonl")
        self.token = f"Authorization: Bearer {mint('alice')}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.gateway.port), 5)

    def events(self) -> list[dict[str, Any]]:
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == "request"]

    def event(self, path: str) -> dict[str, Any]:
        """Wait for the one event of a path."""
        wait_for(lambda: any(event["path"] == path for event in self.events()), f"the event of {path}")
        (event,) = [event for event in self.events() if event["path"] == path]
        return event

    def saw(self, path: str) -> None:
        wait_for(lambda: any(path in seen.target for seen in self.upstream.requests), f"the upstream sees {path}")


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with RecordingUpstream() as upstream:
        path = write_policy(tmp_path, policy(tmp_path, upstream))
        with Gateway(path, arguments=("--drain-timeout", "300ms")) as gateway:
            yield Live(gateway, upstream)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def test_each_request_leaves_one_event(live: Live) -> None:
    held = threading.Event()
    here = "/api/v1/users"

    # The client leaves while the upstream thinks.
    live.upstream.reply = Reply(until=held)
    with live.connect() as client:
        client.sendall(head("GET", f"{here}/left-waiting", live.token))
        live.saw("left-waiting")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    event = live.event(f"{here}/left-waiting")
    assert (event["outcome"], event["reason"], event["user"]) == ("aborted", "client-closed", "alice")
    held.set()

    # The client leaves in the middle of its body.
    live.upstream.reply = Reply()
    with live.connect() as client:
        client.sendall(head("POST", f"{here}/left-sending", live.token, "Content-Length: 1000") + b"x" * 10)
    assert live.event(f"{here}/left-sending")["outcome"] == "aborted"

    # The client leaves in the middle of the response.
    live.upstream.reply = Reply(body=b"x" * BIG)
    with live.connect() as client:
        client.sendall(head("GET", f"{here}/left-reading", live.token))
        assert client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert live.event(f"{here}/left-reading")["outcome"] in {"aborted", "proxied"}  # it may have been in the buffers

    # The upstream hangs up, or talks nonsense, or leaves in the middle.
    for path, script, reason in (
        ("hung-up", HANG_UP, "upstream-closed"),
        ("nonsense", Raw(b"nonsense\r\n\r\n"), "upstream-malformed"),
    ):
        live.upstream.reply = script
        with live.connect() as client:
            client.sendall(head("POST", f"{here}/{path}", live.token, "Content-Length: 1", "Connection: close") + b"x")
            assert read_all(client).startswith(b"HTTP/1.1 502")
        event = live.event(f"{here}/{path}")
        assert (event["outcome"], event["status"], event["reason"]) == ("failed", 502, reason)
    live.upstream.reply = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    with live.connect() as client:
        client.sendall(head("GET", f"{here}/half", live.token, "Connection: close"))
        read_all(client)
    assert live.event(f"{here}/half")["outcome"] == "failed"

    # Denied, unread, answered; two on one connection.
    live.upstream.reply = Reply()
    with live.connect() as client:
        client.sendall(head("GET", f"{here}/no-token") + head("GET", f"{here}/token", live.token, "Connection: close"))
        read_all(client)
    assert live.event(f"{here}/no-token")["outcome"] == "denied"
    assert live.event(f"{here}/token")["outcome"] == "proxied"
    with live.connect() as client:
        client.sendall(b"GET /mal\tformed HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 400")
    wait_for(lambda: any(event["stage"] == "protocol" for event in live.events() if "stage" in event), "the event")

    # Nothing was asked: nothing is recorded.
    with live.connect():
        pass

    # The gateway ends while a request is on its way.
    live.upstream.reply = Raw(b"", close=False)
    with live.connect() as client:
        client.sendall(head("GET", f"{here}/ended", live.token))
        live.saw("ended")
        live.gateway.stop()
    paths = Counter(event["path"] for event in live.events())
    assert set(paths.values()) == {1}
    clients = ["left-waiting", "left-sending", "left-reading", "no-token", "token"]
    names = [*clients, "hung-up", "nonsense", "half", "ended"]
    assert set(paths) > {f"{here}/{name}" for name in names}
    assert len(paths) == len(names) + 1  # with the malformed one
    ids = [event["request_id"] for event in live.events()]
    assert len(set(ids)) == len(ids)


def test_what_gathers_when_the_gateway_is_told_to_end_is_written(live: Live) -> None:
    live.upstream.reply = Reply()
    with live.connect() as client:
        for number in range(20):
            client.sendall(head("GET", f"/api/v1/users/{number}", live.token))
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
        assert live.gateway.stop() == 0
    assert [event["path"] for event in live.events()] == [f"/api/v1/users/{number}" for number in range(20)]
    assert b"gateway-stopped" in live.path.read_bytes().splitlines()[-1]


@pytest.mark.parametrize("host", ["serve", "stock"])
def test_what_is_answered_while_the_gateway_ends_is_on_record(host: Front, tmp_path: Path) -> None:
    """Before: mitmdump wrote the end of the trail first, and went on to answer until its last connection was closed."""
    answered: set[str] = set()
    begun, done = threading.Semaphore(0), threading.Event()

    def ask(port: int) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as link:
            reader = link.makefile("rb")
            while not done.is_set():
                link.sendall(head("GET", "/nowhere"))
                fields = {}
                while (line := reader.readline()) not in {b"\r\n", b""}:
                    name, _, value = line.partition(b":")
                    fields[name.lower()] = value.strip().decode()
                if b"content-length" not in fields:
                    return
                answered.add(fields[b"x-request-id"])
                reader.read(int(fields[b"content-length"]))
                begun.release()

    path = policy_file(tmp_path, "http://127.0.0.1:9")
    arguments = ("--drain-timeout", "300ms") if host == "serve" else ()
    with Gateway(path, host=host, arguments=arguments) as gateway:
        clients = [threading.Thread(target=ask, args=(gateway.port,)) for _ in range(4)]
        for client in clients:
            client.start()
        for _ in range(40):
            assert begun.acquire(timeout=PATIENCE)
        assert gateway.stop() == 0
        done.set()
        for client in clients:
            client.join(PATIENCE)
    events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    recorded = Counter(event["request_id"] for event in events if event["event"] == "request")
    assert answered <= recorded.keys()
    assert set(recorded.values()) == {1}
    assert events[-1]["event"] == "gateway-stopped"
