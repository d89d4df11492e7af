"""Audit events: one for every request, and one for everything else that an auditor has to know.

Every event has `time` (RFC 3339, UTC, milliseconds) and `event`, its kind; the trail adds `id`, which is unique: a
sink that delivers a record twice delivers the same id. What is not known is left out.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from mitmgate.audit.decided import Decided
from mitmgate.audit.record import Event
from mitmgate.audit.redact import REDACTED, Redaction, veil
from mitmgate.core.address import address_text
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome

Fate = Literal["proxied", "denied", "answered", "failed", "aborted"]

_DENY = Outcome.DENY


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def rfc3339(now: float) -> str:
    """Write Unix seconds as RFC 3339 text in UTC, milliseconds cut off."""
    second = int(now)
    return f"{_second(second)}.{int((now - second) * 1000):03d}Z"


def wire_text(text: str) -> str:
    """Read text that was decoded as ISO-8859-1 as the UTF-8 that it most likely is; stray bytes become escapes."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # it is no wire text
        return text


def fate_of(decided: Decided, aborted: bool) -> tuple[Fate, Reason]:
    """Say what became of a request, and why. aborted: the exchange ended before its response was complete."""
    final = decided.verdict.final
    if final is not None:
        return ("denied" if final.outcome is _DENY else "answered"), final.reason
    failure = decided.failure
    if failure is not None:
        return ("aborted" if failure is Reason.CLIENT_CLOSED else "failed"), failure
    if aborted:
        return "aborted", Reason.CLIENT_CLOSED
    return ("proxied", Reason.OK) if decided.admitted else ("failed", Reason.STAGE_ERROR)


def request_event(
    decided: Decided,
    redaction: Redaction,
    seconds: float,
    status: int | None,
    *,
    aborted: bool = False,
    upgraded: bool = False,
    upstream_seconds: float | None = None,
    bytes_in: int | None = None,
    bytes_out: int | None = None,
) -> Event:
    """Make the one event of a request.

    seconds: from arrival to end. status: of the response that the client got, None: none was sent. upstream_seconds:
    the upstream's part of it. bytes_in, bytes_out: of the bodies.
    """
    client, traceparent = decided.client, decided.traceparent
    event: Event = {
        "time": rfc3339(decided.now),
        "event": "request",
        "request_id": decided.request_id,
        "trace_id": traceparent[3:35],
        "traceparent": traceparent,
        "client_ip": None if client is None else address_text(client),
        "peer": decided.request.peer,
    }
    _add_request(event, decided, redaction)
    _add_decision(event, decided, status, aborted)
    event["duration_ms"] = round(seconds * 1000, 3)
    if upstream_seconds is not None:
        event["upstream_ms"] = round(upstream_seconds * 1000, 3)
    if bytes_in is not None:
        event["bytes_in"] = bytes_in
    if bytes_out is not None:
        event["bytes_out"] = bytes_out
    if upgraded:
        event["upgraded"] = True
    grants = decided.grants
    if grants:
        event["limits"] = [{"name": grant.limit.name, "remaining": grant.remaining} for grant in grants]
        if any(grant.degraded for grant in grants):
            event["degraded"] = True
    event["policy"] = decided.verdict.policy_digest
    return event


def _add_request(event: Event, decided: Decided, redaction: Redaction) -> None:
    """Add who asks, and for what."""
    request, head, principal = decided.request, decided.head, decided.principal
    if principal is not None:
        event["user"] = principal.subject
        event["issuer"] = principal.issuer
        if principal.roles:
            event["roles"] = principal.roles
    event["method"] = wire_text(request.method)
    if head is not None:
        event["host"] = head.host
        event["path"] = veil(head.path)
        query = head.query
    else:
        event["host"], event["path"], query = _unread(request.target, _host_field(decided))
    if query is not None:
        event["query"] = redaction.query(wire_text(query))
    agents = request.headers.all(b"user-agent")
    if agents:
        agent = agents[0].decode("utf-8", "backslashreplace")
        event["user_agent"] = REDACTED if "user-agent" in redaction.headers else veil(agent)


def _add_decision(event: Event, decided: Decided, status: int | None, aborted: bool) -> None:
    """Add where the request was sent, what was decided, and what became of it."""
    route, verdict = decided.route, decided.verdict
    final = verdict.final
    if route is not None:
        event["route"] = route.name
        event["upstream"] = route.upstream.name
    if decided.endpoint is not None:
        event["endpoint"] = decided.endpoint.url
        if decided.retries:
            event["retries"] = decided.retries
    fate, reason = fate_of(decided, aborted)
    event["status"] = reason.status if status is None else status
    event["outcome"] = fate
    if final is not None:
        event["decision"] = final.outcome.value
        event["stage"] = final.stage
        detail = final.detail
    else:
        event["decision"] = "admit" if decided.admitted else "none"
        detail = decided.failure_detail
        if decided.failure is not None:
            event["stage"] = "protocol"
    event["reason"] = reason.code
    if detail:
        event["detail"] = detail
    observed = verdict.observed
    if observed:
        event["observed"] = [f"{step.stage}/{step.reason.code}" for step in observed]


def _host_field(decided: Decided) -> str:
    hosts = decided.request.headers.all(b"host")
    return decided.request.authority or (hosts[0].decode("latin-1") if hosts else "")


def _without_userinfo(authority: str) -> str:
    """Drop `user:password@` (RFC 3986, section 3.2.1)."""
    return authority.rpartition("@")[2]


def _unread(target: str, host: str) -> tuple[str, str, str | None]:
    """Split a target that Hygiene has not accepted into host, path and query, for people to read."""
    target = wire_text(target)
    host = wire_text(_without_userinfo(host))
    ends = [at for at in (target.find("?"), target.find("#")) if at >= 0]
    path, query = (target[: min(ends)], target[min(ends) + 1 :]) if ends else (target, None)
    if not path.startswith("/"):
        scheme, separator, rest = path.partition("://")
        if separator:
            authority, slash, rest = rest.partition("/")
            path = f"{scheme}://{_without_userinfo(authority)}{slash}{rest}"
        else:
            path = _without_userinfo(path)
    return veil(host), veil(path), query


def minimal_event(request_id: str, now: float, reason: Reason, detail: str, policy: str = "") -> Event:
    """Make the event of a request of which nothing more can be said."""
    return {
        "time": rfc3339(now),
        "event": "request",
        "request_id": request_id,
        "status": reason.status,
        "outcome": "failed",
        "decision": "none",
        "reason": reason.code,
        "detail": detail,
        "policy": policy,
    }


def gateway_started(now: float, policy: str, **facts: object) -> Event:
    """Say that a process accepts requests. policy: the digest in force. facts: such as version, pid and host."""
    return {"time": rfc3339(now), "event": "gateway-started", "policy": policy, **facts}


def gateway_stopped(now: float, **facts: object) -> Event:
    """Say that a process ends in good order: the seal after which a record of it would be a forgery."""
    return {"time": rfc3339(now), "event": "gateway-stopped", **facts}


def worker_lost(now: float, pid: int, how: str) -> Event:
    """Say that a worker process crashed: requests that ran in it, the last moment's too, may have no record."""
    return {"time": rfc3339(now), "event": "worker-lost", "pid": pid, "how": how}


def policy_reloaded(now: float, policy: str, previous: str) -> Event:
    """Say that another policy decides from now on. Both are digests."""
    return {"time": rfc3339(now), "event": "policy-reloaded", "policy": policy, "previous": previous}


def policy_rejected(now: float, policy: str, problems: list[str]) -> Event:
    """Say that a changed policy file was refused, and why. policy: the digest that stays in force."""
    return {"time": rfc3339(now), "event": "policy-rejected", "policy": policy, "problems": problems}


def audit_dropped(now: float, count: int, total: int) -> Event:
    """Say that `count` records are missing here: the queue was full. total: since the process began."""
    return {"time": rfc3339(now), "event": "audit-dropped", "count": count, "total": total}


def audit_recovered(now: float, sink: str, **facts: object) -> Event:
    """Say what an earlier end left behind.

    facts: torn_bytes (an incomplete record, moved to the `.torn` file), unclean (a process ended without
    `gateway-stopped`: what it had in memory is lost), missing (chained records that are gone), head_missing.
    """
    return {"time": rfc3339(now), "event": "audit-recovered", "sink": sink, **facts}


def sink_failed(now: float, sink: str, error: str, spilling: bool) -> Event:
    """Say that a sink takes no records. spilling: they go to its spill file; otherwise they wait in the queue."""
    return {"time": rfc3339(now), "event": "sink-failed", "sink": sink, "error": error, "spilling": spilling}


def sink_recovered(now: float, sink: str, seconds: float, count: int) -> Event:
    """Say that a sink takes records again, after so many seconds; count: of records that it had missed and now has."""
    return {
        "time": rfc3339(now),
        "event": "sink-recovered",
        "sink": sink,
        "seconds": round(seconds, 3),
        "count": count,
    }
