"""A client connection of `serve`: mitmproxy's handler, with hooks that need not wait run in place.

mitmproxy makes a task of every hook, and takes a lock for the event that tells its end. A hook of ours mostly has
nothing to wait for: it runs where it is met, and its end is the next event in the connection's queue.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.utils import asyncio_utils

from mitmgate.engine.hooks import HookTable

AT_ONCE: Final = 32
"""Events that are worked off before the other connections get their turn."""


class LeanContext(Context):
    """A connection's context, whose forks do not make a server connection only to replace it."""

    def __init__(self, origin: Context) -> None:
        """Take over another context's parts; the list of layers is a copy."""
        self.client = origin.client
        self.options = origin.options
        self.server = origin.server
        self.layers = origin.layers.copy()

    def fork(self) -> Context:
        """Return a copy for a layer of its own."""
        return LeanContext(self)


class ClientConnection(ProxyConnectionHandler):
    """mitmproxy's connection handler with a queue of events in place of its lock.

    Nothing is awaited while an event is worked on, so events never overlap. One that comes from within (an eager task
    that fails at once) is queued behind the one under way, as mitmproxy's lock has it.
    """

    def __init__(self, *arguments: Any) -> None:
        """Take what mitmproxy's handler takes: master, reader, writer, options, mode."""
        super().__init__(*arguments)  # type: ignore[no-untyped-call]  # mitmproxy's own
        self._events: deque[events.Event] = deque()
        self._working = False
        table = self.master.addons
        if not isinstance(table, HookTable):
            raise TypeError("this host has no hook table")
        self._table = table

    async def server_event(self, event: events.Event) -> None:
        """Hand an event to the layers, and carry out what comes back."""
        self._events.append(event)
        if not self._working:
            self._work()

    def _work(self) -> None:
        queue = self._events
        self._working = True
        try:
            for _ in range(AT_ONCE):
                if not queue:
                    return
                self._handle(queue.popleft())
        finally:
            self._working = False
        if queue:
            asyncio.get_running_loop().call_soon(self._continue)

    def _continue(self) -> None:
        if self._events and not self._working:
            self._work()

    def _handle(self, event: events.Event) -> None:
        self.timeout_watchdog.register_activity()
        try:
            for command in self.layer.handle_event(event):
                if isinstance(command, commands.StartHook):
                    self._hook(command)
                elif isinstance(command, commands.SendData):
                    io = self.transports.get(command.connection)
                    if io is not None and io.writer is not None and not io.writer.is_closing():
                        io.writer.write(command.data)
                else:
                    self._carry_out(command)
        except Exception:
            self.log("a connection's layers failed", logging.ERROR, exc_info=True)

    def _hook(self, hook: commands.StartHook) -> None:
        pending = self._table.start(hook)
        if pending is not None:
            asyncio_utils.create_task(
                self._later(hook, pending),
                name=f"handle_hook({hook.name})",
                keep_ref=True,
                client=self.client.peername,
            )
        elif hook.blocking:
            self._events.append(events.HookCompleted(hook))

    async def _later(self, hook: commands.StartHook, pending: Coroutine[Any, Any, None]) -> None:
        with self.timeout_watchdog.disarm():
            await pending
        if hook.blocking:
            await self.server_event(events.HookCompleted(hook))

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """Run a hook of a connection to its end."""
        pending = self._table.start(hook)
        if pending is not None:
            with self.timeout_watchdog.disarm():
                await pending

    def _carry_out(self, command: commands.Command) -> None:
        if isinstance(command, commands.OpenConnection):
            self.transports[command.connection] = io = ConnectionIO()
            io.handler = asyncio_utils.create_task(
                self.open_connection(command),
                name="server connection handler",
                keep_ref=False,
                client=self.client.peername,
            )
        elif isinstance(command, commands.RequestWakeup):
            task = asyncio_utils.create_task(
                self.wakeup(command), name="wakeup timer", keep_ref=False, client=self.client.peername
            )
            self.wakeup_timer.add(task)
        elif isinstance(command, commands.Log):
            self.log(command.message, command.level)
        elif isinstance(command, commands.CloseConnection):
            if command.connection in self.transports:  # else: closed already
                self.close_connection(command.connection, getattr(command, "half_close", False))
        else:
            raise TypeError(f"unexpected command: {command}")
