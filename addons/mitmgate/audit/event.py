"""Audit events but for a request's own (ended.py): one for everything else that an auditor has to know.

Every event has `time` (RFC 3339, UTC, milliseconds) and `event`, its kind; the trail adds `id`, which is unique: a
sink that delivers a record twice delivers the same id; `worker`, the process; and `v`, the version of the schema
(schema.py). What is not known is left out.
"""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from mitmgate.audit.decided import Decided
from mitmgate.audit.record import Event
from mitmgate.core.reason import Reason
from mitmgate.core.revocation import Revocation
from mitmgate.core.verdict import Outcome, Step

VERSION = 1
"""Of the events' schema. A member that is new does not change it; one that goes, or means something else, does."""

Fate = Literal["proxied", "allowed", "denied", "answered", "failed", "aborted"]

_DENY = Outcome.DENY
_MILLISECONDS = tuple([f".{part:03d}Z" for part in range(1000)])


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def rfc3339(now: float) -> str:
    """Write Unix seconds as RFC 3339 text in UTC, milliseconds cut off."""
    second = int(now)
    return _second(second) + _MILLISECONDS[int((now - second) * 1000)]


def fate(
    final: Step | None, failure: Reason | None, admitted: bool, aborted: bool, check: bool = False
) -> tuple[Fate, Reason]:
    """Say what became of a request, and why. final: the step that decided, None: no stage denied or answered.

    aborted: the exchange ended before its response was complete. check: a proxy asked, and was told.
    """
    if final is not None:
        return ("denied" if final.outcome is _DENY else "answered"), final.reason
    if failure is not None:
        return ("aborted" if failure is Reason.CLIENT_CLOSED else "failed"), failure
    if aborted:
        return "aborted", Reason.CLIENT_CLOSED
    return ("allowed" if check else "proxied", Reason.OK) if admitted else ("failed", Reason.STAGE_ERROR)


def fate_of(decided: Decided, aborted: bool) -> tuple[Fate, Reason]:
    """Say what became of a request, and why, while its exchange is at hand."""
    return fate(decided.verdict.final, decided.failure, decided.admitted, aborted, decided.check is not None)


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


def policy_reloaded(now: float, policy: str, previous: str, by: str = "") -> Event:
    """Say that another policy decides from now on. Both are digests. by: what asked for it."""
    return _by({"time": rfc3339(now), "event": "policy-reloaded", "policy": policy, "previous": previous}, by)


def policy_rejected(now: float, policy: str, problems: list[str], by: str = "") -> Event:
    """Say that a changed policy file was refused, and why. policy: the digest that stays in force."""
    return _by({"time": rfc3339(now), "event": "policy-rejected", "policy": policy, "problems": problems}, by)


def _by(event: Event, who: str) -> Event:
    return event | {"by": who} if who else event


def circuit_turned(now: float, circuit: str, state: str, why: str, cause: str, request_id: str) -> Event:
    """Say that a circuit has opened or closed for this process. circuit: "UPSTREAM URL". why, cause: see Turn."""
    upstream, _, endpoint = circuit.partition(" ")
    event: Event = {"time": rfc3339(now), "event": "circuit", "state": state, "upstream": upstream}
    rest = {"endpoint": endpoint, "why": why, "cause": cause, "request_id": request_id}
    return event | {name: value for name, value in rest.items() if value}


def store_lost(now: float, store: str, error: str) -> Event:
    """Say that the counters' store is away, or refuses: each limit's `on_store_failure` decides from now on."""
    return {"time": rfc3339(now), "event": "store-lost", "store": store, "error": error}


def store_recovered(now: float, store: str, seconds: float) -> Event:
    """Say that it counts again. seconds: since it was lost."""
    return {"time": rfc3339(now), "event": "store-recovered", "store": store, "seconds": round(seconds, 3)}


def stage_failed(now: float, stage: str, error: str, count: int) -> Event:
    """Say that a stage could not decide on a request, which was denied.

    error: the exception's class; the process log has the rest. count: of requests since the last such event.
    """
    return {"time": rfc3339(now), "event": "stage-failed", "stage": stage, "error": error, "count": count}


def stage_slow(now: float, stage: str, seconds: float, count: int) -> Event:
    """Say that a stage took long for a request. count: of requests since the last such event."""
    return {
        "time": rfc3339(now),
        "event": "stage-slow",
        "stage": stage,
        "seconds": round(seconds, 6),
        "count": count,
    }


def operator_acted(now: float, act: str, by: str, what: str = "") -> Event:
    """Say that an operator has changed what the process knows. act: such as circuits-reset."""
    event: Event = {"time": rfc3339(now), "event": "operator", "act": act, "by": by}
    return event | {"what": what} if what else event


def revocation_learnt(now: float, revocation: Revocation) -> Event:
    """Say that this process holds something for revoked from now on, or no longer."""
    event: Event = {
        "time": rfc3339(now),
        "event": "revocation-lifted" if revocation.lifted else "revoked",
        "kind": revocation.kind,
        "issuer": revocation.issuer,
        "until": rfc3339(revocation.until),
    }
    if revocation.value:
        event["value"] = revocation.value
    if revocation.before is not None:
        event["before"] = rfc3339(revocation.before)
    if revocation.by:
        event["by"] = revocation.by
    return event


def revocations_unknown(now: float, decides: str, error: str) -> Event:
    """Say that this process can't find out what is revoked. decides: "deny", or "last-known": what was known counts."""
    return {"time": rfc3339(now), "event": "revocations-unknown", "decides": decides, "error": error}


def revocations_known(now: float, seconds: float | None, count: int) -> Event:
    """Say that it knows what is revoked. seconds: for which it did not, None: it has just started. count: of them."""
    event: Event = {"time": rfc3339(now), "event": "revocations-known", "count": count}
    return event if seconds is None else event | {"seconds": round(seconds, 3)}


def api_key_learnt(now: float, key_id: str, principal: str, by: str = "") -> Event:
    """Say that this process takes a further key from now on. by: who has made it."""
    return _by({"time": rfc3339(now), "event": "api-key-learnt", "key_id": key_id, "user": principal}, by)


def api_key_ended(now: float, key_id: str, principal: str, *, listed: bool, by: str = "") -> Event:
    """Say that this process no longer takes a key: it was revoked, or is not on the list any more. by: who did it."""
    how = "revoked" if listed else "removed"
    return _by({"time": rfc3339(now), "event": "api-key-ended", "key_id": key_id, "user": principal, "how": how}, by)


def api_keys_unknown(now: float, decides: str, error: str) -> Event:
    """Say that this process can't find out which keys are good. decides: "deny", or "last-known"."""
    return {"time": rfc3339(now), "event": "api-keys-unknown", "decides": decides, "error": error}


def api_keys_known(now: float, seconds: float | None, count: int) -> Event:
    """Say that it knows which keys there are. seconds: for which it did not, None: it has just started."""
    event: Event = {"time": rfc3339(now), "event": "api-keys-known", "count": count}
    return event if seconds is None else event | {"seconds": round(seconds, 3)}


def audit_dropped(now: float, count: int, total: int) -> Event:
    """Say that `count` records are missing here: the queue was full. total: since the process began."""
    return {"time": rfc3339(now), "event": "audit-dropped", "count": count, "total": total}


def audit_recovered(now: float, sink: str, **facts: object) -> Event:
    """Say what an earlier end left behind.

    facts: torn_bytes (an incomplete record, moved to the `.torn` file), unclean (a process ended without
    `gateway-stopped`: what it had in memory is lost), missing (chained records that are gone), head_missing.
    """
    return {"time": rfc3339(now), "event": "audit-recovered", "sink": sink, **facts}


def refusals_moved(now: float, sink: str, to: str) -> Event:
    """Say that refused requests are so many that further ones go to a log of their own. to: its name."""
    return {"time": rfc3339(now), "event": "refusals-moved", "sink": sink, "to": to}


def anchors_failed(now: float, sink: str, error: str) -> Event:
    """Say that the end of a log can't be anchored; its records are written all the same."""
    return {"time": rfc3339(now), "event": "anchors-failed", "sink": sink, "error": error}


def anchors_recovered(now: float, sink: str) -> Event:
    """Say that it is anchored again."""
    return {"time": rfc3339(now), "event": "anchors-recovered", "sink": sink}


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
