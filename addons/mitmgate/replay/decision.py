"""A decision as replay compares it: what was decided, by which stage and why, and what the upstream was to get."""

from typing import NamedTuple

from mitmgate.core.headers import Fields
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.exchange import Exchange

ADMIT = "admit"
NO_RULE = "-"

# The gateway makes these anew for every request, or for the connection that the request happens to use.
_VOLATILE = frozenset(b"x-request-id traceparent content-length transfer-encoding".split())

UNSEEN = b"[not recorded]"
"""The value of a field whose credential the policy has set: recordings don't have it, and it is not compared."""


_REASONS = {reason.code: reason for reason in Reason}


def reason_of(code: object) -> Reason:
    """Return the reason of a code, also one that a stage of the policy in hand declares.

    Raises ValueError where there is none: the recording is of another version.
    """
    reason = _REASONS.get(code) or Reason.of(code) if isinstance(code, str) else None
    if reason is None:
        raise ValueError(f"no reason code {code!r}")
    return reason


class Decision(NamedTuple):
    """What became of one request, as far as a policy decides it.

    outcome: "admit", "deny" or "answer". reason: a code. stage: the one that spoke last, "" for an admission, and where
    nobody says. route
    and principal are "-" where there is none; principal is "issuer/subject". endpoint, target and fields are what the
    upstream was to get: None where nothing, or where the recording does not say. observed: "stage/reason" of what
    report mode let pass; None where nobody says. peers: the endpoints among which the gateway chose.
    """

    outcome: str
    reason: str
    stage: str = ""
    route: str = NO_RULE
    principal: str = NO_RULE
    endpoint: str | None = None
    target: str | None = None
    fields: Fields | None = None
    observed: tuple[str, ...] | None = ()
    peers: tuple[Endpoint, ...] = ()

    @property
    def label(self) -> str:
        """The decision in a few words: "admit", "deny scope-missing", "answer health"."""
        return ADMIT if self.outcome == ADMIT else f"{self.outcome} {self.reason}"


def decided(exchange: Exchange) -> Decision:
    """Take the decision of an exchange that went through the chain."""
    verdict = exchange.verdict
    final, route, principal = verdict.final, exchange.route, exchange.principal
    forward, endpoint = exchange.forward, exchange.endpoint
    observed: tuple[str, ...] = ()
    if verdict.observed:
        observed = tuple([f"{step.stage}/{step.reason.code}" for step in verdict.observed])
    if final is None:
        outcome, reason, stage = ADMIT, Reason.OK.code, ""
    else:
        outcome, reason, stage = final.outcome.value, final.reason.code, final.stage
    return Decision(
        outcome,
        reason,
        stage,
        NO_RULE if route is None else route.name,
        NO_RULE if principal is None else f"{principal.issuer}/{principal.subject}",
        None if endpoint is None or final is not None else endpoint.url,
        None if forward is None or final is not None else forward.target,
        None if forward is None or final is not None else forward.fields,
        observed,
        () if route is None else route.upstream.endpoints,
    )


def is_denial(decision: Decision) -> bool:
    """Tell whether the request was refused."""
    return decision.outcome == Outcome.DENY.value


def settled_fields(fields: Fields, but: frozenset[bytes] = frozenset()) -> tuple[tuple[bytes, bytes], ...]:
    """Return fields as they compare: lower-case names, sorted, without those that differ from request to request.

    but: further lower-case names to leave out.
    """
    kept = [(name.lower(), value) for name, value in fields]
    return tuple(sorted([field for field in kept if field[0] not in _VOLATILE and field[0] not in but]))
