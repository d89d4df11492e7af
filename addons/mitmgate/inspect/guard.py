"""OptionGuard: what mitmweb's own API must not change while the gateway runs.

Whoever has mitmweb's password can `PUT /options` and `POST /commands/…`: load a script, change the mode, answer
from a recording, write a file. That would be a way around the policy, so here everything is frozen once the host
runs, but for what only changes how flows are shown.
"""

# mitmproxy's options, addon manager and view are untyped.
# mypy: allow-untyped-calls

import ipaddress
from typing import ClassVar

from mitmproxy import ctx, exceptions
from mitmproxy.command import Command
from mitmproxy.optmanager import OptManager
from mitmproxy.tools.web.master import WebMaster

from mitmgate.inspect.live import refuse_live_edits

VIEW_OPTIONS = frozenset(
    {
        "command_history",
        "console_focus_follow",
        "content_view_lines_cutoff",
        "export_preserve_original_ip",
        "mitmgate_keep_bytes",
        "mitmgate_keep_flows",
        "protobuf_definitions",
        "showhost",
        "termlog_verbosity",
        "view_filter",
        "view_order",
        "view_order_reversed",
        "web_columns",
        "web_theme",
    }
)
"""The options that may change at run time: none of them touches what is decided, forwarded or stored."""

REFUSED_COMMANDS = (
    # Run code, or a program.
    "browser.start",
    "script.run",
    # Change options without asking: `OptManager.reset` has no rollback.
    "options.reset",
    "options.reset.one",
    # Send or answer what no stage has decided on.
    "inject.tcp",
    "inject.udp",
    "inject.websocket",
    "replay.client",
    "replay.client.file",
    "replay.server",
    "replay.server.add",
    "replay.server.file",
    # Change flows without asking whether they are live; the browser's editor does ask (`live.py`).
    "flow.decode",
    "flow.encode",
    "flow.encode.toggle",
    "flow.revert",
    "flow.set",
    # Read or write files under the gateway's account.
    "cut.save",
    "export.file",
    "options.load",
    "options.save",
    "save.file",
    "save.har",
    "view.flows.load",
)
"""mitmproxy's commands that are withdrawn while the gateway runs."""


class OptionGuard:
    """Freeze every option outside VIEW_OPTIONS once mitmproxy runs, withdraw REFUSED_COMMANDS, refuse live edits.

    A change is refused with OptionsError, which mitmproxy rolls back and mitmweb answers with 400. `intercept` is
    frozen too: a held request could be edited after it was decided on.
    """

    name: ClassVar[str] = "mitmgate-guard"

    def __init__(self) -> None:
        """Start open: the host is still being configured."""
        self._frozen: dict[str, object] = {}
        self._commands: dict[str, Command] = {}

    def configure(self, updated: set[str]) -> None:
        """Refuse a web interface that other machines can reach. Raises OptionsError."""
        if "web_host" in updated and "web_host" in ctx.options and not is_loopback(ctx.options.web_host):
            raise exceptions.OptionsError(
                f"web_host {ctx.options.web_host or '*'} is not a loopback address: mitmweb shows whole requests, "
                "so it is reached from this machine alone (127.0.0.1), or through a tunnel"
            )

    def running(self) -> None:
        """Freeze the options as they are now.

        `OptManager.subscribe` is asked before any addon's `configure`, so that nothing acts on a refused value.
        """
        if self._frozen:
            return
        frozen = sorted(ctx.options.keys() - VIEW_OPTIONS)
        self._frozen = {name: getattr(ctx.options, name) for name in frozen}
        ctx.options.subscribe(self._refuse, frozen)
        commands = ctx.master.commands.commands
        self._commands = {name: commands.pop(name) for name in REFUSED_COMMANDS if name in commands}
        if isinstance(ctx.master, WebMaster):
            refuse_live_edits(ctx.master.app)

    def done(self) -> None:
        """Thaw: the gateway leaves."""
        self._frozen = {}
        ctx.master.commands.commands.update(self._commands)
        self._commands = {}

    def _refuse(self, options: OptManager, updated: set[str]) -> None:
        # The rollback notifies once more, with the old values: those must pass.
        changed = sorted(name for name in updated & self._frozen.keys() if getattr(options, name) != self._frozen[name])
        if changed:
            raise exceptions.OptionsError(
                f"{', '.join(changed)} can't be changed while mitmgate runs; start it again with another value"
            )


def is_loopback(host: str) -> bool:
    """Tell whether a listen address is reachable from this machine alone. An empty one means every address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
