"""What a process answers to the status page beyond its figures: denials, one in full, what an edited copy would get.

Questions and answers are plain JSON objects, because with several workers they go through the supervisor
(workers.py): {"ask": "recent", "after": 12}, {"ask": "detail", "number": 12}, {"ask": "explain", "number": 12, …}.
No answer holds a credential: they are taken out of what is kept (denials.py).
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mitmgate.admin.denials import Denial, Denials, Row, fields_of, row, shortened, writable
from mitmgate.admin.readings import Sources
from mitmgate.audit.event import rfc3339
from mitmgate.audit.redact import REDACTED, Redaction
from mitmgate.core.headers import Headers
from mitmgate.core.jose import parse_object
from mitmgate.core.request import Request
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Location, dotted
from mitmgate.process_log import without_credentials
from mitmgate.stages.circuit_breaker import Turn
from mitmgate.usage import UserError

if TYPE_CHECKING:
    from mitmgate.replay.explain import Explanation
    from mitmgate.replay.traffic import Presented

logger = logging.getLogger(__name__)

HIDDEN: Final = b"redacted-by-mitmgate"
"""Stands for a token that was taken out, where the chain has to read one."""
AUTHORITY: Final = ":authority"
_LONGEST: Final = 2048  # characters of a fact
_MOST: Final = 100  # facts of a list or an object
_UNTOLD: Final = (
    "Limits are counted from nothing, circuits are closed and nothing is revoked here: what those say of a real "
    "request can't be said."
)


class Console:
    """Answers for one process."""

    def __init__(self, denials: Denials, sources: Sources) -> None:
        """denials: of this process. sources: what else is looked at."""
        self._denials = denials
        self._sources = sources

    def answer(self, question: Mapping[str, object]) -> Row:
        """Answer one question. Never raises: what goes wrong is a member `error`, a sentence."""
        try:
            match question.get("ask"):
                case "recent":
                    return self._recent(question.get("after"))
                case "detail":
                    return self._one(_number(question, "number"), None)
                case "explain":
                    return self._one(_number(question, "number"), question)
                case _:
                    return {"error": "This question is not known."}
        except UserError as error:
            return {"error": str(error)}
        except Exception:
            logger.exception("a question of the status page could not be answered")
            return {"error": "This could not be answered; the log says why."}

    def _recent(self, seen: object) -> Row:
        """Say what came since. seen: the numbers of the denials that were told last, by process id."""
        process = os.getpid()
        after = seen.get(str(process)) if isinstance(seen, dict) else None
        after = after if isinstance(after, int) else 0
        denials = self._denials.after(after)
        history = self._sources.history
        policies: list[Row] = [
            {"time": rfc3339(one.when), "digest": one.digest, "outcome": "in force"} for one in history.accepted
        ]
        policies += [
            {"time": rfc3339(one.when), "outcome": "refused", "problems": [*map(without_credentials, one.problems)]}
            for one in history.rejections
        ]
        return {
            "last": denials[-1].number if denials else after,
            "denials": [row(denial, process) for denial in denials],
            "limits": self._denials.limits(),
            "turned": {turn.circuit: _turn(turn) for turn in self._sources.turned().values()},
            "turns": [_turn(turn) for turn in self._sources.turns()],
            "policies": sorted(policies, key=lambda one: str(one["time"]), reverse=True),
            "process": self._process(),
        }

    def _process(self) -> Row:
        """Say how this process is."""
        sources, used = self._sources, os.times()
        snapshot, held = sources.policy(), sources.memory()
        return {
            "accepting": sources.accepting(),
            "draining": sources.draining(),
            "connections": sources.connected(),
            "policy": None if snapshot is None else snapshot.digest,
            "held": held.held,
            "cpu_seconds": round(used.user + used.system, 2),
            "resident": _resident(),
        }

    def _one(self, number: int, edit: Mapping[str, object] | None) -> Row:
        denial = self._denials.find(number)
        if denial is None:
            raise UserError("This request is not kept any more: later ones have taken its place.")
        made = self._detail(denial) if edit is None else self._explain(denial, edit)
        plain = _plain(made)
        if not isinstance(plain, dict):
            raise TypeError("an answer is an object")
        return plain

    def _detail(self, denial: Denial) -> Row:
        exchange = denial.exchange
        request, principal = exchange.request, exchange.principal
        fields = fields_of(request)
        if request.authority:
            fields.insert(0, [AUTHORITY, Redaction(exchange.snapshot.redact).path(request.authority)])
        notes = []
        loaded = self._sources.loaded()
        if loaded is None or exchange.snapshot is not self._sources.policy():
            notes.append("An earlier policy decided on this request: its lines are not kept.")
        return {
            **row(denial, os.getpid()),
            "method": request.method,
            "target": request.target,
            "version": request.version,
            "fields": fields,
            "peer": request.peer,
            "roles": [] if principal is None else list(principal.roles),
            "scopes": [] if principal is None else sorted(principal.scopes),
            "policy": exchange.verdict.policy_digest,
            "stages": self._stages(exchange),
            "failure": None if exchange.failure is None else exchange.failure.code,
            "notes": notes,
        }

    def _stages(self, exchange: Exchange) -> list[Row]:
        from mitmgate.replay.explain import explain  # noqa: PLC0415 - replay is not needed to serve
        from mitmgate.replay.offline import OfflinePolicy  # noqa: PLC0415
        from mitmgate.replay.traffic import Recorded  # noqa: PLC0415

        loaded = self._sources.loaded()
        stages = self._sources.stages()
        if loaded is not None and exchange.snapshot is self._sources.policy():
            policy = OfflinePolicy(loaded, exchange.snapshot, frozenset(), ())
            explanation = explain(policy, Recorded("kept", exchange.now, exchange.request), exchange, stages)
            reports = _reports(explanation, loaded, exchange, stages)
        else:
            reports = [
                {"stage": step.stage, "outcome": step.outcome.value, "reason": step.reason.code, "detail": step.detail}
                for step in exchange.verdict.steps
            ]
        for report, (_, seconds) in zip(reports, exchange.verdict.times, strict=False):
            report["us"] = round(seconds * 1e6)
        return reports

    def _explain(self, denial: Denial, edit: Mapping[str, object]) -> Row:
        """Decide on an edited copy, with counters, circuits and stages of its own: nothing outside learns of it."""
        from mitmgate.admin.remembered import RememberedRing  # noqa: PLC0415 - as above
        from mitmgate.replay.deciding import Decider  # noqa: PLC0415
        from mitmgate.replay.explain import explain  # noqa: PLC0415
        from mitmgate.replay.offline import OfflinePolicy, unsigned  # noqa: PLC0415
        from mitmgate.replay.shown_keys import found  # noqa: PLC0415
        from mitmgate.replay.traffic import Recorded  # noqa: PLC0415

        loaded, snapshot = self._sources.loaded(), self._sources.policy()
        if loaded is None or snapshot is None:
            raise UserError("No policy is in force: nothing can be decided.")
        exchange = denial.exchange
        claims = edit.get("claims")
        presented = None if not isinstance(claims, str) or not claims.strip() else self._presented(claims, exchange.now)
        request = edited(exchange.request, edit, presented)
        ring = RememberedRing(exchange, HIDDEN)
        decider = Decider(unsigned(snapshot), ring)
        recorded = Recorded(
            "edited",
            exchange.now,
            request,
            presented=presented,
            service_answer=exchange.service_answer,
            key=found(exchange, None),
        )
        decided = decider.decide(recorded)
        final = decided.verdict.final
        # A token in a cookie, a subprotocol or a ticket was taken out, and nothing stands in its place.
        if exchange.shown is not None and presented is None and final is not None and final.stage == "authentication":
            ring.unknown = True
        policy = OfflinePolicy(loaded, decider.snapshot, frozenset(), ())
        explanation = explain(policy, recorded, decided, decider.stages)
        notes = [_UNTOLD]
        if ring.unknown:
            notes.insert(
                0,
                "Whether the token is good was not found out then, and credentials are not kept: what comes behind "
                "authentication can't be said. Give claims to assume, and it can.",
            )
        elif ring.remembered:
            notes.insert(0, "The token that was taken out counts for what was found out of it then.")
        if any(
            REDACTED.encode() in value and name.lower() != b"authorization" for name, value in request.headers.fields
        ):
            notes.insert(
                0, f"Fields with {REDACTED} are read as that text: rules about their values may say otherwise."
            )
        stages = _reports(explanation, loaded, decided, decider.stages)
        for report, (_, seconds) in zip(stages, decided.verdict.times, strict=False):
            report["us"] = round(seconds * 1e6)
        return {
            "decision": "not known" if ring.unknown else explanation.decision,
            "status": None if ring.unknown else explanation.status,
            "route": None if decided.route is None else decided.route.name,
            "request": explanation.request,
            "stages": stages,
            "upstream": explanation.upstream,
            "policy": snapshot.digest,
            "notes": notes,
            "time": rfc3339(time.time()),
        }

    def _presented(self, claims: str, at: float) -> "Presented":
        from mitmgate.replay.cases import presented_claims  # noqa: PLC0415 - as above

        snapshot = self._sources.policy()
        told = parse_object(claims.encode("utf-8", "surrogatepass"))
        if told is None:
            raise UserError('The claims are no JSON object, such as {"sub": "alice", "scope": "users.read"}.')
        if snapshot is None or not snapshot.issuers:
            raise UserError("The policy has no issuer, so that no claims can be assumed.")
        return presented_claims(snapshot, told, at)


def edited(request: Request, edit: Mapping[str, object], presented: "Presented | None") -> Request:
    """Make the copy. Raises UserError, a sentence, where it is none that a client could send."""
    method, target, pairs = edit.get("method"), edit.get("target"), edit.get("fields")
    if not isinstance(method, str) or not isinstance(target, str) or not isinstance(pairs, list):
        raise UserError("A copy has a method, a target and fields.")
    if not method or not target:
        raise UserError("The method and the target can't be empty.")
    fields: list[tuple[bytes, bytes]] = []
    authority = request.authority
    try:
        method.encode("latin-1")
        target.encode("latin-1")
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise UserError("A field is a name and a value.")
            name, value = pair[0].strip(), pair[1].strip()
            if name == AUTHORITY:
                authority = value
            elif not name or any(character in name + value for character in "\r\n\0"):
                raise UserError(f"{name!r} is no field of one line.")
            else:
                fields.append((name.encode("latin-1"), _token(name, value).encode("latin-1")))
    except UnicodeEncodeError as error:
        raise UserError("A request holds octets: percent-encode what is beyond ISO-8859-1.") from error
    if presented is not None:
        fields = [field for field in fields if field[0].lower() != b"authorization"]
        fields.append((b"Authorization", b"Bearer " + presented.text))
    return replace(request, method=method, target=target, authority=authority, headers=Headers(fields))


def _token(name: str, value: str) -> str:
    """Put something that can be read as a token in the place of one that was taken out."""
    return value.replace(REDACTED, HIDDEN.decode()) if name.lower() == "authorization" else value


def _resident() -> int | None:
    """Return the resident memory of this process in bytes; None where nobody says."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def _number(question: Mapping[str, object], name: str) -> int:
    number = question.get(name)
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{name} is a number.")
    return number


def _turn(turn: Turn) -> Row:
    return {
        "circuit": turn.circuit,
        "state": turn.state.value,
        "time": rfc3339(turn.at),
        "why": turn.why,
        "cause": turn.cause,
        "request_id": turn.request_id,
    }


def _reports(explanation: "Explanation", loaded: Loaded, exchange: Exchange, stages: Mapping[str, Stage]) -> list[Row]:
    """Return the stages of an explanation, with what the policy says at the lines that each went by."""
    reports = explanation.members()["stages"]
    if not isinstance(reports, list):
        raise TypeError("stages are a list")
    for report in reports:
        stage = stages.get(report["stage"])
        places = {dotted(location): location for location in (() if stage is None else stage.goes_by(exchange))}
        for rule in report["rules"]:
            location = places[rule["member"]]
            if _may_be_shown(location) and loaded.document.may_quote_within(location):
                rule["value"] = loaded.document.at(location)
    return reports


def _may_be_shown(location: Location) -> bool:
    """Tell whether a member is a rule, and no place where a policy may have put a credential."""
    match location:
        case ("routes", _, member, *_):
            return member not in {"rewrite", "name"}
        case ("upstreams", _, "circuit"):
            return True
    return location[:1] in {("rate_limits",), ("networks",), ("client_limits",)}


def _plain(value: object, depth: int = 8) -> object:
    """Return a value as JSON has it, with a bound on each of its texts, lists and objects."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        text = writable(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    if depth == 0:
        return shortened(str(value))
    if isinstance(value, Mapping):
        return {writable(str(name))[:_LONGEST]: _plain(item, depth - 1) for name, item in [*value.items()][:_MOST]}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [_plain(item, depth - 1) for item in [*value][:_MOST]]
    return shortened(str(value))
