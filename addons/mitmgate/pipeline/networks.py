"""Lists of networks, which several stages ask a client's address in: what `explain`, `--coverage` and `check` say."""

from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from mitmgate.core.address import CidrSet
from mitmgate.core.rules import Networks as Compiled
from mitmgate.pipeline.coverage import MATCHED, REFUSED, Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Denial
from mitmgate.policy.document import Document
from mitmgate.policy.model import Policy
from mitmgate.policy.model_shared import Networks
from mitmgate.policy.problem import Code, Location, Problem


def networks_change(denial: Denial, networks: Compiled, place: str) -> list[str]:
    """Say what would have to be otherwise where networks have refused a client. place: theirs, in the policy."""
    client = denial.exchange.client
    lines = []
    if client is not None and networks.deny and client in networks.deny:
        lines.append(f"{client} is in a network that is denied: {place}")
    if client is not None and networks.allow and client not in networks.allow:
        lines.append(f"{client} is in none of the networks {', '.join(networks.allow.networks)}: {place}")
    return lines


def listed(exchange: Exchange, networks: Compiled) -> dict[str, object]:
    """Return what is looked at where a client's address is asked for in networks."""
    return {
        "client": "unknown" if exchange.client is None else str(exchange.client),
        "deny": list(networks.deny.networks),
        "allow": list(networks.allow.networks),
    }


def of_networks(networks: Networks, location: Location) -> Iterator[Rule]:
    """Yield the rules of lists of networks. location: theirs."""
    for index, network in enumerate(networks.allow):
        yield Rule((*location, "allow", index), f"network {network}", (MATCHED,))
    if networks.allow:
        yield Rule((*location, "allow"), "an address outside of the allowed networks", (REFUSED,))
    for index, network in enumerate(networks.deny):
        yield Rule((*location, "deny", index), f"network {network}", (MATCHED,))


def by_networks(client: IPv4Address | IPv6Address, networks: Networks, location: Location) -> Iterator[Branch]:
    """Yield what an address exercises of lists of networks: a network that denies it ends it. location: theirs."""
    for index, network in enumerate(networks.deny):
        if client in _alone(network):
            yield (*location, "deny", index), MATCHED
            return
    allowed = [index for index, network in enumerate(networks.allow) if client in _alone(network)]
    for index in allowed:
        yield (*location, "allow", index), MATCHED
    if networks.allow and not allowed:
        yield (*location, "allow"), REFUSED


@cache
def _alone(network: str) -> CidrSet:
    """Return a network of the policy as a set of its own."""
    return CidrSet([network])


def to_warn_of(policy: Policy, networks: Networks, location: Location, document: Document) -> Iterator[Problem]:
    """Find lists that allow more, or fewer, than they seem to. networks: the policy's own, or a route's."""
    if networks.deny and not networks.allow:
        message = "an empty allow list allows all that deny does not name"
        yield document.warning(location, Code.DENY_ONLY, message, "add allow")
    everywhere = [] if networks is policy.networks else list(map(_network, policy.networks.allow))
    denied = [*map(_network, policy.networks.deny), *map(_network, networks.deny)]
    for index, text in enumerate(networks.allow):
        allowed, at = _network(text), (*location, "allow", index)
        if any(allowed.version == other.version and allowed.subnet_of(other) for other in denied):  # type: ignore[arg-type]  # of one version
            yield document.warning(at, Code.NEVER_MATCHES, f"all of {text} is denied, and deny wins")
        elif everywhere and not any(allowed.overlaps(other) for other in everywhere):
            message = f"nobody of {text} passes the policy's own networks.allow"
            yield document.warning(at, Code.NEVER_MATCHES, message)


def _network(text: str) -> IPv4Network | IPv6Network:
    network = ip_network(text, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None else ip_network(f"{mapped}/{network.prefixlen - 96}")
