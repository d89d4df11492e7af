"""The addresses of a name: the hosts file, then DNS; remembered for as long as the answer says.

Why not getaddrinfo: it has no deadline and can't be cancelled, so a name whose lookup hangs keeps a thread, and on the
event loop's shared executor, sooner or later, everybody's; and it does not say how long an answer counts. What users
expect of it holds here too: the hosts file comes first and is seen when it changes, `localhost` is this machine
(RFC 6761, section 6.3), and of /etc/resolv.conf name servers, search domains, ndots and rotate are followed, read again
when it changes. What other modules of nsswitch.conf know (mDNS, LDAP) is not: such names belong into the hosts file.

Each name has one lookup on its way at most, with sockets of its own, so that one that hangs delays nobody who asks for
another, and 50 that hang are 100 sockets for LOOKUP seconds. An answer counts for its TTL, at least SHORTEST and at
most LONGEST seconds. Then the next who asks starts a lookup. While that fails, or takes longer than PATIENCE, the last
answer serves, for `max_stale` seconds after its TTL (RFC 8767). That there is no such name is an answer: it takes the
place of the one before, and counts for SHORTEST seconds.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver as Stub
    from dns.resolver import Answer as Records

from mitmgate.descriptors import is_shortage

logger = logging.getLogger(__name__)

SHORTEST: Final = 1.0
"""Seconds that an answer counts at least, and one that says that there is nothing; also between two failing lookups."""
LONGEST: Final = 3600.0
"""Seconds that an answer counts at most."""
LOCAL: Final = 5.0
"""Seconds between two looks into the hosts file for a name."""
LOOKUP: Final = 4.0
"""Seconds that a lookup may take, all tries at all name servers and with all search domains included."""
TRY: Final = 0.5
"""Seconds that one name server has for an answer; one that got lost is asked for again."""
PATIENCE: Final = 0.25
"""Seconds that a request waits for a lookup where the answer before could serve."""
FAMILY_DELAY: Final = 0.25
"""Seconds that the addresses of one family wait for those of the other (RFC 8305, section 3: 50 ms for clients; what
is remembered for a while may wait longer)."""
MAX_STALE: Final = 3600.0
"""Seconds after its TTL that an answer serves while lookups fail, unless the policy says otherwise."""
NAMES: Final = 1024
"""Names that are remembered; they come from policies, so more than these are former ones."""


class LookupTimeoutError(socket.gaierror):
    """No name server has answered in time (EAI_AGAIN)."""


class Answer(NamedTuple):
    """Addresses as texts, in the order in which to try them, and the seconds that they count."""

    addresses: tuple[str, ...]
    ttl: float


class _Name:
    """What is remembered of a name. Times are monotonic seconds."""

    __slots__ = ("addresses", "begun", "error", "late", "lookup", "next", "shortage", "stale")

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ()
        self.next = 0.0  # when to look it up again
        self.stale = 0.0  # until when the addresses serve while lookups fail
        self.begun = 0.0  # when the lookup on its way was begun
        self.error: str | None = None  # why the last lookup failed
        self.late = False  # because there was no answer in time
        self.shortage: int | None = None  # errno, where that says something of this process alone
        self.lookup: asyncio.Task[None] | None = None

    def usable(self, name: str, now: float) -> tuple[str, ...]:
        """Return the addresses; raises socket.gaierror where there are none."""
        if self.addresses and (self.error is None or now < self.stale):
            return self.addresses
        if self.error is None:
            raise socket.gaierror(socket.EAI_NONAME, f"no such name: {name}")
        if self.shortage is not None:
            raise OSError(self.shortage, self.error)
        kind = LookupTimeoutError if self.late else socket.gaierror
        raise kind(socket.EAI_AGAIN, f"{name} can't be looked up: {self.error}")


class Resolver:
    """Looks names up, on the event loop that asks."""

    def __init__(
        self,
        nameservers: tuple[tuple[str, int], ...] = (),
        max_stale: float = MAX_STALE,
        *,
        hosts: str = "/etc/hosts",
        resolv_conf: str = "/etc/resolv.conf",
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """nameservers: address and port of each; empty: those of resolv_conf. max_stale: seconds."""
        self._nameservers = nameservers
        self._max_stale = max_stale
        self._hosts = _HostsFile(hosts)
        self._resolv_conf = resolv_conf
        self._ticks = ticks
        self._names: dict[str, _Name] = {}
        self._stub: Stub | None = None
        self._stamp: object = None

    async def addresses(self, name: str) -> tuple[str, ...]:
        """Return the addresses of a name, in the order in which to try them; at least one.

        Raises socket.gaierror: EAI_NONAME where there is no such name, EAI_AGAIN where that can't be found out.
        """
        entry, now = self._entry(name), self._ticks()
        if now >= entry.next:
            lookup = entry.lookup or self._begin(name, entry)
            stale = bool(entry.addresses) and now < entry.stale
            await asyncio.wait({lookup}, timeout=max(0.0, entry.begun + PATIENCE - now) if stale else None)
            if stale and not lookup.done():
                return entry.addresses
        return entry.usable(name, self._ticks())

    def current(self, name: str) -> tuple[str, ...] | None:
        """Return the last answer for a name, and look it up in the background where that is due.

        None: it was never asked for, as no address is. Cheap: asked before each use of a connection.
        """
        entry = self._names.get(name)
        if entry is None:
            return None
        if entry.lookup is None and self._ticks() >= entry.next:
            self._begin(name, entry)
        return entry.addresses

    def due(self, name: str) -> bool:
        """Tell whether the next who asks for a name that was asked for before will look it up."""
        entry = self._names.get(name)
        return entry is not None and self._ticks() >= entry.next

    async def close(self) -> None:
        """Give up the lookups that are on their way."""
        lookups = [entry.lookup for entry in self._names.values() if entry.lookup is not None]
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)

    def _entry(self, name: str) -> _Name:
        entry = self._names.get(name)
        if entry is None:
            if len(self._names) >= NAMES:
                now = self._ticks()
                self._names = {name: entry for name, entry in self._names.items() if entry.lookup or now < entry.next}
            entry = self._names[name] = _Name()
        return entry

    def _begin(self, name: str, entry: _Name) -> asyncio.Task[None]:
        entry.begun = self._ticks()
        entry.lookup = asyncio.create_task(self._look_up(name, entry), name=f"lookup of {name}")
        return entry.lookup

    async def _look_up(self, name: str, entry: _Name) -> None:
        try:
            async with asyncio.timeout(LOOKUP):
                answer = await self._ask(name)
        except Exception as error:
            late = _is_late(error)
            text = "no answer in time" if late else str(error) or type(error).__name__
            if entry.error is None:
                logger.warning("the name %s can't be looked up: %s", name, text)
            entry.error, entry.late, entry.shortage = text, late, _shortage(error)
            entry.next = self._ticks() + SHORTEST
        else:
            if entry.error is not None:
                logger.warning("the name %s can be looked up again", name)
            entry.addresses, entry.error = answer.addresses, None
            entry.next = self._ticks() + min(max(answer.ttl, SHORTEST), LONGEST)
            entry.stale = entry.next + self._max_stale
        finally:
            entry.lookup = None

    async def _ask(self, name: str) -> Answer:
        plain = name.removesuffix(".").lower()
        listed = self._hosts.addresses(plain)
        if listed:
            return Answer(listed, LOCAL)
        if plain == "localhost" or plain.endswith(".localhost"):
            return Answer(("::1", "127.0.0.1"), LOCAL)
        # Imported when it is needed: it takes 100 ms, and many a policy names addresses alone.
        await asyncio.to_thread(__import__, "dns.asyncresolver")
        stub = self._configured()
        return await _both_families(stub, name)

    def _configured(self) -> "Stub":
        """Return a resolver as /etc/resolv.conf describes it now; with the policy's name servers, where it has any."""
        from dns.asyncresolver import Resolver as Stub  # noqa: PLC0415 - see _ask
        from dns.nameserver import Do53Nameserver, Nameserver  # noqa: PLC0415
        from dns.resolver import NoResolverConfiguration  # noqa: PLC0415

        stamp = _stamp(self._resolv_conf)
        if self._stub is None or stamp != self._stamp:
            stub = Stub(configure=False)
            try:
                stub.read_resolv_conf(self._resolv_conf)
            except NoResolverConfiguration:
                stub.nameservers = ["127.0.0.1"]  # resolv.conf(5)
            if self._nameservers:
                chosen: list[str | Nameserver] = [Do53Nameserver(host, port) for host, port in self._nameservers]
                stub.nameservers = chosen
            stub.timeout, stub.lifetime = TRY, LOOKUP
            self._stub, self._stamp = stub, stamp
        return self._stub


async def _both_families(stub: "Stub", name: str) -> Answer:
    """Ask for IPv6 and IPv4 addresses at once. Raises what the lookups raise where neither has brought any."""
    from dns.exception import DNSException  # noqa: PLC0415 - see Resolver._ask
    from dns.resolver import NXDOMAIN, NoAnswer  # noqa: PLC0415

    tasks = [asyncio.create_task(stub.resolve(name, family, search=True)) for family in ("AAAA", "A")]
    try:
        done, missing = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if missing:
            found = any(task.exception() is None for task in done)
            await asyncio.wait(missing, timeout=FAMILY_DELAY if found else None)
        addresses: list[str] = []
        ttls: list[float] = []
        failure: Exception | None = None
        for task in tasks:
            if not task.done():
                continue  # the other family has addresses
            error = task.exception()
            if error is None:
                records: Records = task.result()
                addresses += [record.to_text() for record in records]
                ttls.append(records.chaining_result.minimum_ttl)
            elif isinstance(error, DNSException | OSError) and not isinstance(error, NXDOMAIN | NoAnswer):
                failure = error
            elif not isinstance(error, DNSException):
                raise error
        if not addresses and failure is not None:
            raise failure
        return Answer(tuple(addresses), min(ttls, default=SHORTEST))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_late(error: Exception) -> bool:
    """Tell whether no name server has answered. dnspython's is raised by dnspython alone, which is loaded by then."""
    if isinstance(error, TimeoutError):
        return True
    loaded = sys.modules.get("dns.exception")
    return loaded is not None and isinstance(error, loaded.Timeout)


def _shortage(error: Exception) -> int | None:
    """Return the errno where a lookup failed for want of sockets of our own."""
    tried = getattr(error, "kwargs", {}).get("errors") or ()  # dnspython's, one for each try: the fourth says why
    causes = [error, *[one[3] for one in tried]]
    return next((cause.errno for cause in causes if isinstance(cause, OSError) and is_shortage(cause)), None)


class _HostsFile:
    """The hosts file: hosts(5). Read again when it has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: object = None
        self._names: dict[str, tuple[str, ...]] = {}

    def addresses(self, name: str) -> tuple[str, ...]:
        """Return the addresses of a name in small letters; () where the file does not have it."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp, self._names = stamp, _hosts(self._path)
        return self._names.get(name, ())


def _hosts(path: str) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    try:
        lines = Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return names
    for line in lines:
        address, *aliases = line.partition("#")[0].split() or [""]
        written = _canonical(address)
        if written is not None:
            for alias in aliases:
                key = alias.removesuffix(".").lower()
                known = names.get(key, ())
                if written not in known:
                    names[key] = (*known, written)
    return names


def _canonical(text: str) -> str | None:
    """Write an address as sockets name their peers; None: it is none."""
    plain, percent, zone = text.partition("%")
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, plain)) + percent + zone
        except (OSError, ValueError):
            continue
    return None


def _stamp(path: str) -> object:
    """Return what is another when a file has changed."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
