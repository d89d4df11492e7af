"""The verdict as a plain dict for flow.metadata["mitmgate"], so that a saved flow carries its decision."""

from functools import lru_cache
from typing import Final

from mitmgate.audit.decided import Decided
from mitmgate.core.certificate import ClientCertificate
from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Request
from mitmgate.core.verdict import Outcome

Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]


def _text(text: str) -> str:
    """Replace lone surrogates, which a claim may hold and UTF-8 can't: FlowWriter would fail on them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


_LONGEST: Final = 64
"""Characters of a word that is kept for all flows: clients choose them, of any length."""

_LONGEST_DETAIL: Final = 200
"""The same of a step's detail: sentences of the gateway's own, which may name what a policy or a token names."""


def _name(name: bytes) -> str:
    """Decode a field name, or another word that comes again and again: one text for all flows that are kept."""
    return _shared(name.decode("latin-1"))


def _shared(text: str) -> str:
    """Return a text that is equal: the first such one, for short words that come again and again."""
    return _kept(text) if len(text) <= _LONGEST else text


@lru_cache(maxsize=512)
def _kept(text: str) -> str:
    return text


def _step(stage: str, outcome: Outcome, reason: Reason, detail: str, milliseconds: float) -> dict[str, Plain]:
    """Mirror a step, for all flows that have such a one: what is returned must not be written to."""
    step = _shared_step if len(detail) <= _LONGEST_DETAIL else _shared_step.__wrapped__
    return step(stage, outcome, reason, detail, milliseconds)


@lru_cache(maxsize=4096)
def _shared_step(stage: str, outcome: Outcome, reason: Reason, detail: str, milliseconds: float) -> dict[str, Plain]:
    return {
        "stage": stage,
        "outcome": outcome.value,
        "reason": reason.code,
        "detail": _text(detail),
        "ms": milliseconds,
    }


def _ingress(request: Request) -> Plain:
    fields: list[Plain] = [[_name(name), value.decode("latin-1")] for name, value in request.headers.fields]
    return {
        "method": _shared(request.method),
        "target": request.target,
        "version": _shared(request.version),
        "headers": fields,
        "scheme": request.scheme,
        "authority": request.authority,
        "peer": _shared(request.peer),
        "declared_body": request.declared_body,
        "certificate": None if request.certificate is None else _text(request.certificate),
        **({} if request.names is None else {"names": _names(request.names)}),
    }


def _names(names: ClientCertificate) -> dict[str, Plain]:
    texts = {"uris": names.uris, "dns": names.dns, "emails": names.emails}
    return {
        "subject": _text(names.subject),
        **{kind: [_text(text) for text in of_kind] for kind, of_kind in texts.items()},
        "until": names.until,
    }


def _principal(principal: Principal) -> Plain:
    return {
        "subject": _text(principal.subject),
        "issuer": principal.issuer,
        "roles": [_text(role) for role in principal.roles],
        "scopes": [_text(scope) for scope in sorted(principal.scopes)],
        "expires": float(principal.expires),
        "token_id": None if principal.token_id is None else _text(principal.token_id),
    }


def _answer(answer: ServiceAnswer) -> Plain:
    fields: list[Plain] = [[_name(name), value.decode("latin-1")] for name, value in answer.fields]
    return {"service": answer.service, "said": answer.said, "fields": fields, "why": _text(answer.why)}


def mirror(exchange: Decided) -> dict[str, Plain]:
    """Mirror a decision into str, int, float, bool, None, list and dict: FlowWriter takes nothing else.

    `ingress` is the request as it arrived, the client's credential included, because replay decides on that; header
    names and values are text decoded as ISO-8859-1. Called where flows are kept (mitmweb, recording), never in plain
    `serve`.
    """
    verdict = exchange.verdict
    final = verdict.final
    failure = exchange.failure
    made = [_step(*step[:4], round(step.seconds * 1000, 3)) for step in verdict.steps]
    steps: list[Plain] = [*tuple(made)]  # of its exact size
    return {
        "request_id": exchange.request_id,
        "now": float(exchange.now),
        "policy": verdict.policy_digest,
        "decision": ("admit" if exchange.admitted else "none") if final is None else final.outcome.value,
        "reason": final.reason.code if final is not None else "ok" if exchange.admitted else None,
        "stage": None if final is None else final.stage,
        "detail": "" if final is None else _text(final.detail),
        "steps": steps,
        "failure": None if failure is None else failure.code,
        "failure_detail": _text(exchange.failure_detail),
        "cause": None if exchange.cause is None else exchange.cause.value,
        "client": None if exchange.client is None else _shared(str(exchange.client)),
        "route": None if exchange.route is None else exchange.route.name,
        "principal": None if exchange.principal is None else _principal(exchange.principal),
        **({} if exchange.service_answer is None else {"service_answer": _answer(exchange.service_answer)}),
        "ingress": _ingress(exchange.request),
        "check": None if exchange.check is None else str(exchange.check.kind),
    }
