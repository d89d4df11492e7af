"""What is held for clients has a bound for the process and for each address, on every front; others are served on."""

import base64
import contextlib
import hashlib
import http.client
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest
from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Request, TextMessage

from tests.live.harness import Gateway, policy, write_policy
from tests.live.harness_http import Answered, free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream, Reply
from tests.protocol.certificates import Authority

MIB = 1024 * 1024
LIMIT = 8 * MIB
BODY = 900_000
HEAD = b"POST /public HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: %d\r\n\r\n" % BODY


class Running:
    """A gateway that may hold 8 MiB for clients, 2 of them for one address."""

    def __init__(self, gateway: Gateway, upstream: RecordingUpstream, admin: int, tls: ssl.SSLContext | None) -> None:
        self.gateway, self.upstream, self.admin, self.tls = gateway, upstream, admin, tls

    def connect(self, address: str = "127.0.0.2", protocol: str = "http/1.1") -> socket.socket:
        """Connect from an address."""
        link = socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE, (address, 0))
        if self.tls is None:
            return link
        context = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(self.tls.get_ca_certs(True)[0]))
        context.set_alpn_protocols([protocol])
        return context.wrap_socket(link, server_hostname="127.0.0.1")

    def ask(self, method: str = "GET", body: bytes | None = None, target: str = "/public") -> Answered:
        """Ask, on a connection of its own, from an address that holds nothing."""
        client = http.client.HTTPConnection("127.0.0.1", self.gateway.port)
        client.sock = self.connect("127.0.9.9")
        try:
            return request(self.gateway.port, method, target, body=body, connection=client)
        finally:
            client.close()

    def metric(self, name: str) -> float:
        """Read a metric without labels."""
        text = request(self.admin, "GET", "/metrics", host="localhost").body.decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))

    @property
    def held(self) -> float:
        """Bytes that are held."""
        return self.metric("mitmgate_memory_held_bytes")

    @property
    def resident(self) -> float:
        """Bytes that the process has."""
        return self.metric("process_resident_memory_bytes")

    def reasons(self) -> Counter[str]:
        """Count the reasons in the audit file."""
        lines = self.gateway.policy_path.with_name("audit.jsonl").read_bytes().split(b"\n")[:-1]
        found = [event for line in lines if (event := json.loads(line))["event"] == "request"]
        return Counter(event["reason"] for event in found)


@pytest.fixture(scope="module", params=["serve", "serve-tls", "web-tls"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory: Path = tmp_path_factory.mktemp(request.param)
    host, _, secured = request.param.partition("-")
    authority, admin = Authority(directory), free_port()
    certificate, key = authority.issue("127.0.0.1")
    members: dict[str, Any] = {"listen": {"tls": {"certificate": certificate, "key": key}}} if secured else {}
    with RecordingUpstream() as upstream:
        made = policy(directory, upstream, admin={"port": admin}, limits={"memory": "8MiB"}, **members)
        open_route = next(route for route in made["routes"] if route["name"] == "public")
        made["routes"] += [
            {**open_route, "name": "whole", "match": {"exact": "/whole"}, "stream": "never", "mode": "report"},
            {**open_route, "name": "ws", "match": {"exact": "/ws"}, "websocket": True},
        ]
        with Gateway(write_policy(directory, made), host=host) as gateway:
            yield Running(
                gateway, upstream, admin, ssl.create_default_context(cafile=authority.ca) if secured else None
            )


@pytest.fixture(autouse=True)
def clean(running: Running) -> Iterator[None]:
    """Hold nothing before a test and after it."""
    running.upstream.forget()
    wait_for(lambda: running.held == 0, "nothing to be held")
    yield
    running.upstream.forget()
    wait_for(lambda: running.held == 0, "nothing to be held")
    assert running.ask().status == 200


def status_of(link: socket.socket) -> int:
    """Read what has come; 0: nothing."""
    link.settimeout(0.05)
    try:
        got = link.recv(65536)
    except TimeoutError:
        return 0
    except OSError:
        return -1
    return int(got.split(b" ", 2)[1]) if got.startswith(b"HTTP/1.1 ") else -1


def test_bodies_that_do_not_end_are_bounded_together(running: Running) -> None:
    """Each is within its own bound; the bound of the process ends the largest, and refuses new ones."""
    before, ended = running.resident, running.metric("mitmgate_memory_ended_total")
    with contextlib.ExitStack() as stack:
        links = []
        for number in range(40):
            link = stack.enter_context(running.connect(f"127.0.3.{number // 2 + 1}"))
            links.append(link)
            with contextlib.suppress(OSError):
                link.sendall(HEAD + b"x" * (BODY - 1 - 1000 * number))
        wait_for(lambda: running.held > LIMIT // 2, "bodies to be held")
        statuses = Counter(map(status_of, links))
        assert running.held <= LIMIT
        assert running.resident - before < 3 * LIMIT, statuses
        assert statuses[503] >= 30
        assert statuses[0] >= 4, "those that are within the bound are left alone"
        assert running.ask().status == 200
        assert running.metric("mitmgate_memory_limit_bytes") == LIMIT
    assert running.metric("mitmgate_memory_ended_total") >= ended
    wait_for(lambda: running.reasons()["memory-exhausted"] >= statuses[503], "the audit events")
    running.upstream.settle()
    assert {seen.method for seen in running.upstream.requests} == {"GET"}


def test_one_address_holds_a_quarter_and_others_send_bodies(running: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            link = stack.enter_context(running.connect("127.0.0.1"))
            with contextlib.suppress(OSError):
                link.sendall(HEAD + b"x" * (BODY - 1))
        wait_for(lambda: running.held > BODY, "bodies to be held")
        assert running.ask("POST", b"y" * BODY).status == 200
        assert running.held <= LIMIT // 4
    assert running.upstream.last().body == b"y" * BODY


def test_endless_body_in_report_mode_ends_at_the_bound(running: Running) -> None:
    """Nothing else bounds a body that a route wants whole, where the size is only reported."""
    before = running.resident
    with running.connect() as link:
        link.sendall(b"POST /whole HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(1000):
                link.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        link.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert link.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert running.resident - before < 3 * LIMIT
    wait_for(lambda: running.reasons()["memory-exhausted"] > 0, "the audit event")
    running.upstream.settle()
    assert running.upstream.requests == []


def test_answers_that_are_not_read_are_bounded_together(running: Running) -> None:
    running.upstream.reply = Reply(body=b"z" * BODY)
    before = running.resident
    with contextlib.ExitStack() as stack:
        for number in range(60):
            link = stack.enter_context(running.connect(f"127.0.4.{number + 1}"))
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError):
                link.sendall(b"GET /public HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
        wait_for(lambda: len(running.upstream.requests) >= 60, "the requests")
        wait_for(lambda: running.held <= LIMIT, "the bound to hold")
        kept = running.gateway.host == "web"  # for whoever looks at it
        assert kept or running.resident - before < 4 * LIMIT
        running.upstream.reply = Reply()
        assert running.ask().status == 200


@pytest.mark.parametrize("running", ["serve-tls", "web-tls"], indirect=True)
def test_streams_of_one_connection_are_bounded_together(running: Running) -> None:
    before = running.resident
    fields = [(":method", "POST"), (":scheme", "https"), (":authority", "x"), (":path", "/public")]
    statuses: Counter[bytes] = Counter()
    with running.connect("127.0.0.5", "h2") as link:
        connection = h2.connection.H2Connection()
        connection.initiate_connection()
        link.sendall(connection.data_to_send())
        link.settimeout(PATIENCE)
        left = dict.fromkeys(range(1, 61, 2), BODY - 1)
        for stream_id in left:
            connection.send_headers(stream_id, [*fields, ("content-length", str(BODY))])
        deadline = time.monotonic() + PATIENCE
        while any(left.values()):
            assert time.monotonic() < deadline, left
            link.settimeout(PATIENCE)
            for stream_id in [one for one, size in left.items() if size]:
                size = min(left[stream_id], connection.local_flow_control_window(stream_id), 16384)
                if size:
                    connection.send_data(stream_id, b"x" * size)
                    left[stream_id] -= size
            link.sendall(connection.data_to_send())
            link.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                for event in connection.receive_data(link.recv(1 << 20)):
                    if isinstance(event, h2.events.ResponseReceived):
                        statuses[dict(event.headers)[b":status"]] += 1
                    if isinstance(event, h2.events.ResponseReceived | h2.events.StreamReset | h2.events.StreamEnded):
                        left[event.stream_id] = 0
            link.settimeout(PATIENCE)
            link.sendall(connection.data_to_send())
        assert running.ask().status == 200
        assert running.held <= LIMIT // 4
    assert statuses[b"503"] >= 25
    assert running.resident - before < 3 * LIMIT


def test_messages_of_websockets_are_bounded_together(running: Running) -> None:
    """A message is put together before it goes on: each within its bound, all of them within the process's."""
    before, audited = running.resident, running.reasons()["memory-exhausted"]
    running.upstream.reply = lambda got: Reply(
        101,
        headers=[
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept(got.one("sec-websocket-key") or "")),
        ],
        body=b"",
    )
    with contextlib.ExitStack() as stack:
        for number in range(12):
            link = stack.enter_context(running.connect(f"127.0.5.{number + 1}"))
            client = WSConnection(ConnectionType.CLIENT)
            link.sendall(client.send(Request("gateway.test", "/ws")))
            link.settimeout(PATIENCE)
            while not any(isinstance(event, AcceptConnection) for event in client.events()):
                client.receive_data(link.recv(65536))
            with contextlib.suppress(OSError):
                link.sendall(client.send(TextMessage("m" * 1_800_000, message_finished=False)))
        wait_for(lambda: running.held > LIMIT // 2, "messages to be held")
        wait_for(lambda: running.held <= LIMIT, "the bound to hold")
        assert running.resident - before < 4 * LIMIT
    wait_for(lambda: running.reasons()["memory-exhausted"] > audited, "the audit events")


def accept(key: str) -> str:
    """Accept a handshake (RFC 6455, section 4.2.2)."""
    made = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False)
    return base64.b64encode(made.digest()).decode()
