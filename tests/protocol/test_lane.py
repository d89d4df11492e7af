"""What only the fast lane has: a pool that all clients share, a shared buffer, and the way out to the layers."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from mitmproxy.http import HTTPFlow

from mitmgate.core.reason import Reason
from mitmgate.proxy import pool as pool_module
from mitmgate.proxy.http1 import Http1Connection
from mitmgate.proxy.listener import GENERATION
from mitmgate.proxy.transaction import Transaction
from mitmgate.proxy.upstream import UpstreamConnection
from tests.live.harness_http import request, status_of, wait_for
from tests.live.harness_upstream import HANG, Raw, RecordingUpstream, Reply
from tests.protocol.harness import Gate, connect, crowd, receive, reset, route
from tests.protocol.test_ending import on_loop

GET = b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(Gate, "host", "lean")
    return "lean"


def idle(gate: Gate) -> int:
    return gate.layer.engine.pool.size


def test_clients_share_upstream_connections(gate: Gate, upstream: RecordingUpstream) -> None:
    for _ in range(5):
        with connect(gate.port) as link:
            link.sendall(GET)
            assert status_of(receive(link, complete=True)) == 200
    upstream.settle()
    assert len(upstream.requests) == 5
    assert upstream.connections == 1


def test_racing_clients_get_their_own_answers(upstream: RecordingUpstream) -> None:
    upstream.reply = lambda got: Reply(body=got.target.encode() * 50)
    wrong: list[bytes] = []

    def ask(number: int) -> None:
        for turn in range(20):
            target = f"/c{number}-{turn}"
            answered = request(gate.port, "GET", target)
            if answered.body != target.encode() * 50:
                wrong.append(answered.body)

    with Gate(route(upstream.url)) as gate:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert gate.hooks.wait_ends(240) == [("response", Reason.OK)] * 240
    assert wrong == []


def test_response_that_a_client_broke_off_is_nobody_elses(upstream: RecordingUpstream) -> None:
    part = b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"s" * 1000
    with Gate(route(upstream.url)) as gate:
        upstream.script.append(Raw(part, close=False))
        with connect(gate.port) as link:
            link.sendall(GET)
            assert status_of(link.recv(65536)) == 200
            reset(link)
        assert gate.hooks.wait_ends(1) == [("error", Reason.CLIENT_CLOSED)]
        assert idle(gate) == 0
        answered = request(gate.port, "GET", "/p")
        assert (answered.status, answered.body) == (200, b"upstream says hello")
    assert upstream.connections == 2


@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"x"])
def test_bytes_behind_a_response_are_nobodys(gate: Gate, upstream: RecordingUpstream, surplus: bytes) -> None:
    upstream.script.append(Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + surplus, close=False))
    assert request(gate.port, "GET", "/a").body == b"ok"
    assert idle(gate) == 0
    assert request(gate.port, "GET", "/b").body == b"upstream says hello"


def test_connection_that_speaks_while_idle_is_dropped(gate: Gate, upstream: RecordingUpstream) -> None:
    assert request(gate.port, "GET", "/a").status == 200
    assert idle(gate) == 1
    for transport in list(upstream._transports):
        upstream._loop.call_soon_threadsafe(transport.write, b"HTTP/1.1 200 OK\r\n\r\n")
    wait_for(lambda: idle(gate) == 0, "the connection to be dropped")
    assert request(gate.port, "GET", "/b").body == b"upstream says hello"
    assert upstream.connections == 2


def test_idle_connections_end_before_the_upstream_ends_them(
    upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "MARGIN", 0.05)
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.1)
    with Gate(route(upstream.url)) as gate:
        assert request(gate.port, "GET", "/a").status == 200
        wait_for(lambda: idle(gate) == 0, "the idle connection to end", 2)
        upstream.reply = Reply(headers=[("Keep-Alive", "timeout=30, max=100")])
        assert request(gate.port, "GET", "/a").status == 200
        with pytest.raises(AssertionError):
            wait_for(lambda: idle(gate) == 0, "a connection that may stay", 0.5)


def test_a_service_that_keeps_a_connection_for_a_second_is_not_met_at_its_end(upstream: RecordingUpstream) -> None:
    """What it says, less a margin: nothing is left of a second, so each request has a connection of its own."""
    with Gate(route(upstream.url)) as gate:
        for said, connections in (("timeout=60", 1), ("timeout=1", 3), ("max=5, Timeout=1", 3)):
            upstream.forget()
            upstream.hang_up()
            wait_for(lambda: idle(gate) == 0, "earlier connections to be dropped")
            gate.layer.engine.pool._learned.clear()
            upstream.reply = Reply(headers=[("Keep-Alive", said)])
            assert [request(gate.port, "GET", "/a").status for _ in range(3)] == [200] * 3
            assert upstream.connections == connections, said


def test_a_connection_under_steady_load_has_an_end(
    upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies behind its address may have changed, and nobody would notice."""
    with Gate(route(upstream.url)) as gate:
        assert [request(gate.port, "GET", "/a").status for _ in range(2)] == [200] * 2
        assert upstream.connections == 1
        monkeypatch.setattr(pool_module, "OLDEST", 0.0)
        assert [request(gate.port, "GET", "/a").status for _ in range(2)] == [200] * 2
        assert upstream.connections == 3
        wait_for(lambda: len(upstream._transports) <= 1, "the old ones to be closed")


def test_what_a_service_keeps_is_learned_from_its_first_close(upstream: RecordingUpstream) -> None:
    """It keeps idle connections for so short a time that a POST could meet its end; after one close none does."""
    with Gate(route(upstream.url)) as gate:
        lane = gate.layer
        assert request(gate.port, "GET", "/a").status == 200
        assert idle(gate) == 1
        upstream.hang_up()
        wait_for(lambda: idle(gate) == 0, "the close")
        [(key, learned)] = lane.engine.pool._learned.items()
        assert 0 < learned[0] < 20
        for method in ("POST", "GET"):
            lane.engine.pool._learned[key] = 0.0, learned[1]  # whatever time passes here is more
            before = upstream.connections
            assert request(gate.port, method, "/b").status == 200
            assert request(gate.port, method, "/b").status == 200
            assert upstream.connections == before + 2


def test_pool_is_bounded(upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "KEPT", 3)
    go = threading.Event()
    upstream.reply = Reply(until=go)
    with Gate(route(upstream.url)) as gate, crowd(gate.port, 8) as links:
        for link in links:
            link.sendall(GET)
        wait_for(lambda: len(upstream.requests) == 8, "eight requests")
        go.set()
        for link in links:
            assert status_of(receive(link, complete=True)) == 200
            link.close()
        assert idle(gate) == 3
        wait_for(lambda: len(upstream._transports) == 3, "the others to be closed")


def test_pipelined_upgrade_is_answered_in_its_turn(gate: Gate, upstream: RecordingUpstream) -> None:
    upgrade = b"GET /u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with connect(gate.port) as link:
        link.sendall(GET + upgrade + GET)
        got = receive(link)
    assert got.count(b"HTTP/1.1 200 ") == 1
    assert got.count(b"HTTP/1.1 400 ") == 1
    assert got.index(b"HTTP/1.1 200 ") < got.index(b"HTTP/1.1 400 ")
    assert len(upstream.requests) == 1
    wait_for(lambda: gate.layer.connected == 0, "the connection to be counted off")


def test_client_that_never_reads_its_answers_is_not_read_for_ever(upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(body=b"x" * 500_000)
    with Gate(route(upstream.url)) as gate, connect(gate.port) as link:
        link.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < 20_000_000:
                sent += link.send(GET * 100)
        assert sent < 20_000_000
        assert len(upstream.requests) < 40


@pytest.fixture
def slow_gate(upstream: RecordingUpstream) -> Iterator[Gate]:
    """Run a gateway in which a hook has to wait, as for a counter in Redis."""

    class Waits:
        async def requestheaders(self, flow: HTTPFlow) -> None:
            await asyncio.sleep(0.3)

    with Gate(route(upstream.url)) as gate:
        gate.loop.call_soon_threadsafe(gate.master.addons.add, Waits())
        yield gate


def test_client_that_leaves_while_it_is_decided_on_reaches_nothing(
    slow_gate: Gate, upstream: RecordingUpstream
) -> None:
    request(slow_gate.port, "GET", "/warm")
    with connect(slow_gate.port) as link:
        link.sendall(GET)
        wait_for(lambda: [name for name, _ in slow_gate.hooks.seen].count("requestheaders") == 2, "the request")
        reset(link)
    assert slow_gate.hooks.wait_ends(2)[1] == ("error", Reason.CLIENT_CLOSED)
    upstream.settle()
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_body_that_comes_while_it_is_decided_on_is_complete(
    slow_gate: Gate, upstream: RecordingUpstream, size: int
) -> None:
    body = bytes(range(256)) * (size // 256) + b"end"
    assert request(slow_gate.port, "POST", "/p", body=body).status == 200
    assert upstream.last().body == body


def test_requests_in_flight_are_answered_after_retiring(upstream: RecordingUpstream) -> None:
    go = threading.Event()
    upstream.reply = Reply(until=go)
    with Gate(route(upstream.url)) as gate, connect(gate.port) as busy, connect(gate.port) as quiet:
        busy.sendall(GET)
        wait_for(lambda: len(upstream.requests) == 1, "the request")
        gate.loop.call_soon_threadsafe(gate.layer.retire)
        assert receive(quiet) == b""
        go.set()
        got = receive(busy)
        assert status_of(got) == 200
        assert b"Connection: close" in got
        wait_for(lambda: gate.layer.connected == 0, "all to be closed")


def test_hung_upstream_holds_one_connection_until_its_time_is_over(upstream: RecordingUpstream) -> None:
    upstream.script.append(HANG)
    with Gate(route(upstream.url, response_timeout=0.5)) as gate:
        assert request(gate.port, "GET", "/p").status == 504
        assert idle(gate) == 0
        assert request(gate.port, "GET", "/p").status == 200


def test_what_has_ended_is_freed_without_the_garbage_collector(upstream: RecordingUpstream) -> None:
    kinds = (Http1Connection, UpstreamConnection, Transaction)

    def alive() -> int:
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    with Gate(route(upstream.url, response_timeout=0.3)) as gate:
        for path in ("/p", "/deny", "/lost"):
            request(gate.port, "GET", path)
        wait_for(lambda: gate.layer.connected == 0, "the clients to be gone")
        gate.hooks.seen.clear()
        gc.collect()
        gc.disable()
        try:
            before = alive()
            for _ in range(5):
                request(gate.port, "GET", "/p")
                request(gate.port, "GET", "/deny")
                request(gate.port, "POST", "/deny", body=b"x" * 100_000)
                upstream.script.append(HANG)
                assert request(gate.port, "GET", "/hang").status == 504
                with connect(gate.port) as link:
                    link.sendall(b"nonsense\r\n\r\n")
                    receive(link)
            wait_for(lambda: gate.layer.connected == 0, "the clients to be gone")
            gate.hooks.seen.clear()
            wait_for(lambda: alive() <= before + 1, "what has ended to be freed", 3)
        finally:
            gc.enable()


def test_fields_are_forgotten_after_two_generations_and_the_clock_stops_when_all_are_gone(gate: Gate) -> None:
    listener = gate.layer

    def age() -> None:
        timer = listener._ageing
        assert timer is not None
        assert 0 < timer.when() - gate.loop.time() <= GENERATION
        timer.cancel()
        listener._age()

    with connect(gate.port) as one, connect(gate.port) as other:
        for link in (one, other):
            link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\n\r\n")
            assert status_of(receive(link, complete=True)) == 200
        assert len(listener.known) == 1
        on_loop(gate, age)
        on_loop(gate, age)
        wait_for(lambda: len(listener.known) == 0, "the fields to be forgotten")
    wait_for(lambda: not listener.clients, "the clients to be gone")
    on_loop(gate, age)
    wait_for(lambda: listener._ageing is None, "the clock to stop")


def test_client_that_left_before_its_answer_is_no_defect(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    # its kernel resets the connection when the answer comes, so that our side can't be closed behind it
    for _ in range(10):
        with connect(gate.port) as link:
            link.sendall(b"0\r\n\r\n")
    assert gate.hooks.wait_ends(10) == [("response", Reason.HEAD_MALFORMED)] * 10
    wait_for(lambda: gate.layer.connected == 0, "the clients to be gone")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
