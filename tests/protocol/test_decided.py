"""What the upstream gets is what was decided, whatever becomes of the flow between the decision and the sending."""

from typing import Any

import pytest
from mitmproxy.http import HTTPFlow

from tests.live.harness_http import raw_request, status_of, wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.harness import Gate, connect, endpoint, route
from tests.protocol.test_streaming import Serving, read_head
from tests.protocol.test_upgrade import HANDSHAKE, SWITCHING, echo

HEAD = b"POST /p?q=1 HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n"


class Editor:
    """An addon behind Enforcer that changes all that a request has, at the hook that it is told."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.edit)

    def edit(self, flow: HTTPFlow) -> None:
        request = flow.request
        request.method = "DELETE"
        request.path = "/edited"
        request.host, request.port, request.scheme = "127.0.0.1", 9, "https"
        request.headers.clear()
        request.headers["Host"] = "edited"
        request.headers["X-Edited"] = "1"
        request.headers["Sec-WebSocket-Key"] = "edited"
        request.headers["Content-Length"] = "6"
        request.content = b"edited"
        request.trailers = request.headers
        flow.server_conn.address = ("127.0.0.1", 9)


class Replacer:
    """The same, by putting another request in place."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.edit)

    def edit(self, flow: HTTPFlow) -> None:
        other = flow.request.copy()
        flow.request = other
        Editor("request").edit(flow)


class Raiser:
    """An addon that changes the flow and then fails."""

    def __init__(self, hook: str) -> None:
        self._editor = Editor("request")
        setattr(self, hook, self.edit)

    def edit(self, flow: HTTPFlow) -> None:
        self._editor.edit(flow)
        raise RuntimeError("an addon that fails")


@pytest.mark.parametrize("kind", [Editor, Replacer, Raiser])
@pytest.mark.parametrize("hook", ["requestheaders", "request"])
@pytest.mark.parametrize(
    ("stream", "body"),
    [
        ("auto", b"Content-Length: 3\r\n\r\nabc"),
        ("always", b"Content-Length: 3\r\n\r\nabc"),
        ("always", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("auto", b"\r\n"),
    ],
)
def test_edits_after_the_decision_reach_nobody(
    upstream: RecordingUpstream, kind: Any, hook: str, stream: str, body: bytes
) -> None:
    with Gate(route(upstream.url, stream=stream)) as gate:
        gate.loop.call_soon_threadsafe(gate.master.addons.add, kind(hook))
        assert status_of(raw_request(gate.port, HEAD + body)) == 200
    (seen,) = upstream.requests
    assert (seen.method, seen.target) == ("POST", "/p?q=1")
    assert seen.one("host") == "x"
    assert seen.one("x-a") == "1"
    assert seen.body == (b"abc" if b"abc" in body else b"")
    assert b"edited" not in upstream.raw.lower()


def test_edits_do_not_reach_the_next_endpoint_either(upstream: RecordingUpstream) -> None:
    """A request that moves on after a refused connection takes the other endpoint's Host, and nothing of the flow."""
    other = endpoint(upstream.url)
    with Gate(route("http://127.0.0.1:9", host="upstream"), fail_over=lambda exchange, reason: other) as gate:
        gate.loop.call_soon_threadsafe(gate.master.addons.add, Editor("request"))
        assert status_of(raw_request(gate.port, HEAD + b"Content-Length: 3\r\n\r\nabc")) == 200
    (seen,) = upstream.requests
    assert (seen.method, seen.target, seen.one("host"), seen.body) == (
        "POST",
        "/p?q=1",
        upstream.url.partition("//")[2],
        b"abc",
    )
    assert b"edited" not in upstream.raw.lower()


def test_a_handshake_is_the_one_that_was_decided_on() -> None:
    with Serving(echo) as serving, Gate(route(serving.url, websocket=True)) as gate:
        gate.loop.call_soon_threadsafe(gate.master.addons.add, Editor("request"))
        with connect(gate.port) as link:
            link.sendall(HANDSHAKE)
            assert read_head(link) == SWITCHING


def test_the_flow_shows_what_was_decided(gate: Gate, upstream: RecordingUpstream) -> None:
    """Where nobody edits, the flow that mitmweb shows is the request that was sent."""
    assert status_of(raw_request(gate.port, HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc")) == 200
    wait_for(lambda: bool(upstream.requests), "the request")
    (seen,) = upstream.requests
    flow = gate.hooks.seen[-1][1]
    shown = {name.lower(): value for name, value in flow.request.headers.items()}
    assert {name.lower(): value for name, value in seen.headers} == shown
    assert (flow.request.method, flow.request.path, flow.request.content) == (seen.method, seen.target, seen.body)
