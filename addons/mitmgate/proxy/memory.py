"""Memory that is held for clients, and the bound on all of it.

Bodies that are put together, bytes that wait for a hook or a service, answers that a client does not read: each has a
bound of its own, and a crowd of clients has the sum of them. So every client connection has an account of what is held
for it (what is less than a page is not counted), and the process and each client address a bound on the sum. A new
body that would pass it is refused; where bodies grow past it, the largest account ends first.
"""

import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Final, Protocol

PAGE: Final = 4096
"""Bytes of a connection that are not counted."""
SHARE: Final = 4
"""By default a quarter of what the machine or the cgroup has; one client address may hold a quarter of that."""


def available(listed: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that this process may have: the machine's memory, or less where its cgroup says so.

    listed: the cgroups that it is in. groups: where they are shown.
    """
    most = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # cgroup v2: what holds for a group holds for those in it
            group = groups / path.lstrip("/")
            files = [each / "memory.max" for each in (group, *group.parents) if each.is_relative_to(groups)]
        elif "memory" in controllers.split(","):
            group = groups / "memory"
            files = [group / path.lstrip("/") / "memory.limit_in_bytes", group / "memory.limit_in_bytes"]
        else:
            continue
        most = min(most, *map(_limit, files))
    return int(most)


def _limit(file: Path) -> float:
    """Read a limit; infinity where there is none."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return inf
    return int(text) if text.isdecimal() else inf


class Limits(Protocol):
    """The bounds in force: of the process, and of one address; and whether an address stands for many clients."""

    @property
    def memory(self) -> int:
        """Bytes that may be held for all clients."""
        ...

    def trusts(self, peer: str) -> bool:
        """Tell whether an address is a trusted proxy's."""
        ...


class Memory:
    """What is held in this process."""

    __slots__ = ("_addresses", "_holding", "_leaving", "_limits", "ended", "held")

    held: int
    """Bytes that are held now."""
    ended: int
    """How often the largest account had to end."""

    def __init__(self, limits: Limits) -> None:
        """limits: those in force, which a reload may change."""
        self.held = self.ended = 0
        self._leaving = 0  # what is held by accounts that were ended already
        self._limits = limits
        self._addresses: dict[str, _Address] = {}
        self._holding: set[Account] = set()

    @property
    def limit(self) -> int:
        """Bytes that may be held."""
        return self._limits.memory

    def account(self, peer: str, key: str, end: Callable[[], None]) -> "Account":
        """Open the account of a client connection.

        key: what the client's address counts as. end: end what holds the most for this connection, because memory is
        short; it may be called while that connection changes its account.
        """
        address = self._addresses.get(key)
        if address is None:
            address = self._addresses[key] = _Address(peer)
        address.accounts += 1
        return Account(self, key, address, end)

    def _change(self, account: "Account", more: int) -> None:
        address = account.address
        self.held += more
        address.held += more
        if account.ending:
            self._leaving += more
        if not account.held:
            self._holding.discard(account)
            account.ending = False
        elif more > 0:
            self._holding.add(account)
            limit = self._limits.memory
            if address.held > limit // SHARE and not self._limits.trusts(address.peer):
                self._relieve([one for one in self._holding if one.address is address], limit // SHARE)
            if self.held - self._leaving > limit:
                self._relieve(list(self._holding), limit)

    def _relieve(self, accounts: "list[Account]", limit: int) -> None:
        """End the largest of these accounts until the others hold no more than the limit."""
        accounts = sorted((one for one in accounts if not one.ending), key=lambda one: one.held)
        left = sum(one.held for one in accounts)
        while left > limit:
            largest = accounts.pop()
            left -= largest.held
            self._leaving += largest.held
            largest.ending = True
            self.ended += 1
            largest.end()

    def _admits(self, account: "Account", wanted: int) -> bool:
        limit, address = self._limits.memory, account.address
        if self.held + wanted > limit:
            return False
        return address.held + wanted <= limit // SHARE or self._limits.trusts(address.peer)

    def _close(self, account: "Account", key: str) -> None:
        account.address.accounts -= 1
        if not account.address.accounts:
            self._addresses.pop(key, None)


class _Address:
    """What is held for one client address."""

    __slots__ = ("accounts", "held", "peer")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.held = self.accounts = 0


class Account:
    """What is held for one client connection."""

    __slots__ = ("_closed", "_key", "_memory", "address", "end", "ending", "held")

    held: int
    """Bytes that are held for it."""

    def __init__(self, memory: Memory, key: str, address: _Address, end: Callable[[], None]) -> None:
        """Made by Memory.account."""
        self._memory = memory
        self._key = key
        self.address = address
        self.end = end
        self._closed = False
        self.ending = False  # it was ended, and what it held is about to go
        self.held = 0

    def set(self, held: int) -> None:
        """Say how much is held now. Some account is ended, maybe this one, where that is too much."""
        if held < PAGE:
            held = 0
        more = held - self.held
        if more and not self._closed:
            self.held = held
            self._memory._change(self, more)

    def admits(self, wanted: int) -> bool:
        """Tell whether so many bytes more may be held."""
        return self._memory._admits(self, wanted)

    def settle(self) -> None:
        """Say that what `end` asked for was done: what is held now may be ended again."""
        if self.ending:
            self.ending = False
            self._memory._leaving -= self.held

    def close(self) -> None:
        """Let go of all of it, with the connection."""
        self.set(0)
        self._closed = True
        self._memory._close(self, self._key)
        self.end = _nothing  # no cycle with the connection, so that both go at once


def _nothing() -> None:
    """Do nothing."""
