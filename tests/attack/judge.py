"""The judge: what the origins logged against what the audit file says, field by field.

The rules are exact; what an early end may change is said at each of them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.attack.origins import Logged

IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})  # RFC 9110, section 9.2.2
USERS = ("alice", "bob")
OWNED = re.compile(r"/(?:node|nginx)/\w+/(?:early/)?(alice|bob)/")
"""The paths of requests that a test makes name the user whose token they carry."""

Event = Mapping[str, Any]


def target_of(event: Event) -> str:
    """Return the target that an event says was asked for."""
    query = event.get("query")
    return event["path"] if query is None else f"{event['path']}?{query}"


def violations(events: Sequence[Event], logged: Sequence[Logged]) -> list[str]:
    """Return what is wrong, in words; empty: nothing."""
    found: list[str] = []
    by_id: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_id[event["request_id"]].append(event)
    seen: dict[str, list[Logged]] = defaultdict(list)
    for one in logged:
        request_id = one.one("x-request-id") or ""
        seen[request_id].append(one)
        found += _flaws(one, by_id.get(request_id, []))
    for request_id, same in by_id.items():
        if len(same) > 1:
            found.append(f"{len(same)} audit events have the id {request_id}: {same}")
    for request_id, sent in seen.items():
        found += _repeated(request_id, sent)
    for event in events:
        if reached(event) and event["request_id"] not in seen:
            found.append(f"no origin logged what the audit file says one answered: {event}")
    return found


def reached(event: Event) -> bool:
    """Tell whether the event says that the head of a response came from upstream: then an origin has logged it."""
    return "upstream_ms" in event


def _flaws(one: Logged, events: Sequence[Event]) -> Iterable[str]:
    """Compare a request that an origin logged with the event of its id."""
    if not events:
        yield f"an origin logged what no audit event has: {one}"
        return
    event = events[0]
    if event["decision"] != "admit":
        yield f"an origin logged what was not admitted: {one}, {event}"
    if one.method != event["method"]:
        yield f"the method differs: {one}, {event}"
    if one.url != target_of(event):
        yield f"the target differs: {one}, {event}"
    if one.one("x-user-id") != event.get("user"):
        yield f"the principal differs: {one}, {event}"
    owner = OWNED.match(one.url)
    if owner is not None and one.one("x-user-id") != owner[1]:
        yield f"a request of {owner[1]} has another's identity: {one}, {event}"
    if one.one("authorization") is not None:
        yield f"a credential was forwarded: {one}"
    whole = event["outcome"] == "proxied" and one.complete and one.length is not None
    if whole and one.length != event.get("bytes_in", one.length):
        yield f"the body's length differs: {one}, {event}"


def _repeated(request_id: str, those: Sequence[Logged]) -> Iterable[str]:
    """Look at several requests of one id.

    A request that is idempotent is sent again where a kept connection was closed before a byte of the response came
    (RFC 9110, section 9.2.2), so that the origin has logged it, and has not answered.
    """
    again = len(those) > 1 and request_id != ""
    if again and (those[0].method not in IDEMPOTENT or sum(one.answered for one in those) > 1):
        yield f"{len(those)} requests were logged with one id: {those}"
