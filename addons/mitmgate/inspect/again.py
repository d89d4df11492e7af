"""A kept flow decided again, edited or not, by the policy in force; and written down as a case for a team's tests.

Nothing is sent and no limit is spent: counters, circuits and stages are its own (replay/deciding.py).
"""

import re
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any, Final, NamedTuple

from mitmproxy.http import HTTPFlow, Request
from mitmproxy.io import tnetstring

from mitmgate.audit.reading import printable
from mitmgate.audit.redact import REDACTED, Redaction
from mitmgate.inspect.annotate import METADATA
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import ADMIT, decided
from mitmgate.replay.explain import explain
from mitmgate.replay.explain_text import as_text
from mitmgate.replay.flow_state import read_flow
from mitmgate.replay.offline import OfflinePolicy, unsigned
from mitmgate.replay.presented import PresentedTokens
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.traffic import Recorded, Skipped
from mitmgate.usage import UserError

_UNTOLD: Final = "Limits are counted from nothing here, circuits are closed, and nothing is revoked."
_NO_KEYS: Final = (
    "The token was not checked then, and its keys are not at hand: what is behind authentication can't be said."
)


class Again(NamedTuple):
    """recorded: the request, as it was decided on now. exchange: the decision. text: all of it, for people."""

    recorded: Recorded
    exchange: Exchange
    text: str


def decide_again(flow: HTTPFlow, loaded: Loaded, snapshot: Snapshot) -> Again:
    """Decide on a flow as it is now, at the time of the first decision. Raises UserError where it can't be."""
    recorded = _recorded(flow)
    decider = Decider(unsigned(snapshot), OfflineRing())
    exchange = decider.decide(recorded)
    policy = OfflinePolicy(loaded, decider.snapshot, frozenset(), ())
    notes = [_NO_KEYS] if decider.ring.unverified else []
    text = as_text(explain(policy, recorded, exchange, decider.stages))
    return Again(recorded, exchange, "\n".join([text, *notes, _UNTOLD]))


def as_test_case(flow: HTTPFlow, loaded: Loaded, snapshot: Snapshot) -> str:
    """Write a flow as a function for pytest (docs/replay.md); what is expected is what is decided now."""
    again = decide_again(flow, loaded, snapshot)
    recorded, decision = again.recorded, decided(again.exchange)
    request, redaction = recorded.request, Redaction(snapshot.redact)
    notes, steps = [], []
    named = request.authority or (request.headers.one(b"host") or b"").decode("latin-1")
    token = None if recorded.presented is None else recorded.presented.token
    for name, value in request.headers.fields:
        field, text = name.decode("latin-1"), value.decode("latin-1")
        if name.lower() in {b"host", b"content-length"} or (token is not None and name.lower() == b"authorization"):
            continue
        if REDACTED in redaction.field(field, text):
            notes.append(f"    # without {redaction.name(field)}, which holds a credential")
            continue
        if redaction.name(field) != field:
            notes.append("    # without a field whose name is a credential")
            continue
        steps.append(f".header({field!r}, {text!r})")
    if token is not None:
        steps.append(f".claims({_arguments(token.unverified_claims)})")
        if recorded.presented is not None and recorded.presented.signature != "good":
            notes.append(
                f"    # the token's signature was not good ({recorded.presented.signature}); a case's always is"
            )
    before = flow.metadata[METADATA].get("reason")
    if before != decision.reason:
        notes.append(f"    # was {before}; in a case limits count from nothing, and circuits are closed")
    answer = again.exchange.service_answer
    if answer is not None and answer.said != "allow":
        steps.append(f".decision({answer.said!r})")
    if request.declared_body:
        steps.append(f".body({request.declared_body})")
    steps += [f".ip({request.peer!r})", f".at({recorded.at!r})"]
    route = decision.route if decision.outcome == ADMIT else ""
    expected = f".is_admitted(route={route!r})" if route else f".is_{_PAST[decision.outcome]}({decision.reason!r})"
    url = f"{request.scheme}://{named}{redaction.target(request.target)}"
    words = re.findall(r"[a-z0-9]+", f"{request.method} {request.target.partition('?')[0]}".lower())
    return "\n".join(
        [
            f"def test_{'_'.join(words)[:60]}_{_PAST[decision.outcome]}(policy_case):",
            *(printable(note) for note in notes),  # a saved flow says anything: a comment stays on its line
            f"    request = policy_case({loaded.path.rpartition('/')[2]!r}).request({request.method!r}, {url!r})",
            *(f"    request = request{step}" for step in steps),
            f"    request{expected}",
        ]
    )


_PAST: Final = {"admit": "admitted", "deny": "denied", "answer": "answered"}


def _arguments(claims: Mapping[str, Any]) -> str:
    if all(name.isidentifier() and not iskeyword(name) and name != "self" for name in claims):
        return ", ".join(f"{name}={value!r}" for name, value in claims.items())
    return f"**{dict(claims)!r}"


def _recorded(flow: HTTPFlow) -> Recorded:
    saved = flow.metadata.get(METADATA)
    if not isinstance(saved, dict) or not isinstance(saved.get("ingress"), dict):
        raise UserError("The gateway has not decided on this flow: there is nothing to decide again.")
    ingress = asked(flow, saved["ingress"])
    state: dict[str, Any] = flow.get_state()
    state["metadata"] = {METADATA: {**saved, "ingress": ingress}}
    entry = read_flow(tnetstring.dumps(state), PresentedTokens())
    if isinstance(entry, Skipped):
        raise UserError(f"This flow can't be decided again: {entry.reason}")
    if any(_plain(ingress[name]) != _plain(saved["ingress"][name]) for name in _ASKED):
        entry = entry._replace(service_answer=None)  # a decision service has said nothing of this request
    if _credentials(ingress) != _credentials(saved["ingress"]):  # what was found out of the one before says nothing
        entry = entry._replace(presented=None, key=None)
    return entry


_ASKED: Final = ("method", "target", "authority", "headers")


def _plain(member: Any) -> Any:
    return member if isinstance(member, str) else [[*field] for field in member]


def _credentials(ingress: Mapping[str, Any]) -> list[Any]:
    return [[*field] for field in ingress["headers"] if str(field[0]).lower() in {"authorization", "x-api-key"}]


def asked(flow: HTTPFlow, ingress: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request as it arrived (`ingress` of the verdict), with what a person has edited since.

    What was forwarded differs from what arrived; only what an edit has changed of the one is changed of the other.
    """
    made = dict(ingress)
    backup: Any = flow._backup
    if backup is None:
        return made
    before, now = Request.from_state(backup["request"]), flow.request
    if now.method != before.method:
        made["method"] = now.method
    if now.path != before.path:
        made["target"] = now.path
    names = {name.lower(): name for name in [*before.headers, *now.headers]}
    changed = [name for name in names if before.headers.get_all(name) != now.headers.get_all(name)]
    kept = [[*field] for field in made["headers"] if str(field[0]).lower() not in changed]
    made["headers"] = kept + [[names[name], value] for name in changed for value in now.headers.get_all(name)]
    if "host" in changed and made["authority"]:
        made["authority"] = now.headers.get("host", "")
    return made
