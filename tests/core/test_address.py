"""Client addresses and CIDR sets."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.address import CidrSet, parse_address


def inside(text: str, networks: CidrSet) -> bool:
    """Tell whether an address, written as clients' are, is in a set."""
    address = parse_address(text)
    assert address is not None
    return address in networks


@pytest.mark.parametrize("text", ["", "1.2.3", "01.2.3.4", "1.2.3.4:80", "::1%eth0", "[::1]", " 1.2.3.4", "x"])
def test_what_is_no_address_is_none(text: str) -> None:
    assert parse_address(text) is None


def test_mapped_addresses_are_the_addresses_that_they_map() -> None:
    assert parse_address("::ffff:192.0.2.7") == ip_address("192.0.2.7")
    assert inside("::ffff:c000:207", CidrSet(["192.0.2.0/24"]))
    assert inside("192.0.2.7", CidrSet(["::ffff:192.0.2.0/120"]))


def test_a_set_matches_networks_not_texts() -> None:
    networks = CidrSet(["192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32", "203.0.113.9"])
    for address in ("192.0.2.1", "192.0.2.255", "10.200.1.1", "2001:db8::1", "203.0.113.9"):
        assert inside(address, networks)
    for address in ("192.0.3.0", "11.0.0.0", "2001:db9::1", "203.0.113.8", "::1"):
        assert not inside(address, networks)


def test_an_address_of_one_version_is_none_of_the_other() -> None:
    for network in ("2001:db8::7f00:1/128", "::7f00:1", "2001:db8::/96", "::fffe:0:0/96", "::fffe:0:0/95", "::/0"):
        networks = CidrSet([network])
        assert not inside("127.0.0.1", networks), network
        assert not inside("0.0.0.1", networks), network
        assert ip_network(network).network_address in networks, network
    assert not inside("::7f00:1", CidrSet(["127.0.0.0/8"]))
    assert not inside("::1", CidrSet(["0.0.0.0/0"]))


def test_all_mapped_addresses_are_all_of_ipv4() -> None:
    for address in ("0.0.0.0", "192.0.2.7", "255.255.255.255", "::ffff:192.0.2.7"):
        assert inside(address, CidrSet(["::ffff:0.0.0.0/96"]))
    assert not inside("::1", CidrSet(["::ffff:0.0.0.0/96"]))


def test_an_empty_set_is_none() -> None:
    assert not CidrSet()
    assert not inside("192.0.2.7", CidrSet())
    assert CidrSet(["192.0.2.0/24"])


@pytest.mark.parametrize("bad", ["192.0.2.1/24", "x", "", "10.0.0.0/33", "0.0.0.0/"])
def test_a_bad_rule_does_not_load(bad: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        CidrSet([bad])


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_bisection_agrees_with_a_list_of_networks(rules: list[tuple[int, int]], probe: int) -> None:
    networks = [ip_network((value >> (32 - bits) << (32 - bits) if bits else 0, bits)) for value, bits in rules]
    address = ip_address(probe)
    expected = any(address in network for network in networks)
    assert (address in CidrSet([str(network) for network in networks])) is expected
