"""A whole replay: every request of a recording decided, compared, counted."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from mitmgate.core.decision_service import Said
from mitmgate.core.reason import Reason
from mitmgate.pipeline.exchange import Exchange
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import Decision, decided
from mitmgate.replay.differences import Kind, Tally, compare
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.traffic import Recorded, Skipped, Traffic
from mitmgate.stages.decision_service import RecordedAnswers

FailOn = Literal["loosened", "tightened", "any", "none"]
RECORDED: Final = "the recorded verdicts"

FAILING: Final[Mapping[FailOn, frozenset[Kind]]] = {
    "any": frozenset(Kind),
    "loosened": frozenset({Kind.LOOSENED}),
    "tightened": frozenset({Kind.TIGHTENED}),
    "none": frozenset(),
}
"""The differences on which a run fails."""

Expected = Callable[[Recorded], Decision | None]

_UNKNOWABLE: Final = frozenset(
    {
        Reason.CREDENTIAL_MISSING.code,
        Reason.SCOPE_MISSING.code,
        Reason.CLAIM_MISMATCH.code,
        Reason.AUTHENTICATION_INSUFFICIENT.code,
        Reason.CONDITION_FALSE.code,
        Reason.CONDITION_ERROR.code,
    }
)
"""Denials that rest on what an audit event does not say."""


class Observer(Protocol):
    """Watches a replay."""

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        """Take one request, the decision of the policy under test, and what it is compared with."""
        ...


@dataclass(slots=True)
class Report:
    """What a replay found. Everything in it is the same in every run.

    compared: decisions that had something to be compared with; of the `decided` ones, the others had not. recorded:
    the digests of the policies that had decided then. answers: decisions by their label; routes: by route.
    """

    traffic: str
    policy: str
    digest: str
    compared_with: str
    decided: int = 0
    compared: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)
    sample: float = 1.0

    def failed(self, fail_on: FailOn) -> bool:
        """Tell whether the run fails: nothing was decided, or there is a difference of that direction."""
        return not self.decided or any(self.tally.kinds[kind] for kind in FAILING[fail_on])


def replay(
    traffic: Traffic,
    policy: OfflinePolicy,
    *,
    against: OfflinePolicy | None = None,
    expected: Expected | None = None,
    compared_with: str = "",
    assume_signed: bool = False,
    assume_decision: Said = "unavailable",
    observers: Sequence[Observer] = (),
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Decide every request of a recording with a policy, and compare.

    against: another policy to compare with. expected: decisions to compare with. Without either it is the recorded
    verdict. compared_with: what the report calls an `expected`. progress: called for each entry.
    """
    ring = OfflineRing(assume_signed=assume_signed)
    decider = Decider(policy.snapshot, ring, assume_decision)
    other_ring = OfflineRing(assume_signed=assume_signed)
    other = None if against is None else Decider(against.snapshot, other_ring, assume_decision)
    ignored = policy.ignored | (frozenset() if against is None else against.ignored)
    name = compared_with if expected is not None else RECORDED if against is None else against.path
    report = Report(traffic.name, policy.path, policy.snapshot.digest, name)
    for entry in traffic:
        progress()
        if isinstance(entry, Skipped):
            report.skipped[entry.reason] += 1
            continue
        exchange = decider.decide(entry)
        decision = decided(exchange)
        before = decided(other.decide(entry)) if other is not None else None
        if _rests_on_the_unknown(entry, decision) or (before is not None and _rests_on_the_unknown(entry, before)):
            report.skipped["an audit event says nothing of the claims that this rests on"] += 1
            continue
        report.decided += 1
        report.answers[decision.label] += 1
        report.routes[decision.route] += 1
        report.recorded[entry.policy] += 1
        report.sample = min(report.sample, entry.sample)
        if other is None:
            before = entry.decision if expected is None else expected(entry)
        for observer in observers:
            observer.seen(entry, exchange, decision, before)
        if before is None:
            continue
        report.compared += 1
        difference = compare(before, decision, ignored)
        if difference is not None:
            report.tally.add(entry.id, difference, before, decision)
    report.notes = list(_notes(report, policy, decider, ring, other_ring))
    report.notes += _unasked(decider.answers, None if other is None else other.answers)
    return report


def _unasked(answers: RecordedAnswers, other: RecordedAnswers | None) -> list[str]:
    """Say what was assumed of decision services."""
    missing = answers.missing if other is None else answers.missing + other.missing
    return [
        f"{count} decisions of the decision service {name} were not recorded, and taken for {answers.assumed}; "
        "--assume-decision says for what"
        for name, count in sorted(missing.items())
    ]


def _rests_on_the_unknown(entry: Recorded, decision: Decision) -> bool:
    return entry.presented is not None and entry.presented.partial and decision.reason in _UNKNOWABLE


def _notes(
    report: Report, policy: OfflinePolicy, decider: Decider, ring: OfflineRing, other: OfflineRing
) -> Iterable[str]:
    """Say what a reader has to know to believe the numbers."""
    yield from policy.notes
    if report.decided and not report.compared:
        yield "nothing was compared: the recording has no verdicts; give --against a policy to compare with"
    elif report.compared < report.decided:
        yield f"{report.decided - report.compared} decisions were compared with nothing: the recording has no verdict"
    if len(report.recorded) > 1 and report.compared_with == RECORDED:
        yield f"the recorded verdicts are those of {len(report.recorded)} policies, one after the other"
    if report.sample < 1:
        yield (
            f"the recording is a sample ({report.sample:g} of all requests): limits and circuits saw more traffic "
            "than this"
        )
    if decider.imagined:
        yield (
            f"{decider.imagined} admitted requests have no recorded response: circuits take them for answered at once"
        )
    if decider.keys.unknown:
        yield f"{decider.keys.unknown} API keys of which nothing is recorded were refused: no list of keys is read"
    if ring.real and policy.snapshot.policy.revocation is not None:
        yield f"{ring.real} tokens of which nothing is recorded were decided on without the list of revocations"
    for issuer, count in sorted((ring.unverified | other.unverified).items()):
        yield (
            f"{count} decisions refused with keys-unavailable: nobody had checked the token's signature, and the keys "
            f"of {issuer} are not at hand; --jwks gives them, --assume-signed takes every signature for good"
        )
    for issuer, count in sorted((ring.assumed | other.assumed).items()):
        yield f"{count} decisions rest on --assume-signed: signatures of {issuer} that nobody has checked"
