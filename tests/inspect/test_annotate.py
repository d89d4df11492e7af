"""Annotate: comment, marker and metadata, at every moment of a request's life."""

import io

import pytest
from mitmproxy.addons.view import View
from mitmproxy.flow import Error
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.test import taddons, tflow, tutils
from mitmproxy.utils.emoji import emoji

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.inspect import summary
from mitmgate.inspect.annotate import METADATA, Annotate
from tests.inspect.conftest import ADMITTED, EXPIRED, Make


def test_a_denial_is_shown_at_once(decided: Make) -> None:
    flow, _ = decided(*ADMITTED, EXPIRED)
    Annotate().requestheaders(flow)
    assert flow.comment == "DENY 401 token-expired at authentication (route users)"
    assert flow.marked == summary.DENIED
    assert flow.metadata[METADATA]["reason"] == "token-expired"


def test_an_admission_is_shown_while_the_service_is_waited_for_and_after(admitted: Make) -> None:
    flow, _ = admitted()
    annotate = Annotate()
    annotate.requestheaders(flow)
    assert flow.comment == "ADMIT users → users, waiting for http://127.0.0.1:9001 (alice); 97 of 100 left"
    assert flow.marked == summary.PENDING

    flow.response = tutils.tresp(timestamp_start=1000.002, timestamp_end=None)
    annotate.responseheaders(flow)
    assert flow.comment == "ADMIT users → users 200, body on its way (alice); 97 of 100 left"
    assert flow.marked == summary.PENDING

    flow.response.timestamp_end = 1000.0031
    annotate.response(flow)
    assert flow.comment == "ADMIT users → users 200 in 3.1 ms (alice); 97 of 100 left"
    assert flow.marked == summary.ADMITTED


def test_a_later_denial_names_the_principal(admitted: Make) -> None:
    refusal = Step("rate-limit", Outcome.DENY, Reason.QUOTA_EXCEEDED)
    flow, _ = admitted(*ADMITTED, refusal, admitted=False)
    Annotate().requestheaders(flow)
    assert flow.comment == "DENY 429 quota-exceeded at rate-limit (alice, route users)"


def test_an_answer(decided: Make) -> None:
    flow, _ = decided(Step("endpoints", Outcome.ANSWER, Reason.HEALTH), route=None)
    flow.response = tutils.tresp(status_code=200)
    Annotate().requestheaders(flow)
    assert (flow.comment, flow.marked) == ("ANSWER 200 health at endpoints", summary.ANSWERED)


def test_report_mode_says_what_it_would_have_denied(admitted: Make) -> None:
    observed = Step("authorization", Outcome.OBSERVE, Reason.SCOPE_MISSING)
    flow, _ = admitted(*ADMITTED, observed)
    Annotate().requestheaders(flow)
    assert flow.comment.endswith("; would deny: scope-missing at authorization")
    assert flow.marked == summary.OBSERVED


def test_a_failure_of_the_service(admitted: Make) -> None:
    flow, exchange = admitted()
    exchange.failure = Reason.UPSTREAM_TIMEOUT
    Annotate().response(flow)
    assert flow.comment == "FAIL 504 upstream-timeout after admission (alice, route users)"
    assert flow.marked == summary.FAILED


def test_a_client_that_went_away(admitted: Make) -> None:
    flow, _ = admitted()
    flow.error = Error("Client disconnected.")
    Annotate().error(flow)
    assert flow.comment == "FAIL after admission: Client disconnected. (alice, route users)"


def test_what_enforcer_failed_to_decide_is_no_admission(decided: Make) -> None:
    flow, _ = decided(*ADMITTED)
    Annotate().requestheaders(flow)
    assert flow.comment == "DENY 503 stage-error at enforcer (route users)"


def test_without_a_policy(decided: Make) -> None:
    flow = tflow.tflow(live=True)
    Annotate().requestheaders(flow)
    assert flow.comment == "DENY 503 policy-unavailable at enforcer"
    assert METADATA not in flow.metadata


def test_a_loaded_flow_keeps_what_it_brings() -> None:
    flow = tflow.tflow(live=False)
    flow.comment, flow.metadata[METADATA] = "DENY 401 of then", {"reason": "of then"}
    Annotate().requestheaders(flow)
    assert (flow.comment, flow.marked) == ("DENY 401 of then", "")
    assert flow.metadata[METADATA] == {"reason": "of then"}


def test_a_persons_words_are_kept(admitted: Make) -> None:
    flow, _ = admitted()
    annotate = Annotate()
    annotate.requestheaders(flow)
    flow.comment, flow.marked = "look at this one", ":eyes:"
    annotate.response(flow)
    assert (flow.comment, flow.marked) == ("look at this one", ":eyes:")


def test_a_hostile_subject_stays_on_one_line(admitted: Make) -> None:
    principal = Principal("mallory\nADMIT \x1b[2J" + "x" * 500, "dev", (), frozenset(), {}, 1.0)
    flow, _ = admitted(principal=principal)
    Annotate().requestheaders(flow)
    assert "\n" not in flow.comment
    assert "\x1b" not in flow.comment
    assert len(flow.comment) < 200


def test_an_annotated_flow_can_be_saved(admitted: Make) -> None:
    flow, _ = admitted()
    Annotate().requestheaders(flow)
    file = io.BytesIO()
    FlowWriter(file).add(flow)
    file.seek(0)
    (loaded,) = FlowReader(file).stream()
    assert loaded.metadata[METADATA]["decision"] == "admit"
    assert loaded.comment == flow.comment


def test_the_view_can_be_filtered_by_comment_and_marker(decided: Make, admitted: Make) -> None:
    view = View()
    with taddons.context(view):
        annotate = Annotate()
        flows = [decided(*ADMITTED, EXPIRED)[0], admitted()[0]]
        for flow in flows:
            view.requestheaders(flow)
            annotate.requestheaders(flow)
        for expression, found in [
            ("~comment ^DENY", flows[:1]),
            ('~comment "route users"', flows[:1]),
            ("~marker red_circle", flows[:1]),
            ("~marked", flows),
            ("~meta token-expired", flows[:1]),
        ]:
            view.set_filter_cmd(expression)
            assert list(view) == found, expression


@pytest.mark.parametrize("name", ["ADMITTED", "PENDING", "OBSERVED", "ANSWERED", "FAILED", "DENIED"])
def test_mitmweb_can_draw_every_marker(name: str) -> None:
    marker = getattr(summary, name)
    assert len(emoji[marker]) == 1
