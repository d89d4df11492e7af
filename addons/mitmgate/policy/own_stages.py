"""Stages of the operator's own: found, imported once, held to what they declare, and given their options.

Code is loaded where a process starts. A reload brings other options to the code that runs; what would need other code
(another file, another stage, another place in the chain) is an error there, so that what decides is always a whole: the
policy in force, and the code that its digest names.
"""

import hashlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeGuard

from pydantic import BaseModel, ValidationError

from mitmgate import stage
from mitmgate.core.client_fields import shape
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Mode
from mitmgate.policy.declared import fields as written
from mitmgate.policy.declared import stages as built_in_stages
from mitmgate.policy.document import Document
from mitmgate.policy.files import Files, UnreadableError
from mitmgate.policy.model_routes import WRITTEN_BY_THE_GATEWAY
from mitmgate.policy.model_stages import OwnStage
from mitmgate.policy.problem import Location, Problem, nearest
from mitmgate.policy.scalars import FRAMING, READ_BY_THE_GATEWAY, TOKEN
from mitmgate.policy.validation import problems_of

GROUP: Final = "mitmgate.stages"
"""The group of entry points under which installed packages offer stages."""


def built_in() -> tuple[str, ...]:
    """Return the names that speak for the gateway, those of its stages in their order."""
    return (*(known.name for known in built_in_stages()), "enforcer", "protocol")


def places() -> tuple[str, ...]:
    """Return the gateway's stages that one of these may come after, in their order.

    There is a head to read then, and the request to the service is not made.
    """
    names = built_in()
    return names[1 : names.index("circuit-breaker")]


_WORD: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MEMBERS: Final = frozenset(OwnStage.model_fields)
_MODULES: Final[dict[tuple[str, str], ModuleType]] = {}
"""By file and digest: what policies of this process have named."""


class _RefusedError(Exception):
    """A stage that can't be used; the message is for the policy's author."""

    def __init__(self, message: str, hint: str = "") -> None:
        """hint: what would be right."""
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Code:
    """A stage's class. use: as the policy names it. digest: SHA-256 of its file, or of what is installed."""

    use: str
    digest: str
    made_of: type[stage.Stage[Any]]


@dataclass(frozen=True, slots=True)
class Own:
    """One entry of `stages`, ready to be asked. reasons: by name. sets: names towards the service, by lower-case name.

    options: validated. timeout, slow: seconds.
    """

    name: str
    after: str
    code: Code
    options: stage.Options
    mode: Mode
    timeout: float
    slow: float
    reasons: Mapping[str, Reason]
    sets: Mapping[str, bytes]
    keys: frozenset[str]
    response_fields: frozenset[str]

    def make(self) -> stage.Stage[Any]:
        """Make the object that decides; every chain has its own. Raises whatever the class does."""
        return self.code.made_of(self.name, self.options)

    def change(self, reason: Reason) -> str:
        """Say what would have to be otherwise, as the stage declares it; "" where it does not."""
        return next((known.change for known in self.code.made_of.reasons if known.name == reason.code), "")


def in_place(chain: tuple[str, ...], own: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of all stages in their order. own: by name, what each comes after.

    What comes after the same stage keeps the order of the file. One that comes after nothing that is there is left out.
    """
    names: list[str] = []

    def put(name: str) -> None:
        names.append(name)
        for follower, after in own.items():
            if after == name:
                put(follower)

    for name in chain:
        put(name)
    return tuple(names)


class OwnStages:
    """Reads the `stages` of one document, and collects what is wrong with them."""

    def __init__(self, document: Document, files: Files, running: Mapping[str, Own] | None = None) -> None:
        """running: those whose code this process runs, at a reload; None: code may be loaded."""
        self.document = document
        self.problems: list[Problem] = []
        self.stages: dict[str, Own] = {}
        self._files = files
        self._running = running

    def read(self) -> None:
        """Read every stage that the document names."""
        entries = self.document.at(("stages",))
        named = (
            {name: entry for name, entry in entries.items() if isinstance(name, str)}
            if isinstance(entries, dict)
            else {}
        )
        for name in named:
            entry = self._entry(("stages", name))
            if entry is not None:
                self._read(name, entry)
        self._places({name: self.document.at(("stages", name, "after")) for name in named})
        self._unlike_running(named)
        self._keys()
        self._fields()

    def _wrong(self, location: Location, message: str, hint: str = "", found: str | None = None) -> None:
        self.problems.append(self.document.problem(location, message, hint=hint, found=found))

    def _entry(self, location: Location) -> OwnStage | None:
        """Validate one entry alone; None where it is wrong (which the whole policy's validation says)."""
        if any(known[: len(location)] == location for known in self.document.unresolved):
            return None
        try:
            return OwnStage.model_validate(self.document.at(location))
        except ValidationError:
            return None

    def _read(self, name: str, entry: OwnStage) -> None:
        at: Location = ("stages", name)
        if name in built_in():
            self.problems.append(self.document.problem(at, f"{name} is a stage of the gateway", key=True, found=""))
            return
        try:
            code = self._code(name, entry.use)
            reasons = self._reasons(name, code)
        except _RefusedError as refused:
            self._wrong((*at, "use"), str(refused), refused.hint)
            return
        options = self._options(at, code, entry.given)
        if options is None:
            return
        own = Own(
            name=name,
            after=entry.after,
            code=code,
            options=options,
            mode=entry.mode,
            timeout=entry.timeout,
            slow=entry.slow,
            reasons=reasons,
            sets={field.lower(): field.encode("ascii") for field in code.made_of.sets},
            keys=frozenset(code.made_of.keys),
            response_fields=frozenset(map(str.lower, code.made_of.response_fields)),
        )
        try:
            made = own.make()
            if not isinstance(made, stage.Stage) or made.name != name:
                raise TypeError("its __init__ has to call that of Stage with the name and the options")
            _check_counters(made.counters())
        except Exception as error:
            self._wrong(at, f"{code.made_of.__name__} can't be made: {_told(error, self.document, at)}", found="")
            return
        self.stages[name] = own

    def _code(self, name: str, use: str) -> Code:
        file, colon, wanted = use.rpartition(":")
        running = None if self._running is None else self._running.get(name)
        if not colon:
            if running is not None and running.code.use == use:
                return running.code  # what is installed is looked at once
            return self._installed(use)
        try:
            content = self._files.read(file)
        except UnreadableError as error:
            hint = f"paths are relative to {self._files.directory}"
            raise _RefusedError(f"the file {error}", hint) from error
        digest = hashlib.sha256(content).hexdigest()
        if running is not None and (running.code.use, running.code.digest) == (use, digest):
            return running.code
        if self._running is not None:
            self._needs_restart(name, running is not None and running.code.use == use)
        module = _imported(self._files.directory / file, content, digest)
        return Code(use, digest, _declared(getattr(module, wanted, None), wanted, vars(module)))

    def _needs_restart(self, name: str, changed: bool) -> None:
        what = "its file has changed, and" if changed else f"{name} is not what runs, and"
        raise _RefusedError(f"{what} code is loaded once, at start", "restart the gateway, or put back what was there")

    def _installed(self, use: str) -> Code:
        if self._running is not None:
            raise _RefusedError("code is loaded once, at start", "restart the gateway, or put back what was there")
        offered = entry_points(group=GROUP)
        found = [point for point in offered if point.name == use]
        if len(found) != 1:
            message = f"no installed package offers a stage of this name (entry points {GROUP})"
            if found:
                message = f"{len(found)} installed packages offer a stage of this name"
            raise _RefusedError(message, nearest(use, offered.names) or "write FILE.py:CLASS for a file")
        try:
            made_of: object = found[0].load()
        except Exception as error:
            raise _RefusedError(f"can't be imported: {_line(error)}") from error
        except SystemExit as error:
            raise _RefusedError("can't be imported: it ends the process") from error
        return Code(use, _digest(found[0], made_of), _declared(made_of, use, {}))

    def _reasons(self, name: str, code: Code) -> dict[str, Reason]:
        made: dict[str, Reason] = {}
        for reason in code.made_of.reasons:
            if reason.name in made:
                raise _RefusedError(f"it names the reason {reason.name} twice")
            for other in self.stages.values():
                shared = other.code.digest == code.digest and reason in other.code.made_of.reasons
                if reason.name in other.reasons and not shared:
                    raise _RefusedError(f"the stage {other.name} has a reason {reason.name} as well")
            try:
                made[reason.name] = Reason.declare(reason.name, reason.status, reason.title)
            except ValueError:
                message = f"{reason.name} is a reason of the gateway"
                raise _RefusedError(message, f"call it {name}-{reason.name}") from None
        return made

    def _options(self, at: Location, code: Code, given: dict[str, Any]) -> stage.Options | None:
        model = code.made_of.options_model
        try:
            options = model.model_validate(given)
        except ValidationError as error:
            sections: dict[int, type[BaseModel]] = {id(self.document.at(at)): model}
            self.problems += problems_of(self.document, error, sections, at)
            return None
        except Exception as error:
            self._wrong(at, f"{model.__name__} fails on these options: {_told(error, self.document, at)}", found="")
            return None
        try:
            options.model_dump(mode="json")
        except Exception as error:
            message = f"{model.__name__} has options that are no part of a digest: {_told(error, self.document, at)}"
            self._wrong(at, message, found="")
            return None
        return options

    def _places(self, after: Mapping[str, object]) -> None:
        """Yield an error where a stage comes after nothing that is there, or where none may."""
        known = {name: place for name, place in after.items() if isinstance(place, str)}
        placed = in_place(built_in(), known)
        for name, place in known.items():
            at: Location = ("stages", name, "after")
            if place in built_in() and place not in places():
                self._wrong(at, "no other stage may come here", f"one of {', '.join(places())}")
            elif place not in built_in() and place not in after:
                there = (*places(), *(other for other in after if other != name))
                hint = nearest(place, there) or f"one of {', '.join(there)}"
                self._wrong(at, "no stage has this name", hint)
            elif name not in placed and name not in built_in() and known.get(place) is not None:
                self._wrong(at, "it comes after itself", f"one of {', '.join(places())}")

    def _unlike_running(self, named: Mapping[str, object]) -> None:
        """Yield an error for each stage that would need a chain which is not the one that was made at start."""
        for name, running in (self._running or {}).items():
            own = self.stages.get(name)
            if name not in named:
                message = f"the stage {name} runs and is missing here, and the chain is made once, at start"
                self._wrong(("stages",), message, "restart the gateway, or put it back", found="")
            elif own is not None and own.after != running.after:
                message = f"it runs after {running.after}, and the chain is made once, at start"
                self._wrong(("stages", name, "after"), message, "restart the gateway, or put it back")
        if self._running and list(self.stages) != list(self._running) and self.stages.keys() == self._running.keys():
            message = "the stages run in another order, and the chain is made once, at start"
            self._wrong(("stages",), message, "restart the gateway, or put it back", found="")

    def _keys(self) -> None:
        """Yield an error for each key of a limit that no stage hands over, or not before the limit is taken."""
        limits = self.document.at(("rate_limits",))
        placed = in_place(built_in(), {name: own.after for name, own in self.stages.items()})
        first = self.document.at(("client_limits",))
        early = [*first] if isinstance(first, list) else [first]
        for limit, members in (limits if isinstance(limits, dict) else {}).items():
            keys = members.get("key") if isinstance(members, dict) else None
            for index, key in enumerate(keys if isinstance(keys, list) else [keys]):
                kind, _, rest = key.partition(":") if isinstance(key, str) else ("", "", "")
                name, _, word = rest.partition(":")
                if kind != "stage":
                    continue
                at: Location = ("rate_limits", limit, "key", *((index,) if isinstance(keys, list) else ()))
                own = self.stages.get(name)
                if own is None:
                    if self.document.at(("stages", name)) is None:
                        self._wrong(at, "no stage has this name", nearest(name, self.stages))
                elif word not in own.keys:
                    hint = nearest(word, own.keys) or f"its keys are {', '.join(sorted(own.keys)) or 'none'}"
                    self._wrong(at, f"the stage {name} has no such key", hint)
                elif name in placed:
                    taken = "client-quota" if limit in early else "rate-limit"
                    if placed.index(name) > placed.index(taken):
                        self._wrong(at, f"the stage {name} comes after this limit is taken ({taken})")

    def _fields(self) -> None:
        """Yield an error for each field towards the service that somebody else writes, in any spelling."""
        taken: dict[bytes, str] = {}
        routes = self.document.at(("routes",))
        for route in routes if isinstance(routes, list) else ():
            rewrite = route.get("rewrite") if isinstance(route, dict) else None
            names = rewrite.get("set") if isinstance(rewrite, dict) else None
            for name in names if isinstance(names, dict) else ():
                taken[_shape(str(name))] = f"the route {route.get('name')}"
        forward = self.document.at(("identity", "forward"))
        identity = {"subject": "X-User-ID", "roles": "X-User-Role", "issuer": "X-User-Issuer"}
        for member, usual in identity.items():
            named = forward.get(member, usual) if isinstance(forward, dict) else usual
            taken[_shape(str(named))] = "the gateway"
        for name, whose in written(self.document):
            taken[_shape(name)] = whose
        taken[_shape("X-Gateway-Assertion")] = "the gateway"
        assertion = forward.get("assertion") if isinstance(forward, dict) else None
        if isinstance(assertion, dict):
            taken[_shape(str(assertion.get("header", "X-Gateway-Assertion")))] = "the gateway"
        for own in self.stages.values():
            for name in own.code.made_of.sets:
                who = taken.setdefault(_shape(name), f"the stage {own.name}")
                if who != f"the stage {own.name}":
                    self._wrong(("stages", own.name, "use"), f"it sets {name}, which {who} writes")


def _shape(name: str) -> bytes:
    return shape(name.lower().encode("latin-1", "replace"))


def _imported(path: Path, content: bytes, digest: str) -> ModuleType:
    """Run a stage's file as a module, once for each content; what it raises is told with its line."""
    known = _MODULES.get((str(path), digest))
    if known is not None:
        return known
    name = f"mitmgate_stage_{hashlib.sha256(f'{path}\0{digest}'.encode()).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # pydantic and dataclasses look there for what annotations mean
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - that is the point
    except SyntaxError as error:
        del sys.modules[name]
        raise _RefusedError(f"can't be imported: line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"line {lines[-1]}: " if lines else ""
        raise _RefusedError(f"can't be imported: {where}{_line(error)}") from error
    _MODULES[str(path), digest] = module
    return module


def _declared(found: object, name: str, members: Mapping[str, object]) -> type[stage.Stage[Any]]:
    """Return the class, held to what a stage has to declare."""
    if found is None:
        known = [word for word, member in members.items() if _is_stage(member)]
        raise _RefusedError(
            f"there is no {name} in it", nearest(name, known) or f"there is {', '.join(known) or 'no stage'}"
        )
    if not _is_stage(found):
        raise _RefusedError(f"{name} is no stage", "derive it from mitmgate.stage.Stage")
    for wrong in _wrong_in(found):
        raise _RefusedError(wrong)
    return found


def _is_stage(found: object) -> TypeGuard[type[stage.Stage[Any]]]:
    return isinstance(found, type) and issubclass(found, stage.Stage) and found is not stage.Stage


def _wrong_in(found: type[stage.Stage[Any]]) -> Iterator[str]:
    """Say what is wrong with the declarations of a stage."""
    for member in ("reasons", "sets", "keys", "response_fields"):
        if not isinstance(getattr(found, member), tuple):
            yield f"its {member} have to be a tuple: ({member[:-1]},)"
            return
    responds = found.respond is not stage.Stage.respond
    if not (found.reasons or found.sets or found.keys or responds):
        yield "it declares nothing: no reason, no field that it sets, no key"
    if found.decide is stage.Stage.decide:
        yield "it has no decide"
    for reason in found.reasons:
        yield from _wrong_in_reason(reason)
    yield from _wrong_in_names(found)
    model = found.options_model
    if not (isinstance(model, type) and issubclass(model, stage.Options)):
        yield "its options_model has to be derived from mitmgate.stage.Options"
        return
    for name, field in model.model_fields.items():
        if (field.alias or name) in _MEMBERS:
            yield f"its option {name} is a member of every stage: call it otherwise"


def _wrong_in_names(found: type[stage.Stage[Any]]) -> Iterator[str]:
    """Say what is wrong with the fields and keys of a stage."""
    for name in found.sets:
        if not isinstance(name, str) or re.fullmatch(TOKEN, name) is None:
            yield f"it sets {name!r}, which is no name of a field (without '_')"
        elif name.lower() in FRAMING | WRITTEN_BY_THE_GATEWAY:
            yield f"it sets {name}, which the gateway alone writes"
        elif name.lower() in READ_BY_THE_GATEWAY:
            yield f"it sets {name}, and the client's own is what the gateway goes by"
    for name in found.response_fields:
        if not isinstance(name, str) or re.fullmatch(TOKEN, name) is None or name.lower() in FRAMING:
            yield f"{name!r} is no field of a response that it may set"
    if len({str(name).lower() for name in found.sets}) < len(found.sets):
        yield "it sets a field twice"
    for key in found.keys:
        if not isinstance(key, str) or _WORD.fullmatch(key) is None:
            yield f"its key {key!r} has to be in kebab-case: bot-class"


def _wrong_in_reason(reason: object) -> Iterator[str]:
    if not isinstance(reason, stage.Reason):
        yield f"its reasons have to be mitmgate.stage.Reason, and {reason!r} is none"
        return
    if not isinstance(reason.name, str) or _WORD.fullmatch(reason.name) is None or len(reason.name) > 64:
        yield f"its reason {reason.name!r} has to have a name in kebab-case of 64 letters at most: bot-refused"
    elif type(reason.status) is not int or not 200 <= reason.status <= 599:
        yield f"its reason {reason.name} has the status {reason.status!r}: 400 to 599, or from 200 for an answer"
    elif not isinstance(reason.title, str) or not 0 < len(reason.title) <= 80 or not reason.title.isprintable():
        yield f"its reason {reason.name} needs a title of 80 printable characters at most"


def _check_counters(counters: object) -> None:
    """Raise TypeError or ValueError for what is no tuple of counters that count."""
    if not isinstance(counters, tuple) or not all(isinstance(counter, stage.Counter) for counter in counters):
        raise TypeError("its counters have to be a tuple of mitmgate.stage.Counter")
    for counter in counters:
        if _WORD.fullmatch(counter.name) is None or [known.name for known in counters].count(counter.name) > 1:
            raise ValueError(f"its counter {counter.name!r} has to have a name of its own in kebab-case")
        if type(counter.limit) is not int or not 1 <= counter.limit <= 10**12:
            raise ValueError(f"its counter {counter.name} needs a limit from 1 on")
        if type(counter.window) not in {int, float} or not 0.001 <= counter.window <= 366 * 86400:
            raise ValueError(f"its counter {counter.name} needs a window in seconds, from a millisecond to a year")
        if counter.on_store_failure not in {"deny", "allow", "local"}:
            raise ValueError(f"its counter {counter.name} has no on_store_failure {counter.on_store_failure!r}")


def _digest(point: EntryPoint, made_of: object) -> str:
    """Identify what is installed: its name, its version and the record of its files, which holds their digests."""
    dist = point.dist
    parts = [point.value]
    if dist is not None:
        parts += [dist.name, dist.version, dist.read_text("RECORD") or ""]
    file = getattr(sys.modules.get(getattr(made_of, "__module__", "")), "__file__", None)
    content = Path(file).read_bytes() if file else b""
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + content).hexdigest()


def _line(error: BaseException) -> str:
    """Write an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def _told(error: Exception, document: Document, at: Location) -> str:
    """Write an error about options; without its words where one of them is the environment's."""
    return _line(error) if document.may_quote_within(at) else type(error).__name__
