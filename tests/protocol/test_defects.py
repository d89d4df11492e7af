"""A defect of our own ends one connection, visibly and on record, and no other."""

import pytest

from mitmgate.core.reason import Reason
from mitmgate.engine.lane.client import LaneClient
from mitmgate.engine.lane.upstream import LaneUpstream
from mitmgate.engine.layer_http1_client import Http1Client
from mitmgate.engine.layer_http1_server import Http1Server
from tests.live.harness_http import request
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.harness import Gate, connect, receive


def test_exception_in_a_layer_closes_its_connection(
    gate: Gate, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, *arguments: object) -> None:
        raise RuntimeError("a defect")

    lean = gate.host == "lean"
    of_upstream: tuple[type, str] = (LaneUpstream, "_finish") if lean else (Http1Client, "_receive")
    of_client: tuple[type, str] = (LaneClient, "_begin") if lean else (Http1Server, "_receive")
    with monkeypatch.context() as patch, connect(gate.port) as link:
        patch.setattr(of_upstream[0], of_upstream[1], fail)
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(link) == b""
        assert gate.hooks.wait_ends(1) == [("error", Reason.STAGE_ERROR)]
    assert request(gate.port, "GET", "/p").status == 200
    with monkeypatch.context() as patch, connect(gate.port) as link:
        patch.setattr(of_client[0], of_client[1], fail)
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(link) == b""
    assert request(gate.port, "GET", "/p").status == 200
