"""Hostile bytes against a running gateway: never a crash, never more requests upstream than were admitted."""

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mitmgate.pipeline.exchange import exchange_of
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.harness import Gate, connect, receive, route

pieces = st.lists(
    st.one_of(
        st.binary(max_size=5),
        st.sampled_from(
            [
                b"GET /a HTTP/1.1\r\nHost: x\r\n",
                b"POST /b HTTP/1.1\r\nHost: x\r\n",
                b"POST /deny HTTP/1.1\r\nHost: x\r\n",
                b"GET http://x/c HTTP/1.1\r\nHost: x\r\n",
                b"Content-Length: 3\r\n",
                b"Content-Length: 0\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Transfer-Encoding: x\r\n",
                b"Expect: 100-continue\r\n",
                b"Connection: close\r\n",
                b"X: y\r\n",
                b" folded\r\n",
                b"\r\n",
                b"\r\n\r\n",
                b"\n",
                b"abc",
                b"3\r\nabc\r\n",
                b"0\r\n\r\n",
                b"3;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
                b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
            ]
        ),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(parts=pieces, cut=st.integers(0, 200))
def _hostile(gate: Gate, upstream: RecordingUpstream, parts: list[bytes], cut: int) -> None:
    data = b"".join(parts)
    gate.hooks.seen.clear()
    before = len(upstream.requests)
    with connect(gate.port, patience=10) as link:
        try:
            link.sendall(data[:cut])
            link.sendall(data[cut:])
            link.shutdown(1)
            answered = receive(link)
        except ConnectionError:
            answered = b""
    wait_for(lambda: not gate.layer.connected, "the connection to end", 5)
    flows = {id(flow): flow for name, flow in gate.hooks.seen if name == "requestheaders"}
    exchanges = [exchange_of(flow) for flow in flows.values()]
    ends = [flow for name, flow in gate.hooks.seen if name in {"response", "error"}]
    assert len(ends) == len(flows), gate.hooks.seen  # each exactly one
    upstream.settle()
    admitted = sum(exchange is not None and exchange.admitted for exchange in exchanges)
    assert len(upstream.requests) - before <= admitted
    for request in upstream.requests[before:]:
        assert request.target in {"/a", "/b", "/c", "/smuggled"}
        assert request.version == "HTTP/1.1"
    assert not answered or answered.startswith(b"HTTP/1.1 ")


def test_hostile_bytes(upstream: RecordingUpstream, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), Gate(route(upstream.url)) as gate:
        _hostile(gate, upstream)
    assert [record.getMessage() for record in caplog.records] == []
