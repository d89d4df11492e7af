"""The gateway with its protocol layer: the one addon that every proxying host loads."""

from collections.abc import Sequence

from mitmgate.chain import Gateway
from mitmgate.engine.layer import ProtocolLayer


def gateway(policy: str | None = None, observers: Sequence[object] = ()) -> Gateway:
    """Make the addon. policy: the policy file; None: mitmproxy's option `mitmgate_policy` names it."""
    return Gateway(ProtocolLayer, policy, observers)
