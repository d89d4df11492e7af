"""The gateway with its protocol layer and its admin listener: the one addon that every proxying host loads."""

from collections.abc import Sequence

from mitmgate.admin.addon import Admin, sources_of
from mitmgate.chain import Gateway
from mitmgate.engine.layer import ProtocolLayer
from mitmgate.policy.loaded import Loaded
from mitmgate.replay.observing import shadow_counts


def gateway(
    policy: Loaded | str | None = None, observers: Sequence[object] = (), admin: Admin | None = None
) -> Gateway:
    """Make the addon. policy: the policy, loaded, or its file; None: mitmproxy's option `mitmgate_policy` names it.

    admin: serves the policy's admin listener, or reports to the process that does; None: the host has none.
    """
    made = Gateway(ProtocolLayer, policy, observers if admin is None else (*observers, admin))
    if admin is not None:
        admin.attach(
            sources_of(
                made,
                connected=lambda: connected(made),
                shadow=lambda: shadow_counts(made),
                draining=lambda: admin.draining(),  # noqa: PLW0108 - the host sets it later
            )
        )
    return made


def connected(gateway: Gateway) -> int:
    """Return how many clients are connected."""
    return sum(addon.connected for addon in gateway.addons if isinstance(addon, ProtocolLayer))
