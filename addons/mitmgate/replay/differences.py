"""Differences between two decisions on one request, and what they add up to over a recording."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from mitmgate.core.reason import Reason
from mitmgate.replay.decision import ADMIT, NO_RULE, UNSEEN, Decision, is_denial, settled_fields

EXAMPLES: Final = 5
_MOST_GROUPS: Final = 10_000
_MOST_PRINCIPALS: Final = 1_000
OTHERS: Final = "(others)"


class Kind(StrEnum):
    """What differs, the gravest first. One request has one difference: the first of these that holds."""

    LOOSENED = "loosened"  # was denied, and is admitted or answered now
    TIGHTENED = "tightened"  # was admitted or answered, and is denied now
    OUTCOME = "outcome"  # answered by the gateway instead of the upstream, or the other way round
    REASON = "reason"  # denied as before, with another reason
    UPSTREAM = "upstream"  # goes to another service
    TARGET = "target"  # another path or query goes to the service
    HEADERS = "headers"  # other header fields go to the service
    ROUTE = "route"  # another route takes it, to the same end
    OBSERVED = "observed"  # report mode observes something else


class Difference(NamedTuple):
    """How two decisions differ. before and after: a few words each."""

    kind: Kind
    before: str
    after: str


def compare(before: Decision, after: Decision, ignored: frozenset[bytes] = frozenset()) -> Difference | None:
    """Compare two decisions on one request; None where they are the same.

    ignored: lower-case header names that no comparison looks at. What a recording does not say is not compared.
    """
    if before.outcome != after.outcome or before.reason != after.reason:
        return Difference(_kind(before, after), before.label, after.label)
    if before.stage and after.stage and before.stage != after.stage:
        return Difference(Kind.REASON, f"{before.label} by {before.stage}", f"{after.label} by {after.stage}")
    if before.outcome == ADMIT:
        found = _forwarded(before, after, ignored)
        if found is not None:
            return found
    if None not in (before.observed, after.observed) and _of_the_head(before) != _of_the_head(after):
        return Difference(Kind.OBSERVED, _observed(before), _observed(after))
    return None


def _kind(before: Decision, after: Decision) -> Kind:
    was, now = is_denial(before), is_denial(after)
    if was and now:
        return Kind.REASON
    if was:
        return Kind.LOOSENED
    return Kind.TIGHTENED if now else Kind.OUTCOME


def _of_the_head(decision: Decision) -> list[str]:
    """Return what was observed, but for what was of the body, which no recording has."""
    return [said for said in decision.observed or () if said != f"openapi/{Reason.BODY_INVALID.code}"]


def _observed(decision: Decision) -> str:
    return f"{decision.label}, observed: {', '.join(decision.observed or ()) or 'nothing'}"


def _forwarded(before: Decision, after: Decision, ignored: frozenset[bytes]) -> Difference | None:
    """Compare what the upstream gets."""
    if before.endpoint is not None and after.endpoint is not None and before.endpoint != after.endpoint:
        # Which endpoint of a service is next depends on every request before this one.
        if before.endpoint not in {endpoint.url for endpoint in after.peers}:
            return Difference(Kind.UPSTREAM, f"admit to {before.endpoint}", f"admit to {after.endpoint}")
        ignored |= {b"host"}
    if before.target is not None and after.target is not None and before.target != after.target:
        return Difference(Kind.TARGET, "admit", f"admit with another {_target_part(before.target, after.target)}")
    if before.fields is not None and after.fields is not None and before.fields != after.fields:
        ignored |= {name.lower() for name, value in (*before.fields, *after.fields) if value == UNSEEN}
        first, second = settled_fields(before.fields, ignored), settled_fields(after.fields, ignored)
        if first != second:
            return Difference(Kind.HEADERS, "admit", f"admit with {_changed(first, second)}")
    if NO_RULE not in {before.route, after.route} and before.route != after.route:
        return Difference(Kind.ROUTE, f"admit by {before.route}", f"admit by {after.route}")
    return None


def _target_part(before: str, after: str) -> str:
    return "path" if before.partition("?")[0] != after.partition("?")[0] else "query"


def _changed(first: tuple[tuple[bytes, bytes], ...], second: tuple[tuple[bytes, bytes], ...]) -> str:
    """Say which header fields differ, by name."""
    was: dict[bytes, list[bytes]] = {}
    now: dict[bytes, list[bytes]] = {}
    for fields, found in ((first, was), (second, now)):
        for name, value in fields:
            found.setdefault(name, []).append(value)
    words = []
    for name in sorted({*was, *now}):
        if was.get(name) != now.get(name):
            sign = "+" if name not in was else "-" if name not in now else "~"
            words.append(sign + name.decode("latin-1"))
    return ", ".join(words)


@dataclass(slots=True)
class Group:
    """Requests with the same difference on the same route. examples: the ids of the first ones."""

    kind: Kind
    before: str
    after: str
    route: str
    count: int = 0
    principals: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, identity: str, principal: str) -> None:
        """Count one more request."""
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(identity)
        if principal not in self.principals and len(self.principals) >= _MOST_PRINCIPALS:
            principal = OTHERS
        self.principals[principal] += 1

    @property
    def ranked(self) -> list[tuple[str, int]]:
        """The principals, those with most requests first."""
        return sorted(self.principals.items(), key=lambda item: (-item[1], item[0]))


class Tally:
    """All differences of a run, in groups. Its memory does not grow with the recording."""

    def __init__(self) -> None:
        """Start with none."""
        self.kinds: Counter[Kind] = Counter()
        self._groups: dict[tuple[str, ...], Group] = {}

    def add(self, identity: str, difference: Difference, before: Decision, after: Decision) -> None:
        """Count a difference."""
        kind, was, now = difference
        self.kinds[kind] += 1
        route = after.route if after.route != NO_RULE else before.route
        key: tuple[str, ...] = (kind, was, now, route)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= _MOST_GROUPS:
                key, was, now, route = (kind,), OTHERS, OTHERS, OTHERS
            group = self._groups.setdefault(key, Group(kind, was, now, route))
        group.add(identity, after.principal if after.principal != NO_RULE else before.principal)

    @property
    def total(self) -> int:
        """How many requests are decided otherwise."""
        return self.kinds.total()

    @property
    def groups(self) -> list[Group]:
        """The groups: the gravest kind first, then the largest."""
        order = {kind: at for at, kind in enumerate(Kind)}
        return sorted(self._groups.values(), key=lambda g: (order[g.kind], -g.count, g.route, g.before, g.after))
