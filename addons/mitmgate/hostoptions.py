"""What the chain asks of mitmproxy: options that it needs, none that open a way around it, a start that goes on."""

import logging
from pathlib import Path
from typing import Final

from mitmproxy.addons.errorcheck import ErrorCheck
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode

from mitmgate.pipeline.enforcer import BLACK_HOLE

TARGET: Final = f"reverse:http://{BLACK_HOLE}"
"""The only mode: a flow that nobody admitted points to a name that can't be resolved."""

OWN_SCRIPT: Final = Path(__file__).resolve().parents[1] / "gateway.py"

REQUIRED: Final = {
    "server": False,  # the gateway's own listener takes the addresses of the reverse mode
    "connection_strategy": "lazy",  # eager dials before there is a request to decide on
    "keep_host_header": True,  # otherwise Host is rewritten before `requestheaders`
    "onboarding": False,  # serves mitm.it
    "block_global": False,  # would close public clients before the policy's networks are asked
    "validate_inbound_headers": True,
    "rawtcp": False,  # a foreign 101 would become a tunnel
    "store_streamed_bodies": False,
    "http3": False,  # a protocol that is not tested is off
    "anticache": False,
    "anticomp": False,
}
"""Options that the gateway sets, in whatever host it runs."""

WEAKENING: Final = (
    "stream_large_bodies",
    "body_size_limit",
    "ignore_hosts",
    "allow_hosts",
    "tcp_hosts",
    "udp_hosts",
    "map_remote",
    "map_local",
    "modify_body",
    "modify_headers",
    "block_list",
    "stickycookie",
    "stickyauth",
    "upstream_auth",
    "server_replay",
    "client_replay",
    "proxyauth",
)
"""Options that change what is forwarded, or answer, behind the chain's back: with any of them it does not start."""


MISTAKE: Final = {"users_mistake": True}
"""`extra` of the log record of an error that the user has to put right before the gateway can start."""

_OURS: Final = frozenset({"mitmgate", "asyncio"})
_WHILE_RUNNING: Final = frozenset({"mitmproxy.master", "mitmproxy.proxy.server"})
"""Where mitmproxy logs what fails in a task, or on a client's connection."""


def ends_start(record: logging.LogRecord) -> bool:
    """Tell whether an error that is logged during the start may end the process.

    mitmproxy's ErrorCheck ends it for any. A store, a sink or an issuer that is away is no reason to: the policy says
    what holds then, and it is tried again. So of ours only a user's mistake is one.
    """
    if hasattr(record, "users_mistake"):
        return True
    return record.name.partition(".")[0] not in _OURS and record.name not in _WHILE_RUNNING


def spare_start(errorcheck: object) -> None:
    """Have mitmproxy's check of the start ignore what must not end it."""
    if isinstance(errorcheck, ErrorCheck) and ends_start not in errorcheck.logger.filters:
        errorcheck.logger.addFilter(ends_start)
        errorcheck.logger.has_errored[:] = filter(ends_start, errorcheck.logger.has_errored)


def required_options(options: Options) -> dict[str, object]:
    """Return the required options that this host knows and has set otherwise."""
    return {name: value for name, value in REQUIRED.items() if name in options and getattr(options, name) != value}


def listens_elsewhere(options: Options, host: str, port: int) -> str | None:
    """Say where mitmproxy listens, where that is not what the policy says. host, port: the policy's.

    In stock mitmproxy its own options decide, and by themselves they mean every address.
    """
    mode = ProxyMode.parse(options.mode[0])
    there, number = mode.listen_host(options.listen_host), mode.listen_port(options.listen_port)
    if (there, number) == (host, port):
        return None
    where = f"{there or 'every address'}, port {number}"
    return (
        f"mitmproxy listens on {where}, and not where the policy says: "
        f"give it --listen-host {host} --listen-port {port}"
    )


def refuse_weakening(options: Options, allow_scripts: bool) -> str | None:
    """Name the first option that would weaken the chain; None where there is none.

    allow_scripts: other `-s` scripts may run beside the gateway's own.
    """
    for name in WEAKENING:
        if name in options and getattr(options, name):
            return f"mitmproxy's option {name} works behind the policy's back and can't be used with mitmgate"
    scripts = list(options.scripts) if "scripts" in options else []
    foreign = [script for script in scripts if Path(script).expanduser().resolve() != OWN_SCRIPT]
    if foreign and not allow_scripts:
        return f"script {foreign[0]} would run beside the policy; set mitmgate_allow_scripts if you trust it"
    modes = list(options.mode) if "mode" in options else []
    for mode in modes:
        if mode.partition("@")[0].rstrip("/") != TARGET:
            return f"mode {mode}: mitmgate takes {TARGET} alone; where requests go is the policy's to say"
    return None
