"""NetworkAccess: which client addresses may come in at all."""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Final

from mitmgate.core.reason import Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.pipeline.coverage import Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.networks import by_networks, listed, networks_change, of_networks, to_warn_of
from mitmgate.pipeline.stage import Denial, Stage
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Location, Problem
from mitmgate.policy.snapshot import Snapshot


class NetworkAccess(Stage):
    """Check the client's address against the policy's networks. The route's are Authorization's.

    Reads: exchange.client as Arrival resolved it. Denies: 403 address-denied; 403 address-unknown where the address
    can't be parsed. On failure: stage-error.
    """

    name: ClassVar[str] = "network-access"
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.ADDRESS_DENIED, Reason.ADDRESS_UNKNOWN)
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.ADDRESS_UNKNOWN: "a client address: trusted_proxies and X-Forwarded-For do not give one",
    }

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return listed(exchange, exchange.snapshot.networks)

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        return [("networks", "deny"), ("networks", "allow")]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        made = _CHANGES.get(denial.step.reason)
        return super().change(denial) if made is None else made(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count networks."""
        yield from of_networks(loaded.policy.networks, ("networks",))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        if exchange.client is not None:
            yield from by_networks(exchange.client, exchange.snapshot.policy.networks, ("networks",))

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find lists that allow more, or fewer, than they seem to."""
        policy = loaded.policy
        yield from to_warn_of(policy, policy.networks, ("networks",), loaded.document)

    def decide(self, exchange: Exchange) -> Step:
        """Ask the deny list first, then the allow list."""
        client, networks = exchange.client, exchange.snapshot.networks
        if client is None:
            # Also without a rule: an address that nobody can name can't be limited or audited either.
            return self.deny(Reason.ADDRESS_UNKNOWN, "The client address could not be determined.")
        if not networks:
            return self.skipped
        if not networks.admit(client):
            return self.deny(Reason.ADDRESS_DENIED, "The client address is not allowed.")
        return self.admitted


def _network_change(denial: Denial) -> list[str]:
    return networks_change(denial, denial.exchange.snapshot.networks, denial.place("networks"))


_CHANGES: Final[Mapping[Reason, Callable[[Denial], list[str]]]] = {
    Reason.ADDRESS_DENIED: _network_change,
}
