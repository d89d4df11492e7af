"""One saved flow, as mitmproxy writes it, read as recorded traffic.

Flows of the current format are read in place; those of older formats are converted by mitmproxy first. A flow that went
through the gateway says in its metadata what arrived and what was decided; of any other flow the request itself is what
arrived.
"""

from dataclasses import replace
from typing import Any, Final

from mitmproxy.io import compat
from mitmproxy.io import tnetstring as slow
from mitmproxy.version import FLOW_FORMAT_VERSION

from mitmgate.core.decision_service import ServiceAnswer, recorded
from mitmgate.core.headers import Fields, Headers
from mitmgate.core.introspection import is_opaque
from mitmgate.core.request import Request
from mitmgate.replay import tnetstring
from mitmgate.replay.decision import ADMIT, NO_RULE, Decision, reason_of
from mitmgate.replay.front import INTACT, REFUSED, read_front, reasons_moved
from mitmgate.replay.presented import PresentedTokens
from mitmgate.replay.redaction import METADATA, RECORDING, found_signature
from mitmgate.replay.shown_keys import NOTE, is_of_token, names_of, of_verdict, read_note
from mitmgate.replay.tnetstring import DamagedError, Span, items, members, number, pairs, text, text_or_none, value
from mitmgate.replay.traffic import Aftermath, Entry, KeyShown, Known, Recorded, Skipped

_METADATA: Final = METADATA.encode("ascii")
_RECORDING: Final = RECORDING.encode("ascii")

Spans = dict[bytes, Span]


def current(raw: bytes) -> tuple[bytes, Spans]:
    """Return a flow's record in the current format, and its members. Raises ValueError for what is no flow."""
    found = members(raw, tnetstring.span_of(raw))
    span = found.get(b"version")
    if span is not None and value(raw, span) == FLOW_FORMAT_VERSION:
        return raw, found
    loaded: Any = slow.loads(raw)
    if not isinstance(loaded, dict):
        raise DamagedError("no flow")
    try:
        raw = slow.dumps(compat.migrate_flow(loaded))
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError("no flow of a known version") from error
    return raw, members(raw, tnetstring.span_of(raw))


def arrival_of(raw: bytes) -> float | None:
    """Return when a flow's request arrived (Unix seconds): what flows are put in order by. None: no HTTP flow."""
    span: Span | None = tnetstring.span_of(raw)
    for key in (b"metadata", _METADATA, b"now"):  # the way to it in our own recordings, and nothing beside it
        span = None if span is None else tnetstring.find(raw, span, key)
    if span is not None:
        return number(raw, span)
    raw, flow = current(raw)
    if value(raw, flow[b"type"]) != "http":
        return None
    request = members(raw, flow[b"request"])
    return number(raw, request[b"timestamp_start"])


def read_flow(raw: bytes, tokens: PresentedTokens) -> Entry:
    """Read one flow's record. tokens: reads what stands in Authorization. Raises DamagedError."""
    try:
        entry = read_front(raw, tokens)
        if entry is not None:
            return entry
        raw, flow = current(raw)
        identity = text(raw, flow[b"id"])
        if value(raw, flow[b"type"]) != "http":
            return Skipped(identity, "no HTTP request")
        gateway = _gateway(raw, flow)
        if gateway is None or b"ingress" not in gateway:
            return _foreign(raw, flow, identity, tokens)
        return _own(raw, flow, gateway, identity, tokens)
    except (KeyError, IndexError, UnicodeError) as error:
        raise DamagedError(f"a flow without {error}") from error


def _gateway(raw: bytes, flow: Spans) -> Spans | None:
    span = members(raw, flow[b"metadata"]).get(_METADATA)
    return None if span is None or span[2] != tnetstring.MAPPING else members(raw, span)


def _own(raw: bytes, flow: Spans, gateway: Spans, identity: str, tokens: PresentedTokens) -> Entry:
    """Read a flow that went through the gateway."""
    stage = text_or_none(raw, gateway[b"stage"])
    if stage == "protocol":
        return Skipped(identity, REFUSED)
    note = members(raw, gateway[_RECORDING]) if _RECORDING in gateway else {}
    ingress = members(raw, gateway[b"ingress"])
    certificate = ingress.get(b"certificate")
    declared = value(raw, ingress[b"declared_body"])
    key = text_or_none(raw, note[b"key"]) if b"key" in note else None
    found = pairs(raw, ingress[b"headers"])
    shown = tokens.show(found, key)
    if shown is None:
        return Skipped(identity, INTACT)
    fields, presented = shown
    target = tokens.show_target(text(raw, ingress[b"target"]), key)
    if target is None:
        return Skipped(identity, INTACT)
    presented = presented or target[1]
    if key is None:  # saved as it was, by mitmweb say: the token is a real one
        signature = found_signature(
            text_or_none(raw, gateway[b"reason"]), stage, is_of_token(value(raw, gateway[b"principal"]))
        )
        presented = None if signature == "unchecked" else tokens.real(found, signature)
        if presented is not None and signature == "good" and is_opaque(presented.text):
            presented = replace(presented, refusal=None, known=_known(raw, gateway), partial=True)
    request = Request(
        method=text(raw, ingress[b"method"]),
        target=target[0],
        version=text(raw, ingress[b"version"]),
        headers=Headers(fields),
        scheme=text(raw, ingress[b"scheme"]),
        authority=text(raw, ingress[b"authority"]),
        peer=text(raw, ingress[b"peer"]),
        declared_body=declared if isinstance(declared, int) else None,
        certificate=None if certificate is None else text_or_none(raw, certificate),
        names=names_of(value(raw, ingress[b"names"])) if b"names" in ingress else None,
    )
    decision = _decision(raw, flow, gateway, stage)
    at = number(raw, gateway[b"now"])
    response = flow[b"response"]
    answer = None if response[2] == tnetstring.NULL else members(raw, response)
    status = None if answer is None else int(number(raw, answer[b"status_code"]))
    aftermath = None
    if decision is not None and decision.outcome == ADMIT:
        aftermath = _aftermath(raw, flow, gateway, note, answer, status, at)
    return Recorded(
        id=identity,
        at=at,
        request=request,
        request_id=text(raw, gateway[b"request_id"]),
        presented=presented,
        decision=decision,
        aftermath=aftermath,
        policy=text(raw, gateway[b"policy"]),
        sample=number(raw, note[b"sample"]) if b"sample" in note else 1.0,
        response_status=status,
        service_answer=_answer(raw, gateway),
        key=_key(raw, gateway, note, request.headers),
    )


def _key(raw: bytes, gateway: Spans, note: Spans, headers: Headers) -> KeyShown | None:
    """Return what is known of the request's API key: by the recording's note, or in a flow that was saved as it was."""
    try:
        if NOTE.encode("ascii") in note:
            noted = value(raw, note[NOTE.encode("ascii")])
            return read_note(headers, noted if isinstance(noted, dict) else {})
        who = None if note else value(raw, gateway[b"principal"])
        return None if note else of_verdict(headers, text_or_none(raw, gateway[b"reason"]), who)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedError("a note on an API key that is damaged") from error


def _known(raw: bytes, gateway: Spans) -> Known:
    """Return the principal that a verdict names: what was said of an opaque token, mitmweb does not save."""
    who = members(raw, gateway[b"principal"])
    roles = tuple([str(role) for role in items(raw, who[b"roles"])])
    return Known(text(raw, who[b"issuer"]), text(raw, who[b"subject"]), roles)


def _answer(raw: bytes, gateway: Spans) -> ServiceAnswer | None:
    """Read what a decision service said; recordings of earlier versions do not say."""
    span = gateway.get(b"service_answer")
    return None if span is None or span[2] == tnetstring.NULL else recorded(value(raw, span))


def _decision(raw: bytes, flow: Spans, gateway: Spans, stage: str | None) -> Decision | None:
    outcome = text(raw, gateway[b"decision"])
    reason = text_or_none(raw, gateway[b"reason"])
    if outcome == "none" or reason is None:
        return None
    route, principal = text_or_none(raw, gateway[b"route"]), NO_RULE
    if gateway[b"principal"][2] == tnetstring.MAPPING:
        who = members(raw, gateway[b"principal"])
        principal = "/".join((text(raw, who[b"issuer"]), text(raw, who[b"subject"])))
    observed: tuple[str, ...] = ()
    start, end, _ = gateway[b"steps"]
    if raw.find(b"observe", start, end) >= 0:
        steps = [step for step in items(raw, gateway[b"steps"]) if isinstance(step, dict)]
        observed = tuple(["/".join((str(s["stage"]), str(s["reason"]))) for s in steps if s["outcome"] == "observe"])
    endpoint = target = None
    fields: Fields | None = None
    if outcome == ADMIT:
        request = members(raw, flow[b"request"])
        host = text(raw, request[b"host"])
        host = f"[{host}]" if ":" in host else host
        scheme, port = _wire(raw, request[b"scheme"]), int(number(raw, request[b"port"]))
        endpoint = f"{scheme}://{host}:{port}"
        target = _wire(raw, request[b"path"])
        fields = tuple(pairs(raw, request[b"headers"]))
    return Decision(outcome, reason, stage or "", route or NO_RULE, principal, endpoint, target, fields, observed)


def _aftermath(
    raw: bytes, flow: Spans, gateway: Spans, note: Spans, answer: Spans | None, status: int | None, at: float
) -> Aftermath:
    """Find out what came of an admitted request, and when the circuit knew."""
    failed = text_or_none(raw, gateway[b"failure"])
    failure = reason_of(failed) if failed is not None else None
    if b"settled" in note:
        settled = [float(each) for each in items(raw, note[b"settled"]) if isinstance(each, int | float)]
        moved = int(number(raw, note[b"moved"]))
        told, then = value(raw, note[b"status"]), text_or_none(raw, note[b"failure"])
        codes = (
            [each for each in items(raw, note[b"failed_over"]) if isinstance(each, str)]
            if b"failed_over" in note
            else ()
        )
        took = value(raw, note[b"upstream_seconds"]) if b"upstream_seconds" in note else None
        return Aftermath(
            settled[-1] if len(settled) > moved else None,
            told if isinstance(told, int) else None,
            None if then is None else reason_of(then),
            tuple(zip(settled[:moved], reasons_moved(codes), strict=False)),
            took if isinstance(took, float) else None,
        )
    if failure is not None:
        status = None
    if answer is not None:
        known = number(raw, answer[b"timestamp_start"])
    elif flow[b"error"][2] == tnetstring.MAPPING:
        known = number(raw, members(raw, flow[b"error"])[b"timestamp"])
    else:
        known = at
    return Aftermath(max(known, at), status, failure)


def _foreign(raw: bytes, flow: Spans, identity: str, tokens: PresentedTokens) -> Entry:
    """Read a flow of another proxy, or of a gateway that was asked to note nothing."""
    request, client = members(raw, flow[b"request"]), members(raw, flow[b"client_conn"])
    note: Spans = {}
    gateway = _gateway(raw, flow)
    if gateway is not None and _RECORDING in gateway:
        note = members(raw, gateway[_RECORDING])
    shown = tokens.show(pairs(raw, request[b"headers"]), text_or_none(raw, note[b"key"]) if b"key" in note else None)
    if shown is None:
        return Skipped(identity, INTACT)
    fields, presented = shown
    headers = Headers(fields)
    peer = client[b"peername"]
    address = items(raw, peer)[0] if peer[2] == tnetstring.LIST else ""
    at = number(raw, request[b"timestamp_start"])
    response = flow[b"response"]
    answer = None if response[2] == tnetstring.NULL else members(raw, response)
    status = None if answer is None else int(number(raw, answer[b"status_code"]))
    content = request[b"content"]
    made = Request(
        method=_wire(raw, request[b"method"]),
        target=_wire(raw, request[b"path"]),
        version=http_version(_wire(raw, request[b"http_version"])),
        headers=headers,
        scheme="https" if value(raw, client[b"tls"]) is True else "http",
        authority=_wire(raw, request[b"authority"]),
        peer=str(address),
        declared_body=declared_body(headers, content[1] - content[0] if content[2] == tnetstring.BYTES else 0),
    )
    return Recorded(
        id=identity,
        at=at,
        request=made,
        presented=presented,
        aftermath=None if answer is None else Aftermath(max(at, number(raw, answer[b"timestamp_start"])), status),
        response_status=status,
    )


def http_version(written: str) -> str:
    """Return a version as core.request writes it; browsers write others."""
    version = written.upper()
    return {"HTTP/2": "HTTP/2.0", "H2": "HTTP/2.0", "HTTP/3": "HTTP/3.0", "H3": "HTTP/3.0"}.get(version, version)


def declared_body(headers: Headers, size: int) -> int | None:
    """Return a request's declared length as Arrival takes it. size: of the body that was recorded."""
    if b"transfer-encoding" in headers:
        return None
    length = headers.one(b"content-length")
    if length is None:
        return size
    return int(length) if length.isdigit() and len(length) < 19 else 0


def _wire(raw: bytes, span: Span) -> str:
    """Read bytes of the wire as text, as core.request has it."""
    return raw[span[0] : span[1]].decode("latin-1")
