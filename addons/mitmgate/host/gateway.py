"""The gateway with its listener and its admin listener: the one addon that every proxying host loads."""

import socket
from collections.abc import Sequence
from functools import partial

from mitmgate.admin.addon import Admin, sources_of
from mitmgate.admin.readings import Held
from mitmgate.chain import Gateway
from mitmgate.policy.loaded import Loaded
from mitmgate.proxy.listener import Listener
from mitmgate.replay.observing import shadow_counts


def gateway(
    policy: Loaded | str | None = None,
    observers: Sequence[object] = (),
    admin: Admin | None = None,
    bound: socket.socket | None = None,
    workers: int = 1,
    decides: bool = False,
) -> Gateway:
    """Make the addon. policy: the policy, loaded, or its file; None: mitmproxy's option `mitmgate_policy` names it.

    admin: serves the policy's admin listener, or reports to the process that does; None: the host has none. bound: the
    socket to accept on; None: as the host's options say. workers: processes that serve the same clients.
    decides: only answer the checks of proxies.
    """
    listener = partial(Listener, bound=bound, workers=workers)
    made = Gateway(listener, policy, observers if admin is None else (*observers, admin), decides=decides)
    if admin is not None:
        admin.attach(
            sources_of(
                made,
                connected=lambda: 0 if made.protocol is None else listener_of(made).connected,
                accepting=lambda: made.protocol is not None and bool(listener_of(made).listen_addrs()),
                memory=lambda: memory(made),
                shadow=lambda: shadow_counts(made),
                draining=lambda: admin.draining(),  # noqa: PLW0108 - the host sets it later
            )
        )
    return made


def listener_of(gateway: Gateway) -> Listener:
    """Return the listener of a gateway that has a policy. Raises LookupError where it has none."""
    listener = gateway.protocol
    if isinstance(listener, Listener):
        return listener
    raise LookupError("no policy is in force")


def memory(gateway: Gateway) -> Held:
    """Return what is held for clients."""
    if gateway.protocol is None:
        return Held(0, 0, 0)
    memory = listener_of(gateway).memory
    return Held(memory.held, memory.limit, memory.ended)
