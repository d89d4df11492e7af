"""The front of a recorded flow: all that replay needs of it as one JSON text, which a C parser reads at once.

The recorder puts it first into a flow's metadata, made from the redacted flow, and of nothing else. A flow without it,
such as one that mitmweb saved, is read member by member (flow_state) to the same end, in three times the time.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any, Final

import orjson

from mitmgate.core.decision_service import recorded
from mitmgate.core.headers import Headers
from mitmgate.core.reason import Reason
from mitmgate.core.request import Request
from mitmgate.replay import tnetstring
from mitmgate.replay.decision import ADMIT, NO_RULE, Decision, reason_of
from mitmgate.replay.presented import PresentedTokens
from mitmgate.replay.shown_keys import NOTE, names_of, read_note
from mitmgate.replay.tnetstring import DamagedError
from mitmgate.replay.traffic import Aftermath, Entry, Recorded, Skipped

FRONT: Final = "front"
_WAY: Final = (b"metadata", b"mitmgate", FRONT.encode("ascii"))

INTACT: Final = "a token of the recording is not intact"
REFUSED: Final = "refused by the protocol layer before there was a request"


def front_of(state: Mapping[str, Any], saved: Mapping[str, Any], note: Mapping[str, Any]) -> str | None:
    """Write the front of a redacted flow. saved: the mirror of its exchange. note: what the recorder notes.

    None where the note does not say all of it, or a text is not UTF-8.
    """
    if "ingress" not in saved or "upstream_seconds" not in note:
        return None
    request, response, principal = state["request"], state.get("response"), saved["principal"]
    sent = None
    if saved["decision"] == ADMIT:
        host = f"[{request['host']}]" if ":" in request["host"] else request["host"]
        sent = (
            f"{request['scheme'].decode('latin-1')}://{host}:{request['port']}",
            request["path"].decode("latin-1"),
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request["headers"]],
        )
    members = {
        "id": state["id"],
        "at": saved["now"],
        "request_id": saved["request_id"],
        "ingress": saved["ingress"],
        "outcome": saved["decision"],
        "reason": saved["reason"],
        "stage": saved["stage"],
        "route": saved["route"],
        "principal": None if principal is None else f"{principal['issuer']}/{principal['subject']}",
        "observed": ["/".join((s["stage"], s["reason"])) for s in saved["steps"] if s["outcome"] == "observe"],
        "policy": saved["policy"],
        **({"service_answer": saved["service_answer"]} if "service_answer" in saved else {}),
        "sent": sent,
        "response": None if response is None else response["status_code"],
        "note": {name: value for name, value in note.items() if name != "version"},
    }
    try:
        return orjson.dumps(members).decode("utf-8")
    except TypeError:  # a lone surrogate
        return None


def read_front(raw: bytes, tokens: PresentedTokens) -> Entry | None:
    """Read a flow's record by its front; None where it has none. Raises DamagedError."""
    span: tnetstring.Span | None = tnetstring.span_of(raw)
    for key in _WAY:
        span = None if span is None else tnetstring.find(raw, span, key)
    if span is None:
        return None
    try:
        return _entry(orjson.loads(raw[span[0] : span[1]]), tokens)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError("a front that is damaged") from error


def _entry(front: Mapping[str, Any], tokens: PresentedTokens) -> Entry:
    ingress, note, stage = front["ingress"], front["note"], front["stage"]
    if stage == "protocol":
        return Skipped(front["id"], REFUSED)
    shown = tokens.show(_fields(ingress["headers"]), note["key"])
    if shown is None:
        return Skipped(front["id"], INTACT)
    fields, presented = shown
    target = tokens.show_target(ingress["target"], note["key"])
    if target is None:
        return Skipped(front["id"], INTACT)
    decision, headers = _decision(front, stage), Headers(fields)
    return Recorded(
        id=front["id"],
        at=float(front["at"]),
        request=Request(
            method=ingress["method"],
            target=target[0],
            version=ingress["version"],
            headers=headers,
            scheme=ingress["scheme"],
            authority=ingress["authority"],
            peer=ingress["peer"],
            declared_body=ingress["declared_body"],
            certificate=ingress["certificate"],
            names=names_of(ingress.get("names")),
        ),
        request_id=front["request_id"],
        presented=presented or target[1],
        decision=decision,
        aftermath=_aftermath(note) if decision is not None and decision.outcome == ADMIT else None,
        policy=front["policy"],
        sample=float(note["sample"]),
        response_status=front["response"],
        service_answer=recorded(front.get("service_answer")),
        key=read_note(headers, note.get(NOTE)),
    )


def _fields(written: list[list[str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in written]


def _decision(front: Mapping[str, Any], stage: str | None) -> Decision | None:
    outcome, reason = front["outcome"], front["reason"]
    if outcome == "none" or reason is None:
        return None
    endpoint, target, fields = front["sent"] or (None, None, None)
    return Decision(
        outcome,
        reason,
        stage or "",
        front["route"] or NO_RULE,
        front["principal"] or NO_RULE,
        endpoint,
        target,
        None if fields is None else tuple(_fields(fields)),
        tuple(front["observed"]),
    )


def reasons_moved(codes: Iterable[object]) -> Iterator[Reason]:
    """Say why endpoints had failed when others took their place; recordings of earlier versions do not say."""
    return chain(map(reason_of, codes), repeat(Reason.UPSTREAM_UNREACHABLE))


def _aftermath(note: Mapping[str, Any]) -> Aftermath:
    settled, moved, failure = note["settled"], note["moved"], note["failure"]
    return Aftermath(
        settled[-1] if len(settled) > moved else None,
        note["status"],
        None if failure is None else reason_of(failure),
        tuple(zip(settled[:moved], reasons_moved(note.get("failed_over", ())), strict=False)),
        note["upstream_seconds"],
    )
