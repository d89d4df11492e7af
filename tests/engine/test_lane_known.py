"""The lane forgets header fields, credentials among them, that did not come again for some seconds."""

import asyncio
from typing import Any, cast

from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode

from mitmgate.core.http1 import Bounds, RequestHead
from mitmgate.descriptors import Descriptors
from mitmgate.engine.lane.front import GENERATION, Lane


class Layers:
    """What a lane asks of the protocol layer."""

    fail_over = None
    descriptors = Descriptors(1000)

    def bounds(self) -> Bounds:
        return Bounds()

    def enter(self, peer: str) -> int:
        return 0

    def leave(self, peer: str) -> None:
        pass


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\n\r\n"


def passes(lane: Lane) -> None:
    """Let the lane's timer expire; it must be due within a generation."""
    timer = lane._ageing
    assert timer is not None
    assert 0 < timer.when() - asyncio.get_running_loop().time() <= GENERATION
    timer.cancel()
    lane._age()


def test_fields_are_forgotten_after_two_generations_and_the_clock_stops_when_all_are_gone() -> None:
    async def run() -> None:
        mode = ProxyMode.parse("reverse:http://upstream.invalid@127.0.0.1:0")
        assert isinstance(mode, ReverseMode)
        lane = Lane(cast(Any, None), cast(Any, Layers()), mode, lambda transport, received: None)
        client = lane.protocol()
        lane.enter(client, "192.0.2.1")
        head, _ = client._reader.feed(REQUEST)
        again, _ = lane.protocol()._reader.feed(REQUEST)  # of another connection
        assert isinstance(head, RequestHead)
        assert isinstance(again, RequestHead)
        assert again.headers is head.headers
        passes(lane)
        assert len(lane.known) == 1
        passes(lane)
        assert len(lane.known) == 0
        lane.leave(client, "192.0.2.1")
        passes(lane)
        assert lane._ageing is None

    asyncio.run(run())
