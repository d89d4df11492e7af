"""Explain one request, stage by stage: what each read, by which rule, what it said, what would have to change."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mitmgate.audit.redact import Redaction, mark
from mitmgate.core import credentials
from mitmgate.core.authorize import facts_of
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.problem import dotted
from mitmgate.replay.advice import advice
from mitmgate.replay.condition_trace import failing
from mitmgate.replay.decision import decided
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.traffic import Recorded

Facts = dict[str, object]


@dataclass(slots=True)
class StageReport:
    """One stage. read: what it looked at. rules: the members of the policy that it went by, with their places."""

    stage: str
    outcome: str
    reason: str
    detail: str
    read: Facts = field(default_factory=dict)
    rules: list[tuple[str, str]] = field(default_factory=list)
    failing: list[Facts] = field(default_factory=list)
    change: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Explanation:
    """A decision with everything that led to it."""

    policy: str
    request: str
    decision: str
    status: int
    stages: list[StageReport]
    upstream: Facts
    notes: list[str] = field(default_factory=list)
    """What was not looked at."""

    def members(self) -> dict[str, object]:
        """Return it as plain values."""
        return {
            "policy": self.policy,
            "request": self.request,
            "decision": self.decision,
            "status": self.status,
            "stages": [
                {
                    "stage": stage.stage,
                    "outcome": stage.outcome,
                    "reason": stage.reason,
                    "detail": stage.detail,
                    "read": stage.read,
                    "rules": [{"member": member, "place": place} for member, place in stage.rules],
                    **({"failing": stage.failing} if stage.failing else {}),
                    **({"what_would_have_to_change": stage.change} if stage.change else {}),
                }
                for stage in self.stages
            ],
            "upstream": self.upstream,
            **({"notes": self.notes} if self.notes else {}),
        }


def explain(policy: OfflinePolicy, recorded: Recorded, exchange: Exchange, stages: Mapping[str, Stage]) -> Explanation:
    """Explain a decision that the chain has just made. stages: of it, by name. No credential is in it."""
    decision = decided(exchange)
    reports = [explain_step(policy, recorded, exchange, step, stages) for step in exchange.verdict.steps]
    final = exchange.verdict.final
    redaction = Redaction(policy.snapshot.redact)
    upstream: Facts = {}
    if exchange.forward is not None and exchange.endpoint is not None and final is None:
        upstream = {
            "endpoint": exchange.endpoint.url,
            "request": f"{exchange.forward.method} {redaction.target(exchange.forward.target)}",
            "headers": [_shown_field(name, value, redaction) for name, value in exchange.forward.fields],
        }
    request = recorded.request
    return Explanation(
        policy=policy.path,
        request=f"{request.method} {redaction.target(request.target)}",
        decision=decision.label,
        status=200 if final is None else final.reason.status,
        stages=reports,
        upstream=upstream,
    )


def _shown_field(name: bytes, value: bytes, redaction: Redaction) -> list[str]:
    text = name.decode("latin-1")
    return [redaction.name(text), redaction.field(text, value.decode("latin-1"))]


def _shown(value: object, redaction: Redaction) -> object:
    """Hide credentials in a fact that a stage has read, or a condition: a text, header fields, claims."""
    if isinstance(value, str):
        return credentials.hide_in_text(value, mark)
    if isinstance(value, Mapping):
        return {
            redaction.name(name): redaction.field(name, item) if isinstance(item, str) else _shown(item, redaction)
            for name, item in value.items()
        }
    return [_shown(item, redaction) for item in value] if isinstance(value, list | tuple) else value


def explain_step(
    policy: OfflinePolicy, recorded: Recorded, exchange: Exchange, step: Step, stages: Mapping[str, Stage]
) -> StageReport:
    """Explain what one stage has said, as `explain` does."""
    report = StageReport(step.stage, step.outcome.value, step.reason.code, step.detail)
    stage = stages.get(step.stage)
    report.read = {} if stage is None else stage.reads(exchange)
    redaction = Redaction(policy.snapshot.redact)
    if step.stage in policy.snapshot.own:
        report.read = {name: _shown(fact, redaction) for name, fact in report.read.items()}
    for name, show in (("target", redaction.target), ("path", redaction.path), ("host", redaction.path)):
        if isinstance(report.read.get(name), str):
            report.read[name] = show(str(report.read[name]))
    document = policy.loaded.document
    for location in () if stage is None else stage.goes_by(exchange):
        if document.at(location) is None:
            continue
        line, column = document.place(location, key=True)
        report.rules.append((dotted(location), f"{policy.path}:{line}:{column}"))
    if step.outcome in {Outcome.DENY, Outcome.OBSERVE}:
        report.change = advice(policy, recorded, exchange, step, stage)
        condition = None if stage is None else stage.condition(exchange)
        if condition is not None and step.reason.code in {"condition-false", "condition-error"}:
            report.failing = _failing(condition, exchange, redaction)
    return report


def _failing(condition: str, exchange: Exchange, redaction: Redaction) -> list[Facts]:
    route, head = exchange.route, exchange.head
    if route is None or head is None:
        return []
    facts = facts_of(head, exchange.principal, exchange.client, route.name)
    found: list[Facts] = []
    for predicate in failing(condition, facts):
        values = {name: _shown_fact(name, value, redaction) for name, value in predicate.found.items()}
        shown: Facts = {"predicate": predicate.text, "values": values}
        found.append(shown | {"error": predicate.error} if predicate.error else shown)
    return found


def _shown_fact(name: str, value: object, redaction: Redaction) -> object:
    """Hide what a condition has read, named as it reads it: `request.headers["x-api-key"]`."""
    member = name.rstrip("'\"] ").rpartition("[")[2].strip("'\" ")
    return redaction.field(member, value) if isinstance(value, str) else _shown(value, redaction)
