"""A request that has ended: what is kept of it until its event is made, and that event.

Theory of operation. The event of a request is made later than its exchange ends, together with those of other requests
(see gathering.py), and by whichever thread comes first. What it says must be what held at the end, so `ended` takes
every fact then; `request_event` reads nothing else. Neither the flow nor the exchange is kept, nor a body.
"""

import logging
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mitmgate.audit.asked import add_asked
from mitmgate.audit.decided import Decided
from mitmgate.audit.event import fate, minimal_event, rfc3339
from mitmgate.audit.record import Event
from mitmgate.audit.redact import Redaction
from mitmgate.core.address import address_text
from mitmgate.core.api_key import ISSUER as API_KEY
from mitmgate.core.cause import Cause
from mitmgate.core.check import Check
from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Head, Request
from mitmgate.core.rules import Endpoint, Route
from mitmgate.core.verdict import Step
from mitmgate.core.window import Grant

logger = logging.getLogger(__name__)

Ended = tuple[
    str,  # request_id
    float,  # now
    str,  # policy digest
    str,  # traceparent
    IPv4Address | IPv6Address | None,  # client
    Request,
    Head | None,
    Principal | None,
    ServiceAnswer | None,
    Route | None,
    Endpoint | None,
    int,  # retries
    bool,  # admitted
    Reason | None,  # failure
    str,  # failure_detail
    Cause | None,
    Step | None,  # the final one
    tuple[Step, ...],  # observed
    tuple[list[Step], list[float]],  # all steps, and the seconds that each took
    tuple[Grant, ...],
    float,  # seconds
    float | None,  # upstream_seconds
    int | None,  # status
    bool,  # aborted
    bool,  # upgraded
    int | None,  # bytes_in
    int | None,  # bytes_out
    tuple[int, str, int, int] | None,  # of a WebSocket: code, closed_by, messages_in, messages_out
    Check | None,
]
"""One request's facts. A plain tuple: it is made on every request, and a named one costs ten times as much."""

_WEBSOCKET: Final = ("code", "closed_by", "messages_in", "messages_out")
SHORTEST: Final = 1e-5
"""Seconds of a step that is worth its place in a record: most take less, and to name all costs 2 µs more a request."""
_MOST_TEXTS: Final = 1024
_TEXTS: Final[dict[int, tuple[object, str]]] = {}
"""By identity, texts of values that never change; each is kept with its value, so that no other gets its identity."""


def ended(
    decided: Decided,
    seconds: float,
    status: int | None,
    aborted: bool = False,
    upgraded: bool = False,
    upstream_seconds: float | None = None,
    bytes_in: int | None = None,
    bytes_out: int | None = None,
    websocket: tuple[int, str, int, int] | None = None,
) -> Ended:
    """Take what the event of a request will say. Called when its exchange ends.

    seconds: from arrival to end. status: of the response that the client got, None: none was sent. aborted: the
    exchange ended before its response was complete. upstream_seconds: the upstream's part of it. bytes_in, bytes_out:
    of the bodies, or of a WebSocket's messages. websocket: code, closed_by, messages_in, messages_out.
    """
    verdict = decided.verdict
    return (
        decided.request_id,
        decided.now,
        verdict.policy_digest,
        decided.traceparent,
        decided.client,
        decided.request,
        decided.head,
        decided.principal,
        decided.service_answer,
        decided.route,
        decided.endpoint,
        decided.retries,
        decided.admitted,
        decided.failure,
        decided.failure_detail,
        decided.cause,
        verdict.final,
        verdict.observed,
        verdict.going_on,  # nothing is said after the end
        tuple(decided.grants),
        seconds,
        upstream_seconds,
        status,
        aborted,
        upgraded,
        bytes_in,
        bytes_out,
        websocket,
        decided.check,
    )


def request_event(one: Ended, redaction: Redaction) -> Event:  # noqa: PLR0912, PLR0915 - one member after the other
    """Make the one event of a request."""
    (
        request_id,
        now,
        policy,
        traceparent,
        client,
        request,
        head,
        principal,
        answer,
        route,
        endpoint,
        retries,
        admitted,
        failure,
        detail,
        cause,
        final,
        observed,
        said,
        grants,
        seconds,
        upstream_seconds,
        status,
        aborted,
        upgraded,
        bytes_in,
        bytes_out,
        websocket,
        check,
    ) = one
    event: Event = {
        "time": rfc3339(now),
        "event": "request",
        "request_id": request_id,
        "trace_id": traceparent[3:35],
        "traceparent": traceparent,
        "client_ip": None if client is None else _text(client, address_text),
        "peer": request.peer,
        "protocol": request.version,
    }
    if check is not None:
        event["check"] = {"kind": None if check.kind is None else check.kind.value, "peer": check.peer}
    if principal is not None:
        _add_principal(event, principal)
    add_asked(event, request, head, redaction)
    if route is not None:
        event["route"] = route.name
        event["upstream"] = route.upstream.name
    if answer is not None:
        event["decision_service"] = _said(answer)
    if endpoint is not None and check is None:
        event["endpoint"] = _text(endpoint, _url)
        if retries:
            event["retries"] = retries
    outcome, reason = fate(final, failure, admitted, aborted, check is not None)
    event["status"] = reason.status if status is None else status
    event["outcome"] = outcome
    if final is not None:
        event["decision"] = final.outcome.value
        event["stage"] = final.stage
        detail = final.detail
    else:
        event["decision"] = "admit" if admitted else "none"
        if failure is not None:
            event["stage"] = "protocol"
    event["reason"] = reason._value_
    if detail:
        event["detail"] = detail
    if cause is not None:
        event["cause"] = cause._value_
    if observed:
        event["observed"] = [f"{step.stage}/{step.reason.code}" for step in observed]
    steps, times = said
    longest = {step[0]: int(took * 1_000_000) for step, took in zip(steps, times, strict=False) if took >= SHORTEST}
    if longest:
        event["steps_us"] = longest
    event["duration_ms"] = round(seconds * 1_000_000) / 1000
    if upstream_seconds is not None:
        event["upstream_ms"] = round(upstream_seconds * 1_000_000) / 1000
    if bytes_in is not None:
        event["bytes_in"] = bytes_in
    if bytes_out is not None:
        event["bytes_out"] = bytes_out
    if upgraded:
        event["upgraded"] = True
    if websocket is not None:
        event["websocket"] = dict(zip(_WEBSOCKET, websocket, strict=True))
    if grants:
        _add_limits(event, grants)
    event["policy"] = policy
    return event


def _add_principal(event: Event, principal: Principal) -> None:
    event["user"] = principal.subject
    event["issuer"] = principal.issuer
    if principal.issuer == API_KEY:
        event["key_id"] = principal.token_id
    if principal.roles:
        event["roles"] = principal.roles


def _text[T](one: T, write: Callable[[T], str]) -> str:
    """Write something that comes again and again; an object is found sooner by its identity than by its value."""
    known = _TEXTS.get(id(one))
    if known is not None and known[0] is one:
        return known[1]
    if len(_TEXTS) >= _MOST_TEXTS:
        _TEXTS.clear()
    text = write(one)
    _TEXTS[id(one)] = one, text
    return text


def _url(endpoint: Endpoint) -> str:
    return endpoint.url


def told(one: Ended, redaction: Redaction) -> Event:
    """Make the event of a request, or one that says that it could not be made."""
    try:
        return request_event(one, redaction)
    except Exception:
        request_id, now, policy = one[:3]
        logger.exception("the audit event of %s could not be made", request_id)
        return minimal_event(request_id, now, Reason.STAGE_ERROR, "The event could not be made.", policy)


def _said(answer: ServiceAnswer) -> Event:
    said: Event = {"service": answer.service, "said": answer.said, "ms": round(answer.seconds * 1_000_000) / 1000}
    if answer.cached:
        said["cached"] = True
    if answer.why:
        said["why"] = answer.why
    return said


def _add_limits(event: Event, grants: tuple[Grant, ...]) -> None:
    limits = []
    degraded = False
    for grant in grants:
        limits.append({"name": grant.limit.name, "remaining": grant.remaining})
        degraded = degraded or grant.degraded
    event["limits"] = limits
    if degraded:
        event["degraded"] = True
