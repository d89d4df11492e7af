"""A real mitmproxy master with the protocol layer, two real stages, and a stand-in for the rest of the chain."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Self

from mitmproxy import options
from mitmproxy.http import HTTPFlow
from mitmproxy.master import Master
from mitmproxy.tools.dump import DumpMaster

from mitmgate.core.address import CidrSet
from mitmgate.core.client_fields import ClientFields
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.resource import Resources
from mitmgate.core.rules import Circuit, Endpoint, ListenTls, Route, Upstream
from mitmgate.core.verdict import Step
from mitmgate.host.master import LeanMaster
from mitmgate.hostoptions import spare_start
from mitmgate.pipeline.enforcer import BLACK_HOLE, Enforcer
from mitmgate.pipeline.exchange import Exchange, exchange_of
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.model import Limits
from mitmgate.proxy.listener import Listener
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.hygiene import Hygiene
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE

PROBLEM = "application/problem+json"


def endpoint(url: str) -> Endpoint:
    """Parse an endpoint; h2 and h2s: one that speaks HTTP/2, in plain text and over TLS."""
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    assert scheme in {"http", "https", "h2", "h2s"}
    return Endpoint("https" if scheme in {"https", "h2s"} else "http", host, int(port), scheme in {"h2", "h2s"})


@dataclass(frozen=True, slots=True)
class Bounded(Route):
    """A route with the bound that SizeLimit has for it (bytes)."""

    max_body: int = 10 << 20


def route(*urls: str, **members: Any) -> Bounded:
    """Make a route to upstreams; members replace those of Route, and of its Upstream."""
    of_upstream: dict[str, Any] = {
        "body_timeout": None,
        "connect_timeout": 2.0,
        "response_timeout": 5.0,
        "retries": 1,
        "host": "preserve",
        "tls": None,
        "trailers": frozenset(),
    }
    of_upstream |= {name: members.pop(name) for name in list(members) if name in of_upstream}
    upstream = Upstream("up", tuple(endpoint(url) for url in urls), circuit=Circuit(), **of_upstream)
    made: dict[str, Any] = {"name": "r", "path": "/", "exact": False, "hosts": (), "methods": frozenset(), "limits": ()}
    made |= {"upstream": upstream, "issuers": None}
    return Bounded(**(made | members))


def listen_tls(tls: Any) -> ListenTls:
    """Read the files of the listener, as the policy's compiler does."""
    texts = [None if name is None else Path(name).read_bytes() for name in (tls.certificate, tls.key, tls.client_ca)]
    certificate, key, client_ca = texts
    assert certificate is not None
    assert key is not None
    return ListenTls(certificate, key, client_ca, tls.client_certificate != "optional")


@dataclass
class Source:
    """The policy in force, as far as protocol tests need one."""

    limits: dict[str, Any] = field(default_factory=dict)
    tls: Any = None

    def __post_init__(self) -> None:
        self.reload()

    def reload(self) -> None:
        """Put the policy in force anew, with what its files say now."""
        limits = Limits().model_copy(update=self.limits)
        self.snapshot: Any = SimpleNamespace(
            digest="sha256:test",
            mode="enforce",
            policy=SimpleNamespace(limits=limits, listen=SimpleNamespace(tls=self.tls)),
            listen_tls=None if self.tls is None else listen_tls(self.tls),
            path="policy.yaml",
            trusted_proxies=CidrSet(),
            checks=CidrSet(),
            client_fields=ClientFields({b"x-user-id"}),
            issuers={"dev": SimpleNamespace(leeway=0.0)},
            leeway=lambda issuer: 0.0,
            max_head=limits.head,
            max_target=8192,
            browsers=None,
            upstreams={},
            health_path="/health",
            resources=Resources(),
            via=None,
            response_headers=SimpleNamespace(remove=frozenset(), set=()),
        )


class Decide(Stage):
    """Stand-in for everything between Hygiene and Enforcer: /deny is denied, the rest goes to the route."""

    name: ClassVar[str] = "decide"
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.CREDENTIAL_MISSING, Reason.PATH_AMBIGUOUS, Reason.BODY_TOO_LARGE)

    def __init__(self, chosen: Bounded) -> None:
        self.route = chosen
        self.principal: Principal | None = None

    def decide(self, exchange: Exchange) -> Step:
        head = exchange.head
        assert head is not None
        if head.path.startswith("/deny"):
            return self.deny(Reason.CREDENTIAL_MISSING, "No.")
        if head.path.startswith("/lost"):
            raise RuntimeError("a stage that fails")
        if head.odd:  # as Routing does
            return self.deny(Reason.PATH_AMBIGUOUS)
        exchange.route, exchange.max_body = self.route, self.route.max_body
        exchange.principal = self.principal
        declared = exchange.request.declared_body
        if declared is not None and declared > exchange.max_body:
            return self.deny(Reason.BODY_TOO_LARGE)
        exchange.endpoint = self.route.upstream.endpoints[0]
        fields = tuple(f for f in head.headers.fields if f[0].lower() != b"host")
        host = (head.headers.text("host") or exchange.request.authority).encode("latin-1")
        if head.upgrade is not None and self.route.websocket:
            fields += ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
        target = head.path if head.query is None else f"{head.path}?{head.query}"
        exchange.forward = Forward(head.method, target, host.decode(), ((b"Host", host), *fields))
        return self.admitted


@dataclass
class Hooks:
    """What hooks fired, in order, and the exchanges they fired for."""

    seen: list[tuple[str, HTTPFlow]] = field(default_factory=list)

    def requestheaders(self, flow: HTTPFlow) -> None:
        self.seen.append(("requestheaders", flow))

    def request(self, flow: HTTPFlow) -> None:
        self.seen.append(("request", flow))

    def responseheaders(self, flow: HTTPFlow) -> None:
        self.seen.append(("responseheaders", flow))

    def response(self, flow: HTTPFlow) -> None:
        self.seen.append(("response", flow))

    def error(self, flow: HTTPFlow) -> None:
        self.seen.append(("error", flow))

    @property
    def ends(self) -> list[tuple[str, Reason]]:
        """How each exchange ended: the hook, and the reason that an audit event would have."""
        found = []
        for name, flow in list(self.seen):
            exchange = exchange_of(flow)
            if name in {"response", "error"} and exchange is not None:
                final = exchange.verdict.final
                found.append((name, exchange.failure or (final.reason if final is not None else Reason.OK)))
        return found

    def wait_ends(self, count: int) -> list[tuple[str, Reason]]:
        """Return the ends when there are as many; more are a failure."""
        wait_for(lambda: len(self.ends) >= count, f"{count} ends, not {self.ends}")
        assert len(self.ends) == count, self.ends
        return self.ends


class Gate:
    """The master, in a thread of its own; use it as a context manager.

    host: "stock", mitmproxy's own master and connection handler, as in mitmweb; or "lean", those of `serve`.
    """

    host: ClassVar[str] = "stock"

    def __init__(
        self,
        chosen: Bounded,
        *,
        limits: dict[str, Any] | None = None,
        fail_over: Callable[[Exchange, Reason], Endpoint | None] = lambda exchange, reason: None,
        enforcer: bool = True,
        tls: Any = None,
    ) -> None:
        self.source = Source(limits or {}, tls)
        self.hooks = Hooks()
        self.port = 0
        self.withdrawn: Reason | None = None
        """Why nothing that was admitted holds any more."""
        self._route, self._fail_over, self._with_enforcer = chosen, fail_over, enforcer
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._failure: BaseException | None = None
        self.loop: asyncio.AbstractEventLoop
        self.master: Master

    async def _run(self) -> None:
        try:
            self.loop = asyncio.get_running_loop()
            opts = options.Options()
            lean = self.host == "lean"
            self.master = master = LeanMaster(opts) if lean else DumpMaster(opts, with_termlog=False, with_dumper=False)
            errorcheck = master.addons.get("errorcheck")
            spare_start(errorcheck)  # as the gateway's addon does
            if not lean:
                # mitmproxy's own addons ask the global `ctx`, and fail where another master of this process has it.
                # Processes of their own, with the check in place, are started in tests/live.
                errorcheck.finish()
                master.addons.remove(errorcheck)
            opts.update_known(
                mode=[f"reverse:http://{BLACK_HOLE}@127.0.0.1:0"],
                server=False,
                connection_strategy="lazy",
                keep_host_header=True,
                block_global=False,
            )
            self.layer = Listener(self.source, self._fail_over, withdrawn=lambda exchange: self.withdrawn)
            decide = Decide(self._route)
            self.decide = decide
            master.addons.add(self.layer, Arrival(self.source, lambda: None), Hygiene(), decide, self.hooks)
            if self._with_enforcer:
                master.addons.add(_OpenEnforcer(self.source, ("arrival", "hygiene", "decide")))
            running = asyncio.create_task(master.run())
            while not (found := self.layer.listen_addrs()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            self.port = found[0][1]
            self._started.set()
            await running
            while self.layer.connected:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            # What is still to be flushed to a service that does not read would go on for FLUSH_SECONDS.
            for transport in list(self.loop._transports.values()):  # type: ignore[attr-defined]
                transport.abort()
            await asyncio.sleep(0)
        except BaseException as error:
            self._failure = error
            self._started.set()
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(PATIENCE)
        assert self._failure is None, self._failure
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.master.shutdown)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


class _OpenEnforcer:
    """Enforcer, without its check of addresses: the stand-in policy has no upstreams."""

    name = Enforcer.name

    def __init__(self, source: Any, required: tuple[str, ...]) -> None:
        self.requestheaders = Enforcer(source, required).requestheaders


def connect(port: int, patience: float = PATIENCE) -> socket.socket:
    """Open a connection to the gateway."""
    return socket.create_connection(("127.0.0.1", port), timeout=patience)


def reset(link: socket.socket) -> None:
    """Leave a connection for good: closed in order, it might still be read by who closes only one side."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


@contextmanager
def crowd(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open so many connections to the gateway; all are closed in the end, also where a test fails."""
    with ExitStack() as links:
        yield [links.enter_context(connect(port)) for _ in range(count)]


def receive(link: socket.socket, *, complete: bool | None = None) -> bytes:
    """Receive to the end of the connection; with `complete`, to the end of a response with Content-Length."""
    got = b""
    while True:
        if complete and (cut := got.find(b"\r\n\r\n")) >= 0:
            lengths = [line for line in got[:cut].lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if lengths and len(got) - cut - 4 >= int(lengths[0].split(b":")[1]):
                return got
        part = link.recv(65536)
        if not part:
            return got
        got += part
