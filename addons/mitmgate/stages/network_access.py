"""NetworkAccess: which client addresses may come in at all, and on this route."""

from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Step
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.stage import Stage


class NetworkAccess(Stage):
    """Check the client's address against the policy's networks and the route's.

    Reads: exchange.client as Arrival resolved it. Denies: 403 address-denied; 403 address-unknown where the address
    can't be parsed and any rule asks for it. On failure: stage-error.
    """

    name: ClassVar[str] = "network-access"

    def decide(self, exchange: Exchange) -> Step:
        """Deny lists first, then allow lists; both of them for every rule that has any."""
        client, route, everywhere = exchange.client, exchange.route, exchange.snapshot.networks
        if client is None:
            # Also without a rule: an address that nobody can name can't be limited or audited either.
            return self.deny(Reason.ADDRESS_UNKNOWN, "The client address could not be determined.")
        decided = False
        for networks in (everywhere,) if route is None else (everywhere, route.networks):
            if networks.deny.networks and client in networks.deny:
                return self.deny(Reason.ADDRESS_DENIED, "The client address is not allowed.")
            if networks.allow.networks and client not in networks.allow:
                return self.deny(Reason.ADDRESS_DENIED, "The client address is not allowed.")
            decided = decided or bool(networks.allow.networks or networks.deny.networks)
        return self.admitted if decided else self.skipped
