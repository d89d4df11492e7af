"""A defect of our own ends one connection, visibly and on record, and no other."""

import pytest

from mitmgate.core.reason import Reason
from mitmgate.proxy.http1 import Http1Connection
from mitmgate.proxy.upstream import UpstreamConnection
from tests.live.harness_http import request
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.harness import Gate, connect, receive


def test_exception_in_the_engine_closes_its_connection(
    gate: Gate, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *arguments: object) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch, connect(gate.port) as link:
        patch.setattr(UpstreamConnection, "_finish", fail)
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(link) == b""
        assert gate.hooks.wait_ends(1) == [("error", Reason.STAGE_ERROR)]
    assert request(gate.port, "GET", "/p").status == 200
    with monkeypatch.context() as patch, connect(gate.port) as link:
        patch.setattr(Http1Connection, "_begin", fail)
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(link) == b""
    assert request(gate.port, "GET", "/p").status == 200
