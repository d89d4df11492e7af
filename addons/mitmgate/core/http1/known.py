"""Header fields that come again: most requests of a client have, octet for octet, those of an earlier one.

Theory of operation. What a field section was parsed to is kept by its octets, for all connections of a process: behind
a load balancer a client's next request comes on another one. The next request with the same octets gets the same
`Headers`, and with them what was derived of the fields alone (`Headers.derive`). What is kept includes credentials, so
it is forgotten soon: entries live in two generations, one that is not asked for while both pass is gone.
"""

from typing import Final

from mitmgate.core.http1.head import RequestHead

LONGEST: Final = 4096
"""Octets of a field section that is kept."""
MOST: Final = 256
"""Field sections of a generation."""
ROOM: Final = 256 * 1024
"""Octets of the field sections of a generation; what is made of one takes some ten times as much."""


class KnownFields:
    """Request heads by the octets of their fields. Only the fields, and what follows from them, are to be read."""

    __slots__ = ("_former", "_octets", "_present")

    def __init__(self) -> None:
        """Know nothing."""
        self._present: dict[bytes, RequestHead] = {}
        self._former: dict[bytes, RequestHead] = {}
        self._octets = 0

    def __len__(self) -> int:
        return len(self._present) + len(self._former)

    def find(self, fields: bytes) -> RequestHead | None:
        """Return the head of an earlier request with these fields."""
        found = self._present.get(fields)
        if found is None:
            found = self._former.pop(fields, None)
            if found is not None:
                self._keep(fields, found)
        return found

    def keep(self, fields: bytes, head: RequestHead) -> None:
        """Keep the head of a request that was parsed."""
        if len(fields) <= LONGEST:
            self._keep(fields, head)

    def _keep(self, fields: bytes, head: RequestHead) -> None:
        if len(self._present) >= MOST or self._octets + len(fields) > ROOM:
            self.age()
        self._octets += len(fields)
        self._present[fields] = head

    def age(self) -> None:
        """Begin a generation, and forget the one before the last; called every few seconds, and when one is full."""
        self._former, self._present = self._present, {}
        self._octets = 0
