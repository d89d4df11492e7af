"""What `--coverage` counts: the rules that stages go by, and what a request has exercised of them."""

from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from mitmgate.core.address import CidrSet
from mitmgate.policy.model_shared import Networks
from mitmgate.policy.problem import Location

REACHED: Final = "reached"
MATCHED: Final = "matched"
HELD: Final = "held"
FAILED: Final = "failed"
GRANTED: Final = "granted"
LIMITED: Final = "limited"
ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
WENT_ON: Final = "went-on"


class Rule(NamedTuple):
    """One rule of a policy. branches: what can come of it; each is exercised, or never was.

    location: an item of a list has its number, also where the file has the item alone in the list's place.
    """

    location: Location
    what: str
    branches: tuple[str, ...]


class Outside(NamedTuple):
    """What a request was that a route's document does not describe. operation: method and path; "": of all the others.

    detail: what was wrong.
    """

    route: str
    reason: str
    operation: str
    detail: str


type Branch = tuple[Location, str]
"""The place of a rule, and what has come of it."""


@cache
def _alone(network: str) -> CidrSet:
    """Return a network of the policy as a set of its own."""
    return CidrSet([network])


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
