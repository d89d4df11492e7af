"""DecisionService: what a service elsewhere says of a request that everything before it has admitted.

It only tightens: nobody is asked about a request that is denied, and one that the service allows is still to be let
through by the stages behind it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from time import perf_counter
from typing import ClassVar, Final, Protocol

from cachetools import TLRUCache

from mitmgate.core.credentials import is_secret_name
from mitmgate.core.decision_service import Asked, Question, Said, ServiceAnswer, answer, question
from mitmgate.core.reason import Reason
from mitmgate.core.rules import DecisionService as Service
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.descriptors import Seldom
from mitmgate.keys.discovery import needs_consent
from mitmgate.net.dialler import Dialler
from mitmgate.net.http import HttpError, UnusableError, ask
from mitmgate.pipeline import warnings
from mitmgate.pipeline.coverage import Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Denial, Stage, route_at
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.snapshot import Snapshot

logger = logging.getLogger(__name__)

LARGEST_ANSWER: Final = 64 * 1024
"""Bytes of the body of an answer."""
MOST_ANSWERS: Final = 10_000
"""Answers that a process keeps, of all services; those that were not asked for longest go first."""
MOST_QUESTIONS: Final = 256
"""Questions to one service that a process waits for at a time; a further one is not asked."""

type _Key = tuple[Service, bytes]


class Answers(Protocol):
    """Where answers come from."""

    def ask(self, exchange: Exchange, service: Service, asked: Question) -> ServiceAnswer | Awaitable[ServiceAnswer]:
        """Return an answer, or what to wait for."""
        ...

    async def close(self) -> None:
        """End what is on its way."""
        ...


class DecisionService(Stage):
    """Ask the decision service that the route names.

    Reads: head, route, scheme, client, principal. Writes: service_answer, own_fields. Denies: 403 decision-denied; 503
    decision-unavailable, where there is no answer in time, which with `on_failure: admit` is an observation, or none
    that is exactly of the protocol. 403 rewrite-refused, where the identity fits in no header field. On failure:
    stage-error.
    """

    name: ClassVar[str] = "decision-service"
    reasons: ClassVar[tuple[Reason, ...]] = (
        Reason.DECISION_DENIED,
        Reason.DECISION_UNAVAILABLE,
        Reason.REWRITE_REFUSED,
    )
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.REWRITE_REFUSED: "values that a header field can hold: visible ASCII",
    }

    def __init__(self, answers: Answers) -> None:
        """answers: of the services, or of a recording."""
        self._answers = answers

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        route, said = exchange.route, exchange.service_answer
        if route is None or route.decision is None:
            return {}
        read: dict[str, object] = {"service": route.decision.name, "protocol": route.decision.protocol}
        if said is not None:
            read |= {"said": said.said, "why": said.why, "forward": [name.decode("ascii") for name, _ in said.fields]}
        return read

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at, route = route_at(exchange), exchange.route
        if route is None or route.decision is None:
            return []
        return [("decision_services", route.decision.name), (*at, "decision"), ("decision",)]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        route = denial.exchange.route
        if route is None or route.decision is None:
            return []
        name = route.decision.name
        place = denial.place("decision_services", name)
        if denial.step.reason is Reason.DECISION_DENIED:
            return [f"the decision service {name} has to allow it: {place}"]
        if denial.step.reason is Reason.DECISION_UNAVAILABLE:
            return [
                f"the decision service {name} has to answer within {route.decision.timeout:g} s: {place}",
                "offline nobody is asked: a recording has the answers, --assume-decision takes one for given",
            ]
        return []

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count what each service has said."""
        for name in loaded.policy.decision_services:
            yield Rule(
                ("decision_services", name), f"decision service {name}", ("allow", "deny", "unavailable", "invalid")
            )

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        said = exchange.service_answer
        if said is not None and step is not self.skipped:
            yield ("decision_services", said.service), said.said

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find services that nothing asks, and what is told or admitted without need."""
        policy, document = loaded.policy, loaded.document
        used = {route.decision or policy.decision for route in policy.routes}
        yield from warnings.unused(document, ("decision_services",), policy.decision_services, used)
        for name, service in policy.decision_services.items():
            at: Location = ("decision_services", name)
            if service.on_failure == "admit":
                message = "requests are admitted while it does not answer"
                yield document.warning((*at, "on_failure"), Code.ADMITS_UNDECIDED, message, "leave it out")
            if service.plain_http and needs_consent(service.url):
                message = "decisions over plain http: who is on the way can make them"
                yield document.warning((*at, "plain_http"), Code.DECISIONS_OVER_HTTP, message, "use https")
            for header in service.headers:
                if is_secret_name(header):
                    message = f"it is told {header}, which holds a credential: it could act as the client"
                    yield document.warning((*at, "headers"), Code.HANDS_OVER_CREDENTIAL, message)

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Ask, where the route says so."""
        route = exchange.route
        if route is None:
            raise LookupError("authorization has not decided")
        service = route.decision
        if service is None:
            return self.skipped
        asked = _question(exchange, service)
        if asked is None:
            return self.deny(Reason.REWRITE_REFUSED, "A value of the identity can't be put into a header field.")
        said = self._answers.ask(exchange, service, asked)
        if isinstance(said, ServiceAnswer):
            return self._step(exchange, service, said)
        return self._wait(exchange, service, said)

    async def _wait(self, exchange: Exchange, service: Service, said: Awaitable[ServiceAnswer]) -> Step:
        started = perf_counter()
        return self._step(exchange, service, (await said)._replace(seconds=perf_counter() - started))

    def _step(self, exchange: Exchange, service: Service, said: ServiceAnswer) -> Step:
        exchange.service_answer = said
        if said.said == "allow":
            exchange.own_fields += said.fields
            return self.admitted
        if said.said == "deny":
            return self.deny(Reason.DECISION_DENIED, "The decision service does not allow this request.")
        if said.said not in {"unavailable", "invalid"}:
            raise ValueError(f"the decision service said {said.said!r}")
        if said.said == "unavailable" and service.on_failure == "admit":
            detail = "The decision service gave no answer, and the policy admits without one."
            return Step(self.name, Outcome.OBSERVE, Reason.DECISION_UNAVAILABLE, detail)
        return self.deny(Reason.DECISION_UNAVAILABLE, "The decision service gave no answer.")


def _question(exchange: Exchange, service: Service) -> Question | None:
    head, route, names = exchange.head, exchange.route, exchange.snapshot.forward
    if head is None or route is None:
        raise LookupError("the head was not made")
    host = head.headers.one(b"host") or exchange.request.authority.encode("latin-1")
    return question(
        service,
        Asked(
            head,
            route.name,
            exchange.scheme,
            host.decode("latin-1"),
            exchange.client,
            exchange.principal,
            (names.subject, names.roles),
        ),
    )


class LiveAnswers:
    """Asks the services, over connections of its own, and keeps what the policy lets it keep.

    An answer is kept by all that was sent, and by all that the policy says of the service. What is asked while the
    same question is on its way waits for that one. A failure is not kept.
    """

    def __init__(self, dialler: Dialler, ticks: Callable[[], float] = time.monotonic) -> None:
        """dialler: connects. ticks: seconds, by a clock that nobody sets."""
        self._dialler = dialler
        self._kept: TLRUCache[_Key, ServiceAnswer] = TLRUCache(
            MOST_ANSWERS, lambda key, _, now: now + key[0].cache, timer=ticks
        )
        self._asking: dict[_Key, asyncio.Task[ServiceAnswer]] = {}
        self._questions: Counter[str] = Counter()
        self._seldom = Seldom(logger)  # clients may bring failures about

    def ask(self, exchange: Exchange, service: Service, asked: Question) -> ServiceAnswer | Awaitable[ServiceAnswer]:
        """Return what was said of the same question, or what to wait for."""
        key = service, asked.digest
        kept = self._kept.get(key) if service.cache else None
        if kept is not None:
            return kept._replace(cached=True)
        task = self._asking.get(key)
        if task is None:
            if self._questions[service.name] >= MOST_QUESTIONS:
                return self._failed(service, f"{MOST_QUESTIONS} other questions wait for an answer", "invalid")
            self._questions[service.name] += 1
            task = self._asking[key] = asyncio.create_task(self._ask(key, service, asked), name="decision service")
        return asyncio.shield(task)

    async def close(self) -> None:
        """End what is on its way."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, key: _Key, service: Service, asked: Question) -> ServiceAnswer:
        try:
            made = await ask(
                service.url,
                *asked,
                dialler=self._dialler,
                within=service.timeout,
                most=LARGEST_ANSWER,
                ca=service.ca,
                authorities=service.authorities,
            )
        except HttpError as error:
            return self._failed(service, str(error), "invalid" if isinstance(error, UnusableError) else "unavailable")
        finally:
            self._asking.pop(key, None)
            self._questions[service.name] -= 1
            if not self._questions[service.name]:
                del self._questions[service.name]
        said = answer(service, made.status, made.fields, made.body)
        if said.said in {"unavailable", "invalid"}:
            return self._failed(service, said.why, said.said)
        if service.cache:
            self._kept[key] = said
        return said

    def _failed(self, service: Service, why: str, said: Said) -> ServiceAnswer:
        self._seldom.log(logging.ERROR, "the decision service %s gives no decision: %s", service.name, why)
        return ServiceAnswer(service.name, said, why=why)


class RecordedAnswers:
    """Asks nobody: a request of a recording has the answer that it had then, from the service of the same name.

    `missing` counts, by service, the requests about which nobody was asked then.
    """

    def __init__(self, assumed: Said = "unavailable") -> None:
        """assumed: what is taken for the answer where nobody was asked."""
        self.assumed: Said = assumed
        self.missing: Counter[str] = Counter()

    def ask(self, exchange: Exchange, service: Service, asked: Question) -> ServiceAnswer:
        """Return what was said then."""
        said = exchange.service_answer
        if said is None or said.service != service.name:
            self.missing[service.name] += 1
            return ServiceAnswer(service.name, self.assumed, why="assumed: nobody asked it then")
        return said

    async def close(self) -> None:
        """There is nothing to end."""
