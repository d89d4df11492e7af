"""Fragile: a stage that does wrong what a request's X-Harm asks for; each is a mistake that somebody could make."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from mitmgate.core.reason import Reason as CoreReason
from mitmgate.core.verdict import Step as CoreStep
from mitmgate.stage import Facts, Options, Outcome, Reason, Reply, Response, Stage, Step


class Fragile(Stage[Options]):
    """Admit, unless a request asks for harm."""

    reasons = (Reason("fragile-refused", 403, "Refused"), Reason("fragile-answered", 200, "Answered"))
    sets: ClassVar[tuple[str, ...]] = ("X-Fragile",)
    keys = ("word",)

    def decide(self, facts: Facts) -> Any:
        """Do what X-Harm says."""
        harm = facts.headers.get("x-harm")
        mine = facts.headers.get("x-to") == self.name
        return HARMS[harm](self, facts) if mine and harm is not None else self.admit()


class Hasty(Fragile):
    """The same, with another timeout."""

    sets = ()


class Responder(Stage[Options]):
    """Look at responses: mark them, or do what X-Respond asks for."""

    response_fields = ("X-Marked", "X-Secret")

    def decide(self, facts: Facts) -> Step:
        """Let everything go on."""
        return self.skip()

    def respond(self, facts: Facts, response: Response) -> Any:
        """Mark the response, and tell of it; or do harm."""
        harm = facts.headers.get("x-respond")
        if harm is None:
            return None
        if harm == "marks":
            secret = response.headers.get("x-secret")
            event = {"status": response.status, "secret": secret is not None, "route": facts.route}
            return self.reply(fields={"X-Marked": "yes", "X-Secret": None}, event=event)
        return RESPONSE_HARMS[harm](self, response)


class Witness(Stage[Options]):
    """Count, in a field, that it was asked: it stands behind the other."""

    reasons = (Reason("witness-refused", 403, "Refused"),)

    def decide(self, facts: Facts) -> Step:
        """Say on record that it was asked."""
        return self.observe("witness-refused", "It was asked.")


def raising(error: BaseException) -> Callable[[Fragile, Facts], object]:
    """Make a stage that raises."""

    def harm(stage: Fragile, facts: Facts) -> object:
        raise error

    return harm


def saying(made: Callable[[Fragile], object]) -> Callable[[Fragile, Facts], object]:
    """Make a stage that returns something."""
    return lambda stage, facts: made(stage)


def later(made: Callable[[Fragile, Facts], Awaitable[object]]) -> Callable[[Fragile, Facts], object]:
    """Make a stage that returns something to wait for."""
    return made


def endless(stage: Fragile, facts: Facts) -> object:
    return endless(stage, facts)


def sleeps(stage: Fragile, facts: Facts) -> object:
    time.sleep(0.3)
    return stage.admit()


def changes(change: Callable[[Facts], object]) -> Callable[[Fragile, Facts], object]:
    """Make a stage that changes what it was given, and admits."""

    def harm(stage: Fragile, facts: Facts) -> object:
        change(facts)
        return stage.admit()

    return harm


def claim(facts: Facts) -> None:
    assert facts.principal is not None
    claims: Any = facts.principal.claims
    claims["role"] = "admin"


def field(facts: Facts) -> None:
    headers: Any = facts.headers
    headers["Authorization"] = "Bearer other"


async def forgets(stage: Fragile, facts: Facts) -> None:
    await asyncio.sleep(0)


async def fails(stage: Fragile, facts: Facts) -> object:
    await asyncio.sleep(0)
    raise RuntimeError("harm")


async def exits(stage: Fragile, facts: Facts) -> object:
    await asyncio.sleep(0)
    raise SystemExit(1)


async def cancels(stage: Fragile, facts: Facts) -> object:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def waits(stage: Fragile, facts: Facts) -> object:
    await asyncio.sleep(3600)
    return stage.admit()


async def holds_on(stage: Fragile, facts: Facts) -> object:
    for _ in range(3):
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue
    return stage.admit()


async def never(stage: Fragile, facts: Facts) -> object:
    await asyncio.get_running_loop().create_future()
    return stage.admit()


async def nested(stage: Fragile, facts: Facts) -> object:
    return forgets(stage, facts).close()


async def generates(stage: Fragile, facts: Facts) -> Any:
    yield stage.admit()


class Sly(Step):
    """A step that is another one."""


async def responds_later(stage: Responder) -> Reply:
    return stage.reply()


def raises_in_response(error: BaseException) -> Callable[[Responder, Response], object]:
    """Make a stage that raises when the response is there."""

    def harm(stage: Responder, response: Response) -> object:
        raise error

    return harm


def changes_response(what: str) -> Callable[[Responder, Response], object]:
    """Make a stage that changes the response it was shown."""

    def harm(stage: Responder, response: Response) -> object:
        shown: Any = response
        if what == "headers":
            shown.headers.fields = ()
        else:
            shown.status = 200
        return stage.reply()

    return harm


RESPONSE_HARMS: dict[str, Callable[[Responder, Response], object]] = {
    "raises": raises_in_response(RuntimeError("harm")),
    "ends the process": raises_in_response(SystemExit(0)),
    "cancels": raises_in_response(asyncio.CancelledError()),
    "says true": lambda stage, response: True,
    "says a step": lambda stage, response: stage.admit(),
    "says it later": lambda stage, response: responds_later(stage),
    "sets what it does not declare": lambda stage, response: stage.reply(fields={"Set-Cookie": "a=b"}),
    "frames": lambda stage, response: stage.reply(fields={"Content-Length": "0"}),
    "splits a field": lambda stage, response: stage.reply(fields={"X-Marked": "a\r\nSet-Cookie: a=b"}),
    "tells too much": lambda stage, response: stage.reply(event={"a": "b" * 501}),
    "tells a tree": lambda stage, response: stage.reply(event={"a": ["b"]}),  # type: ignore[dict-item]  # the harm
    "changes the fields": changes_response("headers"),
    "changes the status": changes_response("status"),
}

HARMS: dict[str, Callable[[Fragile, Facts], object]] = {
    "raises": raising(RuntimeError("harm")),
    "ends the process": raising(SystemExit(0)),
    "is interrupted": raising(KeyboardInterrupt()),
    "cancels": raising(asyncio.CancelledError()),
    "raises GeneratorExit": raising(GeneratorExit()),
    "runs out of memory": raising(MemoryError()),
    "recurs": endless,
    "says nothing": saying(lambda stage: None),
    "says true": saying(lambda stage: True),
    "says a word": saying(lambda stage: "admit"),
    "says an outcome": saying(lambda stage: Outcome.ADMIT),
    "says a class": saying(lambda stage: Step),
    "says a method": saying(lambda stage: stage.admit),
    "says a step of the chain": saying(lambda stage: CoreStep(stage.name, Outcome.ADMIT, CoreReason.OK)),
    "says a step of its own kind": saying(lambda stage: Sly(stage.name, Outcome.ADMIT)),
    "admits for another": saying(lambda stage: Step("authentication", Outcome.ADMIT)),
    "has no outcome": saying(lambda stage: Step(stage.name, "admit")),  # type: ignore[arg-type]  # the harm
    "gives a reason of the gateway": saying(lambda stage: stage.deny("ok")),
    "gives no reason": saying(lambda stage: stage.deny("")),
    "observes nothing declared": saying(lambda stage: stage.observe("nothing")),
    "denies with success": saying(lambda stage: stage.deny("fragile-answered")),
    "admits with a reason": saying(lambda stage: Step(stage.name, Outcome.ADMIT, "fragile-refused")),
    "sets what it does not declare": saying(lambda stage: stage.admit(fields={"X-User-ID": "root"})),
    "sets a credential": saying(lambda stage: stage.admit(fields={"Authorization": "Bearer x"})),
    "splits a field": saying(lambda stage: stage.admit(fields={"X-Fragile": "a\r\nX-User-ID: root"})),
    "sets bytes": saying(lambda stage: stage.admit(fields={"X-Fragile": b"a"})),  # type: ignore[dict-item]  # the harm
    "hands over what it does not declare": saying(lambda stage: stage.admit(keys={"principal": "root"})),
    "hands over too much": saying(lambda stage: stage.admit(keys={"word": "a" * 129})),
    "answers with framing": saying(lambda stage: stage.answer("fragile-answered", fields={"Content-Length": "0"})),
    "answers with text": saying(lambda stage: stage.answer("fragile-answered", "a")),  # type: ignore[arg-type]
    "splits a detail": saying(lambda stage: stage.deny("fragile-refused", "a\nb")),
    "changes the method": changes(lambda facts: setattr(facts, "method", "POST")),
    "changes a field": changes(field),
    "changes the fields": changes(lambda facts: setattr(facts.headers, "fields", ())),
    "changes a claim": changes(claim),
    "changes the identity": changes(lambda facts: setattr(facts.principal, "subject", "root")),
    "sleeps": sleeps,
    "waits": later(waits),
    "waits for nothing": later(never),
    "will not be cancelled": later(holds_on),
    "raises later": later(fails),
    "ends the process later": later(exits),
    "cancels later": later(cancels),
    "says nothing later": later(forgets),
    "says nothing in the end": later(nested),
    "generates": generates,
}
