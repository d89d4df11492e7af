"""`mitmgate web`: stock mitmweb with the gateway in it, for looking at decisions as they are made."""

# mitmproxy's options, addon manager and view are untyped.
# mypy: allow-untyped-calls

import asyncio
import os
import signal
from collections.abc import Callable

import argon2
import click
from mitmproxy import exceptions
from mitmproxy.flow import Flow
from mitmproxy.options import Options
from mitmproxy.tools.web.master import WebMaster

from mitmgate import process_log
from mitmgate.admin.addon import check_admin
from mitmgate.chain import Gateway
from mitmgate.descriptors import raise_limit
from mitmgate.host import signals
from mitmgate.host.gateway import listener_of
from mitmgate.host.master import StartupCheck
from mitmgate.host.serve import MODE, check_decides, check_free, listen_address, load_for_host, url_of, warn
from mitmgate.inspect import gateway
from mitmgate.inspect.bounded import KEEP_FLOWS
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model_audit import StdoutSink
from mitmgate.proxy.hooks import HookTable
from mitmgate.usage import UserError

WEB_HOST = "127.0.0.1"
COLUMNS = ["method", "path", "status", "comment"]


class InspectMaster(WebMaster):
    """Mitmweb with a compiled hook table; flows that are loaded from a file are shown, and not decided again.

    mitmproxy asks each of its hundred addons at every hook, which takes a millisecond: half a second, where a hundred
    clients are answered at once.
    """

    def __init__(self, options: Options, with_termlog: bool = True) -> None:
        """Take the addons that mitmweb has made over into the table."""
        super().__init__(options, with_termlog=with_termlog)
        made = self.addons
        options.changed.disconnect(made._configure_all)
        self.addons = HookTable(self)
        self.addons.chain, self.addons.lookup = made.chain, made.lookup

    async def load_flow(self, f: Flow) -> None:
        """Put a flow in the view. mitmproxy would run every hook on it, which writes a new response and a new event."""
        self.view.add([f])


class Announcement:
    """Say on stdout, in one line, that both listeners accept connections."""

    name = "mitmgate-announcement"

    def __init__(self, master: WebMaster, gateway: Gateway, loaded: Loaded) -> None:
        """Both know their addresses once they run."""
        self._master = master
        self._gateway = gateway
        self._loaded = loaded

    def running(self) -> None:
        """Print the line. The token stands in it once, as mitmweb does it, and in no log."""
        addresses = listener_of(self._gateway).listen_addrs()
        gateway = ", ".join(url_of(address, self._loaded) for address in addresses)
        taken = any(isinstance(sink, StdoutSink) for sink in self._loaded.policy.audit.sinks)  # by audit events alone
        click.echo(f"mitmgate web: gateway on {gateway}; its decisions on {self._master.web_url}", err=taken)


@click.command("web")
@click.option("--policy", required=True, metavar="FILE", help="The policy file.")
@click.option("--listen", metavar="HOST:PORT", help="Where the gateway listens; default: the policy's listen.")
@click.option("--decide", "decides", is_flag=True, help="Proxy nothing; decide for other proxies (forward-auth).")
@click.option(
    "--web-port", type=click.IntRange(1, 65535), default=8081, show_default=True, help="mitmweb's port on 127.0.0.1."
)
@click.option(
    "--web-password",
    envvar="MITMGATE_WEB_PASSWORD",
    metavar="PASSWORD",
    help="mitmweb's password, or its argon2 hash; default: a token made for this run and printed once.",
)
@click.option("--browser/--no-browser", default=False, help="Open a browser.")
@click.option(
    "--keep", type=click.IntRange(1), default=KEEP_FLOWS, show_default=True, help="Finished flows that are kept."
)
@process_log.log_level_option
def command(
    policy: str,
    listen: str | None,
    decides: bool,
    web_port: int,
    web_password: str | None,
    browser: bool,
    keep: int,
    log_level: str,
) -> None:
    """Run mitmweb with the gateway in it: every decision is a row, with its reason and each stage's word.

    For debugging: one process, flows are kept in memory, and mitmweb shows whole requests to whoever has the password.
    """
    signals.hold_back()
    process_log.configure(log_level)
    raise_limit()
    loaded = load_for_host(policy)
    if decides:
        check_decides(loaded)
    host, port = listen_address(loaded, listen)
    check_free(host, port)
    check_admin(loaded.policy)
    check_free(WEB_HOST, web_port)
    settings: dict[str, object] = {
        "web_columns": COLUMNS,
        "web_host": WEB_HOST,
        "web_open_browser": browser,
        "web_password": _hashed(web_password) if web_password else "",
        "web_port": web_port,
    }
    asyncio.run(_run(loaded, Options(mode=[MODE], listen_host=host, listen_port=port), settings, keep, decides))


async def _run(loaded: Loaded, options: Options, settings: dict[str, object], keep: int, decides: bool = False) -> None:
    master = InspectMaster(options, with_termlog=False)
    master.addons.remove(master.addons.get("errorcheck"))
    addon = gateway(loaded, decides=decides)
    master.addons.add(StartupCheck(), addon)
    try:
        options.update(**settings)
        options.update(mitmgate_keep_flows=keep)
    except exceptions.OptionsError as error:
        raise UserError(str(error)) from error
    if addon.policy.source is not None:
        warn(loaded, addon.policy.source.snapshot)
    master.addons.add(Announcement(master, addon, loaded))
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(addon.reload("a signal"), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    actions: dict[int, Callable[[], object]] = {
        **dict.fromkeys(map(int, (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)), master.shutdown),
        signal.SIGHUP: reload,
    }
    signals.obey(actions, {signal.SIGUSR2: "it replaces workers, and mitmweb has none (see serve --workers)"})
    try:
        await master.run()
    except OSError as error:
        if error.errno is None:
            raise
        problem = os.strerror(error.errno)
        raise UserError(f"mitmweb can't listen on {WEB_HOST}:{settings['web_port']}: {problem}") from error


def _hashed(password: str) -> str:
    """Hash a password, so that mitmweb's own option list does not show it; a hash stays what it is."""
    return password if password.startswith("$") else argon2.PasswordHasher().hash(password)
