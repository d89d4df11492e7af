"""Standard output and syslog: real pipes and sockets, the whole events, and what becomes of them without a reader."""

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from mitmgate.audit.redact import Redaction
from mitmgate.audit.settings import AuditSettings, Redact, SyslogSink
from mitmgate.audit.sink import Health, SinkError
from mitmgate.audit.stdout_sink import StdoutAppender
from mitmgate.audit.syslog_sink import SyslogAppender
from mitmgate.audit.trail import open_trail
from mitmgate.audit.writer import DENIAL, AuditTrail
from mitmgate.cli import main
from tests.audit.conftest import Open, wait_for
from tests.audit.facts import admitted, denied, event_of
from tests.live.harness import SECRET, Gateway, policy, write_policy
from tests.live.harness_upstream import RecordingUpstream

MESSAGE = re.compile(rb"<([0-9]+)>1 (\S+) (\S+) (\S+) (\S+) (\S+) - (.*)", re.DOTALL)
PATIENCE = 60.0


def read_message(message: bytes) -> tuple[int, dict[str, Any]]:
    """Read a message of RFC 5424; return its priority and the event."""
    found = MESSAGE.fullmatch(message)
    assert found is not None, message
    priority, time, host, app, process, kind, text = found.groups()
    event: dict[str, Any] = json.loads(text)
    assert (time.decode(), kind.decode(), app, process) == (
        event["time"],
        event["event"],
        b"gate",
        str(os.getpid()).encode(),
    )
    assert host and event["id"]
    return int(priority), event


class Server:
    """A syslog server on a real socket; it keeps what it gets."""

    def __init__(self, transport: str, folder: Path) -> None:
        self.transport = transport
        self.path = str(folder / "log.sock")
        family = socket.AF_UNIX if transport.startswith("unix") else socket.AF_INET
        kind = socket.SOCK_STREAM if transport in {"tcp", "unix-stream"} else socket.SOCK_DGRAM
        self._kind, self._family, self.port = kind, family, 0
        self.messages: list[bytes] = []
        self._open: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        self.socket = socket.socket(self._family, self._kind)
        if self._family == socket.AF_UNIX:
            Path(self.path).unlink(missing_ok=True)
            self.socket.bind(self.path)
        else:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(("127.0.0.1", self.port))
            self.port = self.socket.getsockname()[1]
        if self._kind == socket.SOCK_STREAM:
            self.socket.listen()
        self._thread = threading.Thread(target=self._run, args=(self.socket,), daemon=True)
        self._thread.start()

    def _run(self, listening: socket.socket) -> None:
        try:
            while self._kind == socket.SOCK_DGRAM:
                message = listening.recv(1 << 17)
                if not message:  # it was stopped
                    return
                self.messages.append(message)
            while True:
                connected, _ = listening.accept()
                self._open.append(connected)
                threading.Thread(target=self._read, args=(connected,), daemon=True).start()
        except OSError:  # it was stopped
            return

    def _read(self, connected: socket.socket) -> None:
        """Read messages by octet counting (RFC 6587, section 3.4.1)."""
        with connected, connected.makefile("rb") as file:
            while True:
                length = b""
                while (octet := file.read(1)) not in {b" ", b""}:
                    length += octet
                if not length:
                    return
                message = file.read(int(length))
                if len(message) == int(length):
                    self.messages.append(message)

    def stop(self) -> None:
        for each in (self.socket, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()
        Path(self.path).unlink(missing_ok=True)

    @property
    def settings(self) -> SyslogSink:
        if self._family == socket.AF_UNIX:
            return SyslogSink("unix", self.path, app_name="gate")
        transport: Literal["tcp", "udp"] = "tcp" if self.transport == "tcp" else "udp"
        return SyslogSink(transport, host="127.0.0.1", port=self.port, app_name="gate", facility="audit")


@pytest.fixture(params=["unix", "unix-stream", "udp", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(request.param, tmp_path)
    yield server
    server.stop()


def test_syslog_gets_each_event_once(server: Server, trail_of: Open) -> None:
    trail = trail_of(AuditSettings(sinks=(server.settings,)))
    trail.emit(event_of(admitted(), 0.001, 200))
    trail.emit(event_of(denied(), 0.001, 401))
    trail.emit({"event": "stage", "time": "now", "said": {f"n{number}": "x" * 2000 for number in range(60)}})
    assert trail.close()
    wait_for(lambda: len(server.messages) == 5, "five messages")
    read = [read_message(message) for message in server.messages]
    facility = 13 if server.transport in {"udp", "tcp"} else 16
    assert [priority - 8 * facility for priority, _ in read] == [5, 5, 4, 5, 5]
    kinds = [event["event"] for _, event in read]
    assert kinds == ["gateway-started", "request", "request", "stage", "gateway-stopped"]
    assert read[1][1]["user"] == "alice"
    long = read[3][1]
    if server.transport in {"tcp", "unix-stream"}:
        assert len(long["said"]) == 60
    else:  # no datagram has room for it: what it was is said, and that it was cut
        assert long["cut"] > 60_000 and long["id"]


def test_a_syslog_server_that_comes_back_gets_what_waited(server: Server, trail_of: Open) -> None:
    server.stop()
    trail = trail_of(AuditSettings(sinks=(server.settings,)))
    for number in range(20):
        trail.emit(event_of(admitted(), number / 1000, 200))
        if server.transport == "udp" and not trail.states()[0].failing:  # the first finds out, by ICMP, and is lost
            trail.flush(0.05)
    wait_for(lambda: trail.states()[0].failing, "the sink to fail")
    server.start()
    wait_for(lambda: not trail.states()[0].failing and not trail.states()[0].backlog, "the sink to recover")
    assert trail.close()
    wait_for(lambda: b"gateway-stopped" in b"".join(server.messages), "the last message")
    events = [read_message(message)[1] for message in server.messages]
    assert len({event["id"] for event in events}) == len(events)
    kinds = [event["event"] for event in events]
    assert "sink-failed" in kinds and "sink-recovered" in kinds
    if server.transport != "udp":
        assert kinds.count("request") == 20


@pytest.mark.parametrize("transport", ["tcp", "unix-stream"])
def test_a_syslog_server_that_hangs_is_on_record_and_loses_nothing(transport: str, tmp_path: Path) -> None:
    """It is connected to, and reads nothing: each further connection would take, and lose, as much again."""
    server = Server(transport, tmp_path)
    server.stop()
    kind = socket.AF_INET if transport == "tcp" else socket.AF_UNIX
    with socket.socket(kind, socket.SOCK_STREAM) as hanging:
        hanging.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hanging.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # it has no room for all of them
        hanging.bind(("127.0.0.1", server.port) if transport == "tcp" else server.path)
        hanging.listen(8)
        sink = SyslogAppender(replace(server.settings, timeout=0.05))
        records = [b'{"event":"n%d","time":"now","id":"%s"}' % (number, b"x" * 50_000) for number in range(600)]
        waiting = list(records)

        def write() -> None:
            while waiting:
                del waiting[: sink.write(waiting[:50])]

        for _ in range(4):
            with pytest.raises(SinkError, match="takes nothing"):
                write()
        connected, _ = hanging.accept()
        hanging.setblocking(False)
        with pytest.raises(BlockingIOError):  # it was connected to once
            hanging.accept()
        threading.Thread(target=server._read, args=(connected,), daemon=True).start()
        while waiting:
            with contextlib.suppress(SinkError):
                write()
        wait_for(lambda: len(server.messages) == 600, "all of them")
        sink.close()
    assert [message.partition(b" - ")[0].rpartition(b" ")[2] for message in server.messages] == [
        b"n%d" % number for number in range(600)
    ]


@pytest.mark.parametrize("on_full", ["deny", "block"])
def test_requests_are_refused_where_syslog_takes_nothing(tmp_path: Path, on_full: Any) -> None:
    settings = SyslogSink("unix", str(tmp_path / "nobody.sock"))
    trail = open_trail(AuditSettings(sinks=(settings,), queue=5, on_full=on_full, block_for=0.01))
    trail.start()
    assert trail.pressure() is None
    for _ in range(5):
        trail.emit(event_of(admitted(), 0.001, 200))
    if on_full == "deny":
        assert trail.pressure() == DENIAL
    assert not trail.admits or on_full == "block"
    assert not trail.close(0.2)


class Pipe:
    """A trail whose sink is a pipe."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.trail = AuditTrail(redaction=Redaction(Redact()), queue=100_000, on_full="deny")
        sink = StdoutAppender(self.writing)
        self.trail.add(sink, Health(sink.name, self.trail.emit))
        self.trail.start()

    def read_all(self) -> list[dict[str, Any]]:
        """Close the writing end, and read what there is."""
        os.close(self.writing)
        with os.fdopen(self.reading, "rb") as file:
            return [json.loads(line) for line in file]


def test_stdout_gets_lines() -> None:
    pipe = Pipe()
    for number in range(30):
        pipe.trail.emit({"event": "request", "number": number, "text": "x" * (number * 100)})
    assert pipe.trail.close()
    events = pipe.read_all()
    assert [event["number"] for event in events if event["event"] == "request"] == [*range(30)]
    assert [events[0]["event"], events[-1]["event"]] == ["gateway-started", "gateway-stopped"]


def test_a_reader_that_does_not_read_is_on_record_and_loses_nothing() -> None:
    pipe = Pipe()
    for number in range(2000):
        pipe.trail.emit({"event": "request", "number": number, "text": "x" * 1000})
    wait_for(lambda: pipe.trail.states()[0].failing, "the sink to say that nobody reads")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: os.read(pipe.reading, 65536), b"")))
    reader.start()
    wait_for(lambda: not pipe.trail.states()[0].failing and not pipe.trail.states()[0].backlog, "it to recover")
    assert pipe.trail.close()
    os.close(pipe.writing)
    reader.join(PATIENCE)
    os.close(pipe.reading)
    events = [json.loads(line) for line in b"".join(got).splitlines()]
    numbers = [event["number"] for event in events if event["event"] == "request"]
    assert sorted(set(numbers)) == [*range(2000)]
    assert {"sink-failed", "sink-recovered"} <= {event["event"] for event in events}


def test_a_reader_that_is_gone_is_an_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(SinkError, match="Broken pipe"):
        StdoutAppender(writing).write([b"{}"])
    os.close(writing)


def test_a_line_longer_than_a_pipe_takes_at_once_is_whole() -> None:
    reading, writing = os.pipe()
    sink = StdoutAppender(writing)
    lines = [b'{"a":"' + b"x" * 20_000 + b'"}', b"{}"]
    assert sink.write(lines) == 1
    assert sink.write(lines[1:]) == 1
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        assert file.read().splitlines() == lines


def test_nobody_at_a_path() -> None:
    appender = SyslogAppender(SyslogSink("unix", "/nowhere"))
    with pytest.raises(SinkError, match="No such file"):
        appender.write([b'{"event":"request","time":"now"}'])


def test_a_gateway_with_all_of_them(tmp_path: Path) -> None:
    server = Server("unix", tmp_path)
    with RecordingUpstream() as upstream:
        sinks = [{"stdout": True}, {"syslog": f"unix:{server.path}", "app_name": "gate"}, {"file": "audit.jsonl"}]
        made = policy(tmp_path, upstream, audit={"sinks": sinks})
        with Gateway(write_policy(tmp_path, made)) as gateway:
            assert gateway.get("/public").status == 200
            assert gateway.get("/api/v1/users").status == 401
    lines = [json.loads(line) for line in gateway.stdout.read_bytes().splitlines()]  # nothing else is there
    wait_for(lambda: len(server.messages) == 4, "the messages")
    server.stop()
    sent = [json.loads(message.partition(b" - ")[2]) for message in server.messages]
    filed = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]
    for event in filed:
        del event["seq"], event["prev"], event["mac"]
    assert lines == sent == filed
    assert [event.get("status") for event in lines] == [None, 200, 401, None]


@pytest.mark.parametrize(
    "address", ["/dev/log", "udp://", "udp://a", "tcp://a:0", "tcp://a:65536", "unix:log", "ftp://a:1"]
)
def test_an_address_that_is_none(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = policy(tmp_path, "http://127.0.0.1:1", audit={"sinks": [{"syslog": address}]})
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    assert main(["check", str(write_policy(tmp_path, made))]) == 2
    told = capsys.readouterr()
    assert "audit.sinks[0].syslog: must be unix:/PATH, udp://HOST:PORT or tcp://HOST:PORT" in told.out + told.err
