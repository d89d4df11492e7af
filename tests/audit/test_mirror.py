"""A mirrored decision goes through mitmproxy's flow file and comes back the same."""

import io
from dataclasses import replace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.test.tflow import tflow

from mitmgate.audit.mirror import mirror
from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from tests.audit.facts import JWT, NOW, REQUEST, Facts, admitted, denied


def saved(facts: Facts) -> Any:
    """Mirror, save, load."""
    flow = tflow()
    flow.metadata["mitmgate"] = mirror(facts)
    file = io.BytesIO()
    cast(Any, FlowWriter)(file).add(flow)  # mitmproxy does not type it
    file.seek(0)
    (loaded,) = FlowReader(file).stream()
    assert loaded.metadata["mitmgate"] == mirror(facts)
    return loaded.metadata["mitmgate"]


def test_an_admitted_request() -> None:
    found = saved(admitted())
    assert (found["decision"], found["reason"], found["stage"]) == ("admit", "ok", None)
    assert [step["stage"] for step in found["steps"]][:2] == ["arrival", "hygiene"]
    assert found["steps"][0] == {"stage": "arrival", "outcome": "admit", "reason": "ok", "detail": "", "ms": 0.001}
    assert found["route"] == "users"
    assert found["principal"]["subject"] == "alice"
    assert found["now"] == NOW


def test_replay_gets_the_request_as_it_arrived() -> None:
    ingress = saved(admitted())["ingress"]
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in ingress["headers"]]
    again = replace(REQUEST, **{**ingress, "headers": Headers(fields)})
    assert again.headers.fields == REQUEST.headers.fields
    assert again.headers.one(b"authorization") == f"Bearer {JWT}".encode()
    assert replace(again, headers=REQUEST.headers) == REQUEST


def test_a_denied_request() -> None:
    found = saved(denied())
    assert (found["decision"], found["reason"], found["stage"]) == ("deny", "token-expired", "authentication")
    assert found["detail"] == "The token has expired."
    assert found["principal"] is None


def test_undecided() -> None:
    found = saved(Facts(principal=None, route=None, client=None))
    assert (found["decision"], found["reason"], found["client"]) == ("none", None, None)


@given(
    fields=st.lists(st.tuples(st.binary(), st.binary())),
    target=st.text(st.characters(max_codepoint=255)),
    subject=st.text() | st.characters(categories=["Cs"]),
    roles=st.lists(st.text() | st.characters(categories=["Cs"])),
    expires=st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    certificate=st.none() | st.text(),
    body=st.none() | st.integers(0, 2**62),
)
def test_any_request(
    fields: list[tuple[bytes, bytes]],
    target: str,
    subject: str,
    roles: list[str],
    expires: float,
    certificate: str | None,
    body: int | None,
) -> None:
    facts = admitted()
    facts.request = replace(
        REQUEST, headers=Headers(fields), target=target, certificate=certificate, declared_body=body
    )
    facts.principal = Principal(subject, "corp", tuple(roles), frozenset(roles), {}, float(expires) % 1e12, subject)
    found = saved(facts)
    assert found["ingress"]["headers"] == [[n.decode("latin-1"), v.decode("latin-1")] for n, v in fields]
