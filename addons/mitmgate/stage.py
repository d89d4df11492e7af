"""What a stage of your own is made of: `from mitmgate.stage import Facts, Options, Reason, Stage, Step`.

A policy names the class (`stages`), the gateway makes one object of it for each policy in force and asks its `decide`
once for each request that comes to its place in the chain. docs/stages.md builds one.

A stage can only tighten. It may deny, answer in the service's place, observe, hand fields to the service and keys to
limits; a request is admitted only where every stage of the gateway has admitted it as well, and none is asked after a
denial. What `decide` raises, or returns wrongly, is a denial. That guards against mistakes, not against malice: a stage
is code of the operator, and runs in the gateway's process with all that the process may do.
"""

from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType, get_original_bases
from typing import Any, ClassVar, Final, Literal, NamedTuple, Protocol, get_args, get_origin

from pydantic import BaseModel, ConfigDict

from mitmgate.core.headers import Headers as _Headers
from mitmgate.core.principal import Principal
from mitmgate.core.request import Head, Request
from mitmgate.core.rules import Route
from mitmgate.core.verdict import Outcome

__all__ = [
    "Count",
    "Counter",
    "Facts",
    "Headers",
    "Options",
    "Outcome",
    "Principal",
    "Reason",
    "Reply",
    "Response",
    "Stage",
    "Step",
]

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Options(BaseModel):
    """The members of a stage's entry in the policy, beside those that every entry has (`use`, `after`, …).

    A frozen pydantic model: types, defaults and validators are pydantic's, and what is wrong is told with the place in
    the policy. A docstring below a member is its description.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Reason(NamedTuple):
    """A reason that a stage may give for a denial, an answer or an observation.

    name: kebab-case, in problem bodies, events, metrics and recordings; no other reason of the gateway or of another
    stage may have it. status: the HTTP status, from 400 to 599, of an answer from 200. title: a few words for the
    client (RFC 9457). change: what would have to be otherwise, a phrase for `explain`.
    """

    name: str
    status: int
    title: str
    change: str = ""


class Counter(NamedTuple):
    """State that a stage keeps in the gateway's store: how often each key was counted, as the limits count.

    At most `limit` units of one key in any `window` seconds, exactly, and by all processes together where the store is
    Redis. name: kebab-case. on_store_failure: what is said while Redis is away, as for a limit of the policy.
    """

    name: str
    limit: int
    window: float
    on_store_failure: Literal["deny", "allow", "local"] = "local"


class Count(NamedTuple):
    """What a counter said. admitted: there was room for one more, and it was taken; else nothing was.

    remaining: units left. retry_after: seconds until there is room; 0 where there is. degraded: said without Redis.
    """

    admitted: bool
    remaining: int
    retry_after: float
    degraded: bool


class Step(NamedTuple):
    """What a stage says of one request. Made by the methods of `Stage`, which say what the members mean."""

    stage: str
    outcome: Outcome
    reason: str = ""
    detail: str = ""
    fields: Mapping[str, str] = _NOTHING
    keys: Mapping[str, str] = _NOTHING
    body: bytes = b""


class Reply(NamedTuple):
    """What a stage says of a response. Made by `Stage.reply`, which says what the members mean."""

    fields: Mapping[str, str | None] = MappingProxyType({})
    event: Mapping[str, str | int | float | bool | None] = MappingProxyType({})


class Headers:
    """Header fields, read-only. Names are looked up without regard to case; values are text (ISO-8859-1)."""

    __slots__ = ("__headers",)

    __headers: _Headers

    def __init__(self, headers: _Headers) -> None:
        """headers: as the client sent them, without what is never believed (docs/headers.md)."""
        object.__setattr__(self, "_Headers__headers", headers)

    def get(self, name: str) -> str | None:
        """Return the values of a name, joined by ", " where there are several; None where there is none."""
        return self.__headers.text(name)

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a name, in order."""
        return tuple([value.decode("latin-1") for value in self.__headers.all(name.lower().encode("latin-1"))])

    def __contains__(self, name: str) -> bool:
        return name.lower().encode("latin-1") in self.__headers

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Go through names, as they were sent, and values."""
        return iter([(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.__headers.fields])

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"fields of a request are read-only: {name} can't be set")


class _Known(Protocol):
    """What the gateway has found out of a request so far (pipeline.exchange.Exchange)."""

    @property
    def request(self) -> Request: ...
    @property
    def request_id(self) -> str: ...
    @property
    def now(self) -> float: ...
    @property
    def client(self) -> IPv4Address | IPv6Address | None: ...
    @property
    def scheme(self) -> str: ...
    @property
    def head(self) -> Head | None: ...
    @property
    def route(self) -> Route | None: ...
    @property
    def principal(self) -> Principal | None: ...


class Response(NamedTuple):
    """The head of a service's response, read-only. status: its code; headers: its fields, hop-by-hop ones left out."""

    status: int
    headers: Headers


class _Counters(Protocol):
    """Counts for a stage (stages.own)."""

    async def take(self, known: Any, counter: str, key: str) -> Count: ...


class Facts:
    """What is known of a request at a stage's place in the chain: read-only, and good for this one call.

    Whatever is not known yet is None: `route` before the stage `routing`, `principal` before `authentication`.
    """

    __slots__ = ("__counters", "__known")

    __known: _Known
    __counters: _Counters

    def __init__(self, known: _Known, counters: _Counters) -> None:
        """known: the request's exchange. counters: of the stage that is asked."""
        _put_known(self, known)
        _put_counters(self, counters)

    async def take(self, counter: str, key: str) -> Count:
        """Count one more of a key, where there is room. counter: the name of one of the stage's counters.

        key: whose it is, such as an address; a long one is counted by its digest. With a store in memory there is
        nothing to wait for; Redis is asked once, and after its timeout `on_store_failure` speaks.
        """
        return await self.__counters.take(self.__known, counter, key)

    @property
    def method(self) -> str:
        """The method, as it was sent: "GET"."""
        return self.__head.method

    @property
    def path(self) -> str:
        """The canonical path that routing, rules and the service see: begins with "/", still percent-encoded."""
        return self.__head.path

    @property
    def query(self) -> str | None:
        """The raw text behind the "?"; None where there is none."""
        return self.__head.query

    @property
    def host(self) -> str:
        """The host that was asked for: lower-case, without a port; "" for an HTTP/1.0 request without one."""
        return self.__head.host

    @property
    def headers(self) -> Headers:
        """The header fields, the client's credentials among them."""
        return Headers(self.__head.headers)

    @property
    def version(self) -> str:
        """The protocol between client and gateway: "HTTP/1.0", "HTTP/1.1" or "HTTP/2.0"."""
        return self.__known.request.version

    @property
    def scheme(self) -> str:
        """What the client used, "http" or "https", as far as a trusted proxy may tell."""
        return self.__known.scheme

    @property
    def client(self) -> IPv4Address | IPv6Address | None:
        """The client's address, behind the trusted proxies; None where nobody can tell."""
        return self.__known.client

    @property
    def certificate(self) -> str | None:
        """The subject of the client's verified certificate."""
        return self.__known.request.certificate

    @property
    def body_length(self) -> int | None:
        """The declared length of the body in bytes, 0 where there is none; None where it is not known (chunked)."""
        return self.__known.request.declared_body

    @property
    def route(self) -> str | None:
        """The name of the policy's route; None before `routing`, and where no route takes the request."""
        route = self.__known.route
        return None if route is None else route.name

    @property
    def principal(self) -> Principal | None:
        """The verified identity: subject, issuer (the policy's name), roles, scopes, claims; None: there is none.

        Claims can't be changed: mappings are read-only, lists are tuples.
        """
        principal = self.__known.principal
        return None if principal is None else replace(principal, claims=_frozen(dict(principal.claims)))

    @property
    def now(self) -> float:
        """When the request arrived, in Unix seconds. A stage that asks a clock instead can't be replayed."""
        return self.__known.now

    @property
    def request_id(self) -> str:
        """The request's id, as in the audit event and in X-Request-ID."""
        return self.__known.request_id

    @property
    def __head(self) -> Head:
        head = self.__known.head
        if head is None:
            raise LookupError("the head was not made")
        return head

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"facts of a request are read-only: {name} can't be set")


# What plain assignments would be.
_put_known: Final[Any] = Facts.__dict__["_Facts__known"].__set__
_put_counters: Final[Any] = Facts.__dict__["_Facts__counters"].__set__
_new: Final = object.__new__


def facts_of(known: _Known, counters: _Counters) -> Facts:
    """Do what `Facts(known, counters)` does, in half the time: for every request. Called by the gateway."""
    made = _new(Facts)
    _put_known(made, known)
    _put_counters(made, counters)
    return made


def _frozen(value: Any) -> Any:
    """Return a JSON value that nobody can change."""
    if isinstance(value, dict):
        return MappingProxyType({name: _frozen(member) for name, member in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class Stage[O: Options]:
    """A stage of your own: `class BotGuard(Stage[BotGuardOptions])`, with its declarations and `decide`.

    reasons: every reason that it may give. sets: the header fields that it may hand to the service; a client's own
    fields of these names are removed. keys: the names under which it hands texts to limits, which count by them as
    `stage:NAME:KEY`, where NAME is the stage's name in the policy. response_fields: the fields of responses that it
    may set or remove. options_model: follows from `Stage[...]`.

    One object is asked for many requests, in no order that it can rely on; what it keeps in itself is its process's
    alone, and starts anew with each policy.
    """

    reasons: ClassVar[tuple[Reason, ...]] = ()
    sets: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar[tuple[str, ...]] = ()
    response_fields: ClassVar[tuple[str, ...]] = ()
    options_model: ClassVar[type[Options]] = Options

    def __init_subclass__(cls) -> None:
        """Find the options' model."""
        super().__init_subclass__()
        for base in get_original_bases(cls):
            if get_origin(base) is Stage and isinstance(get_args(base)[0], type):
                cls.options_model = get_args(base)[0]

    def __init__(self, name: str, options: O) -> None:
        """name: of the entry in the policy. options: its members, validated. What this raises refuses the policy."""
        self.name = name
        self.options = options
        self._admitted = Step(name, Outcome.ADMIT)
        self._skipped = Step(name, Outcome.SKIP)

    def decide(self, facts: Facts) -> Step | Awaitable[Step]:
        """Decide on one request: return what one of the methods below has made. May be `async def`.

        A plain function is not interrupted: while it computes, nothing else of the process goes on. One that waits
        is cancelled after the entry's `timeout`.
        """
        raise NotImplementedError

    def respond(self, facts: Facts, response: Response) -> Reply | None:
        """Look at the head of the service's response to a request that was admitted, before the client gets any of it.

        A plain function, and only where a stage has one of its own. Return what `reply` has made; None: nothing. What
        it raises, or returns wrongly, keeps the response from the client, who gets a 503 `stage-error` in its place:
        the service has done its work by then, and the event says so.
        """
        return None

    def counters(self) -> tuple[Counter, ...]:
        """Return the counters that `facts.take` may name, made of the options; asked once for each object."""
        return ()

    def warnings(self) -> Iterator[str] | tuple[str, ...]:
        """Return what `check` should warn of in this entry, one sentence without a full stop for each."""
        return ()

    def admit(self, *, fields: Mapping[str, str] = _NOTHING, keys: Mapping[str, str] = _NOTHING) -> Step:
        """Let the request go on to the next stage.

        fields: of the request to the service, by names of `sets`; visible ASCII, 1,024 characters at most. keys: texts
        for limits, by names of `keys`; 128 characters at most.
        """
        if fields or keys:
            return Step(self.name, Outcome.ADMIT, fields=fields, keys=keys)
        return self._admitted

    def skip(self) -> Step:
        """Let the request go on; there was nothing to decide."""
        return self._skipped

    def observe(
        self,
        reason: str,
        detail: str = "",
        *,
        fields: Mapping[str, str] = _NOTHING,
        keys: Mapping[str, str] = _NOTHING,
    ) -> Step:
        """Let the request go on, and record that it would have been denied. Arguments: as of `deny` and `admit`."""
        return Step(self.name, Outcome.OBSERVE, reason, detail, fields, keys)

    def deny(self, reason: str, detail: str = "", *, fields: Mapping[str, str] = _NOTHING) -> Step:
        """Refuse the request with a problem of the reason's status and title.

        reason: a name of `reasons`. detail: one sentence that the client reads, 200 characters at most: no internals,
        no credential. fields: further fields of the response, such as Retry-After.
        """
        return Step(self.name, Outcome.DENY, reason, detail, fields)

    def reply(
        self,
        *,
        fields: Mapping[str, str | None] = MappingProxyType({}),
        event: Mapping[str, str | int | float | bool | None] = MappingProxyType({}),
    ) -> Reply:
        """Say something of a response.

        fields: by names of `response_fields`; a text takes the place of what the service has sent, None removes it.
        event: members of an audit event of its own, of the kind `stage`: 16 at most, names of letters, digits and "_",
        texts of 500 characters at most.
        """
        return Reply(fields, event)

    def answer(self, reason: str, body: bytes = b"", *, fields: Mapping[str, str] = _NOTHING) -> Step:
        """Answer in the service's place, with the reason's status. fields: of the response, Content-Type among them.

        The service never sees the request. body: 64 KiB at most.
        """
        return Step(self.name, Outcome.ANSWER, reason, "", fields, body=body)
