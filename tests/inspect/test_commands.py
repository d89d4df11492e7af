"""The mitmgate.* commands."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.view import View
from mitmproxy.http import HTTPFlow
from mitmproxy.test import taddons

from mitmgate.core.headers import Headers
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.inspect.again import _arguments, as_test_case
from mitmgate.inspect.annotate import METADATA, Annotate
from mitmgate.inspect.commands import GatewayCommands
from mitmgate.policy.loader import load
from mitmgate.policy.snapshot import Snapshot
from tests.inspect.conftest import ADMITTED, EXPIRED, TOKEN, Make
from tests.live.harness import SECRET


@pytest.fixture
def view(snapshot: Snapshot, decided: Make, admitted: Make) -> Iterator[View]:
    """A view of two denials, one admission and one failure."""
    view = View()
    with taddons.context(view) as host:
        host.master.addons.add(GatewayCommands(view, lambda: snapshot))
        annotate = Annotate()
        missing = Step("authorization", Outcome.DENY, Reason.SCOPE_MISSING)
        made = [decided(*ADMITTED, EXPIRED), decided(*ADMITTED, missing), admitted()]
        made.append(admitted(failure=Reason.UPSTREAM_CLOSED))
        for flow, _ in made:
            annotate.requestheaders(flow)
            view.add([flow])
        yield view


def call(view: View, command: str, *arguments: str) -> str:
    from mitmproxy import ctx

    return str(ctx.master.commands.call_strings(command, arguments))


def test_explain_the_focused_flow(view: View) -> None:
    assert "decision: DENY 401 token-expired at authentication" in call(view, "mitmgate.explain", "@focus")


def test_explain_by_filter(view: View) -> None:
    text = call(view, "mitmgate.explain", "~comment ^DENY")
    assert text.count("decision: ") == 2
    with pytest.raises(exceptions.CommandError, match="no such flow"):
        call(view, "mitmgate.explain", "~comment nothing")


def test_denied_and_all(view: View) -> None:
    def reasons() -> list[str]:
        return [flow.comment.split()[2] for flow in view if isinstance(flow, HTTPFlow)]

    assert call(view, "mitmgate.denied").startswith("2 of 4 flows: ")
    assert reasons() == ["token-expired", "scope-missing"]
    assert call(view, "mitmgate.denied", "scope-missing").startswith("1 of 4 flows: ")
    assert reasons() == ["scope-missing"]
    assert call(view, "mitmgate.all") == "4 flows"
    with pytest.raises(exceptions.CommandError, match="is no reason code"):
        call(view, "mitmgate.denied", '" | ~all')


def test_stats(view: View) -> None:
    lines = [line.split() for line in call(view, "mitmgate.stats").splitlines()]
    assert lines[0] == ["4", "decisions", "on", "4", "flows", "kept"]
    assert sorted(lines[1:]) == [
        ["1", "admit", "ok"],
        ["1", "deny", "scope-missing"],
        ["1", "deny", "token-expired"],
        ["1", "fail", "upstream-closed"],
    ]


def test_policy(view: View, snapshot: Snapshot) -> None:
    first, *routes = call(view, "mitmgate.policy").splitlines()
    assert first == f"{snapshot.path}  {snapshot.digest}  mode enforce"
    assert "users: any method any host /api/v1/users/… → users (issuers dev, enforce)" in routes
    assert "public: any method any host /public → users (public, enforce)" in routes


def test_policy_before_there_is_one() -> None:
    def missing() -> Snapshot:
        raise LookupError("no policy is in force")

    with pytest.raises(exceptions.CommandError, match="no policy is in force"):
        GatewayCommands(View(), missing).policy()


def test_a_case_holds_nothing_that_a_saved_flow_has_put_into_a_line_of_its_own(
    snapshot: Snapshot, decided: Make
) -> None:
    """Flows are loaded from files, too; and names of fields and claims are the client's."""
    flow, exchange = decided(*ADMITTED, EXPIRED)
    fields = [(b"X-Other\nraise SystemExit", f"a {TOKEN}".encode()), (TOKEN.encode(), b"x")]
    exchange.request = replace(exchange.request, headers=Headers([(b"Host", b"api.example"), *fields]))
    Annotate().requestheaders(flow)
    flow.metadata[METADATA]["reason"] = "token-expired\nraise SystemExit"
    text = as_test_case(flow, load(Path(snapshot.path), {"MITMGATE_TEST_SECRET": SECRET}), snapshot)
    assert [line for line in text.splitlines()[1:] if not line.startswith("    ")] == []
    assert "# was token-expired\\u000araise" in text
    assert TOKEN not in text
    compile(text, "case", "exec")


def test_claims_that_are_no_names_of_arguments() -> None:
    for name in ("class", "self", "a²", "a-b", "None"):
        compile(f"f({_arguments({name: 1, 'sub': 'x'})})", "case", "exec")
        assert _arguments({name: 1}) == f"**{{{name!r}: 1}}"
    assert _arguments({"sub": "x", "n": 1}) == "sub='x', n=1"
