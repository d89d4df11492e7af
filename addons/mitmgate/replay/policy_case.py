"""A policy in a test: a request, claims and a time in; the decision out, with a sentence where it is another one."""

from collections.abc import Mapping
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from mitmgate.core.decision_service import Said
from mitmgate.core.jose import Json
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.exchange import Exchange
from mitmgate.replay import explain_text
from mitmgate.replay.cases import case
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import ADMIT, Decision, decided
from mitmgate.replay.explain import explain
from mitmgate.replay.offline import load_offline
from mitmgate.replay.ring import OfflineRing

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""The time of a request that names none; each test starts there, so that it is the same on every day."""


class PolicyCase:
    """A policy under test, with its counters and circuits: they go from request to request, as in the gateway."""

    def __init__(self, path: Path | str, environ: Mapping[str, str] | None = None) -> None:
        """Load a policy; secrets that are not there are not needed. Raises UserError with every error."""
        self.policy = load_offline(str(path), environ or {})
        self.now = BEGINNING
        self._decider = Decider(self.policy.snapshot, OfflineRing(assume_signed=True), "allow")
        self._count = 0

    def request(self, method: str, url: str) -> "RequestCase":
        """Begin a request."""
        return RequestCase(self, method, url)

    def fresh(self) -> Self:
        """Forget counters, circuits and the time."""
        self.now = BEGINNING
        self._decider = Decider(self.policy.snapshot, OfflineRing(assume_signed=True), "allow")
        return self

    def decide(self, request: "RequestCase") -> tuple[Decision, Exchange, str]:
        """Decide a request; also return the whole explanation as text."""
        self._count += 1
        recorded = case(
            self.policy.snapshot,
            request.method,
            request.url,
            at=request.time if request.time is not None else self.now,
            claims=request.members,
            headers=request.fields,
            ip=request.address,
            body=request.length,
            identity=f"case-{self._count}",
        )
        self.now = recorded.at
        self._decider.answers.assumed = request.said
        exchange = self._decider.decide(recorded)
        return (
            decided(exchange),
            exchange,
            explain_text.as_text(explain(self.policy, recorded, exchange, self._decider.stages)),
        )


class RequestCase:
    """One request of a test, said step by step; `is_admitted`, `is_denied` and `is_answered` decide it.

    Each step returns a request of its own: one that was begun may be gone on with in several ways.
    """

    def __init__(self, policy: PolicyCase, method: str, url: str) -> None:
        """Begin: no token, no fields, from 127.0.0.1."""
        self.method = method
        self.url = url
        self.members: dict[str, Json] | None = None
        self.fields: tuple[tuple[str, str], ...] = ()
        self.address = "127.0.0.1"
        self.length = 0
        self.time: float | None = None
        self.said: Said = "allow"
        self._policy = policy
        self._times = 1

    def _with(self, **members: object) -> Self:
        other = copy(self)
        for name, value in members.items():
            setattr(other, name, value)
        return other

    def claims(self, **members: Json) -> Self:
        """Show a token with these claims; iss, aud, iat and exp are filled in, None leaves one out."""
        return self._with(members={**(self.members or {}), **members})

    def header(self, name: str, value: str) -> Self:
        """Add a header field."""
        return self._with(fields=(*self.fields, (name, value)))

    def ip(self, address: str) -> Self:
        """Come from this address."""
        return self._with(address=address)

    def body(self, size: int) -> Self:
        """Bring a body of this many bytes."""
        return self._with(length=size)

    def at(self, moment: str | float | datetime) -> Self:
        """Come at this time: RFC 3339 text, Unix seconds, or a datetime with a time zone."""
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment)
        if isinstance(moment, datetime):
            if moment.tzinfo is None:
                raise ValueError(f"{moment}: a time needs its zone, like 2026-01-01T10:00:00Z")
            moment = moment.timestamp()
        return self._with(time=moment)

    def after(self, seconds: float) -> Self:
        """Come this long after the request before it."""
        return self.at(self._policy.now + seconds)

    def decision(self, said: Said) -> Self:
        """Have a decision service that is asked say this; it says "allow" otherwise."""
        return self._with(said=said)

    def times(self, count: int) -> Self:
        """Come this often, at the same moment; every one of them has to be decided as is expected."""
        return self._with(_times=count)

    def is_admitted(self, *, route: str | None = None, upstream: str | None = None, target: str | None = None) -> None:
        """Check that the request is let through: by this route, to this endpoint, with this path."""
        for decision, text in self._decided():
            found = {"route": decision.route, "upstream": decision.endpoint, "target": decision.target}
            wanted = {"route": route, "upstream": upstream, "target": target}
            if decision.outcome != ADMIT:
                raise AssertionError(f"expected admit, found {decision.label}\n{text}")
            for name, value in wanted.items():
                if value is not None and found[name] != value:
                    raise AssertionError(f"expected the {name} {value}, found {found[name]}\n{text}")

    def is_denied(self, reason: str) -> None:
        """Check that the request is refused, with this reason code."""
        self._check(f"{Outcome.DENY.value} {reason}")

    def is_answered(self, reason: str) -> None:
        """Check that the gateway answers itself: "health" or "preflight"."""
        self._check(f"{Outcome.ANSWER.value} {reason}")

    def _check(self, label: str) -> None:
        for decision, text in self._decided():
            if decision.label != label:
                raise AssertionError(f"expected {label}, found {decision.label}\n{text}")

    def _decided(self) -> list[tuple[Decision, str]]:
        found = []
        for _ in range(self._times):
            decision, _, text = self._policy.decide(self)
            found.append((decision, text))
        return found
