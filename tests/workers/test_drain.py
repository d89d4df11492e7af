"""The end of a process: what runs may finish, what does not is cut, and the exit status says which it was."""

import http.client
import json
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mitmgate.core.reason import Reason
from tests.live.harness import Gateway, audit_events, mint, policy, policy_file, route, write_policy
from tests.live.harness_http import Answered, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream, Reply
from tests.protocol.test_streaming import Serving, read_head
from tests.protocol.test_upgrade import echo
from tests.workers.load import Load


def held(gateway: Gateway, upstream: RecordingUpstream, pool: ThreadPoolExecutor, count: int) -> list[Future[Answered]]:
    """Send requests that the upstream holds back, and return when it has all of them."""
    sent = [pool.submit(gateway.get, "/public") for _ in range(count)]
    wait_for(lambda: len(upstream.requests) >= count, "the requests at the upstream")
    return sent


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def end(gateway: Gateway, patience: float = PATIENCE) -> int:
    return gateway.process.wait(patience)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_and_nothing_new_is_accepted(
    tmp_path: Path, upstream: RecordingUpstream, number: signal.Signals
) -> None:
    release = threading.Event()
    upstream.reply = Reply(until=release)
    with ThreadPoolExecutor() as pool, Gateway(policy_file(tmp_path, upstream)) as gateway:
        idle = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        idle.connect()
        sent = held(gateway, upstream, pool, 3)
        gateway.process.send_signal(number)
        wait_for(lambda: refuses(gateway.port), "no more connections to be accepted")
        assert idle.sock.recv(1) == b""
        idle.close()
        assert gateway.process.poll() is None
        release.set()
        answers = [one.result(PATIENCE) for one in sent]
        assert [(answer.status, answer.one("connection")) for answer in answers] == [(200, "close")] * 3
        assert end(gateway) == 0
    assert {event["outcome"] for event in audit_events(tmp_path / "audit.jsonl", 3)} == {"proxied"}
    assert json.loads((tmp_path / "audit.jsonl").read_bytes().splitlines()[-1])["event"] == "gateway-stopped"


def test_idle_connections_are_no_reason_to_wait(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with Gateway(policy_file(tmp_path, upstream)) as gateway:
        link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)
        assert gateway.get("/public", connection=link).status == 200
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGINT)
        assert end(gateway) == 0
        assert time.monotonic() - began < 20  # a drain's patience is 30 s
        link.close()


def test_no_request_on_a_kept_connection_meets_a_closed_one(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """A client that sends one request after the other is told to close with a response, and never finds it closed."""
    with Gateway(policy_file(tmp_path, upstream)) as gateway, Load(gateway.port) as load:
        load.go_on()
        gateway.process.send_signal(signal.SIGTERM)
        assert end(gateway) == 0
    refused = [failure for failure in load.failures if "ConnectionRefused" not in failure]
    assert refused == []
    assert set(load.statuses) == {200}
    audit_events(tmp_path / "audit.jsonl", load.answered)


def test_patience_that_is_over_cuts_and_says_so(tmp_path: Path, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(until=threading.Event())
    with (
        ThreadPoolExecutor() as pool,
        Gateway(policy_file(tmp_path, upstream), arguments=("--drain-timeout", "700ms")) as gateway,
    ):
        sent = held(gateway, upstream, pool, 2)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert end(gateway) == 1
        assert 0.7 <= time.monotonic() - began < 5
        assert all(one.exception(PATIENCE) or one.result().status == 503 for one in sent)
        assert "2 requests were cut" in gateway.log
    for event in audit_events(tmp_path / "audit.jsonl", 2):
        assert (event["outcome"], event["reason"]) == ("failed", Reason.GATEWAY_STOPPING.code)


def test_a_second_signal_ends_at_once(tmp_path: Path, upstream: RecordingUpstream) -> None:
    upstream.reply = Reply(until=threading.Event())
    with ThreadPoolExecutor() as pool, Gateway(policy_file(tmp_path, upstream)) as gateway:
        (sent,) = held(gateway, upstream, pool, 1)
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(gateway.port), "the drain to begin")
        gateway.process.send_signal(signal.SIGTERM)
        assert end(gateway, 5) == 1
        assert sent.exception(PATIENCE) or sent.result().status == 503
    (event,) = audit_events(tmp_path / "audit.jsonl", 1)
    assert event["reason"] == "gateway-stopping"


def lasting(directory: Path, url: str) -> dict[str, Any]:
    return route(policy(directory, url), "public", websocket=True)


def test_a_websocket_is_closed_with_a_close_frame(tmp_path: Path) -> None:
    from tests.protocol.test_upgrade import HANDSHAKE

    arguments = ("--drain-timeout", "300ms")
    with (
        Serving(echo) as serving,
        Gateway(write_policy(tmp_path, lasting(tmp_path, serving.url)), arguments=arguments) as gateway,
    ):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as link:
            link.sendall(HANDSHAKE.replace(b"/ws", b"/public").replace(b"Host: x", b"Host: gateway.test"))
            assert read_head(link).startswith(b"HTTP/1.1 101")
            gateway.process.send_signal(signal.SIGTERM)
            got = link.recv(100)
            assert got == b"\x88\x02\x03\xe9", got  # 1001, going away (RFC 6455, section 7.4.1)
            assert link.recv(100) == b""
        assert end(gateway) == 1
    (event,) = audit_events(tmp_path / "audit.jsonl", 1)
    assert event["reason"] == "gateway-stopping"
    assert event["upgraded"] is True


def test_an_event_stream_is_cut_visibly(tmp_path: Path) -> None:
    def serve(link: socket.socket) -> None:
        read_head(link)
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        link.sendall(b"6\r\ndata\n\n\r\n")
        while link.recv(4096):
            pass

    arguments = ("--drain-timeout", "300ms")
    with Serving(serve) as serving, Gateway(policy_file(tmp_path, serving.url), arguments=arguments) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as link:
            link.sendall(b"GET /public HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
            got = b""
            while b"data" not in got:
                got += link.recv(4096)
            gateway.process.send_signal(signal.SIGTERM)
            while part := link.recv(4096):
                got += part
            assert not got.endswith(b"0\r\n\r\n")
        assert end(gateway) == 1
    (event,) = audit_events(tmp_path / "audit.jsonl", 1)
    assert (event["status"], event["reason"]) == (200, "gateway-stopping")


def test_a_duration_that_is_none_is_a_users_mistake(tmp_path: Path, upstream: RecordingUpstream) -> None:
    gateway = Gateway(policy_file(tmp_path, upstream), arguments=("--drain-timeout", "30"))
    with pytest.raises(AssertionError, match="ended with status 2"):
        gateway.start()
    assert "--drain-timeout 30" in gateway.log
    assert "30s" in gateway.log


def test_records_survive_the_end(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """What was queued when the signal came is in the file when the process is gone."""
    with Gateway(policy_file(tmp_path, upstream)) as gateway:
        for _ in range(20):
            gateway.get("/api/v1/users", token=mint())
        gateway.process.send_signal(signal.SIGTERM)
        assert end(gateway) == 0
    audit_events(tmp_path / "audit.jsonl", 20)
