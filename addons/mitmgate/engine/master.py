"""The host of `serve`: mitmproxy's Master with the few addons that a gateway needs, and our listener."""

import asyncio
import logging
from typing import ClassVar

from mitmproxy import ctx
from mitmproxy.addons.core import Core
from mitmproxy.addons.errorcheck import ErrorCheck
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.update_alt_svc import UpdateAltSvc
from mitmproxy.connection import Address
from mitmproxy.http import HTTPFlow
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.proxy.layers.modes import ReverseProxy
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from mitmproxy.utils.human import format_address

from mitmgate.engine.connection import ClientConnection, LeanContext
from mitmgate.engine.hooks import HookTable

logger = logging.getLogger(__name__)


class NoGuess:
    """Stand in for mitmproxy's NextLayer, which would guess protocols; the gateway's own layers take every place.

    mitmproxy's proxyserver warns where no addon has this name.
    """

    name: ClassVar[str] = "nextlayer"


class Listener(Proxyserver):
    """mitmproxy's proxyserver, listening for one reverse proxy mode itself, so that it makes our ClientConnections."""

    name: ClassVar[str] = "proxyserver"

    def __init__(self) -> None:
        """Listen nowhere yet."""
        super().__init__()  # type: ignore[no-untyped-call]  # mitmproxy's own
        self._mode: ReverseMode | None = None
        self._server: asyncio.Server | None = None

    async def setup_servers(self) -> bool:
        """Listen. An error is logged, and ErrorCheck ends the process."""
        mode = ProxyMode.parse(ctx.options.mode[0])
        if not isinstance(mode, ReverseMode):
            raise TypeError("serve is a reverse proxy")
        self._mode = mode
        host, port = mode.listen_host(ctx.options.listen_host), mode.listen_port(ctx.options.listen_port)
        try:
            self._server = await asyncio.start_server(self._accept, host, port)
        except OSError as error:
            logger.error("can't listen on %s:%s: %s", host, port, error)
            return False
        return True

    def listen_addrs(self) -> list[Address]:
        """Return the addresses that connections are accepted on."""
        return [] if self._server is None else [socket.getsockname() for socket in self._server.sockets]

    def done(self) -> None:
        """Accept no more connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = ClientConnection(ctx.master, reader, writer, ctx.options, self._mode)
        handler.layer = ReverseProxy(LeanContext(handler.layer.context))
        with self.register_connection(handler.client.id, handler):
            await handler.handle_client()

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Refuse to connect to ourselves."""
        if data.server.sockname is None:
            data.server.sockname = self._connect_addr
        if data.server.address is None:
            return
        host, port = data.server.address[:2]
        for address in self.listen_addrs():
            if port == address[1] and host in ("localhost", "127.0.0.1", "::1", address[0]):
                data.server.error = f"{format_address(address)} is the gateway itself"


class AltSvc(UpdateAltSvc):
    """mitmproxy's rewriting of Alt-Svc, without its look-up of an option at every response."""

    name: ClassVar[str] = "updatealtsvc"

    def responseheaders(self, flow: HTTPFlow) -> None:
        """Let mitmproxy rewrite the header where there is one."""
        if flow.response is None:
            return
        for name, _ in flow.response.data.headers.fields:
            if len(name) == len(b"alt-svc") and name.lower() == b"alt-svc":
                super().responseheaders(flow)
                return


class LeanMaster(Master):
    """mitmproxy's Master with a compiled hook table. The caller adds the gateway.

    Of mitmproxy's default addons only those are here that have a part in proxying: the others serve people, change
    traffic, or record it. DisableH2C is not needed: Hygiene refuses every upgrade but to websocket. Nothing is sent to
    the deprecated `add_log` hook.
    """

    def __init__(self, options: Options) -> None:
        """options: mitmproxy's options. Must be made in a running event loop."""
        super().__init__(options)
        self._legacy_log_events.uninstall()
        self.addons = HookTable(self)
        self.addons.add(Core(), Listener(), NoGuess(), AltSvc(), ErrorCheck())  # type: ignore[no-untyped-call]  # mitmproxy's own
