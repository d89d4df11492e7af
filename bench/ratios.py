"""What one thing costs beside another: A B A B in one run, by the CPU time of the process: ratios hold elsewhere.

A row names two ways to ask for the same, and its bar. TLS, HTTP/2, unlike requests and many hosts stand beside plain
requests alike on kept connections of this gateway; WebSockets beside a relay of bytes; the gateway beside an older
checkout, stock mitmdump and fastify. Memory is that of idle connections, each after one request.
"""

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import policy
from bench.bars import Bar
from bench.load import CONNECTIONS, PATIENCE, Ask, streams
from bench.peer_gateways import MissingPeerError, fastify
from bench.policy import Parts
from bench.processes import KIB_A_MIB, Process, pinned
from bench.rig import Rig
from bench.settings import Settings
from bench.subjects import FULL, Command, bare_host, mitmdump, serve
from bench.turns import Spread
from mitmgate.usage import UserError
from tests.protocol.certificates import Authority

HERE = Path(__file__).parent
STREAMS = 8
A_SECOND = 2000
"""Requests over HTTP/2 that stand for a second: h2load breaks off what is on its way when a time is over."""
HOSTS = 1000
LAST = f"h{HOSTS - 1}.example"
IDLE = 1000
"""Connections whose memory is counted, after a tenth as many that make the process grow as it will."""

type Load = Callable[[Rig, Process, int], float]
"""Loads a process for so many seconds; returns its CPU microseconds for each request or message."""


@dataclass(frozen=True, slots=True)
class Way:
    """One side of a ratio: what is started, and how it is loaded."""

    command: Command
    load: Load


@dataclass(frozen=True, slots=True)
class Row:
    """A ratio of two ways and its bar. at_least: how many times less the first shall cost."""

    what: str
    first: Way
    second: Way
    bound: float
    at_least: bool = False


@dataclass(slots=True)
class Ratios:
    """The bars that were measured, and why others were not, by name."""

    bars: list[Bar]
    absent: dict[str, str]


def ratios(rig: Rig, settings: Settings) -> Ratios:
    """Measure every row, one after the other, each in turns of its two ways."""
    found = Ratios([], {})
    authority = Authority(rig.directory)
    certificate = authority.issue("gateway.test")
    with _echo(rig) as echo:
        for row in _rows(rig, certificate, echo, settings, found.absent):
            try:
                spread = _measure(rig, row, settings)
            except UserError as error:
                found.absent[row.what] = str(error).splitlines()[0]
                continue
            found.bars.append(Bar(row.what, spread, "", row.bound, row.at_least))
    kinds = (("TLS", replace(FULL, certificate=certificate), 40), ("plain", FULL, 10))
    for what, parts, bound in kinds[: 1 if settings.reduced else 2]:
        number = IDLE // 10 if settings.reduced else IDLE
        figures = [_idle(rig, parts, number) for _ in range(min(settings.rounds, 3))]
        name = f"memory of an idle connection, {what}"
        found.bars.append(Bar(name, Spread.of(figures), "KiB", bound, at_least=False))
    return found


def _rows(
    rig: Rig, certificate: tuple[str, str], echo: Process, settings: Settings, absent: dict[str, str]
) -> Iterator[Row]:
    """Yield what is compared. A reduced run has a row for each kind of load."""
    up = rig.upstream.port
    ask = Ask(policy.PATH, bearers=(policy.bearer(),))
    secure = replace(ask, secure=True)
    closing = {"Connection": "close"}
    named = replace(ask, headers={"Host": LAST})
    plain, over_tls = serve(up), serve(up, replace(FULL, certificate=certificate))
    kept = Way(plain, _wrk(ask))
    http2 = Way(over_tls, partial(_streams, replace(secure, connections=STREAMS)))
    one_host = Way(serve(up, replace(FULL, hosts=(LAST,))), _wrk(named))
    names = tuple(f"h{number}.example" for number in range(HOSTS))
    socket = Way(serve(echo.port, replace(FULL, websocket=True)), partial(_messages, bearer=ask.bearers[0]))
    relay = Way(lambda _, port: [*_sockets("relay"), str(port), str(echo.port)], _messages)
    yield Row("HTTP/2 over TLS, 8 connections of 8 streams, beside plain HTTP/1.1", http2, kept, 1.5)
    yield Row("WebSocket, 1 KB messages, beside a bare relay", socket, relay, 4)
    if settings.reduced:
        return
    yield Row("TLS, kept, beside plain", Way(over_tls, _wrk(secure)), kept, 1.2)
    yield Row(
        "TLS, a connection each, beside plain",
        Way(over_tls, _wrk(replace(secure, headers=closing))),
        Way(plain, _wrk(replace(ask, headers=closing))),
        2.4,
    )
    yield Row("no two requests alike, beside alike", Way(plain, _wrk(replace(ask, numbered=True))), kept, 1.12)
    yield Row("1,000 hosts at one path, beside one", Way(_hosts(up, names), _wrk(named)), one_host, 1.3)
    wild = tuple(f"*.{name}" for name in names)
    below = replace(ask, headers={"Host": f"a.{LAST}"})
    yield Row("1,000 wildcards at one path, beside one host", Way(_hosts(up, wild), _wrk(below)), one_host, 1.3)
    yield Row("requests/s by CPU, of stock mitmdump's", kept, Way(mitmdump(up), _wrk(ask)), 9, at_least=True)
    if settings.beside is not None:
        older = settings.beside
        yield Row("plain, kept, beside the older checkout's", kept, Way(_of(older, plain), _wrk(ask)), 0.75)
        host = bare_host(up)
        yield Row("the host without the chain, likewise", Way(host, _wrk(ask)), Way(_of(older, host), _wrk(ask)), 0.6)
    try:
        peer = fastify()
    except MissingPeerError as missing:
        absent["CPU beside fastify's"] = str(missing)
        return
    yield Row("CPU beside fastify's", kept, Way(peer.command(up, policy.NEVER), _wrk(ask)), 0.9)


def _hosts(upstream_port: int, hosts: tuple[str, ...]) -> Command:
    return serve(upstream_port, replace(FULL, hosts=hosts))


def _of(checkout: Path, command: Command) -> Command:
    """Let another checkout's code run in place of this one's, with the same interpreter and packages."""

    def words(directory: Path, port: int) -> list[str]:
        here = str(HERE)
        made = [word.replace(here, str(checkout / "bench")) for word in command(directory, port)]
        return ["env", f"PYTHONPATH={checkout / 'addons'}", *made]

    return words


def _wrk(ask: Ask) -> Load:
    def load(rig: Rig, process: Process, seconds: int) -> float:
        sample = rig.saturate(process, ask, seconds)
        if sample.failed:
            raise UserError(f"{sample.failed} of {sample.requests} requests failed")
        return sample.cpu_us

    return load


def _streams(ask: Ask, rig: Rig, process: Process, seconds: int) -> float:
    return streams(process, ask, STREAMS, A_SECOND * seconds, rig.cores.load)


def _sockets(role: str) -> list[str]:
    return [sys.executable, str(HERE / "sockets.py"), role]


def _messages(rig: Rig, process: Process, seconds: int, bearer: str | None = None) -> float:
    words = [*_sockets("load"), str(process.port), policy.PATH, str(CONNECTIONS), str(seconds)]
    before = process.cpu_seconds()
    ended = subprocess.run(
        pinned(words + ([bearer] if bearer else []), rig.cores.load),
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
        check=False,
    )
    if ended.returncode:
        raise UserError(ended.stderr.strip() or "the load of messages failed")
    return (process.cpu_seconds() - before) * 1e6 / int(ended.stdout)


@contextmanager
def _echo(rig: Rig) -> Iterator[Process]:
    with rig.running(lambda _, port: [*_sockets("service"), str(port)], rig.cores.load) as service:
        yield service


def _measure(rig: Rig, row: Row, settings: Settings) -> Spread:
    """Take turns; a ratio is of two measurements next to each other."""
    with ExitStack() as stack:
        first = stack.enter_context(rig.running(row.first.command))
        # Two ways to ask of one and the same process, where it is started alike.
        alike = row.second.command is row.first.command
        second = first if alike else stack.enter_context(rig.running(row.second.command))
        found = []
        for round_ in range(settings.rounds if settings.reduced else settings.rounds + 1):
            a = row.first.load(rig, first, settings.seconds)
            b = row.second.load(rig, second, settings.seconds)
            if round_ or settings.reduced:  # first times are nobody's
                found.append(b / a if row.at_least else a / b)
    return Spread.of(found)


def _idle(rig: Rig, parts: Parts, connections: int) -> float:
    """Return the KiB of memory that each of many idle connections takes in a gateway that has just started."""
    request = Ask(policy.PATH, bearers=(policy.bearer(),)).requests()[0].encode()
    context = None
    if parts.certificate is not None:
        context = ssl.create_default_context(cafile=None)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with rig.running(serve(rig.upstream.port, parts)) as gateway, ExitStack() as stack:

        def hold(number: int) -> None:
            for _ in range(number):
                stack.enter_context(_asked(gateway.port, request, context))

        hold(connections // 10)
        before = gateway.resident_mib()
        hold(connections)
        return (gateway.resident_mib() - before) * KIB_A_MIB / connections


def _asked(port: int, request: bytes, context: ssl.SSLContext | None) -> socket.socket:
    """Open a connection, make one request, leave it open."""
    link = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    if context is not None:
        link = context.wrap_socket(link)
    link.sendall(request)
    got = b""
    while not got.endswith(b'{"ok":true}'):
        more = link.recv(65536)
        if not more:
            raise UserError(f"a connection that was to be idle was closed: {got[:200]!r}")
        got += more
    return link
