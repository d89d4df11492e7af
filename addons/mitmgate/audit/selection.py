"""Which events of an audit file are asked for."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from mitmgate.audit.event import rfc3339

_AGO: Final = re.compile(r"([0-9]{1,9})(s|m|h|d|w)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_CLASS: Final = re.compile(r"([1-5])xx")
_RANGE: Final = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")

Network = IPv4Network | IPv6Network


def moment(text: str, now: float) -> str:
    """Read a time as events have it: "15m" (ago; s, m, h, d, w), or RFC 3339, a date or a time without offset in UTC.

    Raises ValueError.
    """
    if ago := _AGO.fullmatch(text):
        return rfc3339(max(0.0, now - int(ago[1]) * _UNITS[ago[2]]))
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?", text):
        text = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}T{text:0>5}"
    read = datetime.fromisoformat(text)
    read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    return rfc3339((read - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1))


def statuses(text: str) -> range:
    """Read 401, 4xx or 400-418. Raises ValueError."""
    if found := _CLASS.fullmatch(text):
        return range(int(found[1]) * 100, int(found[1]) * 100 + 100)
    found = _RANGE.fullmatch(text)
    if found is None or int(found[1]) > int(found[2] or found[1]):
        raise ValueError
    return range(int(found[1]), int(found[2] or found[1]) + 1)


@dataclass(frozen=True, slots=True)
class Selection:
    """What an event has to be: each that is given, in any one of its values.

    since, until: as `moment` writes it; until is the first time that is too late. members: of an event, by their names.
    """

    since: str | None = None
    until: str | None = None
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    statuses: tuple[range, ...] = ()
    clients: tuple[Network, ...] = ()

    @property
    def asks(self) -> bool:
        """Tell whether anything is left out."""
        return bool(self.tests())

    def tests(self) -> list[Callable[[Mapping[str, object]], bool]]:
        """Return what an event has to pass."""
        tests: list[Callable[[Mapping[str, object]], bool]] = []
        for name, values in self.members.items():
            if values:
                tests.append(lambda event, name=name, values=values: str(event.get(name)) in values)  # type: ignore[misc]
        if self.since is not None or self.until is not None:
            since, until = self.since or "", self.until or "~"
            tests.append(lambda event: since <= str(event.get("time", "")) < until)
        if self.statuses:
            wanted = frozenset(status for each in self.statuses for status in each)
            tests.append(lambda event: isinstance(status := event.get("status"), int) and status in wanted)
        if self.clients:
            tests.append(lambda event: self._is_client(event.get("client_ip")))
        return tests

    def of[E: Mapping[str, object]](self, events: Iterable[E]) -> Iterator[E]:
        """Yield those that are asked for."""
        tests = self.tests()
        for event in events:
            if all(test(event) for test in tests):
                yield event

    def _is_client(self, text: object) -> bool:
        try:
            address = ip_address(text if isinstance(text, str) else "")
        except ValueError:
            return False
        return any(address in network for network in self.clients)


def network(text: str) -> Network:
    """Read an address, or a network in CIDR notation. Raises ValueError."""
    return ip_network(text, strict=False)
