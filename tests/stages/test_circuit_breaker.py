"""CircuitBreaker: endpoints in turn while their circuits let requests through; who says what of an endpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
from mitmproxy.http import Response

from mitmgate.core.cause import Cause
from mitmgate.core.check import Check, Kind
from mitmgate.core.circuit import State
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.exchange import Exchange, begin
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.circuit_breaker import SILENT, CircuitBreaker
from mitmgate.stages.rewrite import Rewrite
from tests.stages.exchanges import (
    NOW,
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    flow_of,
    routed,
    said,
    snapshot_of,
)

USERS = "users http://127.0.0.1:9001"
ADMITTED, REFUSED = (Outcome.ADMIT, Reason.OK), (Outcome.DENY, Reason.CIRCUIT_OPEN)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


class Bench:
    """A breaker whose clock the test sets."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.now = NOW
        self.breaker = CircuitBreaker(lambda: self.now)

    def ask(self, path: str = "/near") -> tuple[tuple[Outcome, Reason], Exchange]:
        made = routed(self.snapshot, path=path)
        made.now = made.started = self.now
        return said(self.breaker, made), made

    def end(self, made: Exchange, status: int | None, failure: Reason | None = None, *, admitted: bool = True) -> None:
        """End an exchange through mitmproxy's hooks; without status by `error`."""
        flow = flow_of()
        begin(flow, made)
        made.admitted, made.failure = admitted, failure
        if status is None:
            self.breaker.error(flow)
        else:
            flow.response = Response.make(status)
            self.breaker.responseheaders(flow)
            self.breaker.response(flow)
        assert made.permit is None

    def broken(self) -> "Bench":
        self.end(self.ask()[1], 503)
        return self


def at(made: Exchange) -> int:
    """Return the port that an exchange goes to."""
    assert made.endpoint is not None
    return made.endpoint.port


@pytest.mark.parametrize(
    ("status", "failure", "admitted", "state"),
    [
        (200, None, True, State.CLOSED),
        (404, None, True, State.CLOSED),
        (500, None, True, State.OPEN),
        (502, Reason.UPSTREAM_UNREACHABLE, True, State.OPEN),
        (504, Reason.UPSTREAM_TIMEOUT, True, State.OPEN),
        (502, Reason.UPSTREAM_MALFORMED, True, State.OPEN),
        (None, Reason.UPSTREAM_CLOSED, True, State.OPEN),
        (None, None, True, State.CLOSED),
        (None, Reason.CLIENT_CLOSED, True, State.CLOSED),
        (503, None, False, State.CLOSED),  # the gateway's own denial, later in the chain
        (413, Reason.BODY_TOO_LARGE, True, State.CLOSED),
        (503, Reason.CONNECTIONS_EXHAUSTED, True, State.CLOSED),
    ],
)
def test_what_an_end_says_of_the_endpoint(
    snapshot: Snapshot, status: int | None, failure: Reason | None, admitted: bool, state: State
) -> None:
    bench = Bench(snapshot)
    step, made = bench.ask()
    assert step == ADMITTED
    assert made.endpoint is not None and made.endpoint.port == 9001
    bench.end(made, status, failure, admitted=admitted)
    assert bench.breaker.states() == {USERS: state}
    bench.end(made, 500)  # a second end says nothing
    assert bench.breaker.states() == {USERS: state}


@pytest.mark.parametrize(
    ("status", "failure", "uploading", "state"),
    [
        (None, Reason.UPSTREAM_CLOSED, True, State.CLOSED),  # the endpoint may refuse the body
        (413, Reason.UPSTREAM_CLOSED, True, State.CLOSED),  # it does, and says so
        (413, None, False, State.CLOSED),
        (503, Reason.UPSTREAM_CLOSED, True, State.OPEN),  # by its status
        (None, Reason.UPSTREAM_UNREACHABLE, True, State.OPEN),
        (None, Reason.UPSTREAM_TIMEOUT, True, State.OPEN),
    ],
)
def test_what_the_form_of_a_request_causes_does_not_count(
    snapshot: Snapshot, status: int | None, failure: Reason | None, uploading: bool, state: State
) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    flow = flow_of()
    begin(flow, made)
    made.admitted = True
    if status is not None:
        flow.response = Response.make(status)
        bench.breaker.responseheaders(flow)
    made.failure, made.uploading = failure, uploading
    bench.breaker.error(flow)
    assert bench.breaker.states() == {USERS: state}


def test_failures_of_a_few_do_not_close_a_service_to_all(snapshot: Snapshot) -> None:
    bench = Bench(replace(snapshot))
    for number in range(1500):
        step, made = bench.ask("/moved")
        assert step == ADMITTED
        bench.now += 0.002
        bench.end(made, 500 if 700 <= number < 710 else 200)
    assert set(bench.breaker.states().values()) == {State.CLOSED}
    shares = bench.breaker.failed_shares()
    assert shares["pair http://127.0.0.1:9002"] == pytest.approx(5 / 750)


def test_a_body_that_breaks_off_is_not_a_success_too(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    for _ in range(5):
        made = bench.ask("/moved")[1]
        flow = flow_of()
        begin(flow, made)
        made.admitted = True
        flow.response = Response.make(200)
        bench.breaker.responseheaders(flow)
        made.failure = Reason.UPSTREAM_CLOSED
        bench.breaker.error(flow)
    assert {share for share in bench.breaker.failed_shares().values() if share} == {1.0}


def test_denies_while_it_is_open_then_lets_one_probe_through(snapshot: Snapshot) -> None:
    bench = Bench(snapshot).broken()
    bench.now += 9.5
    step, made = bench.ask()
    assert step == REFUSED and made.permit is None and made.endpoint is None
    response = assert_refused(snapshot, made, Reason.CIRCUIT_OPEN).response
    assert response is not None and response.headers["Retry-After"] == "21"
    bench.now = NOW + 30
    step, probe = bench.ask()
    assert step == ADMITTED
    assert bench.ask()[0] == REFUSED
    bench.end(probe, None)  # the client left: the slot is free again
    step, probe = bench.ask()
    assert step == ADMITTED
    bench.end(probe, 200)
    assert bench.breaker.states() == {USERS: State.CLOSED}


def test_a_probe_that_a_later_stage_denies_gives_its_slot_back(snapshot: Snapshot) -> None:
    bench = Bench(snapshot).broken()
    bench.now += 30
    probe = bench.ask()[1]
    probe.verdict.record(Step("rewrite", Outcome.DENY, Reason.REWRITE_REFUSED))
    bench.end(probe, 403, admitted=False)
    assert bench.ask()[0] == ADMITTED


@pytest.mark.parametrize(("mode", "path"), [("report", "/near"), ("enforce", "/trial")])
def test_report_mode_observes_and_the_request_goes_on(tmp_path: Path, mode: str, path: str) -> None:
    bench = Bench(snapshot_of(tmp_path, mode)).broken()
    step, made = bench.ask(path)
    assert step == (Outcome.OBSERVE, Reason.CIRCUIT_OPEN)
    assert made.answer is None
    assert said(Rewrite(), made) == ADMITTED
    bench.end(made, 200)
    assert bench.breaker.states() == {USERS: State.OPEN}, "what has no permit says nothing"


def test_endpoints_take_turns_and_one_that_is_open_is_passed_over(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = [bench.ask("/moved")[1] for _ in range(4)]
    assert [one.endpoint.port for one in made if one.endpoint] == [9002, 9003, 9002, 9003]
    for _ in range(5):
        made = [bench.ask("/moved")[1] for _ in range(2)]
        for one in made:
            assert one.endpoint is not None
            bench.end(one, 500 if one.endpoint.port == 9002 else 200)
    made = [bench.ask("/moved")[1] for _ in range(3)]
    assert [one.endpoint.port for one in made if one.endpoint] == [9003] * 3
    assert bench.ask("/near")[0] == ADMITTED, "another upstream has a circuit of its own"


def test_fail_over_goes_to_the_other_endpoint_once(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = bench.ask("/moved")[1]
    first = made.endpoint
    second = bench.breaker.fail_over(made, Reason.UPSTREAM_UNREACHABLE)
    assert second is not None and second is made.endpoint and second != first
    assert bench.breaker.fail_over(made, Reason.UPSTREAM_UNREACHABLE) is None, "the policy allows one retry"
    assert (made.retries, made.settled) == (1, (NOW,))


@pytest.mark.parametrize(
    ("failure", "state"),
    [(Reason.UPSTREAM_CLOSED, State.OPEN), (Reason.CLIENT_CLOSED, State.CLOSED), (None, State.CLOSED)],
)
def test_a_body_that_breaks_off_counts(snapshot: Snapshot, failure: Reason | None, state: State) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    flow = flow_of()
    begin(flow, made)
    made.admitted = True
    flow.response = Response.make(200)
    bench.breaker.responseheaders(flow)
    assert bench.breaker.states() == {USERS: State.CLOSED}
    bench.now += 5
    made.failure = failure
    bench.breaker.error(flow)
    assert bench.breaker.states() == {USERS: state}
    assert made.permit is None
    assert made.settled == ((NOW, NOW + 5) if state is State.OPEN else (NOW,))


def test_a_probe_holds_its_slot_until_the_head_alone(snapshot: Snapshot) -> None:
    bench = Bench(snapshot).broken()
    bench.now += 30
    probe = bench.ask()[1]
    flow = flow_of()
    begin(flow, probe)
    probe.admitted = True
    flow.response = Response.make(200)
    bench.breaker.responseheaders(flow)
    assert bench.breaker.states() == {USERS: State.CLOSED}, "an event stream that never ends is no reason to wait"


@pytest.mark.parametrize(
    ("elapsed", "upstream", "state"),
    [(12.0, None, State.OPEN), (12.0, 11.0, State.OPEN), (60.0, 0.1, State.CLOSED), (9.0, None, State.CLOSED)],
)
def test_slow_is_the_upstream_and_not_the_client(
    snapshot: Snapshot, elapsed: float, upstream: float | None, state: State
) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    assert made.route is not None
    circuit = replace(made.route.upstream.circuit, slow=10.0)
    made.route = replace(made.route, upstream=replace(made.route.upstream, circuit=circuit))
    bench.now += elapsed
    made.upstream_seconds = upstream
    bench.end(made, 200)
    assert bench.breaker.states() == {USERS: state}


def test_circuits_outlive_a_reload_and_go_with_their_endpoint(snapshot: Snapshot) -> None:
    bench = Bench(snapshot).broken()
    late = bench.ask("/moved")[1]
    bench.snapshot = replace(snapshot)
    assert bench.ask()[0] == REFUSED
    assert len(bench.breaker.states()) == 2
    without = replace(snapshot, upstreams={"users": snapshot.upstreams["users"]})
    for kept in (2, 1):  # requests of the policy before may still be on their way
        bench.snapshot = replace(without)
        assert bench.ask()[0] == REFUSED
        assert len(bench.breaker.states()) == kept
    bench.end(late, 500)  # of an endpoint that is gone: nothing to record, and no error


def test_an_upstream_of_the_same_name_and_another_address_has_another_circuit(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    assert bench.ask()[0] == ADMITTED  # whatever is remembered of the upstream is remembered now
    bench.broken()
    moved = replace(snapshot.upstreams["users"], endpoints=(Endpoint("http", "::1", 9009),))
    for upstream, expected in ((moved, ADMITTED), (snapshot.upstreams["users"], REFUSED), (moved, ADMITTED)):
        made = routed(snapshot, path="/near")
        assert made.route is not None
        made.route, made.started = replace(made.route, upstream=upstream), bench.now
        assert said(bench.breaker, made) == expected
    assert set(bench.breaker.states()) == {USERS, "users http://[::1]:9009"}


def test_requests_that_are_let_through_together_end_apart(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    first, second, third = (bench.ask()[1] for _ in range(3))
    bench.end(first, None)  # the client left
    assert second.permit is not None and third.permit is not None
    bench.end(second, 500)
    assert bench.breaker.states() == {USERS: State.OPEN}
    bench.now += 30
    bench.end(bench.ask()[1], 200)  # the probe
    bench.end(third, 500)
    assert bench.breaker.states() == {USERS: State.CLOSED}, "it was let through before the circuit opened"


def test_a_retry_moves_nobodys_turn(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    first = []
    for _ in range(4):
        made = bench.ask("/moved")[1]
        assert made.endpoint is not None
        first.append(made.endpoint.port)
        if made.endpoint.port == 9002:
            bench.breaker.fail_over(made, Reason.UPSTREAM_UNREACHABLE)
    assert first == [9002, 9003, 9002, 9003], "else each request would begin with the endpoint that is away"


def test_an_endpoint_that_lets_connections_wait_is_passed_over_and_tried_by_one(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)

    def ports(count: int) -> list[int]:
        return [made.endpoint.port for made in [bench.ask("/moved")[1] for _ in range(count)] if made.endpoint]

    made = bench.ask("/moved")[1]
    bench.breaker.unanswered(made)
    assert ports(3) == [9003] * 3
    bench.now += 2  # the connect timeout
    assert bench.breaker.fail_over(made, Reason.UPSTREAM_TIMEOUT) is not None
    assert ports(3) == [9003] * 3
    bench.now += SILENT
    assert sorted(ports(4)) == [9002, 9003, 9003, 9003]
    bench.now += SILENT + 2  # that one has said nothing
    probe = next(
        one for one in [bench.ask("/moved")[1] for _ in range(2)] if one.endpoint and one.endpoint.port == 9002
    )
    bench.end(probe, 200)
    assert sorted(ports(4)) == [9002, 9002, 9003, 9003]


def test_where_all_let_connections_wait_one_is_chosen_all_the_same(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    for _ in range(2):
        bench.breaker.unanswered(bench.ask("/moved")[1])
    assert {made.endpoint.port for made in [bench.ask("/moved")[1] for _ in range(4)] if made.endpoint} == {9002, 9003}


def test_the_only_endpoint_is_not_asked_again_where_it_let_the_connection_wait(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    assert bench.breaker.fail_over(made, Reason.UPSTREAM_TIMEOUT) is None
    assert made.retries == 0


@pytest.mark.parametrize(
    ("cause", "state"), [(Cause.CONNECT_TIMEOUT, State.OPEN), (Cause.RESPONSE_TIMEOUT, State.CLOSED)]
)
def test_a_connection_that_was_not_made_in_time_is_one_that_could_not_be_made(
    snapshot: Snapshot, cause: Cause, state: State
) -> None:
    bench = Bench(replace(snapshot))
    for _ in range(500):
        bench.end(bench.ask("/moved")[1], 200)
    failing = [bench.ask("/moved")[1] for _ in range(10)]
    for made in failing:
        made.cause = cause
        bench.end(made, 504, Reason.UPSTREAM_TIMEOUT)
    assert bench.breaker.states()["pair http://127.0.0.1:9002"] is state


def test_fail_over_never_stays_where_it_failed(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = bench.ask("/moved")[1]
    bench.ask("/moved")  # whose turn was the other
    first, second = made.endpoint, bench.breaker.fail_over(made, Reason.UPSTREAM_CLOSED)
    assert second is not None and second != first


def test_the_only_endpoint_is_tried_again_with_the_permit_that_the_request_has(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    permit = made.permit
    assert bench.breaker.fail_over(made, Reason.UPSTREAM_CLOSED) is made.endpoint
    assert (made.permit, made.failed_over, made.settled) == (permit, (), ())
    assert bench.breaker.states() == {USERS: State.CLOSED}, "it says what it has to say when it ends"
    bench.end(made, 500)
    assert bench.breaker.states() == {USERS: State.OPEN}


def test_without_a_permit_the_only_endpoint_is_not_tried_again(tmp_path: Path) -> None:
    bench = Bench(snapshot_of(tmp_path, "report")).broken()
    made = bench.ask()[1]
    assert made.endpoint is not None and made.permit is None
    assert bench.breaker.fail_over(made, Reason.UPSTREAM_UNREACHABLE) is None


def test_fail_over_has_nowhere_to_go_while_the_other_circuits_are_open(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    pair = {
        port: [one for one in (bench.ask("/moved")[1] for _ in range(10)) if at(one) == port] for port in (9002, 9003)
    }
    made = pair[9003][0]
    for one in pair[9002]:
        bench.end(one, 500)
    assert bench.breaker.states()["pair http://127.0.0.1:9002"] is State.OPEN
    assert bench.breaker.fail_over(made, Reason.UPSTREAM_UNREACHABLE) is None
    assert made.permit is None


@pytest.mark.parametrize(
    ("reason", "state"), [(Reason.UPSTREAM_CLOSED, State.CLOSED), (Reason.UPSTREAM_UNREACHABLE, State.OPEN)]
)
@pytest.mark.parametrize("by", ["fail_over", "end"])
def test_what_a_client_may_have_caused_is_weighed_and_an_endpoint_that_is_away_is_not(
    snapshot: Snapshot, reason: Reason, state: State, by: str
) -> None:
    """A request can make a service close its connection; none can make it unreachable (core/circuit.py)."""
    bench = Bench(snapshot)
    first, second = "pair http://127.0.0.1:9002", "pair http://127.0.0.1:9003"
    for _ in range(24):
        bench.end(bench.ask("/moved")[1], 200)
    for _ in range(10):
        made = bench.ask("/moved")[1]
        if by == "end":
            bench.end(made, None, reason)
        elif at(made) == 9002:
            bench.breaker.fail_over(made, reason)
    states = bench.breaker.states()
    assert (states[first], states[second]) == (state, state if by == "end" else State.CLOSED)


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("probing", [False, True])
def test_what_a_head_leaves_to_be_said(snapshot: Snapshot, status: int, probing: bool) -> None:
    bench = Bench(snapshot)
    if probing:
        bench.broken().now += 30
    made = bench.ask()[1]
    permit, made.admitted = made.permit, True
    assert permit is not None and permit.probe is probing
    bench.breaker.judge(made, status)
    more = status == 200 and not probing  # its body may break off yet
    assert (made.permit, made.judged) == (permit if more else None, more)
    assert len(made.settled) == 1


def test_a_success_is_withdrawn_once_and_from_its_own_endpoint(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    for _ in range(2):
        bench.end(bench.ask("/moved")[1], 200)
    made = bench.ask("/moved")[1]
    bench.end(made, None, Reason.UPSTREAM_CLOSED)  # without a head: there is nothing to withdraw
    assert bench.breaker.failed_shares()["pair http://127.0.0.1:9002"] == 0.5
    left = bench.ask("/moved")[1]
    left.admitted = True
    bench.breaker.judge(left, 200)
    left.failure = Reason.CLIENT_CLOSED  # says nothing of the endpoint, whose answer was good
    bench.breaker.conclude(left, None)
    broke = bench.ask("/moved")[1]
    broke.admitted = True
    bench.breaker.judge(broke, 200)
    broke.failure = Reason.UPSTREAM_CLOSED
    bench.breaker.conclude(broke, None)
    shares = bench.breaker.failed_shares()
    assert shares["pair http://127.0.0.1:9002"] == pytest.approx(2 / 3)
    assert shares["pair http://127.0.0.1:9003"] == 0.0


def test_an_end_without_a_status_says_nothing(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    made.admitted = True
    bench.breaker.conclude(made, None)
    assert made.permit is None and made.settled == ()
    assert bench.breaker.failed_shares() == {USERS: 0.0}


def test_a_probe_that_says_nothing_is_settled_too(snapshot: Snapshot) -> None:
    bench = Bench(snapshot).broken()
    bench.now += 30
    probe = bench.ask()[1]
    bench.end(probe, None)
    assert len(probe.settled) == 1, "its slot was free again from then on: replay has to know when"


def test_exactly_as_long_as_slow_says_is_not_slow(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    assert made.route is not None
    circuit = replace(made.route.upstream.circuit, slow=10.0)
    made.route = replace(made.route, upstream=replace(made.route.upstream, circuit=circuit))
    made.upstream_seconds = 10.0
    bench.end(made, 200)
    assert bench.breaker.states() == {USERS: State.CLOSED}


def test_nothing_is_said_of_an_endpoint_without_a_route(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    made = bench.ask()[1]
    made.route = None
    with pytest.raises(ValueError, match="no route"):
        bench.breaker.conclude(made, 500)
    assert CircuitBreaker().failed_shares() == {}


def test_hooks_of_flows_that_nobody_decided_on_do_nothing(snapshot: Snapshot) -> None:
    bench = Bench(snapshot)
    flow = flow_of()
    bench.breaker.responseheaders(flow)
    bench.breaker.response(flow)
    made = bench.ask()[1]
    begin(flow, made)
    bench.breaker.responseheaders(flow)  # without a response
    assert made.permit is not None


def test_without_route_it_denies(snapshot: Snapshot) -> None:
    assert Bench(snapshot).ask("/nowhere")[0] == (Outcome.DENY, Reason.STAGE_ERROR)


def test_already_denied(snapshot: Snapshot) -> None:
    made = routed(snapshot)
    assert_leaves_decided_alone(CircuitBreaker(), made)
    assert made.permit is None


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(CircuitBreaker, snapshot, routed(snapshot), monkeypatch)


def test_what_a_proxy_is_told_says_nothing_of_the_service(snapshot: Snapshot) -> None:
    """A check that took long was long in the gateway; nobody has asked the endpoint."""
    bench = Bench(snapshot)
    made = bench.ask()[1]
    assert made.route is not None
    circuit = replace(made.route.upstream.circuit, slow=10.0)
    made.route = replace(made.route, upstream=replace(made.route.upstream, circuit=circuit))
    made.check = Check(Kind.NGINX, "127.0.0.1")
    bench.now += 12
    bench.end(made, 200)
    assert bench.breaker.states() == {USERS: State.CLOSED}
