"""The Redis stream sink against a real server that is killed, hangs, refuses and comes back."""

import json
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from mitmgate.audit.redis_stream import StreamAppender
from mitmgate.audit.sink import SinkError
from mitmgate.audit.spill import Spill
from mitmgate.audit.trail import AuditSettings, FileSink, RedisStreamSink, open_trail
from mitmgate.audit.writer import AuditTrail
from mitmgate.usage import UserError
from tests.audit.conftest import Open, RedisServer, wait_for

STREAM = "mitmgate:audit"


def settings(server: RedisServer, spill: Path | None, **more: Any) -> AuditSettings:
    sink = RedisStreamSink(
        STREAM, more.pop("url", server.url), spill=None if spill is None else str(spill), timeout=0.3, **more
    )
    return AuditSettings(sinks=(sink,), queue=100_000)


def emit(trail: AuditTrail, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        trail.emit({"event": "request", "number": number})


def stream(server: RedisServer) -> list[dict[str, Any]]:
    with server.client() as client:
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(STREAM))
    return [orjson.loads(fields[b"event"]) for _, fields in entries]


def numbers(server: RedisServer) -> list[int]:
    """The requests' numbers in the order in which they came first: a consumer drops what has an id that it has seen."""
    seen: dict[str, dict[str, Any]] = {}
    for event in stream(server):
        seen.setdefault(event["id"], event)
    return [event["number"] for event in seen.values() if event["event"] == "request"]


def kinds(server: RedisServer) -> set[str]:
    return {event["event"] for event in stream(server)}


def test_events_are_appended_in_order(redis_server: RedisServer, trail_of: Open, tmp_path: Path) -> None:
    trail = trail_of(settings(redis_server, tmp_path / "spill.jsonl"))
    emit(trail, 3000)
    assert trail.close()
    events = stream(redis_server)
    assert [event["number"] for event in events if event["event"] == "request"] == list(range(3000))
    assert events[0]["event"] == "gateway-started"
    assert events[-1]["event"] == "gateway-stopped"


def test_the_stream_is_bounded(redis_server: RedisServer, trail_of: Open, tmp_path: Path) -> None:
    trail = trail_of(settings(redis_server, tmp_path / "spill.jsonl", maxlen=500))
    emit(trail, 5000)
    assert trail.close()
    assert 500 <= len(stream(redis_server)) < 1000  # "about": whole nodes of the stream are removed


def test_killed_and_back_nothing_is_lost_and_order_is_kept(
    redis_server: RedisServer, trail_of: Open, tmp_path: Path
) -> None:
    spill = tmp_path / "spill.jsonl"
    trail = trail_of(settings(redis_server, spill))
    emit(trail, 1000)
    assert trail.flush()
    emit(trail, 1000, 1000)  # these are on their way
    redis_server.kill()
    emit(trail, 1000, 2000)
    assert trail.flush()
    wait_for(lambda: trail.states()[0].failing, "the failure is noticed")
    assert spill.stat().st_size > 0
    assert trail.pressure() is None
    redis_server.start()
    emit(trail, 1000, 3000)
    wait_for(lambda: not trail.states()[0].failing, "the recovery is noticed")
    emit(trail, 1000, 4000)
    assert trail.close()
    assert numbers(redis_server) == list(range(5000))
    assert spill.stat().st_size == 0
    assert {"sink-failed", "sink-recovered"} <= kinds(redis_server)


def test_killed_again_and_again(redis_server: RedisServer, trail_of: Open, tmp_path: Path) -> None:
    trail = trail_of(settings(redis_server, tmp_path / "spill.jsonl"))
    for round_ in range(3):
        emit(trail, 2000, round_ * 4000)
        redis_server.kill()
        emit(trail, 2000, round_ * 4000 + 2000)
        assert trail.flush()
        redis_server.start()
    wait_for(lambda: not trail.states()[0].failing, "the recovery is noticed")
    assert trail.close()
    assert numbers(redis_server) == list(range(12_000))


def test_what_a_sink_says_last_is_written_by_those_that_have_ended(redis_server: RedisServer, tmp_path: Path) -> None:
    """Redis comes back while the trail closes, when the file's thread has ended."""
    file, spill = tmp_path / "audit.jsonl", tmp_path / "spill.jsonl"
    (redis,) = settings(redis_server, spill).sinks
    trail = open_trail(AuditSettings(sinks=(FileSink(str(file)), redis)))
    trail.start("sha256:test")
    redis_server.kill()
    emit(trail, 10)
    assert trail.flush()
    wait_for(lambda: trail.states()[1].failing, "the failure is noticed")
    written, appended = trail._threads
    sink = appended.sink
    assert isinstance(sink, StreamAppender)

    back = threading.Event()

    def after_the_file(action: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            if appended._stop.is_set() and not back.is_set():
                back.set()
                written._writing.join(10)
                redis_server.start()
                sink._again = 0.0
            return action(*arguments)

        return wrapped

    sink.write = after_the_file(sink.write)  # type: ignore[method-assign]
    sink.idle = after_the_file(sink.idle)  # type: ignore[method-assign]
    assert trail.close()
    assert [state.backlog for state in trail.states()] == [0, 0]
    assert numbers(redis_server) == list(range(10))
    assert kinds(redis_server) == {"gateway-started", "sink-failed", "sink-recovered", "gateway-stopped", "request"}
    events = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [event["event"] for event in events if event["event"] != "request"] == [
        *("gateway-started", "sink-failed", "gateway-stopped", "sink-recovered")
    ]


def test_a_server_that_hangs_is_waited_for_no_longer_than_the_timeout(
    redis_server: RedisServer, trail_of: Open, tmp_path: Path
) -> None:
    trail = trail_of(settings(redis_server, tmp_path / "spill.jsonl"))
    emit(trail, 10)
    assert trail.flush()
    redis_server.signal(signal.SIGSTOP)
    try:
        emit(trail, 10, 10)
        assert trail.flush(2.0)
    finally:
        redis_server.signal(signal.SIGCONT)
    wait_for(lambda: not trail.states()[0].failing, "the recovery is noticed")
    assert trail.close()
    assert numbers(redis_server) == list(range(20))


def test_away_from_the_start_and_the_spill_is_sent_by_the_next_run(
    redis_server: RedisServer, trail_of: Open, tmp_path: Path
) -> None:
    redis_server.kill()
    spill = tmp_path / "made" / "spill.jsonl"
    trail = trail_of(settings(redis_server, spill))
    emit(trail, 100)
    assert trail.close()
    assert len(spill.read_bytes().splitlines()) >= 102
    with spill.open("ab") as file:
        file.write(b'{"torn')
    redis_server.start()
    trail = trail_of(settings(redis_server, spill))
    emit(trail, 100, 100)
    wait_for(lambda: len(numbers(redis_server)) == 200, "everything is sent")
    assert trail.close()
    assert numbers(redis_server) == list(range(200))
    assert "audit-recovered" in kinds(redis_server)


@pytest.mark.parametrize("refusal", ["wrong type", "out of memory", "read only"])
def test_a_server_that_refuses_is_one_that_is_away(
    redis_server: RedisServer, trail_of: Open, tmp_path: Path, refusal: str
) -> None:
    with redis_server.client() as client:
        if refusal == "wrong type":
            client.set(STREAM, "no stream")
        elif refusal == "out of memory":
            client.config_set("maxmemory", "1")
        else:
            client.config_set("min-replicas-to-write", "1")
        trail = trail_of(settings(redis_server, tmp_path / "spill.jsonl"))
        emit(trail, 700)
        assert trail.flush()
        wait_for(lambda: trail.states()[0].failing, "the refusal is noticed")
        client.config_set("maxmemory", "0")
        client.config_set("min-replicas-to-write", "0")
        client.delete(STREAM)
    wait_for(lambda: not trail.states()[0].failing, "the recovery is noticed")
    assert trail.close()
    assert numbers(redis_server) == list(range(700))


def test_without_a_spill_file_records_wait_in_the_queue(redis_server: RedisServer, trail_of: Open) -> None:
    trail = trail_of(settings(redis_server, None))
    redis_server.kill()
    emit(trail, 100)
    wait_for(lambda: trail.states()[0].failing, "the failure is noticed")
    assert trail.states()[0].backlog >= 100
    redis_server.start()
    assert trail.flush()
    assert trail.close()
    assert numbers(redis_server) == list(range(100))


def test_no_credential_of_the_url_is_told(
    redis_server: RedisServer, trail_of: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"redis://gateway:hunter2@127.0.0.1:{redis_server.port}/0"
    trail = trail_of(settings(redis_server, tmp_path / "spill.jsonl", url=url))
    wait_for(lambda: trail.states()[0].failing, "the refusal is noticed")
    redis_server.kill()
    emit(trail, 1)
    assert trail.flush()
    trail.close()
    assert any("failed" in record.message for record in caplog.records)
    assert "hunter2" not in caplog.text
    assert "hunter2" not in (tmp_path / "spill.jsonl").read_text()


@pytest.mark.parametrize("url", ["http://:hunter2@h", "", "redis://:hunter2@h:port/0", "redis://:hunter2@h/0?db=x"])
def test_a_url_that_is_none(redis_server: RedisServer, url: str) -> None:
    with pytest.raises(UserError) as caught:
        open_trail(settings(redis_server, None, url=url)).start()
    assert "hunter2" not in str(caught.value)


def test_a_spill_file_that_cannot_be_written(redis_server: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the spill file"):
        open_trail(settings(redis_server, tmp_path)).start()


def test_two_processes_spill_to_two_files(redis_server: RedisServer, trail_of: Open, tmp_path: Path) -> None:
    redis_server.kill()
    spill = tmp_path / "spill.jsonl"
    first, second = (trail_of(settings(redis_server, spill)) for _ in range(2))
    emit(first, 10)
    emit(second, 10, 10)
    assert first.close() and second.close()
    assert spill.stat().st_size > 0
    assert (tmp_path / "spill.jsonl.1").stat().st_size > 0
    redis_server.start()
    alone = trail_of(settings(redis_server, spill))
    wait_for(lambda: len(numbers(redis_server)) == 20, "both files are sent")
    assert alone.close()
    assert numbers(redis_server) == list(range(20))


def test_a_spill_file_is_read_in_pieces(tmp_path: Path) -> None:
    spill = Spill(str(tmp_path / "spill.jsonl"))
    assert spill.open() == 0
    records = [json.dumps({"number": number, "x": "y" * (number % 50)}).encode() for number in range(500)]
    spill.append(records[:200])
    spill.append(records[200:])
    assert spill.pending == 500
    got: list[bytes] = []
    while spill.pending:
        piece = spill.read(100)
        assert piece
        spill.sent(piece)
        got += piece
    assert got == records
    assert spill.read(100) == []
    long = [b"x" * 1000, b"y"]
    spill.append(long)
    assert spill.read(100)[0] == long[0]
    spill.close()


def test_a_spill_file_on_a_full_disk_takes_all_or_nothing(tmp_path: Path) -> None:
    spill = Spill(str(tmp_path / "spill.jsonl"))
    spill.open()
    spill.append([b"a" * 100])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
    try:
        with pytest.raises(SinkError, match="could not be written"):
            spill.append([b"b" * 100])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "spill.jsonl").stat().st_size == 101
    spill.append([b"c" * 100])
    assert spill.read(1000) == [b"a" * 100, b"c" * 100]
    spill.close()
