"""The hook table: which callables each mitmproxy hook runs, found once instead of at every event.

mitmproxy's `AddonManager` walks the addons, their sub-addons and `getattr` at every event, and an exception skips the
sub-addons behind it. Here the walk is done when the chain has changed, and each callable is guarded on its own, so
that whatever fails before Enforcer can't keep it from running. No addon can end an event early (`AddonHalt`).
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import fields
from inspect import isawaitable
from operator import is_not
from typing import Any, NamedTuple

from mitmproxy import hooks
from mitmproxy.addonmanager import AddonManager, traverse
from mitmproxy.flow import Flow

from mitmgate.pipeline.stage import fused

logger = logging.getLogger(__name__)

type Callback = Callable[[Any], object]


class Entry(NamedTuple):
    """What one kind of hook runs. argument: the name of the hook's single field; of_flow: which holds a flow."""

    name: str
    argument: str
    of_flow: bool
    callbacks: tuple[Callback, ...]


class HookTable(AddonManager):
    """mitmproxy's addon manager, with the hooks of connections and flows compiled.

    Lifecycle events (load, configure, running, done) go mitmproxy's way. The table is made anew on the first hook
    after the chain has changed; an addon changes its sub-addons in `configure` or `running` alone.
    """

    def __init__(self, master: Any) -> None:
        """master: mitmproxy's Master."""
        super().__init__(master)  # type: ignore[no-untyped-call]  # mitmproxy's own
        self._entries: dict[type[hooks.Hook], Entry] | None = None
        self._updates: tuple[Callback, ...] = ()

    def register(self, addon: Any) -> Any:
        """Add an addon's names, options and commands."""
        self._entries = None
        return super().register(addon)  # type: ignore[no-untyped-call]  # mitmproxy's own

    def remove(self, addon: Any) -> None:
        """Take an addon out."""
        super().remove(addon)  # type: ignore[no-untyped-call]  # mitmproxy's own
        self._entries = None

    def clear(self) -> None:
        """Take every addon out."""
        super().clear()  # type: ignore[no-untyped-call]  # mitmproxy's own
        self._entries = None

    def _configure_all(self, updated: set[str]) -> None:
        super()._configure_all(updated)  # type: ignore[no-untyped-call]  # mitmproxy's own
        self._entries = None

    async def trigger_event(self, event: hooks.Hook) -> None:
        """Run a lifecycle event."""
        await super().trigger_event(event)
        self._entries = None

    def compile(self) -> dict[type[hooks.Hook], Entry]:
        """Find every hook's callables, in the order of the chain."""
        addons = list(traverse(self.chain))
        entries: dict[type[hooks.Hook], Entry] = {}
        for kind in hooks.all_hooks.values():
            names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # Hook.__new__: always a dataclass
            found = (getattr(addon, kind.name, None) for addon in addons)
            callbacks = fused([callback for callback in found if callable(callback)])
            argument = names[0] if len(names) == 1 else ""
            entries[kind] = Entry(kind.name, argument, argument == "flow", callbacks)
        self._updates = entries[hooks.UpdateHook].callbacks
        self._entries = entries
        return entries

    def start(self, hook: hooks.Hook) -> Coroutine[Any, Any, None] | None:
        """Run a hook of a connection or a flow. Returns what is left to await, None where nothing had to wait."""
        kind = type(hook)
        entry = (self._entries or self.compile())[kind]
        return self.run(kind, getattr(hook, entry.argument))

    def run(self, kind: type[hooks.Hook], data: Any) -> Coroutine[Any, Any, None] | None:
        """Run a hook whose single field is `data`, without making the hook. Returns what `start` returns."""
        entry = (self._entries or self.compile())[kind]
        callbacks = entry.callbacks
        position = 0
        for callback in callbacks:
            position += 1
            try:
                pending = callback(data)
            except Exception as error:
                _failed(entry.name, callback, error)
                continue
            if pending is not None and isawaitable(pending):
                return self._finish(entry, position, pending, data)
        if entry.of_flow:
            if data.intercepted:
                return self._finish(entry, position, data.wait_for_resume(), data)
            if self._updates:
                self._update(data)
        return None

    async def handle_lifecycle(self, event: hooks.Hook) -> None:
        """Run a hook of a connection or a flow to its end."""
        pending = self.start(event)
        if pending is not None:
            await pending

    async def _finish(self, entry: Entry, position: int, pending: Awaitable[object], data: Any) -> None:
        """Await what callback `position - 1` has begun, then run the others."""
        callbacks = entry.callbacks
        while True:
            try:
                await pending
            except Exception as error:
                _failed(entry.name, callbacks[position - 1], error)
            for callback in callbacks[position:]:
                position += 1
                try:
                    result = callback(data)
                except Exception as error:
                    _failed(entry.name, callback, error)
                    continue
                if result is not None and isawaitable(result):
                    pending = result
                    break
            else:
                break
        if isinstance(data, Flow):
            self._update(data)
            await data.wait_for_resume()

    def _update(self, flow: Flow) -> None:
        for callback in self._updates:
            try:
                callback([flow])
            except Exception as error:
                _failed("update", callback, error)


class StockHooks(HookTable):
    """The hooks of a host with mitmproxy's own addon manager, which is asked anew whenever its addons have changed."""

    def __init__(self, manager: AddonManager) -> None:
        """manager: the host's; it stays what it is, and runs the lifecycle events."""
        self.chain, self.lookup = manager.chain, manager.lookup
        self._entries = None
        self._updates = ()
        self._compiled: list[Any] = []

    def run(self, kind: type[hooks.Hook], data: Any) -> Coroutine[Any, Any, None] | None:
        """Run a hook with the addons that are there now."""
        addons = list(traverse(self.chain))
        if len(addons) != len(self._compiled) or any(map(is_not, addons, self._compiled)):
            self._compiled, self._entries = addons, None
        return super().run(kind, data)


def _failed(name: str, callback: Callback, error: Exception) -> None:
    logger.error("hook %s failed in %r: %s", name, callback, error, exc_info=error)
