"""The mitmweb side: what a person sees of the decisions, and what mitmweb must not do to them."""

# mitmproxy's options, addon manager and view are untyped.
# mypy: allow-untyped-calls

from collections.abc import Callable
from typing import ClassVar

from mitmproxy import ctx
from mitmproxy.addons.dumper import Dumper
from mitmproxy.addons.view import View
from mitmproxy.hooks import ConfigureHook

from mitmgate import chain
from mitmgate.admin.addon import Admin
from mitmgate.collector import settle
from mitmgate.host.gateway import gateway as proxying_gateway
from mitmgate.inspect.annotate import Annotate
from mitmgate.inspect.bounded import BoundedView
from mitmgate.inspect.commands import GatewayCommands
from mitmgate.inspect.guard import OptionGuard
from mitmgate.inspect.printed import Printed
from mitmgate.inspect.shown import Shown
from mitmgate.inspect.view import GatewayView
from mitmgate.inspect.why import Why
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.snapshot import Snapshot


def addons(view: View, policy: Callable[[], Snapshot], gateway: chain.Gateway | None = None) -> list[object]:
    """Make the addons that show decisions in a host that has a view of flows, in the order they are added.

    view: the host's. policy: returns the policy in force, or raises LookupError. gateway: what decides.
    """
    return [
        Annotate(Why(gateway)),
        GatewayView(),
        GatewayCommands(view, policy, gateway),
        BoundedView(view),
        Shown(policy),
        OptionGuard(),
    ]


class Inspection:
    """An observer of the gateway that brings `addons` into a host with a view, behind Enforcer.

    In mitmdump it sees to what is printed; in a host with neither a view nor a dumper it does nothing.
    """

    name: ClassVar[str] = "mitmgate-inspection"

    def __init__(self) -> None:
        """Wait for the host to be configured."""
        self.policy: Callable[[], Snapshot] = _no_policy
        self.gateway: chain.Gateway | None = None
        self._added: list[object] = []

    def configure(self, updated: set[str]) -> None:
        """Add the addons once: only now is Enforcer in the host's chain."""
        view, dumper = ctx.master.addons.get("view"), ctx.master.addons.get("dumper")
        if not self._added and isinstance(dumper, Dumper):
            self._added = [Printed(dumper, self.policy)]
            ctx.master.addons.add(*self._added)
        if not self._added and isinstance(view, View):
            self._added = addons(view, self.policy, self.gateway)
            for addon in self._added:
                ctx.master.addons.add(addon)
                # The host is past the hook that would have told a new addon of the options it was started with.
                ctx.master.addons.invoke_addon_sync(addon, ConfigureHook(ctx.options.keys()))
            if "web_columns" in ctx.options and "comment" not in ctx.options.web_columns:
                ctx.options.web_columns = [*ctx.options.web_columns, "comment"]

    def running(self) -> None:
        """Set aside what the start has made: a full collection through all of mitmweb takes 70 ms of a request."""
        settle()

    def done(self) -> None:
        """Take them out again."""
        added, self._added = self._added, []
        for addon in added:
            ctx.master.addons.remove(addon)


def gateway(policy: Loaded | str | None = None, *, decides: bool = False) -> chain.Gateway:
    """Make the gateway addon with its inspection and its admin listener.

    policy: loaded, or its file; None: the option `mitmgate_policy` names it. decides: only answer the checks of
    proxies.
    """
    inspection = Inspection()
    made = proxying_gateway(policy, (inspection,), Admin(), decides=decides)
    inspection.policy = lambda: made.policy.snapshot
    inspection.gateway = made
    return made


def _no_policy() -> Snapshot:
    raise LookupError("no policy is in force")
