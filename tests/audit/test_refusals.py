"""A flood of refused requests pushes no admitted one out of a log, and is itself on record as far as there is room."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from mitmgate.audit.reading import events
from mitmgate.audit.refusals import Share, is_refusal, refused_log
from mitmgate.audit.trail import AuditSettings, ChainSettings, FileSink, RedisStreamSink
from mitmgate.audit.verification import verify
from tests.audit.conftest import Open, RedisServer
from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream

KEY = b"a key of thirty-two bytes or more"


def admitted(number: int) -> dict[str, object]:
    time = f"2026-11-30T00:00:{number % 60:02}.000Z"
    return {"time": time, "event": "request", "number": number, "decision": "admit", "path": "/" + "a" * 100}


def refused(number: int) -> dict[str, object]:
    return {**admitted(number), "decision": "deny", "reason": "credential-missing"}


def read(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def files(path: Path) -> list[Path]:
    rotated = sorted(path.parent.glob(f"{path.name}.[0-9]*"), key=lambda file: -int(file.suffix[1:]))
    return [*rotated, path]


def test_what_is_a_refusal() -> None:
    assert is_refusal(json.dumps(refused(1), separators=(",", ":")).encode())
    assert not is_refusal(json.dumps(admitted(1), separators=(",", ":")).encode())
    assert not is_refusal(b'{"event":"gateway-started"}')
    # What a client writes is text of JSON, whose quotes are escaped: he can't make his refusal look like an admission.
    forged = {**refused(1), "path": '/","decision":"admit"'}
    assert is_refusal(json.dumps(forged, separators=(",", ":")).encode())
    assert refused_log("/var/log/audit.jsonl") == "/var/log/audit.refused.jsonl"
    assert refused_log("/var/log.d/audit") == "/var/log.d/audit.refused"


@given(st.lists(st.booleans(), max_size=300), st.integers(0, 50), st.lists(st.integers(1, 20), min_size=1))
def test_refusals_never_have_more_than_their_share(kinds: list[bool], most: int, batches: list[int]) -> None:
    """In any stretch of a log: as many refusals as others, and `most` beyond that; whatever the batches are."""
    share = Share(most, lambda record: 1)
    records = [b'{"decision":"deny"}' if kind else b'{"decision":"admit"}' for kind in kinds]
    kept: list[bool] = []
    at = turn = 0
    while at < len(records):
        batch = records[at : at + batches[turn % len(batches)]]
        kept += [is_refusal(record) for record, moved in zip(batch, share.moves(batch), strict=True) if not moved]
        share.count(batch)
        at, turn = at + len(batch), turn + 1
    for start in range(len(kept)):
        balance = 0
        for kind in kept[start:]:
            balance += 1 if kind else -1
            assert balance <= most
    assert kept.count(False) == kinds.count(False)


def test_a_flood_leaves_every_admission_in_the_log(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    settings = AuditSettings(
        sinks=(FileSink(str(path), rotate=20_000, keep=3),), queue=100_000, chain=ChainSettings(KEY)
    )
    trail = trail_of(settings)
    for number in range(50):
        trail.emit(admitted(number))
    for number in range(5000):
        trail.emit(refused(number))
        if number % 500 == 0:
            trail.emit(admitted(1000 + number))
    assert trail.close()
    kept = [event["number"] for event in read(*files(path)) if event.get("decision") == "admit"]
    assert kept == [*range(50), *range(1000, 6000, 500)]
    beside = Path(refused_log(str(path)))
    assert read(*files(beside))[-2]["number"] == 4999, "the newest refusals are there"
    assert len(files(beside)) == 4, "and rotate by themselves"
    moved = [event for event in read(*files(path)) if event["event"] == "refusals-moved"]
    assert [(event["sink"], event["to"]) for event in moved] == [("file:audit.jsonl", "audit.refused.jsonl")]
    for log in (path, beside):
        assert not verify(str(log), [KEY]).counts
    assert trail_of(settings).close()
    for log in (path, beside):
        assert not verify(str(log), [KEY]).counts, "a start after an orderly end has nothing to declare"
    times = [str(event["time"]) for event in events(str(path)) if event["event"] == "request"]
    assert any(event.get("decision") == "deny" for event in list(events(str(path)))[-3000:])
    assert len(times) == len([event for log in (path, beside) for event in read(*files(log)) if "decision" in event])


def test_refusals_come_back_when_there_is_room(tmp_path: Path, trail_of: Open) -> None:
    path = tmp_path / "audit.jsonl"
    trail = trail_of(AuditSettings(sinks=(FileSink(str(path), rotate=100_000),), queue=100_000))
    for number in range(500):
        trail.emit(refused(number))
    for number in range(500):
        trail.emit(admitted(number))
    trail.emit(refused(7777))
    assert trail.close()
    assert 7777 in [event.get("number") for event in read(*files(path))]


def test_a_flood_leaves_every_admission_in_the_stream(redis_server: RedisServer, trail_of: Open) -> None:
    sink = RedisStreamSink("audit", redis_server.url, maxlen=1000)
    trail = trail_of(AuditSettings(sinks=(sink,), queue=100_000))
    for number in range(50):
        trail.emit(admitted(number))
    for number in range(5000):
        trail.emit(refused(number))
    assert trail.close()
    with Redis.from_url(redis_server.url) as client:
        main, beside = (
            [json.loads(fields[b"event"]) for _, fields in client.xrange(name)] for name in ("audit", "audit:refused")
        )
    assert [event["number"] for event in main if event.get("decision") == "admit"] == list(range(50))
    assert beside[-1]["number"] == 4999
    assert [event["to"] for event in main if event["event"] == "refusals-moved"] == ["audit:refused"]


@pytest.mark.parametrize("flood", ["/api/v1/users/7", "/health", "/nowhere?x"])
def test_a_flood_at_a_running_gateway(tmp_path: Path, flood: str) -> None:
    """Whoever has no token makes no admitted request disappear: neither by what is denied nor by what is answered."""
    path = tmp_path / "audit.jsonl"
    with RecordingUpstream() as upstream:
        made = policy(tmp_path, upstream, audit={"sinks": [{"file": str(path), "rotate": "20KiB", "keep": 2}]})
        with Gateway(write_policy(tmp_path, made)) as gateway:
            for number in range(20):
                assert gateway.get(f"/api/v1/users/{number}", token=mint()).status == 200
            for _ in range(300):
                gateway.get(flood)
            wait_for(lambda: Path(refused_log(str(path))).exists(), "the log of refused requests")
    kept = [event["path"] for event in read(*files(path)) if event.get("decision") == "admit"]
    assert kept == [f"/api/v1/users/{number}" for number in range(20)]
