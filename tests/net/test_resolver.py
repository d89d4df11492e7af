"""The resolver, asking a real DNS server over UDP. Its clock is the test's: nothing waits for a TTL."""

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mitmgate.net.resolver import LOCAL, LONGEST, Resolver
from tests.net.dns_server import HANG, DnsServer

STALE = 100.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lookups that hang take a second, and not four."""
    monkeypatch.setattr("mitmgate.net.resolver.LOOKUP", 1.0)


@pytest.fixture
def server() -> Iterator[DnsServer]:
    with DnsServer({"a.test": ("127.0.0.2",)}, ttl=10) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    return tmp_path


@asynccontextmanager
async def resolving(server: DnsServer, clock: Clock, files: Path) -> AsyncIterator[Resolver]:
    resolver = Resolver(
        (server.address,), STALE, hosts=str(files / "hosts"), resolv_conf=str(files / "resolv.conf"), ticks=clock
    )
    try:
        yield resolver
    finally:
        await resolver.close()


type Body = Callable[[Resolver], Awaitable[None]]
type Run = Callable[[Body], None]


@pytest.fixture
def run(server: DnsServer, clock: Clock, files: Path) -> Run:
    async def main(body: Body) -> None:
        async with asyncio.timeout(60), resolving(server, clock, files) as resolver:
            await body(resolver)

    return lambda body: asyncio.run(main(body))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the whole test has a bound."""
    while not condition():  # noqa: ASYNC110 - what it looks at is another thread's
        await asyncio.sleep(0.001)


async def failure(resolver: Resolver, name: str) -> int | None:
    with pytest.raises(socket.gaierror) as raised:
        await resolver.addresses(name)
    return raised.value.errno


def test_an_answer_counts_for_its_ttl_and_no_longer(run: Run, server: DnsServer, clock: Clock) -> None:
    async def body(resolver: Resolver) -> None:
        assert await resolver.addresses("a.test") == ("127.0.0.2",)
        server.records["a.test"] = ("127.0.0.3",)
        clock.now += 9.9
        assert await resolver.addresses("a.test") == ("127.0.0.2",) == resolver.current("a.test")
        assert server.times("a.test") == 1
        clock.now += 0.2
        assert await resolver.addresses("a.test") == ("127.0.0.3",) == resolver.current("a.test")

    run(body)


@pytest.mark.parametrize(("ttl", "counts"), [(0, 1.0), (1 << 30, LONGEST)])
def test_a_ttl_has_bounds(run: Run, server: DnsServer, clock: Clock, ttl: int, counts: float) -> None:
    async def body(resolver: Resolver) -> None:
        server.ttl = ttl
        await resolver.addresses("a.test")
        clock.now += counts - 0.01
        await resolver.addresses("a.test")
        assert server.times("a.test") == 1
        clock.now += 0.02
        await resolver.addresses("a.test")
        assert server.times("a.test") == 2

    run(body)


def test_what_is_used_all_the_time_is_looked_up_in_the_background(run: Run, server: DnsServer, clock: Clock) -> None:
    async def body(resolver: Resolver) -> None:
        assert resolver.current("a.test") is None
        await resolver.addresses("a.test")
        server.records["a.test"] = ("127.0.0.3",)
        clock.now += 10
        await until(lambda: resolver.current("a.test") == ("127.0.0.3",))
        assert server.times("a.test") == 2

    run(body)


def test_one_lookup_of_a_name_is_on_its_way_at_most(run: Run, server: DnsServer) -> None:
    async def body(resolver: Resolver) -> None:
        answers = await asyncio.gather(*[resolver.addresses("a.test") for _ in range(200)])
        assert set(answers) == {("127.0.0.2",)}
        assert server.times("a.test") == 1

    run(body)


def test_who_gives_up_takes_the_lookup_from_nobody(run: Run, server: DnsServer) -> None:
    async def body(resolver: Resolver) -> None:
        server.records["a.test"] = HANG
        impatient = asyncio.create_task(resolver.addresses("a.test"))
        patient = asyncio.create_task(resolver.addresses("a.test"))
        await until(lambda: bool(server.asked))
        impatient.cancel()
        server.records["a.test"] = ("127.0.0.2",)  # for the next try: the first question is lost
        assert await patient == ("127.0.0.2",)

    run(body)


def test_fifty_names_that_hang_delay_no_other(run: Run, server: DnsServer) -> None:
    names = [f"hang-{at}.test" for at in range(50)]

    async def body(resolver: Resolver) -> None:
        server.records |= dict.fromkeys(names, HANG)
        hanging = [asyncio.create_task(resolver.addresses(name)) for name in names]
        await until(lambda: len({name for name, _ in server.asked}) == 50)
        assert await resolver.addresses("a.test") == ("127.0.0.2",)
        assert not any(task.done() for task in hanging)
        # What they are stopped by, and not by anybody's patience.
        errors = await asyncio.gather(*hanging, return_exceptions=True)
        assert {error.errno for error in errors if isinstance(error, socket.gaierror)} == {socket.EAI_AGAIN}
        assert len(errors) == 50

    run(body)


@pytest.mark.parametrize("fault", ["SERVFAIL", "REFUSED", HANG])
def test_the_last_answer_serves_while_lookups_fail(
    run: Run, server: DnsServer, clock: Clock, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    async def body(resolver: Resolver) -> None:
        await resolver.addresses("a.test")
        server.records["a.test"] = fault
        clock.now += 10 + STALE - 1
        assert await resolver.addresses("a.test") == ("127.0.0.2",)
        assert fault != HANG or resolver._names["a.test"].lookup is not None  # nobody waited for its end
        while (lookup := resolver._names["a.test"].lookup) is not None:
            await asyncio.wait({lookup})
        # Known to fail: nobody waits, and nobody asks, for a second.
        asked = server.times("a.test")
        assert await resolver.addresses("a.test") == ("127.0.0.2",)
        assert server.times("a.test") == asked
        clock.now += 2
        assert await failure(resolver, "a.test") == socket.EAI_AGAIN
        server.records["a.test"] = ("127.0.0.3",)
        clock.now += 2
        assert await resolver.addresses("a.test") == ("127.0.0.3",)

    run(body)
    told = [record.getMessage() for record in caplog.records if record.name == "mitmgate.net.resolver"]
    assert len(told) == 2 and "can't be looked up" in told[0] and "again" in told[1]


def test_that_there_is_no_such_name_is_an_answer_for_a_second(run: Run, server: DnsServer, clock: Clock) -> None:
    async def body(resolver: Resolver) -> None:
        await resolver.addresses("a.test")
        del server.records["a.test"]  # NXDOMAIN, which its SOA record lets last for 300 s
        clock.now += 10
        assert await failure(resolver, "a.test") == socket.EAI_NONAME
        assert resolver.current("a.test") == ()
        server.records["a.test"] = ("127.0.0.4",)
        assert await failure(resolver, "a.test") == socket.EAI_NONAME
        clock.now += 1
        assert await resolver.addresses("a.test") == ("127.0.0.4",)

    run(body)


@pytest.mark.parametrize("name", ["no.test", "no", "a" * 64 + ".test", "a..test", "x" * 300, "ä.test"])
def test_names_that_are_none(run: Run, name: str) -> None:
    async def body(resolver: Resolver) -> None:
        assert await failure(resolver, name) in {socket.EAI_NONAME, socket.EAI_AGAIN}

    run(body)


@pytest.mark.parametrize(
    ("six", "four", "answer"),
    [
        (("::1",), ("127.0.0.2",), ("::1", "127.0.0.2")),
        ((), ("127.0.0.2",), ("127.0.0.2",)),
        (HANG, ("127.0.0.2",), ("127.0.0.2",)),
        ("SERVFAIL", ("127.0.0.2",), ("127.0.0.2",)),
        (("::1",), HANG, ("::1",)),
        ((), (), socket.EAI_NONAME),
        ((), "SERVFAIL", socket.EAI_AGAIN),
        ("NXDOMAIN", "SERVFAIL", socket.EAI_AGAIN),
    ],
)
def test_one_family_does_not_wait_for_ever_for_the_other(
    run: Run,
    server: DnsServer,
    six: tuple[str, ...] | str,
    four: tuple[str, ...] | str,
    answer: tuple[str, ...] | int,
) -> None:
    async def body(resolver: Resolver) -> None:
        server.families = {("a.test", "AAAA"): six, ("a.test", "A"): four}
        if isinstance(answer, int):
            assert await failure(resolver, "a.test") == answer
        else:
            assert await resolver.addresses("a.test") == answer

    run(body)


def test_the_hosts_file_comes_first_and_is_seen_when_it_changes(
    run: Run, server: DnsServer, clock: Clock, files: Path
) -> None:
    hosts = files / "hosts"

    async def body(resolver: Resolver) -> None:
        hosts.write_text("# a comment\n127.0.0.9\tA.test b # c\n::0001 b\nnot-an-address a.test\n\n")
        assert await resolver.addresses("a.test") == ("127.0.0.9",)
        assert await resolver.addresses("b") == ("127.0.0.9", "::1")
        assert not server.asked
        hosts.write_text("127.0.0.10 b\n")
        clock.now += LOCAL
        assert await resolver.addresses("a.test") == ("127.0.0.2",)
        assert await resolver.addresses("b") == ("127.0.0.10",)
        hosts.unlink()
        clock.now += 10
        assert await failure(resolver, "b") == socket.EAI_NONAME

    run(body)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "app.localhost"])
def test_localhost_is_this_machine_whatever_dns_says(run: Run, server: DnsServer, files: Path, name: str) -> None:
    async def body(resolver: Resolver) -> None:
        (files / "hosts").unlink()
        server.records[name.lower().rstrip(".")] = ("192.0.2.1",)
        assert await resolver.addresses(name) == ("::1", "127.0.0.1")
        assert not server.asked

    run(body)


def test_the_systems_search_domains_and_ndots(run: Run, server: DnsServer, clock: Clock, files: Path) -> None:
    async def body(resolver: Resolver) -> None:
        server.records |= {"api.ns.svc.cluster.local": ("127.0.0.5",), "api.ns.cluster.local": ("127.0.0.6",)}
        assert await failure(resolver, "api") == socket.EAI_NONAME
        lines = "search ns.svc.cluster.local cluster.local\noptions ndots:5\n"
        (files / "resolv.conf").write_text("nameserver 192.0.2.1\n" + lines)
        clock.now += 10
        server.asked.clear()
        assert await resolver.addresses("api") == ("127.0.0.5",)
        assert await resolver.addresses("api.ns") == ("127.0.0.6",)
        assert await resolver.addresses("a.test") == ("127.0.0.2",)
        asked = [name for name, family in server.asked if family == "A"]
        assert asked == [
            "api.ns.svc.cluster.local",
            "api.ns.ns.svc.cluster.local",
            "api.ns.cluster.local",
            "a.test.ns.svc.cluster.local",
            "a.test.cluster.local",
            "a.test",
        ]

    run(body)


def test_a_lookup_without_a_socket_is_our_own_shortage(run: Run, server: DnsServer, clock: Clock) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def body(resolver: Resolver) -> None:
        await resolver.addresses("a.test")  # imports what lookups need
        with socket.socket() as highest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno() + 1, hard))
            try:
                with pytest.raises(OSError) as raised:
                    await resolver.addresses("b.test")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert raised.value.errno == errno.EMFILE
        assert not isinstance(raised.value, socket.gaierror)
        clock.now += 2
        assert await failure(resolver, "b.test") == socket.EAI_NONAME

    run(body)


def test_names_of_former_policies_are_forgotten(run: Run, server: DnsServer, clock: Clock, files: Path) -> None:
    async def body(resolver: Resolver) -> None:
        (files / "hosts").write_text("".join(f"127.0.0.1 n{at}\n" for at in range(3000)))
        for at in range(3000):
            await resolver.addresses(f"n{at}")
            clock.now += LOCAL / 500
        assert len(resolver._names) < 2000
        assert await resolver.addresses("n0") == ("127.0.0.1",)

    run(body)
