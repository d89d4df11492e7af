"""serve: the production host."""

import asyncio
import logging
import os
import signal
from pathlib import Path

import click
from mitmproxy import options
from mitmproxy.connection import Address
from mitmproxy.exceptions import OptionsError

from mitmgate import process_log
from mitmgate.admin.addon import Admin, check_admin
from mitmgate.admin.workers import Workers
from mitmgate.descriptors import raise_limit
from mitmgate.host import signals
from mitmgate.host.child import command_line
from mitmgate.host.drain import PATIENCE
from mitmgate.host.gateway import gateway
from mitmgate.host.lifetime import Lifetime
from mitmgate.host.master import LeanMaster
from mitmgate.host.notify import service_manager
from mitmgate.host.slot import bind
from mitmgate.host.supervisor import Supervisor
from mitmgate.host.worker import Place, Supervised, inherited
from mitmgate.hostoptions import TARGET
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.loader import Loaded, PolicyError, load
from mitmgate.policy.model_audit import StdoutSink
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.units import UnitError, parse_duration
from mitmgate.replay.observing import Observing, observing_options
from mitmgate.review import review
from mitmgate.usage import UserError

logger = logging.getLogger(__name__)

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
    bind(host, port, shared=False).close()


def check_decides(loaded: Loaded) -> None:
    """Raise UserError where the policy lets nobody ask."""
    if "decide" not in loaded.policy.model_fields_set:
        raise UserError(
            f"--decide: {loaded.path} lets nobody ask for decisions; add the addresses of the proxies that do, as in "
            "decide: {trusted: [127.0.0.1/32]}"
        )


def load_for_host(path: str) -> Loaded:
    """Load the policy for a host: every error in it is a UserError."""
    try:
        return load(Path(path), os.environ)
    except PolicyError as error:
        raise UserError(str(error)) from error


def warn(loaded: Loaded, snapshot: Snapshot | None = None) -> None:
    """Log what `check` warns of. snapshot: what the policy was compiled to, where that was done already."""
    for problem in review(loaded, snapshot).warnings:
        logger.warning("%s", problem)


async def run(
    loaded: Loaded,
    host: str,
    port: int,
    observing: Observing,
    *,
    patience: float = PATIENCE,
    place: Place | None = None,
    workers: int = 1,
    decides: bool = False,
) -> int:
    """Proxy until a signal ends it. Returns the process's exit status: 1 where requests or records were lost.

    observing: what stands behind the chain. patience: seconds that running requests get in the end. place: a worker's.
    workers: processes that serve the same clients. decides: only answer the checks of proxies.
    """
    opts = options.Options()
    master = LeanMaster(opts)
    admin = Admin(None if place is None else inherited(place.figures))
    bound = None if place is None else place.take()
    addon = gateway(loaded, admin=admin, bound=bound, workers=workers, decides=decides)
    master.addons.add(addon)
    try:
        opts.update(mode=[f"{MODE}@{host}:{port}"], listen_host=host, listen_port=port)
    except OptionsError as error:
        raise UserError(str(error)) from error
    if place is None and addon.policy.source is not None:
        warn(loaded, addon.policy.source.snapshot)
    observing.attach(addon)
    supervised = None if place is None else Supervised(place)
    lifetime = Lifetime(master, addon, patience, supervised or service_manager())
    master.addons.add(lifetime)
    drain = lifetime.drain
    admin.draining = lambda: drain.begun
    # Whoever ends all processes of a service tells a worker too, beside its supervisor: that is no second signal.
    end = drain.signalled if supervised is None else drain.begin
    signals.obey(
        {
            signal.SIGTERM: end,
            signal.SIGINT: end,
            signal.SIGQUIT: drain.hurry,
            signal.SIGHUP: lifetime.reload,
        },
        {signal.SIGUSR2: "it is the supervisor's to replace workers, and this process has none (see serve --workers)"},
    )
    if supervised is None:
        lifetime.announce = lambda address, path: announce(address, loaded, path)
    else:
        await supervised.obey(lifetime.commands)
    return await lifetime.run()


async def supervise(loaded: Loaded, address: tuple[str, int], count: int, patience: float) -> int:
    """Run `count` workers with this command's own words, and the admin listener. Returns the exit status."""
    warn(loaded)
    figures, where, admin = Workers(), loaded.policy.admin, None
    if where is not None:
        from mitmgate.admin.listener import Listener, bind  # noqa: PLC0415 - tornado takes 80 ms to import

        bound = bind(where.host, where.port)
        admin = Listener(where.host, bound, figures.report, compile_policy(loaded), figures.inquire)
    supervisor = Supervisor(
        address,
        count,
        command_line(),
        patience,
        service_manager(),
        lambda bound: announce(bound, loaded, loaded.path, f", {count} worker{'s'[: count > 1]}"),
        figures,
    )
    if admin is not None:
        admin.start()
    try:
        return await supervisor.run()
    finally:
        if admin is not None:
            await admin.close()


def duration(_: click.Context, option: click.Parameter, text: str) -> float:
    """Read an option such as 30s."""
    try:
        return parse_duration(text)
    except UnitError as error:
        raise UserError(f"{option.opts[0]} {text}: {error}" + f"; {error.hint}" * bool(error.hint)) from error


def url_of(address: Address, loaded: Loaded) -> str:
    """Write where clients find the gateway (RFC 3986, section 3.2.2: an IPv6 address stands in brackets)."""
    scheme = "http" if loaded.policy.listen.tls is None else "https"
    host, port = address[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def announce(address: Address, loaded: Loaded, path: str, more: str = "") -> None:
    """Print one line when connections are accepted: on stderr, where stdout is the audit's."""
    taken = any(isinstance(sink, StdoutSink) for sink in loaded.policy.audit.sinks)  # by audit events alone
    click.echo(f"mitmgate is listening on {url_of(address, loaded)} with policy {path}{more}", err=taken)


@click.command("serve")
@click.option("--policy", "policy_path", required=True, help="The policy file.")
@click.option("--listen", metavar="HOST:PORT", help="Listen here instead of where the policy says.")
@click.option("--workers", type=click.IntRange(min=1), help="Run so many worker processes, supervised.")
@click.option(
    "--drain-timeout",
    "patience",
    default=f"{PATIENCE:g}s",
    show_default=True,
    metavar="DURATION",
    callback=duration,
    help="How long running requests may take after SIGTERM.",
)
@click.option("--decide", "decides", is_flag=True, help="Proxy nothing; decide for other proxies (forward-auth).")
@process_log.log_level_option
@click.option("--worker", hidden=True)
@observing_options
def command(
    policy_path: str,
    listen: str | None,
    workers: int | None,
    patience: float,
    decides: bool,
    log_level: str,
    worker: str | None,
    observing: Observing,
) -> None:
    """Run the gateway.

    SIGHUP loads the policy again. SIGTERM and Ctrl-C drain: the exit status is 0 where every request could end, 1 where
    some were cut or audit records were lost. A second signal, or SIGQUIT, cuts at once. With --workers, also with
    --workers 1, SIGUSR2 replaces one process after the other, and no request fails. Other signals are ignored.
    """
    signals.hold_back()
    process_log.configure(log_level)
    raise_limit()
    loaded = load_for_host(policy_path)
    if decides:
        check_decides(loaded)
    count = workers or loaded.policy.listen.workers
    if count > 1 and loaded.policy.store == "memory":
        raise UserError(
            f"--workers {count}: several workers can't share counters in memory, every limit would hold in each of them"
            "; add store: {url: redis://HOST:6379/0} to the policy"
        )
    if worker is not None:
        place = Place.parse(worker)
        mine = observing.for_worker(place.slot) if count > 1 else observing
        status = run(loaded, *place.address, mine, patience=patience, place=place, workers=count, decides=decides)
        raise SystemExit(asyncio.run(status))
    address = listen_address(loaded, listen)
    check_free(*address)
    check_admin(loaded.policy)
    if workers is None and count == 1:
        raise SystemExit(asyncio.run(run(loaded, *address, observing, patience=patience, decides=decides)))
    observing.check()
    raise SystemExit(asyncio.run(supervise(loaded, address, count, patience)))
