"""TCP connections to names: resolved, then tried in the manner of RFC 8305 (happy eyeballs)."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Final

from mitmgate.net.resolver import Resolver

ATTEMPT_DELAY: Final = 0.25
"""Seconds after which the next address is tried beside the ones before (RFC 8305, section 5)."""
AVOIDED: Final = 30.0
"""Seconds for which an address that did not connect, or not before a later one did, is tried behind the others."""
ADDRESSES: Final = 1024
"""Addresses of which that is remembered."""

type Info = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]
"""An entry of what getaddrinfo returns."""


class Dialler:
    """Opens connections: one address of a name that drops packets costs a request ATTEMPT_DELAY, and the next nothing.

    Belongs to one event loop at a time.
    """

    def __init__(self, resolver: Resolver | None = None, ticks: Callable[[], float] = time.monotonic) -> None:
        """resolver: None: one of its own, as the system is configured."""
        self.resolver = Resolver(ticks=ticks) if resolver is None else resolver
        self._ticks = ticks
        self._avoided: dict[tuple[str, int], float] = {}
        self._turn = 0

    async def connect(self, host: str, port: int, *, in_turn: bool = False) -> socket.socket:
        """Return a connected socket that does not block: `look_up`, then `connect_to`."""
        return await self.connect_to(await self.look_up(host, port, in_turn=in_turn))

    async def look_up(self, host: str, port: int, *, in_turn: bool = False) -> list[Info]:
        """Return the addresses of a name, at least one. in_turn: begin with another one each time.

        Bounded by the caller. Raises socket.gaierror where there is none.
        """
        infos = _numeric(host, port)
        if not infos:
            infos = [info for address in await self.resolver.addresses(host) for info in _numeric(address, port)]
        if not infos:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no usable address")
        if in_turn:
            self._turn += 1
            at = self._turn % len(infos)
            infos = infos[at:] + infos[:at]
        return infos

    async def connect_to(self, infos: Sequence[Info]) -> socket.socket:
        """Return a socket that is connected to one of the addresses. Bounded by the caller. Raises OSError."""
        return await self._race(self._order(infos))

    def answers(self, host: str, peer: str) -> bool:
        """Tell whether the peer of a connection is still an address of the name, as far as is known.

        Looks the name up in the background, where that is due: ask before each use of a connection that is kept. True
        where there is no address at all any more: a connection that works is better than none.
        """
        addresses = self.resolver.current(host)
        return not addresses or peer in addresses

    def _order(self, infos: Sequence[Info]) -> list[Info]:
        """Let the families alternate (RFC 8305, section 4), and addresses that are avoided come last."""
        now, avoided = self._ticks(), self._avoided
        bad = [info for info in infos if avoided and avoided.get(info[4][:2], 0.0) > now]
        good = [info for info in infos if info not in bad] if bad else infos
        return [*_alternate(good), *_alternate(bad)]

    async def _race(self, infos: Sequence[Info]) -> socket.socket:
        """Try one address after the other, the next as soon as one has failed, or after ATTEMPT_DELAY beside it."""
        tried: list[tuple[str, int]] = []
        attempts: set[asyncio.Task[socket.socket]] = set()
        winner: socket.socket | None = None
        failure: BaseException | None = None
        try:
            while winner is None and (attempts or len(tried) < len(infos)):
                if len(tried) < len(infos):
                    info = infos[len(tried)]
                    tried.append(info[4][:2])
                    attempts.add(asyncio.create_task(_attempt(info)))
                last = len(tried) == len(infos)
                done, _ = await asyncio.wait(
                    attempts, timeout=None if last else ATTEMPT_DELAY, return_when=asyncio.FIRST_COMPLETED
                )
                for attempt in done:
                    if attempt.exception() is not None:
                        failure = failure or attempt.exception()
                        attempts.discard(attempt)
                    elif winner is None:
                        winner = attempt.result()
                        attempts.discard(attempt)
        finally:
            for attempt in attempts:
                attempt.cancel()
                attempt.add_done_callback(_close)
            self._remember(tried, None if winner is None else winner.getpeername()[:2])
        if winner is None:
            raise failure or OSError("there is no address to try")
        return winner

    def _remember(self, tried: Sequence[tuple[str, int]], winner: tuple[str, int] | None) -> None:
        """Avoid what was tried in vain; where nothing else was there, the order stays what it was."""
        now, avoided = self._ticks(), self._avoided
        if len(avoided) >= ADDRESSES:
            self._avoided = avoided = {address: until for address, until in avoided.items() if until > now}
        for address in tried:
            if address == winner:
                avoided.pop(address, None)
            elif winner is None or tried.index(address) < tried.index(winner):
                avoided[address] = now + AVOIDED


async def _attempt(info: Info) -> socket.socket:
    family, kind, proto, _, address = info
    made = socket.socket(family, kind, proto)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def _close(attempt: asyncio.Task[socket.socket]) -> None:
    """Close what has connected too late."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def peer_of(connected: socket.socket) -> str:
    """Return the address that a socket is connected to; empty where it is not any more."""
    try:
        return str(connected.getpeername()[0])
    except OSError:
        return ""


def _numeric(host: str, port: int) -> list[Info]:
    """Return the one entry for an address; nothing for a name. No lookup, whatever is written."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [(family, kind, proto, name, address) for family, kind, proto, name, address in found]  # type: ignore[misc]


def _alternate(infos: Sequence[Info]) -> list[Info]:
    families: dict[int, list[Info]] = {}
    for info in infos:
        families.setdefault(info[0], []).append(info)
    return [info for info in chain.from_iterable(zip_longest(*families.values())) if info is not None]
