"""Stage: what every stage inherits. Whatever is no step of its own is a denial, and nothing escapes the hook."""

import logging
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.http import HTTPFlow
from mitmproxy.test import taddons

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.descriptors import SeldomEach
from mitmgate.pipeline.exchange import Answer, Exchange, begin
from mitmgate.pipeline.stage import Row, Stage, fused
from mitmgate.policy.snapshot import Snapshot
from tests.stages.exchanges import (
    assert_leaves_decided_alone,
    assert_refused,
    finish,
    flow_of,
    routed,
    said,
    snapshot_of,
    step_of,
)


class Probe(Stage):
    """Says what it is given: a step, something else, an exception to raise, or an awaitable of any of them."""

    name = "probe"
    reasons = (
        *(Reason.ROLE_MISSING, Reason.NO_ROUTE, Reason.METHOD_NOT_ALLOWED, Reason.QUOTA_EXCEEDED),
        *(Reason.REWRITE_REFUSED, Reason.HEALTH, Reason.PREFLIGHT),
    )

    def __init__(self, word: Any, later: bool) -> None:
        self.word = word
        self.later = later

    def decide(self, exchange: Exchange) -> Any:
        return self.speak_later() if self.later else self.speak()

    def speak(self) -> Any:
        if isinstance(self.word, Exception):
            raise self.word
        return self.word

    async def speak_later(self) -> Any:
        return self.speak()


class Strict(Probe):
    name = "strict"
    reportable = False


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


LATER = pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
DENIED = Step("probe", Outcome.DENY, Reason.ROLE_MISSING, "No.")


@LATER
@pytest.mark.parametrize("step", [Probe.admitted, Probe.skipped, DENIED, Step("probe", Outcome.ANSWER, Reason.HEALTH)])
def test_a_step_is_recorded_with_its_time(snapshot: Snapshot, step: Step, later: bool) -> None:
    made = routed(snapshot)
    recorded = step_of(Probe(step, later), made)
    assert recorded._replace(seconds=0.0) == step
    assert recorded.seconds > 0
    assert (made.verdict.final is None) is (step.outcome in {Outcome.ADMIT, Outcome.SKIP})


@LATER
@pytest.mark.parametrize("mode", ["enforce", "report"])
@pytest.mark.parametrize(
    "word",
    [
        None,
        True,
        "admit",
        Outcome.ADMIT,
        ("probe", Outcome.ADMIT, Reason.OK, "", 0.0),
        Step("rewrite", Outcome.ADMIT, Reason.OK),
        Step("probe", "maybe", Reason.OK),  # type: ignore[arg-type]  # what a stage must not say
        Step("probe", None, Reason.OK),  # type: ignore[arg-type]  # the same
        Step("probe", [], Reason.OK),  # type: ignore[arg-type]  # the same, and it has no hash
        RuntimeError("broken"),
        LookupError(),
    ],
    ids=repr,
)
def test_anything_else_is_a_stage_error(tmp_path: Path, mode: str, word: Any, later: bool) -> None:
    snapshot = snapshot_of(tmp_path, mode)
    made = routed(snapshot)
    assert said(Probe(word, later), made) == (Outcome.DENY, Reason.STAGE_ERROR)
    flow = assert_refused(snapshot, made, Reason.STAGE_ERROR)
    assert flow.response is not None
    assert b"broken" not in (flow.response.content or b"")


@LATER
@pytest.mark.parametrize(
    ("mode", "path", "reason", "outcome"),
    [
        ("enforce", "/users/7", Reason.ROLE_MISSING, Outcome.DENY),
        ("report", "/users/7", Reason.ROLE_MISSING, Outcome.OBSERVE),
        ("enforce", "/trial", Reason.ROLE_MISSING, Outcome.OBSERVE),
        ("report", "/users/7", Reason.NO_ROUTE, Outcome.DENY),
        ("report", "/users/7", Reason.METHOD_NOT_ALLOWED, Outcome.DENY),
        ("report", "/users/7", Reason.STAGE_ERROR, Outcome.DENY),
    ],
)
def test_report_mode(tmp_path: Path, mode: str, path: str, reason: Reason, outcome: Outcome, later: bool) -> None:
    snapshot = snapshot_of(tmp_path, mode)
    made = routed(snapshot, path=path)
    assert said(Probe(Step("probe", Outcome.DENY, reason), later), made) == (outcome, reason)
    strict = Strict(Step("strict", Outcome.DENY, reason), later)
    assert said(strict, routed(snapshot, path=path)) == (Outcome.DENY, reason)


@LATER
@pytest.mark.parametrize(("mode", "path"), [("report", "/users/7"), ("enforce", "/trial")])
@pytest.mark.parametrize("reason", [Reason.HEALTH, Reason.PREFLIGHT])
def test_report_mode_leaves_an_answer_what_it_is(
    tmp_path: Path, mode: str, path: str, reason: Reason, later: bool
) -> None:
    made = routed(snapshot_of(tmp_path, mode), path=path)
    answer = made.answer = Answer(204)
    assert said(Probe(Step("probe", Outcome.ANSWER, reason), later), made) == (Outcome.ANSWER, reason)
    assert made.verdict.final is not None
    assert made.answer is answer


@LATER
@pytest.mark.parametrize("mode", ["enforce", "report"])
@pytest.mark.parametrize(
    "step",
    [
        *(Step("probe", outcome, Reason.SCOPE_MISSING, "No.") for outcome in Outcome),
        Step("probe", Outcome.DENY, Reason.declare("probe-odd", 403, "Odd")),
        Step("probe", Outcome.ADMIT, "ok"),  # type: ignore[arg-type]  # what a stage must not say
        Step("probe", Outcome.DENY, []),  # type: ignore[arg-type]  # the same, and it has no hash
    ],
    ids=str,
)
def test_a_reason_that_it_does_not_declare_is_a_stage_error(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    step: Step,
    later: bool,
) -> None:
    """Whatever it would have meant: what goes with it is not sent either, and the log names the stage and the code."""
    monkeypatch.setattr("mitmgate.pipeline.stage._seldom", SeldomEach(logging.getLogger("seldom")))
    snapshot = snapshot_of(tmp_path, mode)
    made = routed(snapshot)
    made.answer, made.challenge = Answer(401, ((b"Retry-After", b"9"),)), "Bearer"
    assert said(Probe(step, later), made) == (Outcome.DENY, Reason.STAGE_ERROR)
    flow = assert_refused(snapshot, made, Reason.STAGE_ERROR)
    assert flow.response is not None and "Retry-After" not in flow.response.headers
    code = step.reason.code if isinstance(step.reason, Reason) else repr(step.reason)
    assert "stage probe failed: " in caplog.text
    assert f"probe gives the reason {code}, which it does not declare" in caplog.text


def test_an_observed_denial_leaves_nothing_for_a_later_one(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path, "report")
    made = routed(snapshot)
    made.answer, made.challenge = Answer(429, ((b"Retry-After", b"9"),)), "Bearer"
    assert said(Probe(DENIED, later=False), made) == (Outcome.OBSERVE, Reason.ROLE_MISSING)
    said(Strict(Step("strict", Outcome.DENY, Reason.REWRITE_REFUSED), later=False), made)
    flow = assert_refused(snapshot, made, Reason.REWRITE_REFUSED)
    assert flow.response is not None
    assert not {"Retry-After", "WWW-Authenticate"} & set(flow.response.headers)


def test_a_denial_reaches_the_client_and_no_stage_speaks_after_it(snapshot: Snapshot) -> None:
    made = routed(snapshot)
    assert said(Probe(DENIED, later=False), made) == (Outcome.DENY, Reason.ROLE_MISSING)
    assert_leaves_decided_alone(Probe(Probe.admitted, later=False), routed(snapshot))
    assert_refused(snapshot, made, Reason.ROLE_MISSING)


def test_a_flow_without_exchange_is_left_to_enforcer() -> None:
    stage = Probe(RuntimeError("not asked"), later=False)
    with taddons.context(stage):
        finish(stage.requestheaders(flow_of()))


def asked_in_a_row(snapshot: Snapshot, *stages: Probe, later: bool) -> tuple[list[str], Exchange]:
    """Ask stages in one row, as hosts that compile their hooks do; return the steps that were recorded."""
    made = routed(snapshot)
    flow = flow_of()
    begin(flow, made)
    before = len(made.verdict.steps)
    pending = Row(stages).requestheaders(flow)
    assert (pending is not None) is later
    finish(pending)
    return [step.outcome.value for step in made.verdict.steps[before:]], made


@LATER
@pytest.mark.parametrize(
    ("words", "outcomes"),
    [
        ([Probe.admitted, Probe.skipped, Probe.admitted], ["admit", "skip", "admit"]),
        ([Probe.admitted, DENIED, Probe.admitted], ["admit", "deny"]),
        ([DENIED, RuntimeError("asked after a denial")], ["deny"]),
        ([RuntimeError("broken"), Probe.admitted], ["deny"]),
        ([Step("probe", Outcome.OBSERVE, Reason.QUOTA_EXCEEDED), Probe.admitted], ["observe", "admit"]),
        ([Step("probe", Outcome.ANSWER, Reason.HEALTH), Probe.admitted], ["answer"]),
    ],
)
def test_a_row_asks_each_stage_until_one_has_decided(
    snapshot: Snapshot, words: list[Any], outcomes: list[str], later: bool
) -> None:
    asked: list[Any] = []

    class Noted(Probe):
        def decide(self, exchange: Exchange) -> Any:
            asked.append(self.word)
            return super().decide(exchange)

    said, made = asked_in_a_row(snapshot, *(Noted(word, later) for word in words), later=later)
    assert said == outcomes
    assert asked == words[: len(outcomes)], "a stage that is asked may spend something"
    assert (made.verdict.final is None) is (outcomes[-1] in {"admit", "skip", "observe"})


def test_a_row_asks_nobody_about_what_is_decided(snapshot: Snapshot) -> None:
    made = routed(snapshot)
    made.verdict.record(Step("earlier", Outcome.DENY, Reason.HOST_INVALID))
    assert Row((Probe(Probe.admitted, later=True),)).run(made) is None
    assert made.verdict.final is not None and made.verdict.final.stage == "earlier"
    assert Row((Probe(RuntimeError("not asked"), later=False),)).requestheaders(flow_of()) is None


def test_only_plain_stages_are_put_into_rows(snapshot: Snapshot) -> None:
    """One that hooks in otherwise (Arrival begins the exchange) stays what it is, and so does another addon."""

    class Own(Probe):
        name = "own"

        def requestheaders(self, flow: HTTPFlow) -> None:
            order.append("own")

    def other(flow: HTTPFlow) -> None:
        order.append("other")

    class Named(Probe):
        def decide(self, exchange: Exchange) -> Any:
            order.append(self.word)
            return self.admitted

    order: list[str] = []
    own = Own(None, later=False)
    plain = [Named(name, later=False) for name in "abcd"]
    hooks = [own.requestheaders, plain[0].requestheaders, plain[1].requestheaders, other, plain[2].requestheaders]
    compiled = fused([*hooks, plain[3].requestheaders])
    assert [getattr(hook, "__self__", None).__class__ for hook in compiled] == [Own, Row, type(None), Row]
    assert (compiled[0], compiled[2]) == (own.requestheaders, other)
    assert fused([other]) == (other,)
    assert len(fused([plain[0].requestheaders, other])) == 2
    flow = flow_of()
    begin(flow, routed(snapshot))
    for hook in compiled:
        assert hook(flow) is None
    assert order == ["own", "a", "b", "other", "c", "d"]


def test_a_stage_that_is_cut_off_has_not_signed(snapshot: Snapshot) -> None:
    made = routed(snapshot)

    class Waits(Probe):
        def decide(self, exchange: Exchange) -> Any:
            return Later()

    class Later:
        def __await__(self) -> Any:
            raise GeneratorExit  # as cancellation does: no Exception
            yield

    with pytest.raises(GeneratorExit):
        finish(Waits(None, later=True).run(made))
    assert "probe" not in {step.stage for step in made.verdict.steps}
    assert_refused(snapshot, made, Reason.STAGE_ERROR)
