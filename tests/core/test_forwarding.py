"""What trusted proxies say: the walk from the right, and what stands beside it."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.address import CidrSet
from mitmgate.core.forwarding import Told, parse_hop, told_by
from mitmgate.core.headers import Headers

PEER = ip_address("10.0.0.1")
TRUSTED = CidrSet(["10.0.0.0/8", "127.0.0.1", "2001:db8:1::/48"])
HOPS = {
    "203.0.113.5:50123": "203.0.113.5",
    "203.0.113.5:0": "203.0.113.5",
    "203.0.113.5:65535": "203.0.113.5",
    "[2001:db8::7]": "2001:db8::7",
    "[2001:db8::7]:50123": "2001:db8::7",
    "2001:db8::7": "2001:db8::7",
    "::ffff:203.0.113.5": "203.0.113.5",
    "[::ffff:203.0.113.5]:443": "203.0.113.5",
}
NO_HOPS = [
    *("", "unknown", "_hidden", "203.0.113.5:", "203.0.113.5:65536", "203.0.113.5:123456", "203.0.113.5:8a", "1.2.3"),
    *("[203.0.113.5]", "[203.0.113.5]:80", "[]", "[]:80", "[2001:db8::7", "2001:db8::7]", "[2001:db8::7]80"),
    *("[2001:db8::7]:", "[fe80::1%eth0]", "[fe80::1%25eth0]:80", "[::1]:-1", "01.2.3.4:80", "203.0.113.5:80:80"),
    *("\xa0203.0.113.5", "203.0.113.5 80", "for=203.0.113.5", '"203.0.113.5"'),
]


def told(*fields: tuple[str, str]) -> Told:
    return told_by(PEER, Headers([(n.lower().encode(), v.encode("latin-1")) for n, v in fields]), TRUSTED)


def client(*forwarded: str) -> str:
    return str(told(*(("x-forwarded-for", value) for value in forwarded)).client)


@pytest.mark.parametrize(("written", "address"), HOPS.items())
def test_an_entry_as_load_balancers_write_it(written: str, address: str) -> None:
    assert parse_hop(written) == ip_address(address)
    assert client(f"9.9.9.9, {written}") == address
    assert client(f"9.9.9.9,\t{written} , 10.0.0.7:80, [2001:db8:1::1]:443") == address


@pytest.mark.parametrize("written", NO_HOPS)
def test_an_entry_that_can_not_be_read_decides_nothing_in_its_favour(written: str) -> None:
    assert parse_hop(written) is None
    assert client(f"9.9.9.9, {written}") == "None"


@pytest.mark.parametrize(
    ("forwarded", "found"),
    [
        ([], "10.0.0.1"),
        (["203.0.113.5"], "203.0.113.5"),
        (["9.9.9.9, 203.0.113.5, 10.1.1.1"], "203.0.113.5"),  # from the right, not the leftmost
        (["9.9.9.9", "203.0.113.5"], "203.0.113.5"),
        (["10.2.0.1, 10.3.0.1:99"], "10.2.0.1"),
        (["9.9.9.9, junk"], "None"),
        (["203.0.113.5, "], "None"),  # what stands to the left of an empty entry may be the client's own claim
        ([""], "None"),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_not_trusted(forwarded: list[str], found: str) -> None:
    assert client(*forwarded) == found


TWO_HOPS = ("X-Forwarded-For", "203.0.113.5, 10.0.0.7")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("X-Forwarded-Proto", "HTTPS")], ("https", None, None)),
        ([("X-Forwarded-Proto", "wss")], ("https", None, None)),
        ([("X-Forwarded-Proto", "gopher")], (None, None, None)),
        ([("X-Forwarded-Proto", "")], (None, None, None)),
        ([("X-Forwarded-Proto", "https,http")], ("http", None, None)),  # no hop: the nearest proxy's own word
        ([("X-Forwarded-Proto", "https, http"), TWO_HOPS], ("https", None, None)),
        ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Proto", "http"), TWO_HOPS], ("https", None, None)),
        ([("X-Forwarded-Proto", "https"), TWO_HOPS], ("https", None, None)),
        # The client was connected in plain text, and claims otherwise to proxies that append.
        ([("X-Forwarded-Proto", "https,http"), ("X-Forwarded-For", "1.1.1.1, 203.0.113.5")], ("http", None, None)),
        ([("X-Forwarded-Host", "Shop.example:8443"), TWO_HOPS], (None, "Shop.example:8443", None)),
        ([("X-Forwarded-Host", "shop.example, inner.example"), TWO_HOPS], (None, "shop.example", None)),
        ([("X-Forwarded-Host", "evil.example, shop.example, inner.example"), TWO_HOPS], (None, "shop.example", None)),
        ([("X-Forwarded-Host", "evil.example/path")], (None, None, None)),
        ([("X-Forwarded-Host", "user@evil.example")], (None, None, None)),
        ([("X-Forwarded-Port", "8443")], (None, None, "8443")),
        ([("X-Forwarded-Port", "443, 80"), TWO_HOPS], (None, None, "443")),
        ([("X-Forwarded-Port", "0443")], (None, None, None)),
        ([("X-Forwarded-Port", "65536")], (None, None, None)),
        ([("X-Forwarded-Port", "-1")], (None, None, None)),
    ],
)
def test_what_stands_beside_the_address(
    fields: list[tuple[str, str]], expected: tuple[str | None, str | None, str | None]
) -> None:
    assert told(*fields)[1:] == expected


@given(st.lists(st.sampled_from(["9.9.9.9", "8.8.8.8", "10.0.0.9", "10.1.1.1:80", "junk", ""]), max_size=6))
def test_a_client_can_not_move_the_entry_that_decides(claimed: list[str]) -> None:
    """Whatever stands to the left of what the trusted proxies have appended changes nothing."""
    honest = [("X-Forwarded-For", "203.0.113.5, 10.0.0.7"), ("X-Forwarded-Proto", "http, https")]
    claim = ", ".join(claimed)
    spoofed = [(name, f"{claim}, {value}") for name, value in honest]
    assert told(*spoofed) == told(*honest)
