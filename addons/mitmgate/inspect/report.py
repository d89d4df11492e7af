"""The whole of a decision as text: what the Gateway content view and `mitmgate.explain` show."""

import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from mitmgate.audit.mirror import Plain, mirror
from mitmgate.audit.redact import REDACTED, Redaction
from mitmgate.audit.settings import Redact
from mitmgate.core.reason import Reason
from mitmgate.inspect.annotate import METADATA
from mitmgate.inspect.kept import Kept, kept, kept_of
from mitmgate.inspect.why import METADATA_WHY
from mitmgate.pipeline.exchange import exchange_of

Decision = Mapping[str, Plain]
Members = dict[str, object]


def has_decision(flow: Flow | None) -> bool:
    """Tell whether there is anything to report of a flow: it was decided on here, or saved with its verdict."""
    return isinstance(flow, HTTPFlow) and (exchange_of(flow) is not None or METADATA in flow.metadata)


def was_admitted(flow: Flow | None) -> bool:
    """Tell whether a request that was decided on went to a service, or would have."""
    saved = None if flow is None else flow.metadata.get(METADATA)
    return not isinstance(saved, dict) or saved.get("decision") == "admit"


def report(flow: Flow | None) -> str:
    """Describe the decision of a flow as YAML; a sentence where there is none.

    No credential is in it: not the client's, not the assertion that the service gets. A flow that was loaded from a
    file is described by the verdict that was saved with it, which has no limits, circuit or forwarded head.
    """
    if not isinstance(flow, HTTPFlow):
        return "Not an HTTP request: the gateway decides on nothing else."
    exchange = exchange_of(flow)
    if exchange is not None:
        return _yaml(_whole(kept(exchange, flow), mirror(exchange), _why(flow)))
    if METADATA not in flow.metadata:
        return "The gateway has not decided on this flow."
    try:
        saved = flow.metadata[METADATA]
        finished = kept_of(flow)
        if finished is not None:
            return _yaml(_whole(finished, saved, _why(flow)))
        received = _received(saved, Redaction(Redact()))
        return _yaml({"decision": flow.comment, **_decision(saved, _why(flow)), "received": received})
    except (AttributeError, KeyError, TypeError, ValueError):
        return "The verdict that was saved with this flow can't be read."


def _why(flow: HTTPFlow) -> str:
    """Return the reasons that `Annotate` has noted, as far as a saved flow can be believed: they are text."""
    return "\n".join(map(_printable, str(flow.metadata.get(METADATA_WHY, "")).split("\n")))


def _whole(exchange: Kept, decision: Decision, why: str) -> Members:
    snapshot = exchange.snapshot
    redaction = Redaction(snapshot.redact)
    made: Members = {"decision": exchange.comment, **_decision(decision, why)}
    if exchange.grants:
        made["limits"] = {
            grant.limit.name: f"{grant.remaining} of {grant.limit.limit} left in any {grant.limit.window:g} s"
            + (", by this process alone: the store is away" if grant.degraded else "")
            for grant in exchange.grants
        }
    if exchange.endpoint is not None:
        made["endpoint"] = exchange.endpoint.url
    if exchange.permit is not None:
        made["circuit"] = "half-open, and this request a probe" if exchange.permit.probe else "closed"
    elif decision["reason"] == Reason.CIRCUIT_OPEN.code:
        made["circuit"] = "open"
    made["received"] = _received(decision, redaction)
    if exchange.forward is not None:
        forward, assertion = exchange.forward, snapshot.forward.assertion
        secret = frozenset({assertion.header.decode("latin-1")} if assertion is not None else ())
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in forward.fields]
        made["forwarded"] = _head(forward.method, forward.target, "HTTP/1.1", fields, redaction, secret)
    made["policy"] = {"file": snapshot.path, "digest": snapshot.digest}
    return made


def _decision(saved: Decision, why: str) -> Members:
    """Describe what `mirror` made, in the order of interest. Raises KeyError or TypeError for what it never makes."""
    made: Members = {}
    if saved["detail"]:
        made["detail"] = saved["detail"]
    if why:
        made["why"] = _block(why.split("\n"))
    if saved["failure"]:
        made["failure"] = saved["failure"]
        made["failure_detail"] = saved["failure_detail"]
    if saved.get("cause"):
        made["cause"] = saved["cause"]
    made["stages"] = stage_table(_list(saved["steps"]))
    made["request_id"] = saved["request_id"]
    made["time"] = f"{datetime.fromtimestamp(_number(saved['now']), UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    made["client"] = saved["client"] or "unknown"
    made["route"] = saved["route"] or "none"
    if saved["principal"]:
        principal = _dict(saved["principal"])
        left = _number(principal["expires"]) - _number(saved["now"])
        made["principal"] = {**principal, "expires": f"{left:.0f} s after the request"}
    made["policy"] = saved["policy"]
    return made


def stage_table(steps: Iterable[Plain]) -> str:
    """Lay steps as `mirror` makes them out as a table: stage, outcome, reason, microseconds.

    The detail stands there for what was observed only: that of the final step is the decision's own.
    """
    rows = [["stage", "outcome", "reason", "µs", ""]]
    for step in map(_dict, steps):
        stage, outcome, reason, detail = (
            _printable(str(step[name])) for name in ("stage", "outcome", "reason", "detail")
        )
        micros = f"{_number(step['ms']) * 1000:.0f}"
        rows.append([stage, outcome, reason, micros, detail if outcome == "observe" else ""])
    first, second, third, fourth, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{stage:<{first}}  {outcome:<{second}}  {reason:<{third}}  {micros:>{fourth}}  {detail}".rstrip()
        for stage, outcome, reason, micros, detail in rows
    ]
    return _block(lines)


def _received(saved: Decision, redaction: Redaction) -> str:
    ingress = _dict(saved["ingress"])
    fields = [(str(name), str(value)) for name, value in map(_list, _list(ingress["headers"]))]
    return _head(str(ingress["method"]), str(ingress["target"]), str(ingress["version"]), fields, redaction)


def _head(
    method: str,
    target: str,
    version: str,
    fields: Iterable[tuple[str, str]],
    redaction: Redaction,
    secret: frozenset[str] = frozenset(),
) -> str:
    """Write a message head with its credentials redacted. secret: lower-case names that are redacted too."""
    lines = [f"{redaction.path(method)} {redaction.target(target)} {version}"]
    for name, value in fields:
        lines.append(f"{redaction.name(name)}: {REDACTED if name.lower() in secret else redaction.field(name, value)}")
    return _block(map(_printable, lines))


def _block(lines: Iterable[str]) -> str:
    text: str = LiteralScalarString("\n".join(lines))
    return text


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)


def _dict(value: Plain) -> dict[str, Plain]:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _list(value: Plain) -> list[Plain]:
    if not isinstance(value, list | tuple):  # FlowReader makes lists of what FlowWriter took
        raise TypeError("not a list")
    return list(value)


def _number(value: Plain) -> float:
    if not isinstance(value, int | float):
        raise TypeError("not a number")
    return value


def _yaml(members: Members) -> str:
    out = io.StringIO()
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 1000
    yaml.allow_unicode = True
    yaml.dump(members, out)
    return out.getvalue()
