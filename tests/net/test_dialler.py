"""Dialling: real sockets, of which some drop packets; names from a real DNS server."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mitmgate.net.dialler import ATTEMPT_DELAY, AVOIDED, Dialler, peer_of
from mitmgate.net.resolver import Resolver
from tests.net.black_hole import black_hole
from tests.net.dns_server import DnsServer
from tests.net.test_resolver import Clock


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer(ttl=10) as made:
        yield made


def listener(address: str, port: int = 0, stack: ExitStack | None = None) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if stack is not None:
        stack.enter_context(made)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(64)
    return made


def dialler(server: DnsServer, clock: Clock) -> Dialler:
    return Dialler(Resolver((server.address,), ticks=clock), ticks=clock)


async def reached(dial: Dialler, name: str, port: int, *, in_turn: bool = False) -> str:
    async with asyncio.timeout(60):
        with await dial.connect(name, port, in_turn=in_turn) as connected:
            return peer_of(connected)


def test_an_address_that_drops_packets_costs_a_quarter_of_a_second_once(server: DnsServer) -> None:
    clock = Clock()

    async def body(port: int) -> None:
        dial, loop = dialler(server, clock), asyncio.get_running_loop()
        began = loop.time()
        assert await reached(dial, "two.test", port) == "127.0.0.3"
        assert loop.time() - began >= ATTEMPT_DELAY
        order = [info[4][0] for info in dial._order(_infos(("127.0.0.2", "127.0.0.3"), port))]
        assert order == ["127.0.0.3", "127.0.0.2"]
        assert await reached(dial, "two.test", port) == "127.0.0.3"
        clock.now += AVOIDED + 1
        order = [info[4][0] for info in dial._order(_infos(("127.0.0.2", "127.0.0.3"), port))]
        assert order == ["127.0.0.2", "127.0.0.3"]

    with ExitStack() as stack:
        port = stack.enter_context(black_hole("127.0.0.2"))
        listener("127.0.0.3", port, stack)
        server.records["two.test"] = ("127.0.0.2", "127.0.0.3")
        asyncio.run(body(port))


def test_more_dead_addresses_than_a_timeout_has_room_for(server: DnsServer) -> None:
    """Nine that drop packets take 2.25 s: the first request runs out of time, and the next begins where it ended."""

    async def body(port: int) -> None:
        dial = dialler(server, Clock())
        tries = 0
        while True:
            tries += 1
            try:
                async with asyncio.timeout(ATTEMPT_DELAY * 3.5):
                    assert await reached(dial, "ten.test", port) == "127.0.0.20"
                break
            except TimeoutError:
                assert tries < 9

    dead = tuple(f"127.0.0.{at}" for at in range(10, 19))
    with ExitStack() as stack:
        port = stack.enter_context(black_hole(dead[0]))
        for address in dead[1:]:
            stack.enter_context(black_hole(address, port))
        listener("127.0.0.20", port, stack)
        server.records["ten.test"] = (*dead, "127.0.0.20")
        asyncio.run(body(port))


def test_one_that_refuses_costs_nothing(server: DnsServer) -> None:
    async def body(port: int) -> None:
        dial, loop = dialler(server, Clock()), asyncio.get_running_loop()
        began = loop.time()
        assert await reached(dial, "two.test", port) == "127.0.0.3"
        assert loop.time() - began < 10 * ATTEMPT_DELAY

    with ExitStack() as stack:
        port = listener("127.0.0.3", 0, stack).getsockname()[1]
        server.records["two.test"] = (*(f"127.0.1.{at}" for at in range(1, 60)), "127.0.0.3")
        asyncio.run(body(port))


def _infos(addresses: tuple[str, ...], port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
    return [
        (family, socket.SOCK_STREAM, 0, "", (address, port))
        for family, address in zip(families, addresses, strict=True)
    ]


def test_the_families_alternate() -> None:
    infos = _infos(("::1", "::2", "::3", "127.0.0.1", "127.0.0.2"), 1)
    order = [info[4][0] for info in Dialler()._order(infos)]
    assert order == ["::1", "127.0.0.1", "::2", "127.0.0.2", "::3"]


def test_a_name_that_is_in_one_family_only_where_the_service_is_in_the_other(server: DnsServer) -> None:
    """`localhost` is ::1 and 127.0.0.1 to everybody, and to many services only one of them."""

    async def body() -> None:
        dial = Dialler()
        for address in ("127.0.0.1", "::1"):
            with ExitStack() as stack:
                port = listener(address, 0, stack).getsockname()[1]
                server.records["app.test"] = ("::1", "127.0.0.1")
                assert await reached(dialler(server, Clock()), "app.test", port) == address
                if address == "127.0.0.1":
                    assert await reached(dial, "localhost", port) == address

    asyncio.run(body())


@pytest.mark.parametrize("written", ["127.0.0.1", "::1"])
def test_addresses_are_not_looked_up(server: DnsServer, written: str) -> None:
    async def body() -> None:
        dial = dialler(server, Clock())
        with ExitStack() as stack:
            port = listener(written, 0, stack).getsockname()[1]
            with await dial.connect(written, port) as connected:
                assert dial.answers(written, peer_of(connected))
        assert dial.resolver.current(written) is None and not server.asked

    asyncio.run(body())


def test_what_was_connected_follows_the_answer(server: DnsServer) -> None:
    clock = Clock()

    async def body(port: int) -> None:
        dial = dialler(server, clock)
        server.records["one.test"] = ("127.0.0.2",)
        with await dial.connect("one.test", port) as connected:
            peer = peer_of(connected)
            assert dial.answers("one.test", peer)
            server.records["one.test"] = ("127.0.0.3", "127.0.0.2")
            clock.now += 10
            await _looked_up(dial, "one.test", peer)
            assert dial.answers("one.test", peer)
            server.records["one.test"] = ("127.0.0.3",)
            clock.now += 10
            await _looked_up(dial, "one.test", peer)
            assert not dial.answers("one.test", peer)
            del server.records["one.test"]
            clock.now += 10
            await _looked_up(dial, "one.test", peer)
            assert dial.answers("one.test", peer)  # there is nothing better to be had

    with ExitStack() as stack:
        port = listener("127.0.0.2", 0, stack).getsockname()[1]
        asyncio.run(body(port))


async def _looked_up(dial: Dialler, name: str, peer: str) -> None:
    dial.answers(name, peer)
    lookup = dial.resolver._names[name].lookup
    assert lookup is not None
    await asyncio.wait({lookup})


def test_in_turn_begins_with_another_address_each_time(server: DnsServer) -> None:
    async def body(port: int) -> None:
        dial = dialler(server, Clock())
        peers = [await reached(dial, "three.test", port, in_turn=True) for _ in range(6)]
        assert {peers.count(f"127.0.0.{at}") for at in (2, 3, 4)} == {2}
        assert len({await reached(dial, "three.test", port) for _ in range(6)}) == 1

    with ExitStack() as stack:
        port = listener("127.0.0.2", 0, stack).getsockname()[1]
        for at in (3, 4):
            listener(f"127.0.0.{at}", port, stack)
        server.records["three.test"] = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
        asyncio.run(body(port))


def test_failures_tell_what_failed(server: DnsServer) -> None:
    async def body() -> None:
        dial = dialler(server, Clock())
        with ExitStack() as stack:
            port = listener("127.0.0.2", 0, stack).getsockname()[1]
        server.records |= {"one.test": ("127.0.0.2",), "bad.test": "SERVFAIL"}
        codes = []
        for name in ("one.test", "none.test", "bad.test"):
            with pytest.raises(OSError) as raised:
                await dial.connect(name, port)
            codes.append(raised.value.errno)
        assert codes == [errno.ECONNREFUSED, socket.EAI_NONAME, socket.EAI_AGAIN]

    asyncio.run(body())
