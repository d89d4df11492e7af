"""The trail: nothing waits on the request path, nothing is lost in silence."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

import orjson
import pytest

from mitmgate.audit.redact import Redaction
from mitmgate.audit.settings import OnFull, Redact
from mitmgate.audit.sink import Health, SinkError
from mitmgate.audit.writer import DENIAL, AuditTrail
from mitmgate.core.reason import Reason
from tests.audit.conftest import wait_for


class Gate:
    """A sink whose writing can be held, and made to fail."""

    name = "gate"

    def __init__(self) -> None:
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.failing = False
        self.attempts = 0
        self.idle_error: Exception | None = None
        self.most = 1_000_000
        self.records: list[bytes] = []
        self.closed = False

    def open(self) -> None:
        pass

    def write(self, records: Sequence[bytes]) -> int:
        self.attempts += 1
        self.open_gate.wait(10)
        if self.failing:
            raise SinkError("it fails")
        self.records += records[: self.most]
        return min(len(records), self.most)

    def idle(self) -> float | None:
        if self.idle_error is not None:
            raise self.idle_error
        return None

    def close(self) -> None:
        self.closed = True

    def events(self, kind: str = "request") -> list[dict[str, Any]]:
        return [event for event in map(orjson.loads, self.records) if event["event"] == kind]


class Made:
    """A trail with one Gate."""

    def __init__(self, queue: int, on_full: OnFull, block_for: float) -> None:
        self.gate = Gate()
        self.trail = AuditTrail(queue=queue, on_full=on_full, block_for=block_for, redaction=Redaction(Redact()))
        self.trail.add(self.gate, Health("gate", self.trail.emit))
        self.trail.start("sha256:test")
        assert self.trail.flush()

    def emit(self, count: int) -> None:
        for number in range(count):
            self.trail.emit({"event": "request", "number": number})

    def hold(self) -> None:
        """Hold the sink with a record in its hand."""
        self.gate.open_gate.clear()
        self.emit(1)
        before = self.gate.attempts
        wait_for(lambda: self.gate.attempts > before, "the sink has a record in hand")

    def release(self) -> None:
        self.gate.open_gate.set()
        assert self.trail.flush()


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[Made] = []

    def factory(queue: int = 10, on_full: OnFull = "block", block_for: float = 5.0) -> Made:
        made.append(Made(queue, on_full, block_for))
        return made[-1]

    yield factory
    for one in made:
        one.gate.failing = False
        one.gate.open_gate.set()
        assert one.trail.close(5.0)
        assert one.gate.closed


def test_events_arrive_in_order_with_unique_ids(make: Any) -> None:
    made = make(queue=100_000)
    made.emit(5000)
    assert made.trail.flush()
    assert [event["number"] for event in made.gate.events()] == list(range(5000))
    ids = [orjson.loads(record)["id"] for record in made.gate.records]
    assert len(set(ids)) == len(ids) == 5001  # with gateway-started


def test_a_sink_that_takes_a_part_gets_the_rest(make: Any) -> None:
    made = make()
    made.gate.most = 3
    made.hold()
    made.emit(9)
    made.release()
    assert [event["number"] for event in made.gate.events()] == [0, *range(9)]


def test_starting_and_stopping_are_events() -> None:
    made = Made(10, "block", 1.0)
    made.emit(3)
    assert made.trail.close()
    kinds = [orjson.loads(record)["event"] for record in made.gate.records]
    assert kinds == ["gateway-started", "request", "request", "request", "gateway-stopped"]
    assert made.trail.close()  # again: nothing
    assert len(made.gate.records) == 5


def test_many_threads(make: Any) -> None:
    made = make(queue=100_000)
    threads = [threading.Thread(target=made.emit, args=(500,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.trail.flush()
    assert len(made.gate.events()) == 2000


def test_emit_never_raises(make: Any) -> None:
    made = make()
    made.trail.emit({"event": "request", "odd": object(), "big": 2**80, "lone": "\ud800"})
    assert made.trail.flush()
    (event,) = made.gate.events()
    assert event["odd"] == "[object]"
    assert event["lone"] == "\\ud800"


def test_an_event_that_a_processor_breaks_is_counted_and_declared() -> None:
    def broken(logger: Any, method: str, event: Any) -> Any:
        if event["event"] == "request":
            raise ValueError("broken")
        return event

    gate = Gate()
    trail = AuditTrail(redaction=Redaction(Redact()), processors=[broken])
    trail.add(gate, Health("gate", trail.emit))
    trail.start()
    trail.emit({"event": "request"})
    assert trail.close()
    assert trail.failed == 1
    assert [event["count"] for event in gate.events("audit-dropped")] == [1]


def test_processors_of_structlog_run() -> None:
    def host(logger: Any, method: str, event: Any) -> Any:
        return {**event, "host_name": "gw-1"}

    gate = Gate()
    trail = AuditTrail(redaction=Redaction(Redact()), processors=[host])
    trail.add(gate, Health("gate", trail.emit))
    trail.start()
    assert trail.close()
    assert {orjson.loads(record)["host_name"] for record in gate.records} == {"gw-1"}


def test_drop_counts_and_says_so_in_the_log(make: Any) -> None:
    made = make(queue=10, on_full="drop")
    made.hold()
    made.emit(25)
    assert made.trail.pressure() is None
    assert made.trail.admits
    made.release()
    kinds = [orjson.loads(record)["event"] for record in made.gate.records]
    assert kinds[1:] == ["request"] * 11 + ["audit-dropped"]
    (dropped,) = made.gate.events("audit-dropped")
    assert (dropped["count"], dropped["total"]) == (15, 15)
    assert made.trail.states()[0].dropped == 15
    made.emit(5)
    assert made.trail.flush()
    assert len(made.gate.events("audit-dropped")) == 1


def test_deny_denies_while_full(make: Any) -> None:
    made = make(queue=10, on_full="deny")
    assert made.trail.pressure() is None
    made.hold()
    made.emit(8)
    assert made.trail.pressure() is None
    made.emit(1)
    assert made.trail.pressure() == DENIAL
    assert not made.trail.admits
    assert DENIAL.reason is Reason.AUDIT_UNAVAILABLE
    made.emit(10)  # what was on its way, and the denials, find room
    made.release()
    assert made.trail.pressure() is None
    assert made.trail.admits
    assert len(made.gate.events()) == 20
    assert not made.gate.events("audit-dropped")


def test_deny_is_bounded_and_declares_what_is_beyond(make: Any) -> None:
    made = make(queue=10, on_full="deny")
    made.hold()
    made.emit(1000)
    assert made.trail.states()[0].backlog == 21
    made.release()
    assert len(made.gate.events()) == 21
    assert [event["count"] for event in made.gate.events("audit-dropped")] == [980]


def test_block_waits_for_room(make: Any) -> None:
    made = make(queue=10, on_full="block")
    made.hold()
    made.emit(10)

    async def ask() -> None:
        waiting = [asyncio.ensure_future(_denial(made.trail)) for _ in range(5)]
        done, _ = await asyncio.wait(waiting, timeout=0.05)
        assert not done
        made.gate.open_gate.set()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [None] * 5

    asyncio.run(ask())


def test_block_waits_no_longer_than_its_bound(make: Any) -> None:
    made = make(queue=10, on_full="block", block_for=0.05)
    made.hold()
    made.emit(10)
    assert made.trail.admits, "requests wait"
    assert asyncio.run(_denial(made.trail)) == DENIAL
    assert not made.trail.admits, "and wait in vain"
    made.release()
    assert made.trail.admits


def test_one_that_was_given_up_while_it_waited_harms_nobody(make: Any) -> None:
    made = make(queue=10, on_full="block")
    made.hold()
    made.emit(10)

    async def ask() -> None:
        waiting = asyncio.ensure_future(_denial(made.trail))
        await asyncio.sleep(0)
        waiting.cancel()
        other = asyncio.ensure_future(_denial(made.trail))
        await asyncio.sleep(0)
        made.gate.open_gate.set()
        assert await asyncio.wait_for(other, 5) is None

    asyncio.run(ask())


async def _denial(trail: AuditTrail) -> Any:
    pressure = trail.pressure()
    return await pressure if isinstance(pressure, Awaitable) else pressure


def test_a_failing_sink_keeps_its_records_and_declares_it_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = make(queue=100)
    made.gate.failing = True
    made.emit(5)
    wait_for(lambda: made.gate.attempts > 3, "the sink was tried again")
    made.gate.failing = False
    assert made.trail.flush()
    wait_for(lambda: len(made.gate.events("sink-recovered")) == 1, "the recovery is declared")
    assert [event["number"] for event in made.gate.events()] == list(range(5))
    (failed,) = made.gate.events("sink-failed")
    assert (failed["sink"], failed["error"]) == ("gate", "it fails")
    assert made.gate.events("sink-recovered")[0]["count"] >= 5
    assert [record.levelname for record in caplog.records if "failed" in record.message] == ["ERROR"]


def test_any_exception_of_a_sink_is_survived(make: Any) -> None:
    made = make(queue=100)
    made.gate.idle_error = ZeroDivisionError("odd")
    made.emit(5)
    assert made.trail.flush()
    wait_for(lambda: made.trail.states()[0].failing, "the failure is noticed")
    made.gate.idle_error = None
    made.emit(1)
    wait_for(lambda: not made.trail.states()[0].failing, "the recovery is noticed")
    assert len(made.gate.events()) == 6


def test_closing_a_failing_sink_ends_in_time_and_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    made = Made(10, "block", 1.0)
    made.gate.failing = True
    made.emit(5)
    started = time.monotonic()
    assert not made.trail.close(0.3)
    assert time.monotonic() - started < 3
    wait_for(lambda: made.gate.closed, "the sink is closed")
    assert any("records are lost" in record.message for record in caplog.records)


def test_a_slow_sink_does_not_hold_up_another() -> None:
    slow, fast = Gate(), Gate()
    trail = AuditTrail(redaction=Redaction(Redact()))
    trail.add(slow, Health("slow", trail.emit))
    trail.add(fast, Health("fast", trail.emit))
    slow.open_gate.clear()
    trail.start()
    for number in range(10):
        trail.emit({"event": "request", "number": number})
    wait_for(lambda: len(fast.events()) == 10, "the fast sink has them")
    assert not slow.events()
    slow.open_gate.set()
    assert trail.close()
    assert [orjson.loads(record)["id"] for record in slow.records] == [
        orjson.loads(record)["id"] for record in fast.records
    ]


@pytest.mark.parametrize(("on_full", "denial"), [("block", DENIAL), ("deny", DENIAL), ("drop", None)])
def test_nobody_comes_in_while_there_is_no_trail(on_full: OnFull, denial: Any) -> None:
    gate = Gate()
    trail = AuditTrail(on_full=on_full, redaction=Redaction(Redact()))
    trail.add(gate, Health("gate", trail.emit))
    assert trail.pressure() == denial
    trail.start()
    assert trail.pressure() is None
    assert trail.close()
    assert trail.pressure() == denial


def test_an_event_after_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    made = Made(10, "block", 1.0)
    assert made.trail.close()
    made.emit(1)
    assert made.trail.failed == 1
    assert "is lost: request" in caplog.text


def test_without_sinks_there_is_nothing_to_do() -> None:
    trail = AuditTrail(redaction=Redaction(Redact()))
    trail.start()
    assert not trail.enabled
    trail.emit({"event": "request"})
    assert trail.pressure() is None
    assert trail.flush() and trail.close()
