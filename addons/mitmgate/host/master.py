"""The host of `serve`: mitmproxy's Master with the few addons that a gateway needs. The gateway brings its listener."""

import asyncio
from typing import ClassVar

from mitmproxy.addons.core import Core
from mitmproxy.addons.errorcheck import ErrorCheck
from mitmproxy.addons.update_alt_svc import UpdateAltSvc
from mitmproxy.http import HTTPFlow
from mitmproxy.master import Master
from mitmproxy.options import Options

from mitmgate.proxy.hooks import HookTable
from mitmgate.usage import UserError


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


class StartupCheck(ErrorCheck):
    """mitmproxy's check for errors at start, with a user's mistake in place of `sys.exit`."""

    name = "errorcheck"  # by this name Master asks for it

    async def shutdown_if_errored(self) -> None:
        """Raise UserError with the first error that was logged, but for those that end no start (hostoptions)."""
        await asyncio.sleep(0)  # as in mitmproxy: logging tasks first
        if self.logger.has_errored:
            self.finish()  # type: ignore[no-untyped-call]  # mitmproxy's own
            raise UserError(self.logger.has_errored[0].getMessage())


class LeanMaster(Master):
    """mitmproxy's Master with a compiled hook table. The caller adds the gateway.

    Of mitmproxy's default addons only those are here that have a part in proxying: the others serve people, change
    traffic, or record it. DisableH2C is not needed: no upgrade but to WebSocket is forwarded. Nothing is sent to
    the deprecated `add_log` hook.
    """

    def __init__(self, options: Options) -> None:
        """options: mitmproxy's. Wants a running loop."""
        super().__init__(options)
        self._legacy_log_events.uninstall()
        self.addons = HookTable(self)
        self.addons.add(Core(), AltSvc(), StartupCheck())  # type: ignore[no-untyped-call]  # mitmproxy's own
