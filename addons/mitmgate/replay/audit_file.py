"""The gateway's audit files as recordings: who asked for what and what was decided, without headers and claims.

What an event does not say can't be decided on again, and is not guessed: of the principal only issuer, subject and
roles are known, of a request without principal not even whether it had a credential. `Presented.partial` says so, and a
decision that hangs on the rest is counted as skipped.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import BinaryIO

import orjson

from mitmgate.core.decision_service import recorded
from mitmgate.core.headers import Headers
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Request
from mitmgate.replay.decision import ADMIT, NO_RULE, Decision, reason_of
from mitmgate.replay.traffic import DAMAGE, Aftermath, Entry, Known, Presented, Recorded, Skipped, plausible

_PLACE = b"not-recorded"


class AuditFormat:
    """Reads audit events line by line (ordered.Format)."""

    def records(self, file: BinaryIO) -> Iterator[tuple[float | None, bytes]]:
        """Yield each line; of events that are no requests, None and the line."""
        first = True
        for line in file:
            event = _parse(line)
            if first and (event is None or "event" not in event):
                raise ValueError("no audit file of the gateway")
            first = False
            yield (None if event is None or event.get("event") != "request" else _arrived(event)), line

    def record(self, file: BinaryIO) -> bytes:
        """Read the line that begins here."""
        return file.readline()

    def entry(self, raw: bytes) -> Entry:
        """Read an event."""
        event = _parse(raw)
        if event is None:
            return Skipped("", "damaged")
        if event.get("event") != "request":
            return Skipped("", "no HTTP request")
        try:
            return plausible(_recorded(event))
        except DAMAGE:
            return Skipped(str(event.get("request_id", "")), "damaged")


Members = dict[str, object]


def _parse(line: bytes) -> Members | None:
    try:
        event = orjson.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _arrived(event: Members) -> float | None:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except (ValueError, OverflowError):
        return None


def _recorded(event: Members) -> Entry:
    identity = str(event["request_id"])
    at = _arrived(event)
    if at is None or "method" not in event or "path" not in event:
        return Skipped(identity, "an event that does not say what was asked for")
    if event.get("stage") == "protocol" and event["decision"] != ADMIT:
        return Skipped(identity, "refused by the protocol layer before there was a request")
    fields = [(b"Host", str(event.get("host", "")).encode("utf-8"))]
    if "user_agent" in event:
        fields.append((b"User-Agent", str(event["user_agent"]).encode("utf-8")))
    presented = _presented(event)
    if presented is not None:
        scheme = b"Basic" if event["reason"] == Reason.SCHEME_UNSUPPORTED.code else b"Bearer"
        fields.append((b"Authorization", scheme + b" " + presented.text))
    query = event.get("query")
    size = event.get("bytes_in")
    request = Request(
        method=str(event["method"]),
        target=str(event["path"]) if query is None else f"{event['path']}?{query}",
        version="HTTP/1.1",
        headers=Headers(fields),
        scheme="http",
        authority="",
        # What the proxies in front said is not in the event, only what came of it.
        peer=str(event.get("client_ip") or event.get("peer") or ""),
        declared_body=size if isinstance(size, int) else 0,
    )
    status = event.get("status")
    return Recorded(
        id=identity,
        at=at,
        request=request,
        request_id=identity,
        presented=presented or Presented(b"", "unchecked", partial=True),
        decision=_decision(event),
        aftermath=_aftermath(event, at),
        policy=str(event.get("policy", "")),
        response_status=status if isinstance(status, int) else None,
        service_answer=recorded(event.get("decision_service")),
    )


def _presented(event: Members) -> Presented | None:
    """Make the token that the event speaks of; None where it speaks of none."""
    if "user" in event:
        roles = event.get("roles")
        known = Known(
            str(event.get("issuer", "")), str(event["user"]), tuple(map(str, roles)) if isinstance(roles, list) else ()
        )
        return Presented(_PLACE, "good", known=known, partial=True)
    if event.get("stage") != "authentication":
        return None
    reason = reason_of(event["reason"])
    if reason is Reason.CREDENTIAL_MISSING:
        return None
    return Presented(_PLACE, "unchecked", refusal=Refusal(reason, str(event.get("detail", ""))))


def _decision(event: Members) -> Decision | None:
    outcome = str(event["decision"])
    if outcome == "none":
        return None
    admitted = outcome == ADMIT
    observed = event.get("observed")
    return Decision(
        outcome=outcome,
        reason=Reason.OK.code if admitted else str(event["reason"]),
        stage="" if admitted else str(event["stage"]),
        route=str(event.get("route", NO_RULE)),
        principal=f"{event['issuer']}/{event['user']}" if "user" in event else NO_RULE,
        endpoint=str(event["endpoint"]) if admitted and "endpoint" in event else None,
        observed=tuple(map(str, observed)) if isinstance(observed, list) else (),
    )


def _aftermath(event: Members, at: float) -> Aftermath | None:
    if event["decision"] != ADMIT:
        return None
    took = event.get("upstream_ms", event.get("duration_ms"))
    known = at + took / 1000 if isinstance(took, int | float) else at
    if event.get("outcome") in {"failed", "aborted"}:
        return Aftermath(known, None, reason_of(event["reason"]))
    status = event.get("status")
    return Aftermath(known, status if isinstance(status, int) else None)
