"""Readiness: whether requests should be sent here, and if not, which condition is missing."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from mitmgate.core.limit import Limit
from mitmgate.policy.snapshot import Snapshot


class Condition(StrEnum):
    """What readiness asks for."""

    WORKERS = "workers"
    NOT_DRAINING = "not-draining"
    ACCEPTS = "accepts-connections"
    POLICY = "policy-in-force"
    KEYS = "keys-can-verify"
    STORE = "store-answers"
    AUDIT = "audit-has-room"


class Missing(NamedTuple):
    """A condition that does not hold. detail: a sentence for the operator: names of the policy, no addresses."""

    condition: Condition
    detail: str


type Readiness = tuple[Missing, ...]
"""What is missing; empty: ready."""


def readiness(
    *,
    draining: bool,
    accepting: bool,
    snapshot: Snapshot | None,
    unusable: Sequence[str],
    store_available: bool,
    audit_admits: bool = True,
) -> Readiness:
    """Judge one process. snapshot: the policy in force. unusable: the issuers whose keys can't verify a token.

    store_available, audit_admits: as the last decisions found.
    """
    missing = []
    if draining:
        missing.append(Missing(Condition.NOT_DRAINING, "The gateway is shutting down."))
    if not accepting:
        missing.append(Missing(Condition.ACCEPTS, "No connections are accepted."))
    if snapshot is None:
        missing.append(Missing(Condition.POLICY, "No policy is in force."))
    if unusable:
        missing.append(Missing(Condition.KEYS, f"No keys to verify tokens of {', '.join(unusable)} with."))
    if snapshot is not None and not store_available and denies_without_store(snapshot):
        missing.append(Missing(Condition.STORE, "The counter store does not answer, and limits deny without it."))
    if not audit_admits:
        missing.append(Missing(Condition.AUDIT, "The audit queue is full, and requests are denied for it."))
    return tuple(missing)


def denies_without_store(snapshot: Snapshot) -> bool:
    """Tell whether no request can be admitted while the store is away.

    A policy that denies on some routes alone can go on: taking the gateway out would deny the others as well, on every
    gateway at once, since they share the store.
    """
    if any(map(_denies, snapshot.client_limits)):
        return True
    routes = snapshot.routes.routes
    return bool(routes) and all(any(map(_denies, route.limits)) for route in routes)


def _denies(limit: Limit) -> bool:
    return limit.on_store_failure == "deny" and limit.mode == "enforce"


def merged_readiness(workers: Sequence[Readiness]) -> Readiness:
    """Judge several workers: ready when at least one is, and none reports a missing policy."""
    if not workers:
        return (Missing(Condition.WORKERS, "No worker has reported."),)
    policy = next((missing for one in workers for missing in one if missing.condition is Condition.POLICY), None)
    if policy is not None:
        return (policy,)
    if any(not one for one in workers):
        return ()
    return tuple(dict.fromkeys(missing for one in workers for missing in one))
