"""Client addresses and CIDR sets: one strict parser, mapped IPv4 unmapped, bisection over sorted ranges."""

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address


def parse_address(text: str) -> Address | None:
    """Parse an address without port, zone or leading zeros; None where it is none.

    An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) becomes the IPv4 address that it stands for, so that
    a rule for the one can't be evaded by writing the other.
    """
    if "%" in text:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


peer_address = lru_cache(maxsize=4096)(parse_address)
"""Parse the address of a TCP peer: those come again, and are short; what a header says could be of any length."""


@lru_cache(maxsize=4096)
def address_text(address: Address) -> str:
    """Write an address; clients come again, and writing one takes longer than finding it."""
    return str(address)


class CidrSet:
    """A set of networks, asked in O(log n). An empty set contains nothing."""

    __slots__ = ("_ends4", "_ends6", "_starts4", "_starts6", "networks")

    networks: tuple[str, ...]

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Compile networks ("192.0.2.0/24", "2001:db8::/32", or one address).

        Raises ValueError for anything else, host bits set included: a rule that is not what it seems must not load.
        """
        self.networks = tuple(networks)
        ranges: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for text in self.networks:
            network = ip_network(text, strict=True)
            start, end = int(network.network_address), int(network.broadcast_address)
            version = network.version
            if version == 6 and start >> 32 == 0xFFFF and network.prefixlen >= 96:
                version, start, end = 4, start & 0xFFFFFFFF, end & 0xFFFFFFFF
            ranges[version].append((start, end))
        self._starts4, self._ends4 = _merged(ranges[4])
        self._starts6, self._ends6 = _merged(ranges[6])

    def __contains__(self, address: Address) -> bool:
        """Tell whether the address is in one of the networks."""
        if address.version == 4:
            starts, ends = self._starts4, self._ends4
        else:
            starts, ends = self._starts6, self._ends6
        value = int(address)
        at = bisect_right(starts, value) - 1
        return at >= 0 and value <= ends[at]

    def __bool__(self) -> bool:
        """Tell whether the set has any network."""
        return bool(self.networks)


def _merged(ranges: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Sort and join overlapping ranges, so that bisection finds the only candidate."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(ranges):
        if ends and start <= ends[-1] + 1:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends
