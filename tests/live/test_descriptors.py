"""File descriptors: a crowd that uses up all that a process may have harms nobody but itself, and no endpoint."""

import contextlib
import http.client
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h2.connection
import h2.events
import pytest

from tests.live.harness import ROOT, SECRET, Gateway, policy, write_policy
from tests.live.harness_http import Answered, free_port, request, wait_for
from tests.live.harness_upstream import HANG, PATIENCE, RecordingUpstream, Reply
from tests.protocol.certificates import Authority

FEW = 160
"""Descriptors of the process: 40 for itself, 60 clients, of which 15 are only told that they are too many."""
CROWD = 300


class Running:
    """A gateway with few descriptors, and two ways to ask it something."""

    def __init__(self, gateway: Gateway, upstream: RecordingUpstream, admin: int, tls: ssl.SSLContext | None) -> None:
        self.gateway, self.upstream, self.admin, self.tls = gateway, upstream, admin, tls

    def client(self, address: str = "127.0.0.2") -> http.client.HTTPConnection:
        """Make a client that comes from an address."""
        where, port, source = "127.0.0.1", self.gateway.port, (address, 0)
        if self.tls is None:
            return http.client.HTTPConnection(where, port, timeout=PATIENCE, source_address=source)
        return http.client.HTTPSConnection(where, port, timeout=PATIENCE, source_address=source, context=self.tls)

    def get(self, address: str = "127.0.0.2") -> Answered:
        """Ask, on a connection of its own."""
        client = self.client(address)
        try:
            return request(self.gateway.port, "GET", "/public", connection=client)
        finally:
            client.close()

    def metric(self, name: str) -> float:
        """Read a metric without labels."""
        text = request(self.admin, "GET", "/metrics", host="localhost").body.decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))

    def settled(self) -> bool:
        """Tell whether no client is connected any more."""
        return self.metric("mitmgate_connections") == 0

    @property
    def lines(self) -> int:
        """The lines of the log."""
        return self.gateway.log.count("\n")


@pytest.fixture(scope="module", params=["serve", "serve-tls", "web-tls"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory: Path = tmp_path_factory.mktemp(request.param)
    authority = Authority(directory)
    certificate, key = authority.issue("127.0.0.1")
    host, _, tls = request.param.partition("-")
    secured, admin = tls == "tls", free_port()
    members = {"listen": {"tls": {"certificate": certificate, "key": key}}} if secured else {}
    with RecordingUpstream() as upstream:
        made = policy(directory, upstream, admin={"port": admin}, **members)
        path = write_policy(directory, made)
        with Gateway(path, host=host, ulimit=f"-n {FEW}") as gateway:
            context = ssl.create_default_context(cafile=authority.ca) if secured else None
            yield Running(gateway, upstream, admin, context)


@contextlib.contextmanager
def crowd(running: Running, *addresses: str) -> Iterator[list[socket.socket]]:
    """Connect and say nothing, from these addresses in turn."""
    links = []
    try:
        for number in range(CROWD):
            source = (addresses[number % len(addresses)], 0)
            with contextlib.suppress(OSError):  # turned away
                links.append(socket.create_connection(("127.0.0.1", running.gateway.port), 5, source))
        yield links
    finally:
        for link in links:
            link.close()


def events(running: Running) -> list[dict[str, object]]:
    lines = running.gateway.policy_path.with_name("audit.jsonl").read_bytes().split(b"\n")[:-1]
    return [event for line in lines if (event := json.loads(line))["event"] == "request"]


def test_silent_crowd_of_one_address_keeps_nobody_else_out(running: Running) -> None:
    running.upstream.reply = Reply(close=True)  # a connection to the service for each request
    assert running.get().status == 200
    before = running.lines
    with crowd(running, "127.0.0.1"):
        wait_for(lambda: running.metric("mitmgate_connections") > 10, "the crowd to be taken")
        assert [running.get().status for _ in range(20)] == [200] * 20
        assert request(running.admin, "GET", "/readyz", host="localhost").status == 200
        assert running.metric("process_open_fds") < FEW - 20
    wait_for(running.settled, "the crowd to be gone")
    assert [running.get().status for _ in range(5)] == [200] * 5
    assert running.lines - before < 100, running.gateway.log[-2000:]
    running.upstream.settle()
    assert len(running.upstream.requests) >= 26


def test_crowd_of_many_addresses_is_turned_away_first(running: Running) -> None:
    """Who is connected is served on, and who is not comes in again when the crowd has left."""
    running.upstream.reply = Reply(close=True)
    before = running.lines
    client = running.client()
    assert request(running.gateway.port, "GET", "/public", connection=client).status == 200
    with crowd(running, *[f"127.0.1.{number}" for number in range(1, 60)]):
        wait_for(lambda: running.metric("mitmgate_connections") > 30, "the crowd to be taken")
        statuses = [request(running.gateway.port, "GET", "/public", connection=client).status for _ in range(20)]
        assert statuses == [200] * 20
        assert request(running.admin, "GET", "/readyz", host="localhost").status == 200
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert running.get("127.0.0.3").status == 503
    client.close()
    wait_for(running.settled, "the crowd to be gone")
    assert [running.get().status for _ in range(5)] == [200] * 5
    assert running.lines - before < 100, running.gateway.log[-2000:]
    answered = sum(event["status"] == 200 for event in events(running))
    wait_for(lambda: sum(event["status"] == 200 for event in events(running)) >= 26, f"events, not {answered}")


@pytest.mark.parametrize("running", ["serve-tls", "web-tls"], indirect=True)
def test_connections_to_services_stop_short_of_what_is_the_gateways_own(running: Running) -> None:
    """Streams of HTTP/2 take many connections to services for one of a client's; no endpoint failed by that."""
    assert running.tls is not None
    running.upstream.reply = HANG
    context = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(running.tls.get_ca_certs(True)[0]))
    context.set_alpn_protocols(["h2"])
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", "gateway.test"), (":path", "/public")]
    statuses: list[bytes] = []
    with contextlib.ExitStack() as links:
        for address in ("127.0.0.2", "127.0.0.3"):
            plain = socket.create_connection(("127.0.0.1", running.gateway.port), PATIENCE, (address, 0))
            link = links.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            connection = h2.connection.H2Connection()
            connection.initiate_connection()
            for number in range(60):
                connection.send_headers(1 + 2 * number, fields, end_stream=True)
            link.sendall(connection.data_to_send())
        while len(statuses) < 10:  # of the second client's
            for event in connection.receive_data(link.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses.append(dict(event.headers)[b":status"])
            link.sendall(connection.data_to_send())
        assert set(statuses) == {b"503"}
        assert request(running.admin, "GET", "/readyz", host="localhost").status == 200
        assert running.metric("process_open_fds") < FEW - 20
    running.upstream.reply = Reply()
    wait_for(running.settled, "the streams to be gone")
    assert running.get().status == 200

    def exhausted() -> int:
        return Counter(event["reason"] for event in events(running))["descriptors-exhausted"]

    wait_for(lambda: exhausted() >= len(statuses), "the audit events")
    assert "circuit-open" not in {event["reason"] for event in events(running)}


@pytest.mark.parametrize("arguments", [(), ("--workers", "1")])
def test_soft_limit_is_raised_to_the_hard_one(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Gateway(
        write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9")),
        ulimit="-Sn 200 && ulimit -Hn 1000",
        arguments=arguments,
    ) as gateway:
        pid = gateway.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == len(arguments) // 2
        processes = [pid, *map(int, children)]
        limits = {resource.prlimit(process, resource.RLIMIT_NOFILE) for process in processes}
        assert limits == {(1000, 1000)}
        wait_for(lambda: "1000 file descriptors (ulimit -n) are enough for" in gateway.log, "the log to say so")


@pytest.mark.parametrize("command", ["serve", "web"])
def test_too_few_descriptors_are_a_users_mistake(tmp_path: Path, command: str) -> None:
    path = write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9"))
    words = [sys.executable, "-m", "mitmgate", command, "--policy", str(path), "--listen", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET}
    ended = subprocess.run(
        ["sh", "-c", 'ulimit -n 100 && exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=10 * PATIENCE,
        check=False,
    )
    assert ended.returncode == 2
    assert "100 file descriptors; at least 128" in ended.stderr
    assert "Traceback" not in ended.stderr
