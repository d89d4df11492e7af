"""Coverage: which rules of a policy a corpus exercises, in which of their branches, and which never."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from mitmgate.pipeline.coverage import Outside, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.document import Document
from mitmgate.policy.problem import Location
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import Decision
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.traffic import Recorded

MOST_OUTSIDE: Final = 500
"""Kinds of requests outside of a document that are told apart; clients choose their paths."""

_SECTIONS: Final = (
    *("identity", "networks", "client_limits", "rate_limits", "cors", "upstreams", "stages", "routes"),
    "decision_services",
)
_OF_ROUTE: Final = ("match", "networks", "max_body", "cors", "require", "rate_limits", "rewrite", "openapi")
"""Members of the policy, and of its routes, in the order in which their rules are listed; others come last."""


class Coverage:
    """Counts what each rule of the stages did (run.Observer)."""

    def __init__(self, policy: OfflinePolicy) -> None:
        """Ask the stages for their rules."""
        self.policy = policy
        loaded = policy.loaded
        self._stages = Decider(policy.snapshot, OfflineRing()).stages
        rules = [rule for stage in self._stages.values() for rule in stage.rules(loaded)]
        rules = [rule._replace(location=_as_written(rule.location, loaded.document)) for rule in rules]
        own = list(loaded.stages)
        self.rules = tuple(sorted(rules, key=lambda rule: _order(rule.location, own)))
        self.counts: Counter[tuple[Location, str]] = Counter()
        self.outside: Counter[Outside] = Counter()
        """Requests that are not in their route's OpenAPI document, enforced or observed."""

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        """Count what the rules did with one request."""
        document, presented = self.policy.loaded.document, recorded.presented
        token = None if presented is None else presented.token
        for step in exchange.verdict.said:
            stage = self._stages.get(step.stage)
            if stage is None:  # the protocol layer
                continue
            for location, branch in stage.covered(exchange, step, token):
                self.counts[_as_written(location, document), branch] += 1
            outside = stage.outside(exchange, step)
            if outside is not None:
                if outside not in self.outside and len(self.outside) >= MOST_OUTSIDE:
                    outside = outside._replace(operation="", detail="")
                self.outside[outside] += 1

    @property
    def branches(self) -> list[tuple[Rule, str, int]]:
        """Every branch of every rule, and how often it was taken."""
        return [(rule, branch, self.counts[rule.location, branch]) for rule in self.rules for branch in rule.branches]

    @property
    def percent(self) -> float:
        """The part of all branches that was taken, in percent; 100 where there is none."""
        counted = [count for _, _, count in self.branches]
        return 100 * sum(count > 0 for count in counted) / len(counted) if counted else 100.0

    def never(self) -> Iterator[tuple[Rule, str]]:
        """Yield the branches that were never taken."""
        return ((rule, branch) for rule, branch, count in self.branches if not count)

    def members(self) -> dict[str, object]:
        """Return the counts as plain values."""
        document = self.policy.loaded.document
        return {
            "percent": round(self.percent, 1),
            "branches": len(self.branches),
            "never": [
                {"line": document.place(rule.location, key=True)[0], "rule": rule.what, "branch": branch}
                for rule, branch in self.never()
            ],
            "outside": [{**found._asdict(), "requests": count} for found, count in self.outside.most_common()],
        }


def _as_written(location: Location, document: Document) -> Location:
    """Return the place of a list's item; of the member itself where the list is written as its only item."""
    *above, last = location
    return location if not isinstance(last, int) or isinstance(document.at(tuple(above)), list) else tuple(above)


def _order(location: Location, own: list[str]) -> tuple[int, int, int]:
    """Return where a rule is listed. own: the names of the operator's own stages, in the order of the file."""
    section = _SECTIONS.index(location[0]) if location[0] in _SECTIONS else len(_SECTIONS)
    match location:
        case ("routes", int(index), *members):
            known = members and members[0] in _OF_ROUTE
            return section, index, _OF_ROUTE.index(members[0]) if known else len(_OF_ROUTE) if members else -1
        case ("stages", str(name)):
            return section, own.index(name), 0
    return section, 0, 0
