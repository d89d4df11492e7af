"""BoundedView: the oldest finished flows leave, live ones never do."""

from collections.abc import Iterator

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.view import View
from mitmproxy.http import HTTPFlow
from mitmproxy.test import taddons, tflow

from mitmgate.inspect.bounded import KEEP_MESSAGES, BoundedView, body_bytes

Host = tuple[taddons.context, View, BoundedView]


@pytest.fixture
def host() -> Iterator[Host]:
    view = View()
    with taddons.context(view) as context:
        bounded = BoundedView(view)
        context.master.addons.add(bounded)
        context.configure(bounded, mitmgate_keep_flows=3)
        yield context, view, bounded


def begin(host: Host, created: int) -> HTTPFlow:
    """Let a new flow arrive, as mitmproxy's hooks would tell of it."""
    _, view, bounded = host
    flow = tflow.tflow(live=True)
    flow.timestamp_created = created
    view.requestheaders(flow)
    bounded.requestheaders(flow)
    return flow


def finish(host: Host, flow: HTTPFlow, body: bytes = b"") -> None:
    _, view, bounded = host
    flow.response = tflow.tflow(resp=True).response
    assert flow.response is not None
    flow.response.raw_content = body
    flow.request.raw_content = b""
    view.response(flow)
    bounded.response(flow)
    flow.live = False  # mitmproxy: after the hook


def test_the_oldest_finished_leave(host: Host) -> None:
    flows = []
    for created in range(10):
        flows.append(begin(host, created))
        finish(host, flows[-1])
    assert host[1].resolve("@all") == flows[-3:]
    assert list(host[1]) == flows[-3:]
    assert len(host[1].settings) == 3


def test_live_flows_stay_and_are_not_killed(host: Host) -> None:
    live = [begin(host, created) for created in range(5)]
    assert host[1].store_count() == 5
    for created in range(5, 8):
        finish(host, begin(host, created))
    assert all(flow.live and flow.error is None for flow in live)
    assert set(live) <= set(host[1].resolve("@all"))
    for flow in live:
        finish(host, flow)
    last = begin(host, 9)
    assert host[1].store_count() == 3
    assert last in host[1].resolve("@all")


def test_bytes_are_bounded_too(host: Host) -> None:
    context, view, bounded = host
    context.configure(bounded, mitmgate_keep_bytes=1000)
    for created in range(3):
        finish(host, begin(host, created), b"x" * 400)
    assert [flow.timestamp_created for flow in view.resolve("@all")] == [1, 2]
    assert bounded.held == 800


def test_strays_without_hooks_are_found(host: Host) -> None:
    view = host[1]
    view.add([tflow.tflow(live=False) for _ in range(20)])
    begin(host, 1)
    assert view.store_count() == 3


def test_the_count_follows_removals_by_others(host: Host) -> None:
    _, view, bounded = host
    flows = [begin(host, created) for created in range(3)]
    for flow in flows:
        finish(host, flow, b"x" * 100)
    view.remove([flows[0]])
    assert bounded.held == 200
    view.clear()
    assert bounded.held == 0


def test_a_hidden_flow_leaves_too(host: Host) -> None:
    view = host[1]
    view.set_filter_cmd("~comment nothing")
    for created in range(6):
        finish(host, begin(host, created))
    assert view.store_count() == 3


def test_websocket_messages_are_trimmed(host: Host) -> None:
    flow = tflow.twebsocketflow()
    assert flow.websocket is not None
    flow.websocket.messages = list(flow.websocket.messages) * KEEP_MESSAGES
    newest = flow.websocket.messages[-1]
    host[2].websocket_message(flow)
    assert len(flow.websocket.messages) == KEEP_MESSAGES
    assert flow.websocket.messages[-1] is newest


def test_sizes() -> None:
    assert body_bytes(tflow.tflow(resp=True)) == len(b"content") + len(b"message")
    assert body_bytes(tflow.ttcpflow()) == 0


@pytest.mark.parametrize("name", ["mitmgate_keep_flows", "mitmgate_keep_bytes"])
def test_a_bound_below_one_is_refused(host: Host, name: str) -> None:
    context, _, bounded = host
    with pytest.raises(exceptions.OptionsError, match="at least 1"):
        context.configure(bounded, **{name: 0})
