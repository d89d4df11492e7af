"""ClientConnection on a real socket: hooks in place, hooks that wait, turns between connections, failing layers."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy.http import Headers
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import tflow

from mitmgate.engine.connection import AT_ONCE, LeanContext
from mitmgate.engine.master import AltSvc, LeanMaster


class Answering(Layer):
    """Run a number of hooks one after another for what arrives, then send it back."""

    hooks = 3 * AT_ONCE

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.DataReceived):
            if event.data == b"fail":
                raise ValueError("broken")
            for _ in range(self.hooks):
                yield HttpRequestHook(tflow.tflow())
            yield commands.SendData(event.connection, event.data)
        elif isinstance(event, events.ConnectionClosed):
            yield commands.CloseConnection(event.connection)


class Counting:
    """Put the layer in place, and count hooks."""

    def __init__(self, body: Callable[[], Any]) -> None:
        self.body, self.count, self.gone = body, 0, asyncio.Event()

    def client_connected(self, client: Any) -> None:
        from mitmproxy import ctx

        handler = ctx.master.addons.get("proxyserver").connections[client.id]
        handler.layer = Answering(handler.layer.context)

    def request(self, flow: Any) -> Any:
        self.count += 1
        return self.body()

    def client_disconnected(self, client: Any) -> None:
        self.gone.set()


async def talk(body: Callable[[], Any], *sent: bytes) -> tuple[bytes, int]:
    """Send to a host with such a hook; returns what came back, and how many hooks ran."""
    options = Options()
    master = LeanMaster(options)
    options.update(mode=["reverse:http://upstream.invalid@127.0.0.1:0"])
    counting = Counting(body)
    master.addons.add(counting)
    running = asyncio.create_task(master.run())
    listener = master.addons.get("proxyserver")
    async with asyncio.timeout(10):
        while not (found := listener.listen_addrs()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        reader, writer = await asyncio.open_connection(*found[0][:2])
        got = b""
        for data in sent:
            writer.write(data)
            if data != b"fail":
                got += await reader.readexactly(len(data))
            else:
                await asyncio.sleep(0.05)
        writer.close()
        await counting.gone.wait()
        master.should_exit.set()
        await running
    return got, counting.count


async def wait() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("body", [lambda: None, wait])
def test_every_hook_runs_before_the_answer(body: Callable[[], Any]) -> None:
    got, count = asyncio.run(talk(body, b"one", b"two"))
    assert (got, count) == (b"onetwo", 2 * Answering.hooks)


def test_a_layer_that_fails_is_logged_and_the_connection_ends_with_its_client(caplog: pytest.LogCaptureFixture) -> None:
    got, count = asyncio.run(talk(lambda: None, b"one", b"fail"))
    assert (got, count) == (b"one", Answering.hooks)
    assert "a connection's layers failed" in caplog.text


def test_forks_of_a_context_share_all_but_the_list_of_layers() -> None:
    origin = Context(tflow.tclient_conn(), Options())
    fork = LeanContext(origin).fork()
    assert (fork.client, fork.options, fork.server) == (origin.client, origin.options, origin.server)
    fork.layers.append(Answering(fork))
    assert origin.layers == []


def test_alt_svc_names_the_gateway() -> None:
    flow = tflow.tflow(resp=True)
    assert flow.response is not None
    flow.client_conn.proxy_mode = ProxyMode.parse("reverse:http://upstream.invalid")
    flow.client_conn.sockname = ("127.0.0.1", 8080)
    flow.response.headers = Headers([(b"Alt-Svc", b'h2="other.example:443"')])

    async def main() -> None:
        master = LeanMaster(Options())
        addon = master.addons.get("updatealtsvc")
        assert isinstance(addon, AltSvc)
        addon.responseheaders(flow)
        master.addons.get("errorcheck").finish()

    asyncio.run(main())
    assert flow.response.headers["alt-svc"] == 'h2=":8080"'
