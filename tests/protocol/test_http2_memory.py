"""What HTTP/2 connections hold: little while they are open, and nothing when they are gone."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hyperframe.frame import Frame, RstStreamFrame

from tests.live.harness import Host
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import Reply
from tests.protocol.raw_http2 import INITIAL_WINDOW, RawHttp2, request_fields
from tests.protocol.tls_gateway import TlsGateway

REQUESTS = 64
BODY = 200_000
Field = tuple[bytes, bytes]
GROWTH = {"serve": 8, "web": 32}
"""MiB; mitmweb keeps ten thousand lines of its log, which such clients fill."""


@pytest.fixture(params=["serve"], scope="module", autouse=True)
def host(request: pytest.FixtureRequest) -> Host:
    """Run in both hosts, as processes."""
    name: Host = request.param
    return name


@pytest.fixture(scope="module")
def front(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsGateway]:
    """Run a gateway; mitmweb keeps no finished flow."""
    arguments = ("--keep", "1") if host == "web" else ()
    with TlsGateway(tmp_path_factory.mktemp(f"memory-{host}"), host, arguments=arguments) as running:
        yield running


def resident(front: TlsGateway, line: str = "VmRSS") -> float:
    """Return the resident memory of the process, in MiB; VmHWM is its peak."""
    lines = Path(f"/proc/{front.gateway.process.pid}/status").read_text().splitlines()
    return next(int(each.split()[1]) for each in lines if each.startswith(line)) / 1024


def ask(front: TlsGateway, client: RawHttp2) -> list[int]:
    """Send as many requests as a connection may have open, and return when the service has them."""
    arrived = len(front.upstream.requests) + REQUESTS
    numbers = [client.stream() for _ in range(REQUESTS)]
    client.send(*[client.head(number, request_fields("GET", "/held/big"), end=True) for number in numbers])
    wait_for(lambda: len(front.upstream.requests) == arrived, "the requests")
    return numbers


def warm(front: TlsGateway) -> None:
    """Let the process become as large as an ordinary client makes it."""
    front.mark()
    for _ in range(2):
        with front.connect() as client:
            assert {client.response(number).status for number in ask(front, client)} == {200}
    Path(f"/proc/{front.gateway.process.pid}/clear_refs").write_text("5")  # resets the peak


def test_what_clients_do_not_take_is_given_back_when_they_leave(front: TlsGateway, host: Host) -> None:
    warm(front)
    before = resident(front)
    front.upstream.reply = Reply(body=b"x" * BODY)
    for _ in range(100 if host == "serve" else 15):
        with front.connect(settings={INITIAL_WINDOW: 0}) as client:
            ask(front, client)
        front.upstream.forget_requests()
    wait_for(lambda: resident(front) - before < GROWTH[host], "memory to be given back")


def test_a_connection_holds_little_of_what_its_client_does_not_take(front: TlsGateway, host: Host) -> None:
    warm(front)
    before = resident(front)
    front.upstream.reply = Reply(body=b"x" * BODY)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(front.connect(settings={INITIAL_WINDOW: 0})) for _ in range(3)]
        for client in clients:
            ask(front, client)
        for client in clients:
            client.ping()
        assert resident(front) - before < 3 * 1.5 * GROWTH[host]


def test_a_client_that_takes_one_response_and_not_the_others_gets_it(front: TlsGateway) -> None:
    warm(front)
    front.upstream.reply = Reply(body=b"x" * BODY)
    with front.connect(settings={INITIAL_WINDOW: 0}) as client:
        numbers = ask(front, client)
        wanted = client.streams[numbers[-1]]
        client.grant(0, 2**30)
        for _ in range(BODY // 20_000):
            have = len(wanted.body)
            client.grant(numbers[-1], 20_000)
            client.until(lambda: len(wanted.body) >= have + 20_000, "the next part")  # noqa: B023 - called at once
        assert len(wanted.body) == BODY
        client.until(lambda: wanted.ended, "the end")
        for number in numbers[:-1]:
            client.grant(number, BODY)
        assert {len(client.response(number).body) for number in numbers} == {BODY}


def test_responses_one_after_the_other_that_are_not_taken_are_bounded_too(front: TlsGateway, host: Host) -> None:
    warm(front)
    before = resident(front)
    front.upstream.reply = Reply(body=b"x" * BODY)
    with front.connect(settings={INITIAL_WINDOW: 0}) as client:
        for number in range(REQUESTS):  # beyond what a connection may hold they wait, undecided
            client.request(request_fields("GET", f"/held/{number}"))
            client.ping()
        wait_for(lambda: len(front.upstream.requests) >= 2, "the first requests")
        assert resident(front) - before < 1.5 * GROWTH[host]


def crowded(front: TlsGateway, client: RawHttp2, folder: str) -> list[int]:
    """Ask for so much, and take none of it, that the next requests wait undecided."""
    front.upstream.reply = Reply(body=b"x" * BODY)
    numbers = []
    for number in range(50):
        numbers.append(client.request(request_fields("GET", f"{folder}/{number}")))
        client.ping()
    wait_for(lambda: len(front.upstream.requests) >= 2, "the first requests")
    return numbers


def recorded(front: TlsGateway, folder: str) -> list[dict[str, Any]]:
    """Return the events of one test's requests; those of the test before may still come."""
    return [event for event in front.events() if event.get("path", "").startswith(folder)]


def test_undecided_requests_are_on_record_when_their_client_leaves_and_reach_nobody(front: TlsGateway) -> None:
    front.mark()
    with front.connect(settings={INITIAL_WINDOW: 0}) as client:
        numbers = crowded(front, client, "/held/left")
        given_up = numbers[-1]
        client.send(RstStreamFrame(given_up, error_code=8))
        client.ping()
    wait_for(lambda: len(recorded(front, "/held/left")) >= len(numbers), "all to be on record")
    front.upstream.settle()
    events = recorded(front, "/held/left")
    assert len(events) == len(numbers)
    assert len({event["path"] for event in events}) == len(numbers)
    undecided = {event["path"] for event in events if event["decision"] == "deny"}
    assert f"/held/left/{len(numbers) - 1}" in undecided
    assert {event["reason"] for event in events if event["path"] in undecided} == {"client-closed"}
    seen = {request.target for request in front.upstream.requests}
    assert not seen & undecided


def test_trailers_of_an_undecided_request_end_it(front: TlsGateway) -> None:
    front.mark()
    with front.connect(settings={INITIAL_WINDOW: 0}) as client:
        numbers = crowded(front, client, "/held/trailed")
        posted = client.stream()
        client.send(client.head(posted, request_fields("POST", "/held/trailed/posted")))
        client.ping()
        client.send(client.head(posted, [(b"x-trailer", b"y")], end=True))
        client.ping()
        client.grant(0, 2**30)
        for number in [*numbers, posted]:
            client.grant(number, BODY)
        assert {client.response(number).status for number in [*numbers, posted]} == {200}


def test_undecided_requests_that_turn_out_malformed_are_recorded_as_such_and_reach_nobody(front: TlsGateway) -> None:
    front.mark()
    with front.connect(settings={INITIAL_WINDOW: 0}) as client:
        numbers = crowded(front, client, "/held/flawed")
        flaws: dict[str, tuple[tuple[Field, ...], Callable[[int], Frame]]] = {
            "long": (((b"content-length", b"1"),), lambda number: client.data(number, b"xx", end=True)),
            "short": (((b"content-length", b"3"),), lambda number: client.head(number, [(b"x", b"y")], end=True)),
            "trailers": ((), lambda number: client.head(number, [(b"x", b"a\nb")], end=True)),
            "given-up": ((), lambda number: RstStreamFrame(number, error_code=1)),
        }
        for name, (fields, flaw) in flaws.items():
            number = client.stream()
            client.send(client.head(number, request_fields("POST", f"/held/flawed/{name}", *fields)), flaw(number))
        client.ping()
    wait_for(lambda: len(recorded(front, "/held/flawed")) >= len(numbers) + len(flaws), "all to be on record")
    front.upstream.settle()
    events = {event["path"].removeprefix("/held/flawed/"): event for event in recorded(front, "/held/flawed")}
    assert {name: events[name]["reason"] for name in flaws} == {
        "long": "length-mismatch",
        "short": "length-mismatch",
        "trailers": "body-malformed",
        "given-up": "client-closed",
    }
    assert len(events) == len(numbers) + len(flaws)
    assert not {request.target.removeprefix("/held/flawed/") for request in front.upstream.requests} & set(flaws)


def test_a_malformed_head_before_a_good_one_is_recorded_as_what_it_is(front: TlsGateway) -> None:
    front.mark()
    before = sum(event.get("reason") == "head-malformed" for event in front.events())
    with front.connect() as client:
        bad, good = client.stream(), client.stream()
        client.send(
            client.head(bad, request_fields("GET", "/held/bad", (b"connection", b"close")), end=True),
            client.head(good, request_fields("GET", "/held/good"), end=True),
        )
        assert client.response(good).status == 200
    wait_for(lambda: bool(recorded(front, "/held/good")), "both to be on record")
    assert [event["reason"] for event in recorded(front, "/held/good")] == ["ok"]
    assert sum(event.get("reason") == "head-malformed" for event in front.events()) == before + 1
