"""How many clients may be connected, in all and from one address, and the bounds that the policy in force sets."""

import logging
from ipaddress import IPv6Address
from typing import Final

from mitmgate.core.address import parse_address
from mitmgate.core.http1 import Bounds
from mitmgate.descriptors import Descriptors
from mitmgate.policy.model import Limits
from mitmgate.policy.snapshot import Snapshot, SnapshotSource
from mitmgate.proxy.memory import SHARE, available

logger = logging.getLogger(__name__)

ADDRESS_SHARE: Final = 4
"""One client address may hold a quarter of `limits.connections`; a trusted proxy may hold all."""
TURNED_AWAY: Final = 64
"""So many connections beyond the limit are still told so by a 503; those beyond these are closed at once."""


class PolicyBounds:
    """The bounds of the policy in force, made once a policy; Bounds' own defaults where there is none."""

    __slots__ = ("_bounds", "_descriptors", "_snapshot", "_source", "_workers")

    def __init__(self, source: SnapshotSource, descriptors: Descriptors | None = None, workers: int = 1) -> None:
        """source: the policy in force. descriptors: what the process has, and so how many clients; None: enough.

        workers: processes that share the machine's memory.
        """
        self._source = source
        self._workers = workers
        self._descriptors = descriptors
        self._snapshot: Snapshot | None = None
        self._bounds = Bounds()

    def __call__(self) -> Bounds:
        """Return the bounds in force."""
        try:
            snapshot = self._source.snapshot
        except LookupError:
            return self._bounds
        if snapshot is not self._snapshot:
            self._snapshot, self._bounds = snapshot, self._made(snapshot.policy.limits)
        return self._bounds

    def _made(self, limits: Limits) -> Bounds:
        connections, turned_away = limits.connections, TURNED_AWAY
        if self._descriptors is not None:
            room = self._descriptors.clients
            turned_away = min(turned_away, room // 4)
            connections = min(connections, room - turned_away)
            if connections < limits.connections:
                logger.warning(
                    "limits.connections is %d, but %d file descriptors (ulimit -n) are enough for %d clients",
                    limits.connections,
                    self._descriptors.limit,
                    connections,
                )
        return Bounds(
            head=limits.head,
            fields=limits.fields,
            target=limits.target,
            response_head=limits.head if limits.response_head is None else limits.response_head,
            response_fields=limits.response_fields,
            head_timeout=limits.head_timeout,
            idle_timeout=limits.idle_timeout,
            body_timeout=limits.body_timeout,
            body_rate=limits.body_rate,
            memory=available() // SHARE // self._workers if limits.memory is None else limits.memory,
            connections=connections,
            per_address=max(1, connections // ADDRESS_SHARE),
            turned_away=turned_away,
        )

    @property
    def memory(self) -> int:
        """Bytes that may be held for all clients."""
        return self().memory

    def trusts(self, peer: str) -> bool:
        """Tell whether an address is a trusted proxy's, which stands for many clients."""
        address = parse_address(peer)
        try:
            snapshot = self._source.snapshot
            return address is not None and (address in snapshot.trusted_proxies or address in snapshot.checks)
        except LookupError:
            return False


class Connections:
    """The clients that are connected now. IPv6 addresses are counted by /64: a host has all of one."""

    __slots__ = ("_by_address", "total")

    total: int

    def __init__(self) -> None:
        """Start with none."""
        self.total = 0
        self._by_address: dict[str, int] = {}

    def enter(self, peer: str) -> tuple[int, int]:
        """Count a connection; returns how many there are, in all and from this address."""
        key = address_key(peer)
        self.total += 1
        count = self._by_address.get(key, 0) + 1
        self._by_address[key] = count
        return self.total, count

    def leave(self, peer: str) -> None:
        """Take a connection off the count."""
        key = address_key(peer)
        self.total -= 1
        count = self._by_address.get(key, 0) - 1
        if count > 0:
            self._by_address[key] = count
        else:
            self._by_address.pop(key, None)


def address_key(peer: str) -> str:
    """Name what a client is counted by: its address, or its network where it has all of one."""
    address = parse_address(peer)
    if isinstance(address, IPv6Address):
        return str(int(address) >> 64)
    return str(address)
