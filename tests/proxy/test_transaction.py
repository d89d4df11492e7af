"""A transaction, event by event and without sockets: what reaches an upstream, and what never does.

What runs hooks is a stand-in that does what a test says, as no chain of ours would: an exchange that nobody admitted,
one without somewhere to go, a flow that an addon killed. So it is seen what the engine makes of it by itself.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from mitmproxy.certs import Cert
from mitmproxy.connection import Client, Server
from mitmproxy.flow import Error
from mitmproxy.http import Headers, HTTPFlow, Response
from mitmproxy.test.tflow import tclient_conn

from mitmgate.core.cause import Failure
from mitmgate.core.headers import Headers as Received
from mitmgate.core.http1 import Bounds, RequestHead
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Forward, Request
from mitmgate.core.rules import Endpoint
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.enforcer import BLACK_HOLE
from mitmgate.pipeline.exchange import Exchange, begin, taken
from mitmgate.policy.snapshot import Snapshot
from mitmgate.proxy.pool import Unreachable, UpstreamPool
from mitmgate.proxy.transaction import QUEUE, Engine, Transaction, new_request
from mitmgate.proxy.upstream import Phase
from tests.protocol.certificates import Authority
from tests.stages.exchanges import routed, snapshot_of

FORWARD = Forward("GET", "/up", "users.internal", ((b"Host", b"users.internal"),))
OTHER, THIRD = Endpoint("http", "127.0.0.1", 9009), Endpoint("http", "127.0.0.1", 9010)
type Act = Callable[[HTTPFlow], Coroutine[Any, Any, None] | None]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


class Upstream:
    """A connection to an endpoint, and what was written on it."""

    def __init__(self, endpoint: Endpoint, *, takes: bool = True) -> None:
        self.endpoint = endpoint
        self.server = Server(address=(endpoint.host, endpoint.port))
        self.phase = Phase.IDLE
        self.congested = False
        self.unsent = 0
        self.takes = takes
        self.sent: list[Any] = []
        self.abandoned = False

    def send(self, recipient: object, forward: Forward, length: int | None, content: bytes | None, **how: Any) -> bool:
        self.phase = Phase.BUSY
        if self.takes:
            self.sent.append((forward, length, content))
        return self.takes

    def send_body(self, data: bytes) -> None:
        self.sent.append(data)

    def end_body(self, trailers: object = ()) -> None:
        self.sent.append("end")

    def hold(self, held: bool) -> None:
        """What comes is not looked at here."""

    def abandon(self) -> None:
        self.abandoned = True
        self.phase = Phase.CLOSED


class Bench:
    """One transaction: its client, its hooks, its pool and its deadline, all of them noted."""

    def __init__(self, made: Exchange | None) -> None:
        self.exchange = made
        self.loop = asyncio.new_event_loop()
        self.client: Client = tclient_conn()
        self.congested = False
        self.room = 1 << 30
        self.acts: dict[str, Act] = {}
        self.hooks: list[str] = []
        self.answers: list[tuple[int, bool]] = []
        self.asked = 0
        self.held: list[bool] = []
        self.ends: list[str] = []
        self.idle: list[Upstream] = []
        self.dialled: list[Endpoint] = []
        self.unreachable: list[Reason] = []
        self.next: list[Endpoint | None] = []
        self.moved: list[Reason] = []
        self.connections: list[Upstream] = []
        self.takes = True
        self.withdrawn: Reason | None = None
        engine = Engine(
            self.loop,
            cast(Any, self),
            cast(UpstreamPool, self),
            self.fail_over,
            unanswered=lambda exchange: None,
            withdrawn=lambda exchange: self.withdrawn,
        )
        self.transaction = Transaction(engine, cast(Any, self), Bounds(), cast(Any, self))

    # The hook table.

    def run(self, kind: type[Any], flow: HTTPFlow) -> Coroutine[Any, Any, None] | None:
        self.hooks.append(kind.name)
        if kind.name == "requestheaders" and self.exchange is not None:
            begin(flow, self.exchange)
        act = self.acts.get(kind.name)
        return None if act is None else act(flow)

    # The pool, and what comes after an endpoint that failed.

    def take(self, endpoint: Endpoint, tls: object, **how: bool) -> Upstream | None:
        return self.idle.pop() if self.idle else None

    async def open(self, endpoint: Endpoint, tls: object, patience: float, client: Client) -> Upstream:
        self.dialled.append(endpoint)
        await asyncio.sleep(0)
        if self.unreachable:
            raise Unreachable(self.unreachable.pop(0))
        self.connections.append(Upstream(endpoint, takes=self.takes))
        return self.connections[-1]

    def fail_over(self, exchange: Exchange, reason: Reason) -> Endpoint | None:
        self.moved.append(reason)
        return self.next.pop(0)

    # The client's side, and the deadline.

    def hold_request_body(self, held: bool) -> None:
        self.held.append(held)

    def ask_for_body(self) -> None:
        self.asked += 1

    def send_head(self, response: Response, length: int | None, body: bytes | None, *, close: bool = False) -> None:
        self.answers.append((response.status_code, close))

    def recount(self) -> None:
        """Nothing is counted here."""

    def admits(self, wanted: int) -> bool:
        return wanted <= self.room

    def finish(self, trailers: object = ()) -> None:
        self.ends.append("finish")

    def break_off(self) -> None:
        self.ends.append("break off")

    def set(self, seconds: float) -> None:
        """Time stands still here."""

    at = set

    def clear(self) -> None:
        """Time stands still here."""

    # What a test does.

    takes_trailers = False

    def begin(
        self,
        length: int | None = 0,
        *,
        expects: bool = False,
        more: bool = False,
        whole: bool = False,
        version: str = "HTTP/1.1",
    ) -> "Bench":
        request = new_request(b"POST", b"/users/7", version.encode(), Headers(), b"http")
        head = RequestHead(b"POST", b"/users/7", version, Received(()), length, True, expects)
        self.transaction.begin(request, head, None, more=more, whole=whole)
        return self

    def turn(self) -> None:
        """Let what waits go on."""
        for _ in range(24):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    @property
    def flow(self) -> HTTPFlow:
        return self.transaction.flow

    @property
    def sent(self) -> list[Any]:
        """What was written to any upstream."""
        return [part for upstream in self.connections for part in upstream.sent]

    def assert_refused(self, reason: Reason, *, answered: bool = True) -> None:
        """Check that the client was answered, or left, with nothing sent and nobody asked to connect."""
        self.turn()
        assert (self.sent, self.dialled, self.connections) == ([], [], [])
        assert [status for status, _ in self.answers] == ([reason.status] if answered else [])
        assert self.ends == ["finish" if answered else "break off"]
        assert self.flow.request.host == BLACK_HOLE
        self.late()

    def late(self) -> None:
        """Check that what still comes of a request that was refused goes nowhere, and ends nothing a second time."""
        before = list(self.hooks), list(self.answers), list(self.ends)
        self.transaction.body(b"late")
        self.transaction.body_end()
        self.transaction.body_refused(Refusal(Reason.BODY_MALFORMED, "No."))
        self.turn()
        self.transaction.client_gone()
        self.transaction.expired()
        self.turn()
        assert (self.hooks, self.answers, self.ends) == before
        assert (self.sent, self.dialled) == ([], [])


@pytest.fixture
def bench(snapshot: Snapshot) -> Iterator[Bench]:
    """Return one with an exchange that is admitted and has somewhere to go."""
    made = routed(snapshot, "POST", "/users/7")
    made.admitted, made.forward = True, FORWARD
    made.endpoint = snapshot.upstreams["users"].endpoints[0]
    made.max_body = 100
    running = Bench(made)
    yield running
    for task in asyncio.all_tasks(running.loop):
        task.cancel()
    running.turn()
    running.loop.close()


def exchange_in(bench: Bench) -> Exchange:
    assert bench.exchange is not None
    return bench.exchange


def change(bench: Bench, **members: Any) -> None:
    """Change the route of a bench's exchange, or, of its upstream, what is named upstream_NAME."""
    made = exchange_in(bench)
    assert made.route is not None
    of_upstream = {name.removeprefix("upstream_"): members.pop(name) for name in [*members] if "upstream_" in name}
    upstream = replace(made.route.upstream, **of_upstream)
    made.route = replace(made.route, upstream=upstream, **members)


def kill(flow: HTTPFlow) -> None:
    flow.error = Error(Error.KILLED_MESSAGE)


def test_an_admitted_request_goes_up_as_it_was_decided_on(bench: Bench) -> None:
    def meddle(flow: HTTPFlow) -> None:
        flow.request.path, flow.request.headers["host"] = "/elsewhere", "other"
        flow.request.content = b"another body"

    bench.acts["request"] = meddle
    bench.begin()
    assert bench.dialled == [], "not before the request is whole"
    bench.transaction.body_end()
    bench.turn()
    assert bench.sent == [(FORWARD, 0, b"")]
    assert bench.dialled == [exchange_in(bench).endpoint]
    assert bench.hooks == ["requestheaders", "request"]
    assert bench.answers == []


@pytest.mark.parametrize(("tls", "scheme"), [(True, "https"), (False, "http")])
def test_what_arrived_is_handed_over_as_it_was(bench: Bench, tmp_path: Path, tls: bool, scheme: str) -> None:
    bench.client.tls = tls
    pem = Path(Authority(tmp_path).issue("robot.example")[0]).read_bytes()
    bench.client.certificate_list = [Cert.from_pem(pem)] if tls else []
    seen: list[Request | None] = []

    def look(flow: HTTPFlow) -> None:
        seen.append(taken(flow))

    bench.acts["requestheaders"] = look
    bench.begin(5)
    (read,) = seen
    assert read is not None
    assert (read.scheme, read.method, read.target, read.version) == (scheme, "POST", "/users/7", "HTTP/1.1")
    assert (read.declared_body, read.peer) == (5, bench.client.peername[0])
    assert read.certificate == ("CN=robot.example" if tls else None)


def test_a_connection_that_is_there_is_taken(bench: Bench) -> None:
    made = exchange_in(bench)
    assert made.endpoint is not None
    bench.connections = [Upstream(made.endpoint)]
    bench.idle = [*bench.connections]
    bench.begin().transaction.body_end()
    assert bench.sent == [(FORWARD, 0, b"")]
    assert bench.dialled == []
    assert bench.flow.server_conn is bench.connections[0].server


@pytest.mark.parametrize("waits", ["", "requestheaders", "request", "body", "dial", "dial again"])
def test_what_admitted_a_request_is_asked_for_again_where_anything_can_have_come_between(
    bench: Bench, waits: str
) -> None:
    """Only a request that is sent in the turn of the loop in which it was admitted goes on without."""
    made = exchange_in(bench)
    assert made.endpoint is not None
    made.principal = Principal("alice", "dev", (), frozenset(), {}, time.time() + 3600)
    bench.withdrawn = Reason.TOKEN_REVOKED
    if not waits.startswith("dial"):
        bench.connections = [Upstream(made.endpoint)]
        bench.idle = [*bench.connections]
    if waits in {"requestheaders", "request"}:
        bench.acts[waits] = lambda flow: asyncio.sleep(0)
    if waits == "dial again":
        bench.unreachable, bench.next = [Reason.UPSTREAM_UNREACHABLE], [OTHER]
        change(bench, upstream_retries=1)
    bench.begin(5 if waits == "body" else 0, whole=waits != "body")
    if waits == "body":
        bench.transaction.body(b"12345")
    bench.transaction.body_end()
    bench.turn()
    assert bench.sent == ([] if waits else [(FORWARD, 0, b"")])
    assert [status for status, _ in bench.answers] == ([401] if waits else [])


def test_nor_is_it_sent_a_second_time_without(bench: Bench) -> None:
    made = exchange_in(bench)
    assert made.endpoint is not None
    made.principal = Principal("alice", "dev", (), frozenset(), {}, time.time() + 3600)
    made.forward = replace(FORWARD, method="PUT")
    bench.idle = [Upstream(made.endpoint), Upstream(made.endpoint)]
    bench.connections = [*bench.idle]
    change(bench, upstream_retries=1)
    bench.begin(whole=True).transaction.body_end()
    assert len(bench.sent) == 1
    bench.withdrawn, bench.next = Reason.TOKEN_REVOKED, [OTHER]
    closed = Failure(Reason.UPSTREAM_CLOSED, None)
    bench.transaction.upstream_failed(closed, untouched=True, stale=False, undelivered=False)
    bench.turn()
    assert len(bench.sent) == 1
    assert [status for status, _ in bench.answers] == [401]


@pytest.mark.parametrize("length", [0, 5, None, 1 << 20])
def test_without_an_exchange_nothing_goes_on(length: int | None) -> None:
    bench = Bench(None).begin(length)
    bench.assert_refused(Reason.STAGE_ERROR)
    bench.loop.close()


@pytest.mark.parametrize("length", [0, 5, None, 1 << 20])
def test_what_nobody_admitted_does_not_go_on(bench: Bench, length: int | None) -> None:
    exchange_in(bench).admitted = False
    bench.begin(length).assert_refused(Reason.STAGE_ERROR)
    assert exchange_in(bench).failure is Reason.STAGE_ERROR


@pytest.mark.parametrize("lost", ["route", "forward", "endpoint"])
@pytest.mark.parametrize("length", [0, 5, None, 1 << 20])
def test_what_has_nowhere_to_go_goes_nowhere(bench: Bench, lost: str, length: int | None) -> None:
    setattr(exchange_in(bench), lost, None)
    bench.begin(length).assert_refused(Reason.STAGE_ERROR)


@pytest.mark.parametrize("lost", ["route", "endpoint"])
def test_nor_does_what_loses_its_way_while_its_body_comes(bench: Bench, lost: str) -> None:
    bench.begin(5)
    bench.transaction.body(b"12345")
    setattr(exchange_in(bench), lost, None)
    bench.transaction.body_end()
    bench.assert_refused(Reason.STAGE_ERROR)


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@pytest.mark.parametrize("admitted", [False, True])
def test_a_response_that_is_there_is_sent_and_the_request_is_not(bench: Bench, hook: str, admitted: bool) -> None:
    def deny(flow: HTTPFlow) -> None:
        flow.response = Response.make(403)

    bench.acts[hook] = deny
    exchange_in(bench).admitted = admitted or hook == "request"
    bench.begin(5)
    bench.transaction.body(b"12345")
    bench.transaction.body_end()
    bench.turn()
    assert (bench.sent, bench.dialled) == ([], [])
    assert bench.answers == [(403, False)]
    assert bench.hooks.count("response") == 1
    bench.late()


@pytest.mark.parametrize("status", [400, 431, 503])
def test_the_connection_of_a_malformed_request_is_not_read_from_again(bench: Bench, status: int) -> None:
    def deny(flow: HTTPFlow) -> None:
        flow.response = Response.make(status)

    bench.acts["requestheaders"] = deny
    bench.begin()
    assert bench.answers == [(status, status != 503)]


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@pytest.mark.parametrize("length", [0, 5, None])
def test_a_flow_that_is_killed_goes_nowhere_and_is_not_answered(bench: Bench, hook: str, length: int | None) -> None:
    bench.acts[hook] = kill
    # Else its head is on its way before the request hook.
    change(bench, stream="never" if hook == "request" else "always")
    bench.begin(length)
    if length != 0:
        bench.transaction.body(b"12345")
    bench.transaction.body_end()
    bench.turn()
    assert (bench.sent, bench.dialled, bench.answers) == ([], [], [])
    assert bench.ends == ["break off"]
    assert bench.hooks[-1] == "error"
    bench.late()


def test_a_streamed_body_whose_flow_is_killed_does_not_end(bench: Bench) -> None:
    """The service then knows that it has not got all of it."""
    bench.acts["request"] = kill
    change(bench, stream="always")
    bench.begin(5)
    bench.turn()
    bench.transaction.body(b"12345")
    bench.transaction.body_end()
    bench.turn()
    assert bench.sent == [(FORWARD, 5, None), b"12345"]
    assert [upstream.abandoned for upstream in bench.connections] == [True]
    assert bench.ends == ["break off"]


@pytest.mark.parametrize("act", [None, kill])
def test_bytes_that_are_no_request_are_answered_whatever_the_hooks_do(bench: Bench, act: Act | None) -> None:
    if act is not None:
        bench.acts["requestheaders"] = act
    exchange_in(bench).verdict.record(Step("protocol", Outcome.DENY, Reason.HEAD_MALFORMED))
    request = new_request(b"", b"", b"HTTP/1.1", Headers(), b"http")
    bench.transaction.begin(request, None, Refusal(Reason.HEAD_MALFORMED, "No."))
    bench.assert_refused(Reason.STAGE_ERROR, answered=act is None)


def test_the_answer_to_bytes_that_are_no_request_is_the_chains(bench: Bench) -> None:
    def deny(flow: HTTPFlow) -> None:
        flow.response = Response.make(431)

    bench.acts["requestheaders"] = deny
    request = new_request(b"", b"", b"HTTP/1.1", Headers(), b"http")
    bench.transaction.begin(request, None, Refusal(Reason.HEAD_TOO_LARGE, "No."))
    assert bench.answers == [(431, True)]
    bench.late()


def websocket(bench: Bench, *, takes: bool) -> None:
    made = exchange_in(bench)
    assert made.head is not None
    made.head = replace(made.head, upgrade="websocket")
    change(bench, websocket=takes)


@pytest.mark.parametrize(
    ("takes", "length", "passes"), [(True, 0, True), (True, 5, False), (True, None, False), (False, 0, False)]
)
def test_an_upgrade_goes_on_where_the_route_takes_it_and_it_has_no_body(
    bench: Bench, takes: bool, length: int | None, passes: bool
) -> None:
    websocket(bench, takes=takes)
    bench.begin(length)
    if not passes:
        bench.assert_refused(Reason.UPGRADE_REFUSED)
        return
    bench.transaction.body_end()
    bench.turn()
    assert bench.sent == [(FORWARD, 0, b"")]
    assert bench.transaction.lasts_for_client


def test_a_request_without_a_head_that_hygiene_made_upgrades_nothing(bench: Bench) -> None:
    exchange_in(bench).head = None
    bench.begin().transaction.body_end()
    bench.turn()
    assert bench.sent == [(FORWARD, 0, b"")]
    assert not bench.transaction.lasts_for_client


MODES = pytest.mark.parametrize(
    ("mode", "of_route", "bound", "holds"),
    [
        ("enforce", "enforce", 100, True),
        ("report", "enforce", 100, False),
        ("enforce", "report", 100, False),
        ("enforce", "enforce", 0, False),
    ],
)


@MODES
@pytest.mark.parametrize("length", [100, 101])
@pytest.mark.parametrize("stream", ["auto", "always"])
def test_a_declared_body_is_held_to_its_bound(
    bench: Bench, mode: Any, of_route: str, bound: int, holds: bool, length: int, stream: str
) -> None:
    made = exchange_in(bench)
    made.snapshot, made.max_body = replace(made.snapshot, mode=mode), bound
    change(bench, mode=of_route, stream=stream)
    bench.begin(length)
    if holds and length > bound:
        bench.assert_refused(Reason.BODY_TOO_LARGE)
        return
    bench.turn()
    bench.transaction.body(b"x" * length)
    bench.transaction.body_end()
    bench.turn()
    whole = [(FORWARD, length, b"x" * length)]
    streamed = [(FORWARD, length, None), b"x" * length, "end"]
    assert bench.sent == (streamed if stream == "always" else whole)


@MODES
@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_body_that_declares_nothing_is_held_to_it_as_it_comes(
    bench: Bench, mode: Any, of_route: str, bound: int, holds: bool, stream: str
) -> None:
    made = exchange_in(bench)
    made.snapshot, made.max_body = replace(made.snapshot, mode=mode), bound
    change(bench, mode=of_route, stream=stream)
    bench.begin(None)
    bench.turn()
    bench.transaction.body(b"x" * 60)
    bench.transaction.body(b"x" * 40)
    assert bench.answers == []
    bench.transaction.body(b"x")
    bench.transaction.body_end()
    bench.turn()
    if not holds:
        assert b"x" * 101 in (b"".join(part for part in bench.sent[1:-1]), bench.sent[0][2])
        return
    assert [status for status, _ in bench.answers] == [413]
    assert "end" not in bench.sent
    assert all(upstream.abandoned for upstream in bench.connections)
    assert len(bench.connections) == (1 if stream == "always" else 0)
    if stream == "always":
        assert bench.sent == [(FORWARD, None, None), b"x" * 60, b"x" * 40]


@pytest.mark.parametrize(
    ("length", "stream", "room", "passes"),
    [
        (50, "never", 50, True),
        (50, "never", 49, False),
        (50, "always", QUEUE, True),
        (50, "always", QUEUE - 1, False),
        (None, "never", QUEUE, True),
        (None, "never", QUEUE - 1, False),
        (None, "always", QUEUE - 1, False),
        (0, "never", 0, True),
    ],
)
def test_a_body_for_which_there_is_no_room_is_not_read(
    bench: Bench, length: int | None, stream: str, room: int, passes: bool
) -> None:
    bench.room = room
    change(bench, stream=stream)
    bench.begin(length)
    if passes:
        bench.turn()
        assert bench.answers == []
    else:
        bench.assert_refused(Reason.MEMORY_EXHAUSTED)


def test_an_addon_may_have_a_body_streamed(bench: Bench) -> None:
    def stream(flow: HTTPFlow) -> None:
        flow.request.stream = True

    bench.acts["requestheaders"] = stream
    bench.begin(5)
    bench.turn()
    bench.transaction.body(b"12345")
    bench.transaction.body_end()
    assert bench.sent == [(FORWARD, 5, None), b"12345", "end"]


@pytest.mark.parametrize(("expects", "more", "asked"), [(True, False, 1), (True, True, 0), (False, False, 0)])
@pytest.mark.parametrize("stream", ["never", "always"])
def test_a_client_that_waits_is_asked_for_its_body_once_it_is_admitted(
    bench: Bench, expects: bool, more: bool, asked: int, stream: str
) -> None:
    change(bench, stream=stream)
    bench.begin(5, expects=expects, more=more)
    bench.turn()
    assert bench.asked == asked
    exchange_in(bench).admitted = False
    refused = Bench(bench.exchange).begin(5, expects=expects, more=more)
    assert refused.asked == 0
    refused.loop.close()


class Waits:
    """A hook that waits until it is let go on."""

    def __init__(self, then: Act | None = None) -> None:
        self.event = asyncio.Event()
        self.then = then

    def __call__(self, flow: HTTPFlow) -> Coroutine[Any, Any, None]:
        async def wait() -> None:
            await self.event.wait()
            if self.then is not None:
                self.then(flow)

        return wait()


def test_what_comes_while_it_is_decided_on_waits_in_order(bench: Bench) -> None:
    waits = bench.acts["requestheaders"] = Waits()
    bench.begin(5, expects=True)
    bench.transaction.body(b"12")
    bench.transaction.body(b"345")
    bench.transaction.body_end()
    bench.turn()
    assert (bench.dialled, bench.hooks) == ([], ["requestheaders"])
    waits.event.set()
    bench.turn()
    assert bench.sent == [(FORWARD, 5, b"12345")]
    assert bench.asked == 0, "it did not wait"


@pytest.mark.parametrize("admitted", [False, True])
def test_what_waits_for_a_decision_is_bounded_and_goes_with_it(bench: Bench, admitted: bool) -> None:
    exchange_in(bench).admitted, exchange_in(bench).max_body = admitted, 1 << 20
    waits = bench.acts["requestheaders"] = Waits()
    bench.begin(QUEUE + 1)
    bench.transaction.body(b"x" * QUEUE)
    assert bench.held == []
    bench.transaction.body(b"y")
    assert bench.held == [True]
    assert bench.transaction.held >= QUEUE + 1
    bench.transaction.body_end()
    waits.event.set()
    bench.turn()
    assert bench.held == [True, False]
    assert bench.sent == ([(FORWARD, QUEUE + 1, b"x" * QUEUE + b"y")] if admitted else [])
    assert [status for status, _ in bench.answers] == ([] if admitted else [503])


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
def test_a_client_that_leaves_while_it_is_decided_on_is_forwarded_nowhere(bench: Bench, hook: str) -> None:
    waits = bench.acts[hook] = Waits()
    bench.begin().transaction.body_end()
    bench.transaction.client_gone()
    waits.event.set()
    bench.turn()
    assert (bench.sent, bench.dialled, bench.answers) == ([], [], [])
    assert exchange_in(bench).failure is Reason.CLIENT_CLOSED
    assert bench.ends == ["break off"]


def test_a_body_that_turns_out_malformed_while_it_is_decided_on_is_refused(bench: Bench) -> None:
    waits = bench.acts["requestheaders"] = Waits()
    change(bench, stream="never")
    bench.begin(None)
    bench.transaction.body_refused(Refusal(Reason.BODY_MALFORMED, "No."))
    waits.event.set()
    bench.assert_refused(Reason.BODY_MALFORMED)


def test_a_deadline_that_passes_while_it_is_decided_on_holds(bench: Bench) -> None:
    waits = bench.acts["requestheaders"] = Waits()
    bench.begin(5)
    bench.transaction.expired()
    waits.event.set()
    bench.assert_refused(Reason.BODY_TIMEOUT)


def test_a_decision_that_is_cut_off_admits_nothing(bench: Bench) -> None:
    def cut(flow: HTTPFlow) -> Coroutine[Any, Any, None]:
        async def cancelled() -> None:
            raise asyncio.CancelledError

        return cancelled()

    bench.acts["requestheaders"] = cut
    bench.begin().transaction.body_end()
    bench.turn()
    assert (bench.sent, bench.dialled, bench.answers) == ([], [], [])
    assert bench.ends == ["break off"]


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
def test_a_defect_while_it_is_decided_on_forwards_nothing(bench: Bench, hook: str) -> None:
    def fails(flow: HTTPFlow) -> Coroutine[Any, Any, None]:
        async def failing() -> None:
            raise RuntimeError("broken")

        return failing()

    bench.acts[hook] = fails
    bench.begin().transaction.body_end()
    bench.turn()
    assert (bench.sent, bench.dialled, bench.answers) == ([], [], [])
    assert bench.ends == ["break off"]
    assert bench.transaction.exchange is None or exchange_in(bench).failure is Reason.STAGE_ERROR


@pytest.mark.parametrize("how", ["gone", "over"])
@pytest.mark.parametrize("reached", [False, True])
def test_a_connection_that_comes_too_late_is_given_up(bench: Bench, how: str, reached: bool) -> None:
    change(bench, stream="always", upstream_retries=1)
    if not reached:
        bench.unreachable = [Reason.UPSTREAM_UNREACHABLE]
        bench.next = [OTHER]
    bench.begin(5)
    if how == "gone":
        bench.transaction.client_gone()
    else:
        bench.transaction.crashed()
    bench.turn()
    assert bench.sent == []
    assert bench.moved == [], "it is no use to try another endpoint"
    assert all(upstream.abandoned for upstream in bench.connections)
    assert len(bench.dialled) <= 1


@pytest.mark.parametrize(
    ("reasons", "following", "retries", "status", "moved"),
    [
        ([Reason.UPSTREAM_UNREACHABLE], [OTHER], 1, None, 1),
        ([Reason.UPSTREAM_UNREACHABLE], [OTHER], 0, 502, 0),
        ([Reason.UPSTREAM_UNREACHABLE], [None], 1, 502, 1),
        ([Reason.UPSTREAM_TIMEOUT] * 2, [OTHER, OTHER], 1, 504, 1),
        ([Reason.UPSTREAM_TIMEOUT] * 2, [THIRD, OTHER], 2, None, 2),
        ([Reason.DESCRIPTORS_EXHAUSTED], [OTHER], 1, 503, 0),
    ],
)
def test_another_endpoint_is_tried_where_the_policy_has_one(
    bench: Bench,
    reasons: list[Reason],
    following: list[Endpoint | None],
    retries: int,
    status: int | None,
    moved: int,
) -> None:
    bench.unreachable, bench.next = [*reasons], [*following]
    change(bench, upstream_retries=retries, upstream_host="upstream")
    bench.begin().transaction.body_end()
    bench.turn()
    assert len(bench.moved) == moved
    if status is not None:
        assert bench.sent == []
        assert [answered for answered, _ in bench.answers] == [status]
        return
    ((forward, length, content),) = bench.sent
    assert (length, content) == (0, b"")
    assert forward == FORWARD.to_host("127.0.0.1:9009"), "the host is that of the endpoint it goes to"
    assert bench.dialled[-1] == OTHER
    assert (bench.flow.request.host, bench.flow.request.port) == ("127.0.0.1", 9009)
    assert bench.flow.request.headers["host"] == "127.0.0.1:9009"


def test_another_endpoint_gets_the_clients_host_where_that_is_kept(bench: Bench) -> None:
    bench.unreachable, bench.next = [Reason.UPSTREAM_UNREACHABLE], [OTHER]
    change(bench, upstream_retries=1, upstream_host="preserve")
    bench.begin().transaction.body_end()
    bench.turn()
    assert bench.sent == [(FORWARD, 0, b"")]


def test_what_can_not_be_written_safely_is_refused(bench: Bench) -> None:
    bench.takes = False
    bench.begin().transaction.body_end()
    bench.turn()
    assert bench.sent == []
    assert [status for status, _ in bench.answers] == [Reason.REWRITE_REFUSED.status]
    assert [upstream.abandoned for upstream in bench.connections] == [True]


def test_an_upstream_that_fails_is_none_of_a_requests_that_is_over(bench: Bench) -> None:
    exchange_in(bench).admitted = False
    bench.begin()
    before = list(bench.answers), list(bench.hooks)
    failure = Failure(Reason.UPSTREAM_CLOSED, None)
    bench.transaction.upstream_failed(failure, untouched=True, stale=True, undelivered=True)
    bench.assert_refused(Reason.STAGE_ERROR)
    assert (bench.answers, bench.hooks) == before


def test_nothing_is_cut_that_does_not_last(bench: Bench) -> None:
    bench.begin(5)
    bench.transaction.cut(Reason.TOKEN_EXPIRED)
    assert (bench.ends, bench.answers) == ([], [])
    assert not bench.transaction.lasts


def test_a_defect_is_recorded_once(bench: Bench) -> None:
    bench.begin(5)
    for _ in range(2):
        bench.transaction.crashed()
    assert bench.hooks == ["requestheaders", "error"]
    assert exchange_in(bench).failure is Reason.STAGE_ERROR
    assert not bench.flow.live
    bench.late()


@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@pytest.mark.parametrize("length", [0, 5])
def test_a_defect_while_it_is_decided_on_forwards_nothing_when_that_ends(bench: Bench, hook: str, length: int) -> None:
    waits = bench.acts[hook] = Waits()
    bench.begin(length)
    if length:
        bench.transaction.body(b"12345")
    bench.transaction.body_end()
    bench.transaction.crashed()
    waits.event.set()
    bench.turn()
    assert (bench.sent, bench.answers) == ([], [])
    assert all(upstream.abandoned for upstream in bench.connections)
    assert bench.hooks.count("error") == 1, "on record, once"
    assert exchange_in(bench).failure is Reason.STAGE_ERROR


@pytest.mark.parametrize("admitted", [False, True])
def test_a_defect_while_it_is_decided_on_is_no_way_past_a_denial(bench: Bench, admitted: bool) -> None:
    def deny(flow: HTTPFlow) -> None:
        flow.response = Response.make(403)

    waits = bench.acts["requestheaders"] = Waits(deny)
    exchange_in(bench).admitted = admitted
    bench.begin(5)
    bench.transaction.crashed()
    waits.event.set()
    bench.turn()
    assert (bench.sent, bench.dialled) == ([], [])
    assert bench.hooks.count("response") + bench.hooks.count("error") == 1


def test_a_defect_in_the_middle_of_deciding_is_on_record(bench: Bench) -> None:
    bench.room = cast(int, None)  # what is compared with it raises
    with pytest.raises(TypeError):
        bench.begin(5)
    bench.transaction.crashed()
    assert bench.hooks == ["requestheaders", "error"]
    assert exchange_in(bench).failure is Reason.STAGE_ERROR
    assert (bench.sent, bench.dialled) == ([], [])
