"""Own: the place of a stage of the operator's own in the chain, and the wall around it.

It asks the operator's object (`mitmgate.stage.Stage`), and makes a step of the chain of what that returns. Whatever is
not exactly what a stage may say is an exception here, which the chain's runner turns into a denial.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator
from hashlib import blake2b
from inspect import isawaitable
from itertools import islice
from time import perf_counter, time
from typing import Final

from mitmproxy.http import HTTPFlow, Response

from mitmgate import stage
from mitmgate.audit.event import rfc3339
from mitmgate.audit.record import Event
from mitmgate.core.headers import Headers
from mitmgate.core.limit import Limit
from mitmgate.core.reason import Reason
from mitmgate.core.rewrite import header_safe
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.core.window import Take
from mitmgate.descriptors import Seldom, SeldomEach
from mitmgate.pipeline.coverage import WENT_ON, Branch, Rule
from mitmgate.pipeline.exchange import Answer, Exchange, exchange_of
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.own_stages import Own
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.scalars import FRAMING, TOKEN
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stores.protocol import CounterStore

logger = logging.getLogger(__name__)
_seldom, _unended = SeldomEach(logger), Seldom(logger)

LONGEST_DETAIL: Final = 200
LONGEST_FIELD: Final = 1024
LONGEST_KEY: Final = 128
LARGEST_BODY: Final = 64 << 10
MOST_MEMBERS: Final = 16
LONGEST_WORD: Final = 500
MOST_WARNINGS: Final = 100
"""Warnings that one stage is asked for."""
MOST_LEFT_BEHIND: Final = 100
"""Calls beyond their timeout that ignore being cancelled; as many more are not begun."""
SAY_EVERY: Final = 60.0
"""Seconds between two warnings that one stage is slow."""

_PROBLEM: Final = frozenset({"content-type", "cache-control"})  # what a problem says of itself
_TOKEN: Final = re.compile(TOKEN)
_NOTED: Final = frozenset(
    name for name, member in vars(stage.Facts).items() if isinstance(member, property) and not name.startswith("_")
)


class OwnStage(Stage):
    """Ask one stage of the operator's own. Its name is that of the policy's entry.

    Reads: what `stage.Facts` shows. Writes: exchange.own_fields, exchange.own_keys, exchange.answer. Denies, answers
    and observes with the reasons that the stage declares. On failure, which a result that says too much is too, and
    one that comes after the entry's `timeout`: stage-error.
    """

    def __init__(self, store: CounterStore, emit: Callable[[Event], object], offline: bool = False) -> None:
        """store: where its counters are. emit: takes its events. offline: nothing is waited for, reading is noted."""
        self._offline = offline
        self._emit = emit
        self._respond: Callable[[stage.Facts, stage.Response], object] = _nobody
        self._counters = _Counters(store)
        self._own: Own | None = None
        self._ask: Callable[[stage.Facts], object] = _nobody
        self._admit = self._skip = stage.Step("", Outcome.SKIP)
        self._left: set[asyncio.Task[object]] = set()
        self._done = False
        self._slow = 0  # requests that took long since the last line about it
        self._said = float("-inf")

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return dict(exchange.own_read.get(self.name, {}))

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        return [("stages", self.name)]

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count how often it let a request go on, and each of its reasons."""
        own = loaded.stages[cls.name]
        yield Rule(("stages", own.name), f"stage {own.name}", (WENT_ON, *own.reasons))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        own = exchange.snapshot.own[self.name]
        if step.reason.code in own.reasons:
            yield ("stages", self.name), step.reason.code
        elif step.outcome is not Outcome.DENY:  # not a failure
            yield ("stages", self.name), WENT_ON

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Ask the stage; that it can't say is worth a warning, too."""
        own = loaded.stages[cls.name]
        try:
            said = own.make().warnings()
            texts = [said] if isinstance(said, str) else [str(text) for text in islice(said, MOST_WARNINGS)]
        except BaseException as error:  # SystemExit, say, which would end `check`, or the start of a gateway
            texts = [f"its warnings can't be asked for: {type(error).__name__}"]
        for text in texts:
            yield loaded.document.warning(("stages", own.name), Code.STAGE_WARNS, text, key=True)

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Ask the stage, and hold what it says to what it may say."""
        own = exchange.snapshot.own[self.name]
        if own is not self._own:
            self._adopt(own)
        if self._offline:
            facts: stage.Facts = _Noting(exchange, self._counters, self.name)
        else:
            facts = stage.facts_of(exchange, self._counters)
        started = perf_counter()
        try:
            said = self._ask(facts)
        except Exception:
            raise
        except BaseException as error:  # SystemExit, say, which would end the process
            raise RuntimeError(f"decide raised {type(error).__name__}") from error
        if said is self._admit and perf_counter() - started <= own.slow:
            return self.admitted
        if type(said) is stage.Step or not isawaitable(said):
            return self._step(exchange, own, said, perf_counter() - started)
        if self._offline:
            return self._wait_offline(exchange, own, said)
        if len(self._left) >= MOST_LEFT_BEHIND:
            _drop(said)
            raise TimeoutError(f"{MOST_LEFT_BEHIND} calls of it that were cancelled still run")
        task = asyncio.Task(_contained(said), loop=asyncio.get_running_loop(), eager_start=True)
        if task.done():
            return self._step(exchange, own, task.result(), perf_counter() - started)
        return self._wait(exchange, own, task, started)

    def _adopt(self, own: Own) -> None:
        """Make the object for a policy that has come in force."""
        self._own, self._ask = None, _nobody
        asked = own.make()
        self._admit, self._skip = asked.admit(), asked.skip()
        self._counters.limits = {counter.name: _limit(self.name, counter) for counter in asked.counters()}
        self._own, self._ask, self._respond = own, asked.decide, asked.respond

    async def _wait_offline(self, exchange: Exchange, own: Own, pending: Awaitable[object]) -> Step:
        return self._step(exchange, own, await _contained(pending), 0.0)

    async def _wait(self, exchange: Exchange, own: Own, task: "asyncio.Task[object]", started: float) -> Step:
        try:
            await asyncio.wait({task}, timeout=own.timeout)
        finally:
            if not task.done():
                self._left.add(task)
                task.add_done_callback(self._ended)
                task.cancel()
                if self._done:
                    _end(task)
        if task in self._left:
            raise TimeoutError(f"it took longer than its timeout of {own.timeout:g} s")
        if task.cancelled():
            raise RuntimeError("decide cancelled itself")
        return self._step(exchange, own, task.result(), perf_counter() - started)

    def done(self) -> None:
        """End what has ignored being cancelled: the process would wait for it at its end."""
        self._done = True
        for task in self._left:
            _end(task)

    def _ended(self, task: "asyncio.Task[object]") -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for it any more

    def _step(self, exchange: Exchange, own: Own, said: object, took: float) -> Step:
        """Make a step of what the stage has said. Raises where that is not what a stage may say."""
        if took > own.slow and not self._offline:
            if took > own.timeout:
                raise TimeoutError(f"it took {took:.3f} s, longer than its timeout of {own.timeout:g} s")
            self._warn(own, took)
        if said is self._admit:
            return self.admitted
        if said is self._skip:
            return self.skipped
        if type(said) is not stage.Step:
            raise TypeError(f"decide returned {type(said).__name__}, which is no Step")
        if said.stage != self.name:
            raise ValueError(f"decide spoke for the stage {said.stage!r}")
        if type(said.outcome) is not Outcome:
            raise ValueError(f"there is no outcome {said.outcome!r}")
        if said.outcome in {Outcome.ADMIT, Outcome.SKIP, Outcome.OBSERVE}:
            return self._go_on(exchange, own, said)
        reason = _reason(own, said)
        fields = _response_fields(said)
        body = _body(reason, said)
        if own.mode == "report":
            return Step(self.name, Outcome.OBSERVE, reason, _detail(said))
        if said.outcome is Outcome.ANSWER:
            exchange.answer = Answer(reason.status, fields, body)
            return Step(self.name, Outcome.ANSWER, reason)
        step = self.deny(reason, _detail(said))
        if fields:
            exchange.answer = Answer(reason.status, fields)
        return step

    def _go_on(self, exchange: Exchange, own: Own, said: stage.Step) -> Step:
        if said.body:
            raise ValueError("only an answer has a body")
        made = {}
        for name, value in said.fields.items():
            written = own.sets.get(name.lower())
            if written is None:
                raise ValueError(f"it sets {name!r}, which it does not declare")
            made[written] = _value(name, value)
        keys = {}
        for name, text in said.keys.items():
            if name not in own.keys:
                raise ValueError(f"it hands over the key {name!r}, which it does not declare")
            if type(text) is not str or len(text) > LONGEST_KEY:
                raise ValueError(f"the key {name} has to be a text of {LONGEST_KEY} characters at most")
            keys[f"{self.name}:{name}"] = text
        if said.outcome is Outcome.OBSERVE:
            step = Step(self.name, Outcome.OBSERVE, _reason(own, said), _detail(said))
        elif said.reason or said.detail:
            raise ValueError(f"a request that goes on has no reason: {said.reason!r}")
        else:
            step = self.admitted if said.outcome is Outcome.ADMIT else self.skipped
        exchange.own_fields += tuple(made.items())
        if keys:
            exchange.own_keys = {**exchange.own_keys, **keys}
        return step

    def respond(self, flow: HTTPFlow) -> None:
        """Take mitmproxy's hook `responseheaders`, where the stage looks at responses: those of services alone."""
        exchange, response = exchange_of(flow), flow.response
        if exchange is None or response is None or not exchange.admitted or exchange.failure is not None:
            return
        if exchange.check is not None:
            return  # no service has answered
        try:
            self._reply(exchange, response)
        except BaseException as error:  # SystemExit, say, which would end the process
            exchange.response_refused = True
            _seldom.failed("stage %s failed on a response: %s", self.name, error)

    def _reply(self, exchange: Exchange, response: Response) -> None:
        own = exchange.snapshot.own[self.name]
        if own is not self._own:
            self._adopt(own)
        fields = response.data.headers.fields
        shown = stage.Response(response.data.status_code, stage.Headers(Headers(fields)))
        started = perf_counter()
        said = self._respond(stage.facts_of(exchange, self._counters), shown)
        took = perf_counter() - started
        if took > own.timeout:
            raise TimeoutError(f"it took {took:.3f} s, longer than its timeout of {own.timeout:g} s")
        if took > own.slow:
            self._warn(own, took)
        if said is None:
            return
        if type(said) is not stage.Reply:
            if isawaitable(said):
                _drop(said)
            raise TypeError(f"respond returned {type(said).__name__}, which is no Reply")
        event = _event(said)
        made = []
        for name, value in said.fields.items():
            if name.lower() not in own.response_fields:
                raise ValueError(f"it sets {name!r} in a response, which it does not declare")
            if value is not None:
                made.append((name.encode("ascii"), _value(name, value)))
        names = {name.lower().encode("ascii") for name in said.fields}
        if names:
            kept = [field for field in fields if field[0].lower() not in names]
            response.data.headers.fields = (*kept, *made)
        if event:
            now = rfc3339(time())
            self._emit(
                {"time": now, "event": "stage", "stage": self.name, "request_id": exchange.request_id, "said": event}
            )

    def _warn(self, own: Own, took: float) -> None:
        """Say that the stage is slow; in the log once a minute."""
        self.slow(took)
        self._slow += 1
        now = perf_counter()
        if now - self._said >= SAY_EVERY:
            since = f", and {self._slow} requests since the last such line" if self._slow > 1 else ""
            logger.warning("stage %s took %.3f s for a request, its slow is %g s%s", self.name, took, own.slow, since)
            self._said, self._slow = now, 0


class _Counters:
    """A stage's counters in the store that the limits have, under names of their own."""

    __slots__ = ("_store", "limits")

    def __init__(self, store: CounterStore) -> None:
        self._store = store
        self.limits: dict[str, Limit] = {}

    async def take(self, known: Exchange, counter: str, key: str) -> stage.Count:
        limit = self.limits.get(counter)
        if limit is None or type(key) is not str:
            raise ValueError(f"it counts {counter!r}, which it does not declare, or by what is no text")
        if len(key) > LONGEST_KEY:
            key = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        taken = self._store.take([Take(limit, f"{limit.prefix}={key}")], known.started)
        (grant,) = taken if isinstance(taken, list) else await taken
        return stage.Count(grant.admitted, grant.remaining, grant.retry_after, grant.degraded)


def _limit(name: str, counter: stage.Counter) -> Limit:
    """Make the limit that a counter is. No limit of a policy has a colon in its name."""
    return Limit(
        f"stage:{name}:{counter.name}",
        counter.limit,
        counter.window,
        ("stage",),
        on_store_failure=counter.on_store_failure,
    )


def own_stage(own: Own, store: CounterStore, emit: Callable[[Event], object], offline: bool = False) -> OwnStage:
    """Make the place of a stage."""
    return own_class(own)(store, emit, offline)


def own_class(own: Own) -> type[OwnStage]:
    """Make the class of a stage's place: a stage's name belongs to its class, and so do hooks."""
    members: dict[str, object] = {"name": own.name, "reasons": tuple(own.reasons.values())}
    if own.code.made_of.respond is not stage.Stage.respond:
        members["responseheaders"] = OwnStage.respond
    return type("OwnStage", (OwnStage,), members)


def _nobody(*given: object) -> object:
    raise LookupError("there is no stage to ask")


async def _contained(pending: Awaitable[object]) -> object:
    """Wait for a stage; what would end the process, or the event loop, is an exception like any other."""
    try:
        return await pending
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        raise RuntimeError(f"decide raised {type(error).__name__}") from error


def _end(task: "asyncio.Task[object]") -> None:
    """End the coroutine of a task, and so the task, which is cancelled once more and finds nothing to go on with."""
    try:
        _drop(task.get_coro())
    except (RuntimeError, ValueError) as error:  # it ignores that, too, or runs at this moment
        _unended.log(logging.ERROR, "a call of a stage can't be ended: %r", error)


def _drop(pending: object) -> None:
    close = getattr(pending, "close", None)
    if close is not None:
        close()


def _reason(own: Own, said: stage.Step) -> Reason:
    reason = own.reasons.get(said.reason)
    if reason is None:
        raise ValueError(f"it gives the reason {said.reason!r}, which it does not declare")
    if reason.status < 400 and said.outcome is not Outcome.ANSWER:
        raise ValueError(f"the reason {said.reason} has the status {reason.status}, which refuses nothing")
    return reason


def _detail(said: stage.Step) -> str:
    detail = said.detail
    if type(detail) is not str or len(detail) > LONGEST_DETAIL or not detail.isprintable():
        raise ValueError(f"the detail has to be a text of {LONGEST_DETAIL} printable characters at most")
    return detail


def _value(name: str, value: str) -> bytes:
    made = header_safe(value) if type(value) is str and len(value) <= LONGEST_FIELD else None
    if made is None:
        raise ValueError(f"{name} has to have visible ASCII as its value, {LONGEST_FIELD} characters at most")
    return made


def _response_fields(said: stage.Step) -> tuple[tuple[bytes, bytes], ...]:
    if said.keys:
        raise ValueError("a request that ends here has no keys")
    made = []
    for name, value in said.fields.items():
        lower = name.lower()
        if _TOKEN.fullmatch(name) is None or lower in FRAMING:
            raise ValueError(f"{name!r} is no field that a response may be given")
        if lower in _PROBLEM and said.outcome is Outcome.DENY:
            raise ValueError(f"a problem has a {name} of its own")
        made.append((name.encode("ascii"), _value(name, value)))
    return tuple(made)


def _event(said: stage.Reply) -> dict[str, object]:
    """Take the members of an event: plain values, few and short."""
    event = dict(said.event)
    if len(event) > MOST_MEMBERS:
        raise ValueError(f"an event may have {MOST_MEMBERS} members")
    for name, value in event.items():
        if type(name) is not str or re.fullmatch(r"[A-Za-z0-9_]{1,40}", name) is None:
            raise ValueError(f"an event has no member {name!r}")
        if type(value) not in {str, int, float, bool, type(None)} or (type(value) is str and len(value) > LONGEST_WORD):
            raise ValueError(f"{name} has to be a number, true, false, or a text of {LONGEST_WORD} characters at most")
    return {**event}


def _body(reason: Reason, said: stage.Step) -> bytes:
    body = said.body
    if type(body) is not bytes or len(body) > LARGEST_BODY:
        raise ValueError(f"the body of an answer has to be {LARGEST_BODY} bytes at most")
    if body and (said.outcome is Outcome.DENY or reason.status in {204, 205, 304}):
        raise ValueError(f"there is no body with {said.outcome} {reason.status}")
    return body


class _Noting(stage.Facts):
    """Facts that note what was read of them, in exchange.own_read."""

    __slots__ = ("_exchange", "_read")

    def __init__(self, exchange: Exchange, counters: _Counters, name: str) -> None:
        super().__init__(exchange, counters)
        read: dict[str, object] = {}
        exchange.own_read = {**exchange.own_read, name: read}
        object.__setattr__(self, "_read", read)
        object.__setattr__(self, "_exchange", exchange)

    def __getattribute__(self, name: str) -> object:
        value = object.__getattribute__(self, name)
        if name not in _NOTED:
            return value
        read: dict[str, object] = object.__getattribute__(self, "_read")
        exchange: Exchange = object.__getattribute__(self, "_exchange")
        if name == "headers" and exchange.head is not None:
            return _NotingHeaders(exchange.head.headers, read)
        if isinstance(value, stage.Principal):
            read["subject"], read["issuer"] = value.subject, value.issuer
        else:
            read[name] = value if isinstance(value, str | int | float | None) else str(value)
        return value


class _NotingHeaders(stage.Headers):
    """Header fields that note which of them were looked up."""

    __slots__ = ("_read",)

    def __init__(self, headers: Headers, read: dict[str, object]) -> None:
        super().__init__(headers)
        object.__setattr__(self, "_read", read)

    def get(self, name: str) -> str | None:
        value = super().get(name)
        self._note(name, value)
        return value

    def all(self, name: str) -> tuple[str, ...]:
        values = super().all(name)
        self._note(name, ", ".join(values) if values else None)
        return values

    def __contains__(self, name: str) -> bool:
        self._note(name, super().get(name))
        return super().__contains__(name)

    def _note(self, name: str, value: str | None) -> None:
        read: dict[str, object] = object.__getattribute__(self, "_read")
        found = read.setdefault("headers", {})
        if isinstance(found, dict):
            found[name.lower()] = value
