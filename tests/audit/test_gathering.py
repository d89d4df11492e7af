"""Requests that have ended gather, and every one of them is recorded: once, in order, in time."""

import asyncio
import threading
from collections.abc import Awaitable, Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any, cast

import orjson
import pytest

from mitmgate.audit.ended import Ended, ended
from mitmgate.audit.gathering import GATHER, MOST, Gathering
from mitmgate.audit.redact import Redaction
from mitmgate.audit.settings import OnFull, Redact
from mitmgate.audit.sink import Health
from mitmgate.audit.writer import DENIAL, AuditTrail
from mitmgate.core.rules import Endpoint
from tests.audit.conftest import wait_for
from tests.audit.facts import Facts, admitted, event_of
from tests.audit.test_trail import Gate

LATER = 20 * GATHER


def one(number: int = 0) -> Ended:
    facts = admitted()
    facts.request_id = str(number)
    return ended(facts, 0.001, 200)


def numbers(gate: Gate) -> list[int]:
    return [int(event["request_id"]) for event in gate.events()]


class Made:
    """A trail with one Gate."""

    def __init__(self, on_full: OnFull = "block", queue: int = 10, **more: Any) -> None:
        self.gate = Gate()
        self.trail = AuditTrail(queue=queue, on_full=on_full, redaction=Redaction(Redact()), **more)
        self.trail.add(self.gate, Health("gate", self.trail.emit))
        self.trail.start()
        assert self.trail.flush()


@pytest.fixture
def made() -> Iterator[Made]:
    made = Made(queue=1000)
    yield made
    assert made.trail.close()


def test_a_moment_later_all_are_recorded_in_order(made: Made) -> None:
    async def end() -> None:
        for number in range(5):
            made.trail.gather(one(number))
        assert numbers(made.gate) == []
        await asyncio.sleep(LATER)

    asyncio.run(end())
    wait_for(lambda: numbers(made.gate) == list(range(5)), "the sink has them")
    ids = [event["id"] for event in made.gate.events()]
    assert len(set(ids)) == 5


def test_many_do_not_wait_for_the_moment(made: Made) -> None:
    async def end() -> None:
        for number in range(3 * MOST):
            made.trail.gather(one(number))
        assert made.trail._gathering.pending == []
        made.trail.gather(one(3 * MOST))
        await asyncio.sleep(LATER)
        assert made.trail._gathering.pending == []

    asyncio.run(end())
    assert made.trail.flush()
    assert numbers(made.gate) == list(range(3 * MOST + 1))


def test_without_an_event_loop_nothing_waits(made: Made) -> None:
    made.trail.gather(one())
    assert made.trail._gathering.pending == []
    assert made.trail.flush()
    assert numbers(made.gate) == [0]


def test_one_that_cannot_be_told_takes_no_other_along(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    facts = admitted()
    facts.request_id, facts.head = "1", cast(Any, object())

    async def end() -> None:
        for this in (one(0), ended(facts, 0.001, 200), one(2)):
            made.trail.gather(this)
        await asyncio.sleep(LATER)

    asyncio.run(end())
    assert made.trail.flush()
    assert [(event["request_id"], event["reason"]) for event in made.gate.events()] == [
        ("0", "ok"),
        ("1", "stage-error"),
        ("2", "ok"),
    ]
    assert "the audit event of 1 could not be made" in caplog.text


def test_one_that_a_processor_breaks_takes_no_other_along() -> None:
    def broken(logger: Any, method: str, event: Any) -> Any:
        if event.get("request_id") == "1":
            raise ValueError("broken")
        return event

    made = Made(processors=[broken])
    for number in range(3):
        made.trail.gather(one(number))
    assert made.trail.close()
    assert numbers(made.gate) == [0, 2]
    assert made.trail.failed == 1
    assert [event["count"] for event in made.gate.events("audit-dropped")] == [1]


def test_an_event_says_what_held_at_the_end(made: Made) -> None:
    facts = Facts(admitted=True)

    async def end() -> None:
        made.trail.gather(ended(facts, 0.001, 200))
        later = admitted()
        facts.failure_detail, facts.retries, facts.admitted, facts.endpoint = "later", 7, False, None
        facts.grants += later.grants
        await asyncio.sleep(LATER)

    asyncio.run(end())
    assert made.trail.flush()
    (event,) = made.gate.events()
    assert (event["outcome"], event["endpoint"]) == ("proxied", "http://127.0.0.1:9001")
    assert not {"detail", "retries", "limits"} & set(event)


@pytest.mark.parametrize("how", ["flush", "close", "settle"])
def test_what_gathers_is_written_before_the_end(how: str) -> None:
    made = Made()

    async def end() -> None:
        for number in range(3):
            made.trail.gather(one(number))
        assert await asyncio.to_thread(getattr(made.trail, how)) is not False
        made.trail.gather(one(3))
        assert (made.trail._gathering.pending == []) == (how == "close")

    asyncio.run(end())
    assert made.trail.close()
    expected = [0, 1, 2] if how == "close" else [0, 1, 2, 3]
    assert numbers(made.gate) == expected
    assert made.trail.failed == 4 - len(expected)
    kinds = [orjson.loads(record)["event"] for record in made.gate.records]
    assert kinds[-1] == "gateway-stopped"


def test_an_event_of_the_gateway_comes_behind_the_requests_before_it(made: Made) -> None:
    async def end() -> None:
        made.trail.gather(one(0))
        made.trail.emit({"event": "policy-reloaded"})
        made.trail.gather(one(1))
        await asyncio.sleep(LATER)

    asyncio.run(end())
    assert made.trail.flush()
    kinds = [orjson.loads(record)["event"] for record in made.gate.records]
    assert kinds[1:] == ["request", "policy-reloaded", "request"]


@pytest.mark.parametrize("on_full", ["deny", "block"])
def test_what_gathers_counts(on_full: OnFull) -> None:
    made = Made(on_full)
    made.gate.open_gate.clear()

    async def end() -> None:
        for number in range(9):
            made.trail.gather(one(number))
        assert made.trail.states()[0].backlog == 9
        assert made.trail.pressure() is None
        made.trail.gather(one(9))
        pressure = made.trail.pressure()
        if on_full == "deny":
            assert pressure == DENIAL
        else:
            assert isinstance(pressure, Awaitable)
            made.gate.open_gate.set()
            assert await asyncio.wait_for(pressure, 5) is None  # the moment passes, the sink takes them
        made.gate.open_gate.set()

    asyncio.run(end())
    assert made.trail.close()
    assert numbers(made.gate) == list(range(10))


def test_a_batch_beyond_the_room_is_counted() -> None:
    made = Made("deny")
    made.gate.open_gate.clear()
    before = made.gate.attempts
    made.trail.gather(one(0))
    wait_for(lambda: made.gate.attempts > before, "the sink has a record in hand")
    for number in range(1, 19):
        made.trail.gather(one(number))  # of 20 places: the queue's 10, and as many for what is on its way

    async def end() -> None:
        for number in range(19, 24):
            made.trail.gather(one(number))
        made.trail.settle()

    asyncio.run(end())
    assert made.trail.states()[0].dropped == 3
    made.gate.open_gate.set()
    assert made.trail.flush()
    assert made.trail.close()
    assert numbers(made.gate) == list(range(21))
    assert [event["count"] for event in made.gate.events("audit-dropped")] == [3]


def test_threads_that_settle_meanwhile_lose_and_repeat_nothing() -> None:
    written: list[str] = []

    def write(batch: Sequence[Ended]) -> None:
        written.extend([this[0] for this in batch])

    gathering = Gathering(write)
    done = threading.Event()

    def settle() -> None:
        while not done.is_set():
            gathering.settle()

    threads = [threading.Thread(target=settle) for _ in range(3)]

    async def end() -> None:
        for number in range(20_000):
            gathering.add((str(number), *one()[1:]))
            if not number % 50:
                await asyncio.sleep(0)
        await asyncio.sleep(LATER)

    for thread in threads:
        thread.start()
    asyncio.run(end())
    done.set()
    for thread in threads:
        thread.join()
    assert written == [str(number) for number in range(20_000)]


def test_who_writes_may_have_something_to_settle() -> None:
    written: list[int] = []

    def write(batch: Sequence[Ended]) -> None:
        written.append(len(batch))
        gathering.settle()

    gathering = Gathering(write)
    gathering.add(one())
    assert written == [1]


def test_the_text_of_another_address_is_another() -> None:
    for number in range(3000):  # more than are kept; most of these die at once, and their identities come again
        facts = admitted()
        facts.client = IPv4Address(number)
        facts.endpoint = Endpoint("http", "127.0.0.1", number + 1)
        event = event_of(facts, 0.001, 200)
        assert event["client_ip"] == str(IPv4Address(number))
        assert event["endpoint"] == f"http://127.0.0.1:{number + 1}"
