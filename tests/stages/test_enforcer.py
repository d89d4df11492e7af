"""Enforcer: positive evidence or a problem; what goes on is exactly what Rewrite made, to an endpoint of the policy."""

from dataclasses import replace
from typing import Any, cast

import pytest
from mitmproxy.connection import Server
from mitmproxy.http import Response
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.test import taddons
from mitmproxy.test.tflow import tclient_conn

from mitmgate.chain import REQUIRED
from mitmgate.core.check import Check, Kind
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.verdict import Outcome, Step, Verdict
from mitmgate.pipeline.enforcer import BLACK_HOLE, Enforcer, forward, problem_response, response_of
from mitmgate.pipeline.exchange import Answer, Exchange, begin
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.watcher import InForce
from tests.stages.exchanges import Source, assert_refused, enforced, flow_of, routed, snapshot_of


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def ready(snapshot: Snapshot, signed: tuple[str, ...] = REQUIRED, *fields: tuple[bytes, bytes]) -> Exchange:
    """Return an exchange that these stages have signed, ready to be forwarded."""
    made = routed(snapshot, "POST", "/users/7", fields)
    made.verdict = Verdict(snapshot.digest)
    for name in signed:
        made.verdict.record(Step(name, Outcome.ADMIT, Reason.OK))
    made.forward = Forward("PUT", "/up?x=1", "users.internal", ((b"Host", b"users.internal"), (b"X", b"1")))
    made.endpoint = snapshot.upstreams["users"].endpoints[0]
    return made


@pytest.mark.parametrize(
    ("sent", "framing"),
    [
        ([], []),
        ([(b"Content-Length", b"0")], [(b"Content-Length", b"0")]),
        ([(b"Content-Length", b"7")], [(b"Content-Length", b"7")]),
        ([(b"Content-Length", b"007")], [(b"Content-Length", b"7")]),
        ([(b"Transfer-Encoding", b"chunked")], [(b"Transfer-Encoding", b"chunked")]),
    ],
)
def test_an_admitted_request_is_what_rewrite_made_with_its_framing(
    snapshot: Snapshot, sent: list[tuple[bytes, bytes]], framing: list[tuple[bytes, bytes]]
) -> None:
    made = ready(snapshot, REQUIRED, *sent)
    flow = enforced(snapshot, made)
    request = flow.request
    assert made.admitted and flow.response is None
    assert (request.scheme, request.host, request.port) == ("http", "127.0.0.1", 9001)
    assert (request.method, request.path, request.authority) == ("PUT", "/up?x=1", "")
    assert list(request.headers.fields) == [(b"Host", b"users.internal"), (b"X", b"1"), *framing]


SWAPPED = (*REQUIRED[:3], REQUIRED[4], REQUIRED[3], *REQUIRED[5:])


@pytest.mark.parametrize(
    "signed",
    [
        *[tuple(name for name in REQUIRED if name != lost) for lost in REQUIRED],
        (),
        SWAPPED,
        (*REQUIRED, "rewrite"),
        (REQUIRED[0], *REQUIRED),
        (*REQUIRED, "foreign"),
    ],
    ids=lambda signed: "-".join(name[:4] for name in signed) or "none",
)
@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_anything_but_each_signature_once_and_in_order_is_denied(
    snapshot: Snapshot, tmp_path: Any, signed: tuple[str, ...], mode: str
) -> None:
    made = ready(snapshot if mode == "enforce" else snapshot_of(tmp_path, mode), signed)
    assert_refused(snapshot, made, Reason.STAGE_ERROR)
    assert made.verdict.final is not None and made.verdict.final.stage == "enforcer"


@pytest.mark.parametrize("lost", ["forward", "endpoint"])
def test_without_somewhere_to_go_it_is_denied(snapshot: Snapshot, lost: str) -> None:
    made = ready(snapshot)
    setattr(made, lost, None)
    enforcer = Enforcer(Source(snapshot), REQUIRED)
    assert not enforcer.enforce(made), "whoever asks it without a flow must not go on"
    final = made.verdict.final
    assert final is not None and (final.stage, final.reason) == ("enforcer", Reason.STAGE_ERROR)
    flow = enforced(snapshot, made)
    assert flow.response is not None and flow.response.status_code == 503
    assert (flow.request.host, made.admitted) == (BLACK_HOLE, False)


@pytest.mark.parametrize("lost", ["forward", "endpoint"])
def test_nothing_is_put_on_a_flow_without_somewhere_to_go(snapshot: Snapshot, lost: str) -> None:
    made, flow = ready(snapshot), flow_of()
    setattr(made, lost, None)
    with pytest.raises(ValueError, match="nothing to forward"):
        forward(flow, made)
    assert flow.request.host == BLACK_HOLE
    assert flow.request.headers["Host"] == "api.example"


@pytest.mark.parametrize("outcome", ["maybe", "", None, Outcome.ANSWER])
def test_an_outcome_that_nobody_knows_and_an_answer_without_content_are_503(snapshot: Snapshot, outcome: Any) -> None:
    made = ready(snapshot, REQUIRED[:-1])
    made.verdict.record(Step("rewrite", cast(Outcome, outcome), Reason.OK))
    flow = enforced(snapshot, made)
    assert flow.response is not None and flow.response.status_code == 503
    assert (flow.request.host, made.admitted) == (BLACK_HOLE, False)


def test_a_flow_that_never_arrived_is_denied(snapshot: Snapshot) -> None:
    flow = flow_of()
    Enforcer(Source(snapshot), REQUIRED).requestheaders(flow)
    assert flow.response is not None and flow.response.status_code == 503
    assert b"policy-unavailable" in (flow.response.content or b"")
    assert flow.request.host == BLACK_HOLE


def test_where_no_response_can_be_written_the_flow_is_killed(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mitmgate.pipeline.enforcer._make", lambda *arguments: 1 / 0)
    flow = enforced(snapshot, ready(snapshot, ()))
    assert flow.error is not None and flow.response is None


def test_a_response_that_is_there_already_and_a_flow_from_a_file_are_not_touched(snapshot: Snapshot) -> None:
    for live in (True, False):
        made, flow = ready(snapshot), flow_of()
        begin(flow, made)
        flow.live = live
        if live:
            flow.response = Response.make(418)
        Enforcer(Source(snapshot), REQUIRED).requestheaders(flow)
        assert (flow.request.host, made.admitted) == (BLACK_HOLE, False)
        assert (flow.response is None) is not live


def test_an_answer_and_the_fields_of_a_denial(snapshot: Snapshot) -> None:
    made = ready(snapshot, ())
    made.answer = Answer(204, ((b"Allow", b"GET"),))
    made.verdict.record(Step("cors", Outcome.ANSWER, Reason.PREFLIGHT))
    response = enforced(snapshot, made).response
    assert response is not None
    assert (response.status_code, response.headers["Allow"], response.content) == (204, "GET", b"")
    assert "Content-Length" not in response.headers, "RFC 9110, section 8.6"
    made = ready(snapshot, ())
    made.answer, made.challenge = Answer(405, ((b"Allow", b"GET"),)), "Bearer"
    made.verdict.record(Step("authorization", Outcome.DENY, Reason.CREDENTIAL_MISSING, "Détail."))
    headers = assert_refused(snapshot, made, Reason.CREDENTIAL_MISSING).response.headers  # type: ignore[union-attr]
    assert (headers["Allow"], headers["WWW-Authenticate"], headers["Cache-Control"]) == ("GET", "Bearer", "no-store")


@pytest.mark.parametrize(
    ("outcome", "said"),
    [(None, "nothing was decided"), (Outcome.ANSWER, "an answer without content"), ("maybe", "no outcome 'maybe'")],
)
def test_no_response_is_made_of_what_is_no_decision(snapshot: Snapshot, outcome: Any, said: str) -> None:
    made = ready(snapshot, ())
    if outcome is not None:
        made.verdict.record(Step("cors", outcome, Reason.OK))
    with pytest.raises(ValueError, match=said):
        response_of(made)


@pytest.mark.parametrize(
    ("reason", "challenged"),
    [
        (Reason.CREDENTIAL_MISSING, True),
        (Reason.SCOPE_MISSING, True),
        (Reason.CREDENTIAL_AMBIGUOUS, True),
        (Reason.QUOTA_EXCEEDED, False),
        (Reason.HOST_INVALID, False),
    ],
)
def test_a_challenge_goes_with_what_a_credential_could_change(
    snapshot: Snapshot, reason: Reason, challenged: bool
) -> None:
    made = ready(snapshot, ())
    made.challenge = "Bearer"
    made.verdict.record(Step("authorization", Outcome.DENY, reason))
    response = problem_response(made, reason)
    assert ("WWW-Authenticate" in response.headers) is challenged
    assert response.headers["Content-Length"] == str(len(response.content or b""))


@pytest.mark.parametrize(
    ("reason", "challenge"),
    [
        (Reason.TOKEN_EXPIRED, 'Bearer error="invalid_token"'),
        (Reason.TOKEN_REVOKED, 'Bearer error="invalid_token"'),
        (Reason.API_KEY_EXPIRED, 'ApiKey name="x-machine", error="invalid_key", error_description="API key expired"'),
        (Reason.API_KEY_REVOKED, 'ApiKey name="x-machine", error="invalid_key", error_description="API key revoked"'),
        (Reason.CERTIFICATE_EXPIRED, "Certificate"),
    ],
)
def test_what_had_admitted_a_request_and_has_ended_is_challenged_again(
    snapshot: Snapshot, reason: Reason, challenge: str
) -> None:
    made = ready(replace(snapshot, key_field=b"x-machine"))
    made.principal = Principal("alice", "dev", (), frozenset(), {}, 0.0)
    assert problem_response(made, reason).headers["www-authenticate"] == challenge


def test_a_failure_after_admission_has_no_fields_of_a_denial(snapshot: Snapshot) -> None:
    made = ready(snapshot)
    made.answer, made.challenge = Answer(429, ((b"Retry-After", b"1"),)), "Bearer"
    response = problem_response(made, Reason.UPSTREAM_TIMEOUT)
    assert response.status_code == 504
    assert not {"Retry-After", "WWW-Authenticate"} & set(response.headers)


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        (("127.0.0.1", 9001), False),
        (("127.0.0.1", 9003), False),
        (("127.0.0.1", 22), True),
        (("127.0.0.2", 9001), True),
        ((BLACK_HOLE, 80), True),
        (None, True),
    ],
)
@pytest.mark.parametrize("earlier", [None, "refused by another addon"])
def test_only_endpoints_of_the_policy_are_dialled(
    snapshot: Snapshot, address: Any, refused: bool, earlier: str | None
) -> None:
    data = ServerConnectionHookData(Server(address=address), tclient_conn())
    data.server.error = earlier
    Enforcer(Source(snapshot), REQUIRED).server_connect(data)
    assert data.server.error == ("not an endpoint of the policy" if refused else earlier)


def test_no_policy_in_force_dials_nothing() -> None:
    data = ServerConnectionHookData(Server(address=("127.0.0.1", 9001)), tclient_conn())
    enforcer = Enforcer(InForce(), REQUIRED)
    with taddons.context(enforcer, loadcore=False), pytest.raises(LookupError):
        enforcer.server_connect(data)  # mitmproxy logs it and goes on to look at the error
    assert data.server.error


@pytest.mark.parametrize(
    ("decides", "check"),
    [
        (True, None),
        (True, Check(None, "127.0.0.1")),
        (False, Check(Kind.CADDY, "127.0.0.1")),
    ],
)
def test_a_check_is_admitted_where_this_process_only_decides_and_nothing_else_there(
    snapshot: Snapshot, decides: bool, check: Check | None
) -> None:
    for wrong in (False, True):
        made = ready(snapshot)
        enforcer = Enforcer(Source(snapshot), REQUIRED)
        made.check, enforcer.decides = (check if wrong else Check(Kind.CADDY, "127.0.0.1")), decides or not wrong
        flow = flow_of()
        begin(flow, made)
        enforcer.requestheaders(flow)
        assert flow.response is not None
        assert flow.response.status_code == (503 if wrong else 200)
        assert type(flow.response.status_code) is int, "HTTPStatus can't be written to a recording"
        assert made.admitted is not wrong
