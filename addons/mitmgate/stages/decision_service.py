"""DecisionServices: what a service elsewhere says of a request that everything before it has admitted.

It only tightens: nobody is asked about a request that is denied, and one that the service allows is still to be let
through by the stages behind it.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Protocol, Self

from cachetools import TLRUCache
from pydantic import AfterValidator, Field, model_validator

from mitmgate.core.client_fields import shape
from mitmgate.core.credentials import is_secret_name
from mitmgate.core.decision_service import Asked, Question, Said, ServiceAnswer, answer, question
from mitmgate.core.decision_service import DecisionService as Service
from mitmgate.core.reason import Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.descriptors import Seldom
from mitmgate.keys.discovery import needs_consent, problem
from mitmgate.net.dialler import Dialler
from mitmgate.net.http import HttpError, UnusableError, ask
from mitmgate.pipeline import warnings
from mitmgate.pipeline.coverage import Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Denial, Stage, route_at
from mitmgate.policy.checks import identity_headers, named, routes, unknown
from mitmgate.policy.declared import of
from mitmgate.policy.document import Document, as_written
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.material import Reader
from mitmgate.policy.model_routes import WRITTEN_BY_THE_GATEWAY
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.scalars import (
    FRAMING,
    READ_BY_THE_GATEWAY,
    Boolean,
    Claim,
    Duration,
    DurationOrZero,
    HeaderName,
    Name,
    Text,
    duration,
    one_or_more,
    wrong,
)
from mitmgate.policy.section import Section
from mitmgate.policy.snapshot import Snapshot

logger = logging.getLogger(__name__)

LARGEST_ANSWER: Final = 64 * 1024
"""Bytes of the body of an answer."""
MOST_ANSWERS: Final = 10_000
"""Answers that a process keeps, of all services; those that were not asked for longest go first."""
MOST_QUESTIONS: Final = 256
"""Questions to one service that a process waits for at a time; a further one is not asked."""
LONGEST_TIMEOUT: Final = 30.0
"""Seconds that an answer may be waited for."""
LONGEST_CACHE: Final = 3600.0
"""Seconds for which an answer may be good."""
_BEARER: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*")
_OURS: Final = WRITTEN_BY_THE_GATEWAY - {"authorization"}


def _url(text: str) -> str:
    if problem(text) is not None:
        raise wrong("must be an http or https URL without credentials", "write http://127.0.0.1:8181/v1/data/gateway")
    return text


def _service_name(text: str) -> str:
    if text == "none":
        raise wrong("a route that says none asks nobody", "give it another name")
    return text


ServiceName = Annotated[Name, AfterValidator(_service_name)]


class DecisionService(Section):
    """A service that is asked whether a request may pass which everything else admits."""

    protocol: Literal["authzen", "opa", "ext_authz"]
    """authzen: OpenID AuthZEN 1.0, access evaluation; opa: Open Policy Agent, data API; ext_authz: that of Envoy."""
    url: Annotated[Text, AfterValidator(_url)]
    """What is asked: https://HOST/access/v1/evaluation, http://HOST:8181/v1/data/PATH, or with ext_authz what stands
    before the request's own path."""
    timeout: Duration = duration("500ms", "How long a request waits for its answer, connecting included (seconds).")
    ca: Text | None = None
    """A PEM file with the only authorities that the service is verified by; unset: the system's."""
    plain_http: Boolean = False
    """Whether a service of another machine may be asked over plain http: who is on the way can answer for it."""
    headers: Annotated[tuple[HeaderName, ...], one_or_more(HeaderName)] = ()
    """Header fields of the request that it is told. Nothing of a credential, unless it is named here."""
    claims: Annotated[tuple[Claim, ...], one_or_more(Claim)] = ()
    """Claims of the token that it is told, beside subject, issuer, roles and scopes; not with ext_authz."""
    query: Boolean = False
    """Whether it is told the query."""
    forward: Annotated[tuple[HeaderName, ...], one_or_more(HeaderName)] = ()
    """Fields of its answer that the upstream gets; a client's own of these names are removed. With ext_authz alone."""
    token_env: Text | None = None
    """The environment variable with the secret that it is shown (`Authorization: Bearer`)."""
    on_failure: Literal["deny", "admit"] = "deny"
    """While it can't be reached, is late, or has an error of its own (5xx). admit: the request goes on, on record. An
    answer that is no decision, which a client may bring about, denies in either case."""
    cache: DurationOrZero = duration("0s", "How long an answer is good for the very same question (seconds).")

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if not self.plain_http and needs_consent(self.url):
            message = "decisions over plain http: who is on the way can make them"
            raise wrong(message, "use https, or say plain_http: true", at="url", unquoted=message)
        if self.timeout > LONGEST_TIMEOUT:
            raise wrong(f"must be at most {LONGEST_TIMEOUT:g}s", at="timeout")
        if self.cache > LONGEST_CACHE:
            raise wrong("must be at most 1h", at="cache")
        checked = self.protocol == "ext_authz"
        if checked and self.claims:
            raise wrong("a check request has no place for claims", "name header fields", at="claims")
        if checked and "?" in self.url:
            raise wrong("what stands before a path has no query", "leave it out", at="url")
        if self.forward and not checked:
            raise wrong("only an answer of ext_authz has header fields", "leave it out", at="forward")
        for member, names, refused in (
            ("headers", self.headers, FRAMING | _OURS),
            ("forward", self.forward, FRAMING | WRITTEN_BY_THE_GATEWAY),
        ):
            lower = [name.lower() for name in names]
            for name in names:
                if name.lower() in refused:
                    raise wrong(f"{name} is written by the gateway alone", at=member)
                if member == "forward" and name.lower() in READ_BY_THE_GATEWAY:
                    raise wrong(f"{name} of the client is what the gateway goes by", "name another header", at=member)
                if lower.count(name.lower()) > 1:
                    raise wrong(f"{name} is listed twice", at=member)
        if self.token_env is not None and checked and "authorization" in {name.lower() for name in self.headers}:
            raise wrong("two of Authorization: the client's and the gateway's own", "keep one", at="token_env")
        return self


class OfPolicy(Section):
    """Its members of the policy."""

    decision_services: dict[ServiceName, DecisionService] = Field(default={})
    """Services that are asked, by name, whether a request may pass (docs/decisions.md)."""
    decision: Name | None = None
    """The name of the decision service that is asked on every route that says nothing else; unset: none."""


class OfRoute(Section):
    """Its member of a route."""

    decision: Name | None = None
    """The name of the decision service that is asked, once all else admits; none: none is; unset: the policy's
    `decision`."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a service is shown in Authorization, and the PEM of its authorities."""

    token: bytes | None = field(default=None, repr=False)
    ca: bytes | None = field(default=None, repr=False)


class Asks(NamedTuple):
    """The service that each route asks, by the route's name; None: none."""

    of_routes: Mapping[str, Service | None]


type _Key = tuple[Service, bytes]


class Answers(Protocol):
    """Where answers come from."""

    def ask(self, exchange: Exchange, service: Service, asked: Question) -> ServiceAnswer | Awaitable[ServiceAnswer]:
        """Return an answer, or what to wait for."""
        ...

    async def close(self) -> None:
        """End what is on its way."""
        ...


class DecisionServices(Stage):
    """Ask the decision service that the route names.

    Reads: head, route, scheme, client, principal. Writes: service_answer, own_fields. Denies: 403 decision-denied; 503
    decision-unavailable, where there is no answer in time, which with `on_failure: admit` is an observation, or none
    that is exactly of the protocol. 403 rewrite-refused, where the identity fits in no header field. On failure:
    stage-error.
    """

    name: ClassVar[str] = "decision-service"
    section: ClassVar[type[Section]] = OfPolicy
    route_section: ClassVar[type[Section]] = OfRoute
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
        service, said = asked_of(exchange), exchange.service_answer
        if service is None:
            return {}
        read: dict[str, object] = {"service": service.name, "protocol": service.protocol}
        if said is not None:
            read |= {"said": said.said, "why": said.why, "forward": [name.decode("ascii") for name, _ in said.fields]}
        return read

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at, service = route_at(exchange), asked_of(exchange)
        if service is None:
            return []
        return [("decision_services", service.name), (*at, "decision"), ("decision",)]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        service = asked_of(denial.exchange)
        if service is None:
            return []
        name = service.name
        place = denial.place("decision_services", name)
        if denial.step.reason is Reason.DECISION_DENIED:
            return [f"the decision service {name} has to allow it: {place}"]
        if denial.step.reason is Reason.DECISION_UNAVAILABLE:
            return [
                f"the decision service {name} has to answer within {service.timeout:g} s: {place}",
                "offline nobody is asked: a recording has the answers, --assume-decision takes one for given",
            ]
        return []

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count what each service has said."""
        for name in of(loaded.policy, OfPolicy).decision_services:
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
        policy, document = of(loaded.policy, OfPolicy), loaded.document
        used = {of(route, OfRoute).decision or policy.decision for route in loaded.policy.routes}
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

    @classmethod
    def mistakes(cls, document: Document) -> Iterator[Problem]:
        """Find services that are not there, and fields that one would hand on and that somebody else writes."""
        services, what = ("decision_services",), "decision service"
        yield from unknown(document, ("decision",), services, what)
        taken = {_shape(name): "the gateway" for name in identity_headers(document)}
        taken.setdefault(_shape("X-User-Issuer"), "the gateway")
        for at, route in routes(document):
            yield from unknown(document, (*at, "decision"), services, what, "none")
            fields = document.at((*at, "rewrite", "set"))
            for name in fields if isinstance(fields, dict) else ():
                if isinstance(name, str):
                    taken.setdefault(_shape(name), f"the route {route.get('name')}")
        for _, at, name in _handed_on(document):
            who = taken.get(_shape(name))
            if who is not None:
                yield document.problem(at, f"{who} writes {as_written(name)} as well", found="")

    @classmethod
    def fields(cls, document: Document) -> Iterator[tuple[str, str]]:
        """Yield what services hand on."""
        for service, _, name in _handed_on(document):
            yield name, f"the decision service {service}"

    @classmethod
    def read(cls, reader: Reader) -> tuple[Mapping[str, Secrets], tuple[()]]:
        """Read secrets and authorities, by the service's name; what is wrong with them the reader says itself."""
        services, found = reader.document.at(("decision_services",)), dict[str, Secrets]()
        for name in services if isinstance(services, dict) else ():
            service = reader.section(DecisionService, ("decision_services", name))
            if service is not None:
                found[name] = _secrets(reader, service, ("decision_services", name))
        return found, ()

    @classmethod
    def compiled(cls, loaded: Loaded) -> Asks:
        """Take which service each route asks."""
        policy, secrets = of(loaded.policy, OfPolicy), loaded.read[cls.name]
        if not isinstance(secrets, dict):
            raise TypeError("no secrets")
        system = loaded.material.authorities
        services: dict[str | None, Service | None] = {
            name: _service(name, service, secrets.get(name, Secrets()), system)
            for name, service in policy.decision_services.items()
        }
        services |= {None: None, "none": None}
        routes = loaded.policy.routes
        return Asks({route.name: services[of(route, OfRoute).decision or policy.decision] for route in routes})

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Ask, where the route says so."""
        service = asked_of(exchange)
        if exchange.route is None:
            raise LookupError("authorization has not decided")
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


def asked_of(exchange: Exchange) -> Service | None:
    """Return the service that is asked about a request; None: none is, as where it has no route."""
    asks, route = exchange.snapshot.compiled[DecisionServices.name], exchange.route
    if not isinstance(asks, Asks):
        raise TypeError("no services")
    return None if route is None else asks.of_routes[route.name]


def _handed_on(document: Document) -> Iterator[tuple[str, Location, str]]:
    """Yield the fields of answers that go on: the service's name, the place, the field."""
    services = document.at(("decision_services",))
    for service in services if isinstance(services, dict) else ():
        for at, name in named(document, ("decision_services", service, "forward")):
            yield service, at, name


def _shape(name: str) -> bytes:
    return shape(name.lower().encode("ascii", "replace"))


def _field(name: str) -> bytes:
    return name.lower().encode("ascii")


def _secrets(reader: Reader, service: DecisionService, at: Location) -> Secrets:
    token, place = None, (*at, "token_env")
    if service.token_env is not None:
        token = reader.variable(service.token_env, place)
        if token is not None and _BEARER.fullmatch(token) is None:
            message = "the secret is no bearer token (RFC 6750, section 2.1)"
            reader.wrong(place, message, "letters, digits and -._~+/=")
    ca = None if service.ca is None else reader.authorities(service.ca, (*at, "ca"))
    if service.url.lower().startswith("https://") and service.ca is None:
        reader.system_authorities((*at, "url"))
    return Secrets(token, ca)


def _service(name: str, service: DecisionService, secrets: Secrets, system: bytes | None) -> Service:
    return Service(
        name,
        service.protocol,
        service.url,
        service.timeout,
        service.cache,
        tuple(map(_field, service.headers)),
        service.claims,
        service.query,
        tuple((_field(header), header.encode("ascii")) for header in service.forward),
        service.on_failure,
        secrets.token,
        secrets.ca,
        system if secrets.ca is None else None,
    )


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
