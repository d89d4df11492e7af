"""A defect of our own ends one connection, visibly and on record, and no other."""

from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook, HttpResponseHook

from mitmgate.core.reason import Reason
from mitmgate.proxy.hooks import HookTable
from tests.live.harness_http import request
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.harness import Gate, connect, receive


def failing(at: type[Any]) -> Callable[..., object]:
    """Make what the engine asks to run hooks fail at one: a method of its own could not be replaced when compiled."""
    run = HookTable.run

    def fail(self: HookTable, kind: type[Any], data: Any) -> object:
        if kind is at:
            raise RuntimeError("a defect")
        return run(self, kind, data)

    return fail


def test_exception_in_the_engine_closes_its_connection(
    gate: Gate, upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, connect(gate.port) as link:
        patch.setattr(HookTable, "run", failing(HttpResponseHook))
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(link) == b""
        assert gate.hooks.wait_ends(1) == [("error", Reason.STAGE_ERROR)]
    assert request(gate.port, "GET", "/p").status == 200
    with monkeypatch.context() as patch, connect(gate.port) as link:
        patch.setattr(HookTable, "run", failing(HttpRequestHeadersHook))
        link.sendall(b"GET /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert receive(link) == b""
    assert request(gate.port, "GET", "/p").status == 200
