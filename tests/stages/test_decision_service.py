"""DecisionServices: admits, denies, observes; what is kept, and for how long; and whatever its source does wrong."""

import asyncio
import errno
import json
import socket
from collections.abc import Awaitable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import cast

import pytest

from mitmgate.core.decision_service import DecisionService as Service
from mitmgate.core.decision_service import Question, Said, ServiceAnswer
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.net.dialler import Dialler
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages import decision_service
from mitmgate.stages.decision_service import Answers, Asks, DecisionServices, LiveAnswers, RecordedAnswers
from tests.live.decision_services import JSON
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.stages.exchanges import assert_leaves_decided_alone, assert_refused, routed, said, snapshot_of

ASKED = Service("pdp", "opa", "http://127.0.0.1:1/v1/data/x")
YES, NO = b'{"result": true}', b'{"result": false}'


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def server() -> Iterator[RecordingUpstream]:
    with RecordingUpstream(Reply(200, JSON, YES)) as running:
        yield running


def asks(snapshot: Snapshot, service: Service | None = ASKED, **members: object) -> Exchange:
    made = routed(snapshot, path="/users/7")
    assert made.route is not None
    compiled = {**made.snapshot.compiled, DecisionServices.name: Asks({made.route.name: service})}
    made.snapshot = replace(made.snapshot, compiled=compiled)
    return made


class Fixed:
    """Says one thing."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def ask(self, exchange: Exchange, service: Service, asked: Question) -> ServiceAnswer | Awaitable[ServiceAnswer]:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return cast(ServiceAnswer, self.answer)

    async def close(self) -> None:
        """There is nothing to end."""


@pytest.mark.parametrize(
    ("answer", "on_failure", "step"),
    [
        ("allow", "deny", (Outcome.ADMIT, Reason.OK)),
        ("deny", "deny", (Outcome.DENY, Reason.DECISION_DENIED)),
        ("deny", "admit", (Outcome.DENY, Reason.DECISION_DENIED)),
        ("unavailable", "deny", (Outcome.DENY, Reason.DECISION_UNAVAILABLE)),
        ("unavailable", "admit", (Outcome.OBSERVE, Reason.DECISION_UNAVAILABLE)),
        ("invalid", "deny", (Outcome.DENY, Reason.DECISION_UNAVAILABLE)),
        ("invalid", "admit", (Outcome.DENY, Reason.DECISION_UNAVAILABLE)),
    ],
)
def test_what_comes_of_an_answer(
    snapshot: Snapshot, answer: Said, on_failure: str, step: tuple[Outcome, Reason]
) -> None:
    service = replace(ASKED, on_failure=on_failure)  # type: ignore[arg-type]  # of a table
    exchange = asks(snapshot, service)
    fields = ((b"X-Tier", b"gold"),)
    assert said(DecisionServices(Fixed(ServiceAnswer("pdp", answer, fields))), exchange) == step
    assert exchange.own_fields == (fields if answer == "allow" else ())
    if step[0] is Outcome.DENY:
        assert_refused(snapshot, exchange, step[1])


def test_a_route_without_a_service_asks_nobody(snapshot: Snapshot) -> None:
    assert said(DecisionServices(Fixed(ValueError())), asks(snapshot, None)) == (Outcome.SKIP, Reason.NOT_APPLICABLE)


def test_report_mode_observes(tmp_path: Path) -> None:
    exchange = asks(snapshot_of(tmp_path, "report"))
    stage = DecisionServices(Fixed(ServiceAnswer("pdp", "deny")))
    assert said(stage, exchange) == (Outcome.OBSERVE, Reason.DECISION_DENIED)


@pytest.mark.parametrize(
    "answer",
    [ValueError("x"), None, True, "allow", ServiceAnswer("pdp", "ALLOW"), ServiceAnswer("pdp", True)],  # type: ignore[arg-type]
    ids=repr,
)
def test_a_source_that_says_anything_else_denies(snapshot: Snapshot, answer: object) -> None:
    made = DecisionServices(Fixed(answer))
    exchange = asks(snapshot)
    pending = made.run(exchange)
    if pending is not None:

        async def finish() -> None:
            await pending

        asyncio.run(finish())
    assert exchange.verdict.final is not None
    assert exchange.verdict.final.reason is Reason.STAGE_ERROR


def test_decided_requests_are_left_alone(snapshot: Snapshot) -> None:
    assert_leaves_decided_alone(DecisionServices(Fixed(ValueError())), asks(snapshot))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(answers: Answers, exchange: Exchange, service: Service, *questions: Question) -> list[ServiceAnswer]:
    async def each() -> list[ServiceAnswer]:
        found = []
        for one in questions:
            made = answers.ask(exchange, service, one)
            found.append(made if isinstance(made, ServiceAnswer) else await made)
        return found

    return asyncio.run(each())


QUESTION = Question("POST", "/v1/data/x", ((b"Host", b"h"), (b"X", b"y")), b"{}")
OTHERS = (
    QUESTION._replace(method="GET"),
    QUESTION._replace(target="/v1/data/y"),
    QUESTION._replace(fields=((b"Host", b"h"),)),
    QUESTION._replace(fields=((b"Host", b"h"), (b"X", b"z"))),
    QUESTION._replace(fields=((b"Host", b"h"), (b"Z", b"y"))),
    QUESTION._replace(fields=((b"Host", b"i"), (b"X", b"y"))),
    QUESTION._replace(body=b"[]"),
)


def varied(service: Service) -> dict[str, Service]:
    """Change each member of a service that leaves it one that can be asked."""
    return {
        "name": replace(service, name="other"),
        "protocol": replace(service, protocol="ext_authz"),
        "url": replace(service, url=service.url + "x"),
        "timeout": replace(service, timeout=21.0),
        "cache": replace(service, cache=61.0),
        "headers": replace(service, headers=(b"x",)),
        "claims": replace(service, claims=("x",)),
        "query": replace(service, query=True),
        "forward": replace(service, forward=((b"x", b"X"),)),
        "on_failure": replace(service, on_failure="admit"),
        "token": replace(service, token=b"x"),
        "ca": replace(service, ca=b"x"),
        "authorities": replace(service, authorities=b"x"),
    }


def test_whatever_differs_is_asked_anew(snapshot: Snapshot, server: RecordingUpstream) -> None:
    service = replace(ASKED, url=server.url, timeout=20.0, cache=60.0)
    answers, exchange = LiveAnswers(Dialler(), Clock()), asks(snapshot)
    first = ask(answers, exchange, service, QUESTION, QUESTION)
    assert [one.cached for one in first] == [False, True]
    assert not any(one.cached for one in ask(answers, exchange, service, *OTHERS))
    assert len(server.requests) == 1 + len(OTHERS)
    others = varied(service)
    assert others.keys() == {one.name for one in fields(Service)}, "a member that is new needs a line"
    for name, other in others.items():
        assert not ask(answers, exchange, other, QUESTION)[0].cached, name
    assert all(one.cached for one in ask(answers, exchange, service, QUESTION, *OTHERS))


def test_an_answer_is_good_for_its_time(snapshot: Snapshot, server: RecordingUpstream) -> None:
    clock = Clock()
    service = replace(ASKED, url=server.url, timeout=20.0, cache=60.0)
    answers, exchange = LiveAnswers(Dialler(), clock), asks(snapshot)
    assert ask(answers, exchange, service, QUESTION)[0].said == "allow"
    server.reply = Reply(200, JSON, NO)
    clock.now = 59.9
    assert ask(answers, exchange, service, QUESTION)[0].said == "allow"
    clock.now = 60.1
    assert [one.said for one in ask(answers, exchange, service, QUESTION, QUESTION)] == ["deny", "deny"]
    assert len(server.requests) == 2


def test_without_cache_it_is_asked_every_time_and_a_failure_is_never_kept(
    snapshot: Snapshot, server: RecordingUpstream
) -> None:
    service = replace(ASKED, url=server.url, timeout=20.0)
    answers, exchange = LiveAnswers(Dialler(), Clock()), asks(snapshot)
    assert [one.said for one in ask(answers, exchange, service, QUESTION, QUESTION)] == ["allow", "allow"]
    server.reply = Reply(500)
    keeps = replace(service, cache=60.0)
    assert [one.said for one in ask(answers, exchange, keeps, QUESTION, QUESTION)] == ["unavailable"] * 2
    assert len(server.requests) == 4
    assert not answers._kept and not answers._asking and not answers._questions


def test_questions_at_a_time_are_bounded(
    snapshot: Snapshot, server: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_service, "MOST_QUESTIONS", 3)
    service = replace(ASKED, url=server.url, timeout=20.0)

    async def several() -> list[Said]:
        answers, exchange = LiveAnswers(Dialler()), asks(snapshot)
        made = [answers.ask(exchange, service, QUESTION._replace(body=b"%d" % number)) for number in range(5)]
        waiting = [one for one in made if not isinstance(one, ServiceAnswer)]
        found = [one.said for one in made if isinstance(one, ServiceAnswer)]
        found += [one.said for one in await asyncio.gather(*waiting)]
        again = answers.ask(exchange, service, QUESTION)
        assert not isinstance(again, ServiceAnswer)
        return [*found, (await again).said]

    assert asyncio.run(several()) == ["invalid"] * 2 + ["allow"] * 4


@pytest.mark.parametrize(
    "question",
    [
        QUESTION._replace(fields=((b"Host", b"h"), (b"X", b"a\r\nb"))),
        QUESTION._replace(target="/a b"),
        QUESTION._replace(method="G\xe9T"),
    ],
    ids=["field", "target", "method"],
)
def test_what_can_not_be_asked_is_no_absence_of_the_service(
    snapshot: Snapshot, server: RecordingUpstream, question: Question
) -> None:
    service = replace(ASKED, url=server.url, timeout=20.0)
    assert [one.said for one in ask(LiveAnswers(Dialler()), asks(snapshot), service, question)] == ["invalid"]
    server.assert_saw_nothing()


def test_our_own_want_of_descriptors_is_no_absence_of_the_service(snapshot: Snapshot) -> None:
    class Short(Dialler):
        async def connect(self, host: str, port: int, *, in_turn: bool = False) -> socket.socket:
            raise OSError(errno.EMFILE, "Too many open files")

    assert [one.said for one in ask(LiveAnswers(Short()), asks(snapshot), ASKED, QUESTION)] == ["invalid"]


def test_a_client_that_leaves_takes_no_others_answer_along(snapshot: Snapshot, server: RecordingUpstream) -> None:
    service = replace(ASKED, url=server.url, timeout=20.0)

    async def two() -> Said:
        answers, exchange = LiveAnswers(Dialler()), asks(snapshot)
        first, second = answers.ask(exchange, service, QUESTION), answers.ask(exchange, service, QUESTION)
        assert not isinstance(first, ServiceAnswer) and not isinstance(second, ServiceAnswer)
        leaving = asyncio.ensure_future(first)
        leaving.cancel()
        return (await second).said

    assert asyncio.run(two()) == "allow"
    assert len(server.requests) == 1


def test_closing_ends_what_is_on_its_way(snapshot: Snapshot, server: RecordingUpstream) -> None:
    server.reply = Reply(200, JSON, YES, delay=30)

    async def closed() -> None:
        answers = LiveAnswers(Dialler())
        waiting = answers.ask(asks(snapshot), replace(ASKED, url=server.url, timeout=20.0), QUESTION)
        assert not isinstance(waiting, ServiceAnswer)
        await answers.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(closed())


@pytest.mark.parametrize("name", ["pdp", "other"])
def test_offline_the_recorded_answer_counts_of_the_service_that_gave_it(snapshot: Snapshot, name: str) -> None:
    exchange = asks(snapshot)
    exchange.service_answer = ServiceAnswer(name, "allow", ((b"X-Tier", b"gold"),))
    answers = RecordedAnswers()
    outcome, _ = said(DecisionServices(answers), exchange)
    assert outcome is (Outcome.ADMIT if name == "pdp" else Outcome.DENY)
    assert answers.missing == ({} if name == "pdp" else {"pdp": 1})
    assert json.dumps(DecisionServices(answers).reads(exchange))
