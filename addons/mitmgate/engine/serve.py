"""serve: the production host."""

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

import click
from mitmproxy import options
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.exceptions import OptionsError

from mitmgate import process_log
from mitmgate.chain import Gateway
from mitmgate.engine import collector
from mitmgate.engine.gateway import gateway
from mitmgate.engine.master import LeanMaster
from mitmgate.hostoptions import TARGET
from mitmgate.policy.loader import Loaded, PolicyError, load
from mitmgate.policy.unsupported import unsupported
from mitmgate.replay.observing import Observing, observing_options
from mitmgate.usage import UserError

MODE = TARGET


def listen_address(loaded: Loaded, listen: str | None) -> tuple[str, int]:
    """Say where to listen: `HOST:PORT` of the command line, or what the policy says."""
    if listen is None:
        return loaded.policy.listen.host, loaded.policy.listen.port
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UserError(f"--listen {listen}: HOST:PORT is wanted, such as 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def check_free(host: str, port: int) -> None:
    """Raise UserError where the address can't be listened on; better now than as a traceback later."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(f"can't listen on {host}:{port}: {error.strerror or error}") from error


def load_for_host(path: str) -> Loaded:
    """Load the policy for a host: every error, and every member whose capability is not there, is a UserError."""
    try:
        loaded = load(Path(path), os.environ)
    except PolicyError as error:
        raise UserError(str(error)) from error
    missing = unsupported(loaded)
    if missing:
        raise UserError("\n".join(str(problem) for problem in missing))
    return loaded


async def run(loaded: Loaded, host: str, port: int, observing: Observing) -> int:
    """Proxy until SIGTERM or SIGINT. observing: what stands behind the chain. Returns the process's exit status."""
    opts = options.Options()
    master = LeanMaster(opts)
    addon = gateway(loaded.path)
    master.addons.add(addon)
    try:
        opts.update(mode=[f"{MODE}@{host}:{port}"], listen_host=host, listen_port=port)
    except OptionsError as error:
        raise UserError(str(error)) from error
    observing.attach(addon)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, master.shutdown)
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(addon.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    proxy = asyncio.create_task(master.run())
    announced = asyncio.create_task(_announce(master, addon))
    await asyncio.wait({proxy})
    announced.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await announced
    proxy.result()
    return 0


async def _announce(master: LeanMaster, addon: Gateway) -> None:
    """Print one line when connections are accepted."""
    proxyserver = master.addons.get("proxyserver")
    if not isinstance(proxyserver, Proxyserver):
        raise TypeError("this mitmproxy has no proxyserver")
    while not (addresses := proxyserver.listen_addrs()):  # noqa: ASYNC110 - mitmproxy has no event for it
        await asyncio.sleep(0.01)
    collector.settle()
    host, port = addresses[0][:2]
    click.echo(f"mitmgate is listening on http://{host}:{port} with policy {addon.policy.snapshot.path}")


@click.command("serve")
@click.option("--policy", "policy_path", required=True, help="The policy file.")
@click.option("--listen", metavar="HOST:PORT", help="Listen here instead of where the policy says.")
@click.option("--workers", type=click.IntRange(min=1), help="Worker processes; above 1 a redis store is required.")
@observing_options
def command(policy_path: str, listen: str | None, workers: int | None, observing: Observing) -> None:
    """Run the gateway."""
    process_log.configure()
    loaded = load_for_host(policy_path)
    if (workers or loaded.policy.listen.workers) > 1:
        raise UserError("--workers: more than one worker is not supported yet")
    observing.check()
    host, port = listen_address(loaded, listen)
    check_free(host, port)
    raise SystemExit(asyncio.run(run(loaded, host, port, observing)))
