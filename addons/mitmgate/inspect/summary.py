"""The one line that mitmweb's list shows of a decision, and its marker."""

from typing import NamedTuple

from mitmproxy.http import HTTPFlow

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.exchange import Exchange

ADMITTED = ":green_circle:"
PENDING = ":hourglass_flowing_sand:"
OBSERVED = ":yellow_circle:"
ANSWERED = ":large_blue_circle:"
FAILED = ":orange_circle:"
DENIED = ":red_circle:"

_LONGEST_NAME = 40  # characters of a subject: it is a claim, as long as its issuer likes


class Summary(NamedTuple):
    """marker: a name of mitmproxy.utils.emoji, which mitmweb draws. comment: plain text on one line."""

    marker: str
    comment: str


def summarise(exchange: Exchange | None, flow: HTTPFlow) -> Summary:
    """Say what was decided on a flow, and what became of it so far.

    The comment starts with its word: DENY, ANSWER, ADMIT or FAIL (admitted, but there is no response of the service).
    exchange: None where no policy was in force.
    """
    if exchange is None:
        return Summary(DENIED, _denial(Step("enforcer", Outcome.DENY, Reason.POLICY_UNAVAILABLE)))
    final = exchange.verdict.final
    if final is not None and final.outcome is Outcome.ANSWER:
        status = flow.response.status_code if flow.response is not None else final.reason.status
        return Summary(ANSWERED, f"ANSWER {status} {final.reason.code} at {final.stage}{_who(exchange)}")
    if final is None and not exchange.admitted:  # Enforcer itself failed, closed
        final = Step("enforcer", Outcome.DENY, Reason.STAGE_ERROR)
    if final is not None:
        return Summary(DENIED, f"{_denial(final)}{_who(exchange)}")
    if exchange.failure is not None:
        failure = exchange.failure
        cause = "" if exchange.cause is None else f" ({exchange.cause})"
        return Summary(FAILED, f"FAIL {failure.status} {failure.code}{cause} after admission{_who(exchange)}")
    if flow.error is not None:
        return Summary(FAILED, f"FAIL after admission: {flow.error.msg}{_who(exchange)}")
    return _admission(exchange, flow)


def _denial(step: Step) -> str:
    return f"DENY {step.reason.status} {step.reason.code} at {step.stage}"


def _admission(exchange: Exchange, flow: HTTPFlow) -> Summary:
    route, response = exchange.route, flow.response
    where = f"{route.name} → {route.upstream.name}" if route is not None else "?"
    if exchange.check is not None and route is not None:
        where = f"{route.name}, asked by {exchange.check.kind}"
    if response is None:
        marker, outcome = PENDING, f", waiting for {exchange.endpoint.url if exchange.endpoint else 'the service'}"
    elif response.timestamp_end is None:
        marker, outcome = PENDING, f" {response.status_code}, body on its way"
    else:
        took = (response.timestamp_end - flow.request.timestamp_start) * 1000
        marker, outcome = ADMITTED, f" {response.status_code} in {took:.1f} ms"
    principal = f" ({subject(exchange)})" if exchange.principal is not None else ""
    observed = ", ".join(f"{step.reason.code} at {step.stage}" for step in exchange.verdict.observed)
    tail = "".join(f"; {text}" for text in (quota(exchange), observed and f"would deny: {observed}") if text)
    return Summary(OBSERVED if observed else marker, f"ADMIT {where}{outcome}{principal}{tail}")


def _who(exchange: Exchange) -> str:
    parts = []
    if exchange.principal is not None:
        parts.append(subject(exchange))
    if exchange.route is not None:
        parts.append(f"route {exchange.route.name}")
    return f" ({', '.join(parts)})" if parts else ""


def subject(exchange: Exchange) -> str:
    """Name the principal on one line: without control characters, cut where it is long."""
    name = exchange.principal.subject if exchange.principal is not None else ""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


def quota(exchange: Exchange) -> str:
    """Say what is left of the limit that is nearest to its end; "" where no limit was asked."""
    if not exchange.grants:
        return ""
    nearest = min(exchange.grants, key=lambda grant: grant.remaining / grant.limit.limit)
    return f"{nearest.remaining} of {nearest.limit.limit} left"
