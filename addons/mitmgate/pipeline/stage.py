"""The base of every stage: run once, time it, turn anything unexpected into a denial."""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from inspect import isawaitable
from time import perf_counter, time
from typing import ClassVar, Protocol

from mitmproxy.http import HTTPFlow
from mypy_extensions import mypyc_attr

from mitmgate.audit.event import stage_failed, stage_slow
from mitmgate.audit.record import Event
from mitmgate.core.reason import EVERY_STAGE, Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.descriptors import SeldomEach
from mitmgate.pipeline.coverage import Branch, Outside, Rule
from mitmgate.pipeline.exchange import Exchange, exchange_of, reports
from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.material import Reader
from mitmgate.policy.problem import Location, Problem
from mitmgate.policy.section import Section
from mitmgate.policy.snapshot import Snapshot

_seldom = SeldomEach(logging.getLogger(__name__))  # a stage may fail on every request

SLOW = 1.0
"""Seconds of a built-in stage that are worth an event; for those of the operator's own the policy says it."""
TOLD_EVERY = 10.0
"""Seconds between two events of one kind that are about one stage."""
NEVER_OBSERVED = frozenset(
    {
        Reason.STAGE_ERROR,
        Reason.NO_ROUTE,
        Reason.METHOD_NOT_ALLOWED,
        Reason.PATH_AMBIGUOUS,
        Reason.ADDRESS_UNKNOWN,
    }
)
"""Denials that stay final in report mode: nothing was decided, there is no upstream to go to, or no client to name."""


class Denial(Protocol):
    """A denial, or an observation, that `explain` asks about the stage that has made it."""

    @property
    def exchange(self) -> Exchange:
        """The request."""
        ...

    @property
    def step(self) -> Step:
        """What the stage has said."""
        ...

    @property
    def token(self) -> UnverifiedToken | None:
        """What the request's token says, believed or not."""
        ...

    def place(self, *location: str | int) -> str:
        """Name a member of the policy, with its file and line; "" where the file does not have it."""
        ...

    def member(self, *names: str | int) -> str:
        """Name the place of a member of the route."""
        ...


class _Occurrences:
    """What happens to one stage again and again, and is told every TOLD_EVERY seconds at the most."""

    __slots__ = ("_count", "_last")

    def __init__(self) -> None:
        self._count = 0
        self._last = float("-inf")

    def due(self) -> int:
        """Count once more; return how many there are to tell of, 0: it is too early."""
        self._count += 1
        now = perf_counter()
        if now < self._last + TOLD_EVERY:
            return 0
        count, self._count, self._last = self._count, 0, now
        return count


@mypyc_attr(allow_interpreted_subclasses=True)
class Stage:
    """One policy point, a mitmproxy addon whose `requestheaders` hook runs `decide`.

    mitmproxy logs an addon's exception and lets the request go on (`addonmanager.safecall`), so a stage never
    lets one out: whatever `decide` raises, and whatever it returns that is no Step of its own with a reason that it
    declares, is a denial with the reason `stage-error`. Denials are written to the flow by Enforcer alone.
    """

    name: ClassVar[str]
    reportable: ClassVar[bool] = True  # whether report mode turns this stage's denials into observations
    reasons: ClassVar[tuple[Reason, ...]] = ()
    """Why it may deny, answer or observe, beside core.reason.EVERY_STAGE; any other reason makes a `stage-error`."""
    section: ClassVar[type[Section]] = Section
    """Its members of the policy: a model whose fields stand beside the policy's others."""
    route_section: ClassVar[type[Section]] = Section
    """Its members of each route, likewise."""
    changes: ClassVar[Mapping[Reason, str]] = {}
    """What would have to be otherwise, by the reason of a denial, where no more can be said of it; for `explain`."""

    def __init_subclass__(cls) -> None:
        """Make the steps that a stage says most often, once."""
        super().__init_subclass__()
        cls._may_give = frozenset((*EVERY_STAGE, *cls.reasons))
        if hasattr(cls, "name"):
            cls.admitted = Step(cls.name, Outcome.ADMIT, Reason.OK)
            cls.skipped = Step(cls.name, Outcome.SKIP, Reason.NOT_APPLICABLE)

    admitted: ClassVar[Step]
    skipped: ClassVar[Step]
    _may_give: ClassVar[frozenset[Reason]] = frozenset(EVERY_STAGE)
    slow_after: ClassVar[float] = SLOW
    """Seconds after which an answer that had to be waited for is on record as slow."""
    tell: Callable[[Event], None] | None = None
    """Takes audit events; set by the chain."""
    _row: "Row | None" = None
    _failures: "_Occurrences | None" = None
    _delays: "_Occurrences | None" = None

    @classmethod
    def mistakes(cls, document: Document) -> Iterator[Problem]:
        """Yield errors in a policy that its sections can't see alone, such as names that nothing has."""
        return iter(())

    @classmethod
    def fields(cls, document: Document) -> Iterator[tuple[str, str]]:
        """Yield the fields of requests that it writes because its members say so, and in whose name, for messages.

        A client's own of these names are removed on every route, and the operator's stages must not set them. Also of
        a policy with mistakes in it.
        """
        return iter(())

    @classmethod
    def read(cls, reader: Reader) -> tuple[object, Sequence[Problem]]:
        """Read what its members name, such as files, also where other members are wrong; and say what is wrong with it.

        What was read is in `Loaded.read` by the stage's name; of what counts, the hash belongs into `material.hashes`.
        """
        return None, ()

    @classmethod
    def compiled(cls, loaded: Loaded) -> object:
        """Make what it decides by of a valid policy, frozen: `exchange.snapshot.compiled[self.name]`."""
        return None

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Read values, return this stage's step. Stages that wait for a store return an awaitable."""
        raise NotImplementedError

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what the stage has read of a request that it has decided on, as plain values, for `explain`."""
        return {}

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy that it went by, for `explain`; those that the file leaves out do no harm."""
        return []

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise, in the request or the policy, one phrase for each way; for `explain`."""
        change = self.changes.get(denial.step.reason)
        return [] if change is None else [change]

    def condition(self, exchange: Exchange) -> str | None:
        """Return the CEL expression that it has evaluated, which `explain` takes apart; None where there is none."""
        return None

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Yield the rules that the stage goes by and that traffic can exercise, for `--coverage`."""
        return iter(())

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Yield what a request has exercised of the rules. step: what the stage has said of it.

        token: what the request's token says, believed or not.
        """
        return iter(())

    def outside(self, exchange: Exchange, step: Step) -> Outside | None:
        """Say what a request was that the route's document does not describe; None: it does, or there is none."""
        return None

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Yield what `check` warns of in what the stage goes by. snapshot: what the policy was compiled to."""
        return iter(())

    def deny(self, reason: Reason, detail: str = "") -> Step:
        """Make a denial. detail is shown to the client: no internals, no upstream address, no credential."""
        return Step(self.name, Outcome.DENY, reason, detail)

    def requestheaders(self, flow: HTTPFlow) -> Awaitable[None] | None:
        """Take mitmproxy's hook; a flow without exchange is left to Enforcer, which denies it."""
        exchange = exchange_of(flow)
        return None if exchange is None else self.run(exchange)

    def run(self, exchange: Exchange) -> Awaitable[None] | None:
        """Decide and record. Returns an awaitable only where the stage has to wait."""
        row = self._row
        if row is None:
            row = self._row = Row((self,))
        return row.run(exchange)

    def record(self, exchange: Exchange, step: object, started: float) -> Awaitable[None] | None:
        """Record what `decide` has returned, whatever that is. started: when (perf_counter) it was called."""
        if isinstance(step, Step):
            self._record(exchange, step, started)
            return None
        if isawaitable(step):
            return self._run_later(exchange, step, started)
        self._record(exchange, self.failed(TypeError(f"{self.name} returned {type(step).__name__}")), started)
        return None

    async def _run_later(self, exchange: Exchange, pending: Awaitable[Step], started: float) -> None:
        try:
            step = await pending
            if not isinstance(step, Step):
                raise TypeError(f"{self.name} returned {type(step).__name__}")
        except Exception as error:
            step = self.failed(error)
        self._record(exchange, step, started)

    def _record(self, exchange: Exchange, step: Step, started: float) -> None:
        if step.stage != self.name:
            step = self.failed(ValueError(f"{self.name} spoke as {step.stage}"))
        elif type(step.outcome) is not Outcome:
            step = self.failed(ValueError(f"{self.name} has no outcome {step.outcome!r}"))
        elif type(step.reason) is not Reason or step.reason not in self._may_give:
            code = step.reason.code if type(step.reason) is Reason else repr(step.reason)
            step = self.failed(ValueError(f"{self.name} gives the reason {code}, which it does not declare"))
        elif (
            step.outcome is Outcome.DENY and self.reportable and step.reason not in NEVER_OBSERVED and reports(exchange)
        ):
            step = step._replace(outcome=Outcome.OBSERVE)
            # What goes with a denial (Allow, Retry-After, a challenge) must not go with a later one.
            exchange.answer = exchange.challenge = None
        if step.reason is Reason.STAGE_ERROR:  # nor with one in the place of what the stage was about to say
            exchange.answer = exchange.challenge = None
        took = perf_counter() - started
        exchange.verdict.record(step, took)
        if took >= self.slow_after:
            self.slow(took)

    def slow(self, took: float) -> None:
        """Put on record that it took so many seconds for a request: the first, and then how many there were."""
        if self.tell is not None:
            delays = self._delays = self._delays or _Occurrences()
            if count := delays.due():
                self.tell(stage_slow(time(), self.name, took, count))

    def failed(self, error: Exception) -> Step:
        """Make the denial of a stage that could not decide; the log says why, and the record that it was so."""
        _seldom.failed("stage %s failed: %s", self.name, error)
        if self.tell is not None:
            failures = self._failures = self._failures or _Occurrences()
            if count := failures.due():
                self.tell(stage_failed(time(), self.name, type(error).__name__, count))
        return self.deny(Reason.STAGE_ERROR, "The gateway could not decide on this request.")


type Hook = Callable[[HTTPFlow], object]
type _Entry = tuple[Stage, Callable[[Exchange], object], Step, Step, int]
"""A stage, what is asked of it on every request, and how many stages have spoken after it."""


class Row:
    """Stages that follow one another. The one runner: each host asks every stage here, alone or with its neighbours."""

    __slots__ = ("_stages",)

    def __init__(self, stages: Sequence[Stage]) -> None:
        """stages: in the order in which they are asked."""
        self._stages = tuple(
            [(stage, stage.decide, stage.admitted, stage.skipped, position) for position, stage in enumerate(stages, 1)]
        )

    def requestheaders(self, flow: HTTPFlow) -> Awaitable[None] | None:
        """Take mitmproxy's hook for all of them; a flow without exchange is left to Enforcer, which denies it."""
        exchange = exchange_of(flow)
        return None if exchange is None else self._run(exchange, self._stages)

    def run(self, exchange: Exchange) -> Awaitable[None] | None:
        """Ask each stage until one has decided; one that waits makes an awaitable of the rest."""
        return self._run(exchange, self._stages)

    def _run(self, exchange: Exchange, stages: tuple[_Entry, ...]) -> Awaitable[None] | None:
        verdict = exchange.verdict
        if verdict.decided():
            return None
        steps, seconds = verdict.going_on
        before = perf_counter()
        for stage, decide, admitted, skipped, position in stages:
            try:
                step: object = decide(exchange)
            except Exception as error:
                step = stage.failed(error)
            if step is admitted or step is skipped:  # what every stage says of most requests needs no further look
                steps.append(step)
                now = perf_counter()
                seconds.append(now - before)
                before = now
                continue
            pending = stage.record(exchange, step, before)
            if pending is not None:
                return self._wait(exchange, position, pending)
            if verdict.decided():
                return None
            before = perf_counter()
        return None

    async def _wait(self, exchange: Exchange, first: int, pending: Awaitable[None]) -> None:
        await pending
        rest = self._run(exchange, self._stages[first:])
        if rest is not None:
            await rest


def fused(hooks: Sequence[Hook]) -> tuple[Hook, ...]:
    """Put each row of plain stages among the hooks into one; a host that compiles its hooks calls this."""
    made: list[Hook] = []
    row: list[Stage] = []
    for hook in hooks:
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Stage) and hook == Stage.requestheaders.__get__(owner):
            row.append(owner)
            continue
        if row:
            made.append(Row(row).requestheaders)
            row = []
        made.append(hook)
    if row:
        made.append(Row(row).requestheaders)
    return tuple(made)


def route_at(exchange: Exchange) -> Location:
    """Return where the request's route stands in the policy; () where it has none."""
    route = exchange.route
    names = [known.name for known in exchange.snapshot.policy.routes]
    return () if route is None else ("routes", names.index(route.name))
