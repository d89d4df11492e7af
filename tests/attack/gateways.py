"""The gateways that the attacks run against: one policy, each host, with and without TLS, before stock origins."""

import json
import re
import ssl
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.attack.judge import violations
from tests.attack.origins import Logged, NginxOrigin, NodeOrigin, Origin
from tests.attack.wire import DATA, END_HEADERS, END_STREAM, HEADERS, Http1, Http2, Partial, block, frame
from tests.live.harness import AUDIENCE, Gateway, policy, write_policy
from tests.live.harness import Front as Host
from tests.live.harness_http import free_port, request, wait_for
from tests.protocol.certificates import Authority

Front = Literal["http1", "http1-tls", "http2", "http2-plain"]
FRONTS: tuple[Front, ...] = ("http1", "http1-tls", "http2")
HOSTS: tuple[Host, ...] = ("serve", "web", "stock")
CORP = "https://corp.example"
STREAMS = ("auto", "always", "never")


def attack_policy(directory: Path, node: str, nginx: str, admin: int, **members: Any) -> dict[str, Any]:
    """Make the policy: `/node/…` and `/nginx/…` by how a route streams, and a route for each thing to be attacked.

    Paths are kept, so that what an origin logs is what was asked for. Issuers: dev (a secret), corp (a public key).
    """
    made = policy(directory, node)
    corp = {"issuer": CORP, "audience": [AUDIENCE], "algorithms": ["ES256"], "keys": {"public_key_file": "corp.pem"}}
    made["identity"]["issuers"]["corp"] = corp
    made["identity"]["default"] = ["dev", "corp"]
    circuit = {"failures": 10000, "window": "1s"}  # what the origins are asked to do is no outage
    made["upstreams"] = {
        "node": {"endpoints": [node], "circuit": circuit, "trailers": ["X-Trailer", "X"]},
        "nginx": {"endpoints": [nginx], "circuit": circuit, "trailers": ["X-Trailer", "X"]},
    }
    made["rate_limits"] = {"few": {"limit": 3, "window": "60s", "key": "principal"}}
    made["routes"] = [
        {"name": f"{origin}-{stream}", "match": {"prefix": f"/{origin}/{stream}"}, "upstream": origin, "stream": stream}
        for origin in ("node", "nginx")
        for stream in STREAMS
    ]
    made["routes"] += [
        {"name": "open", "match": {"prefix": "/open"}, "upstream": "node", "auth": "none"},
        {"name": "admin", "match": {"prefix": "/admin"}, "upstream": "node", "require": {"roles_any": ["admin"]}},
        {"name": "few", "match": {"prefix": "/few"}, "upstream": "node", "rate_limits": ["few"]},
        {"name": "socket", "match": {"prefix": "/socket"}, "upstream": "node", "websocket": True},
        {"name": "browser", "match": {"prefix": "/browser"}, "upstream": "node", "cors": "web"},
        {"name": "inside", "match": {"prefix": "/inside"}, "upstream": "node", "networks": {"allow": ["10.0.0.0/8"]}},
        {
            "name": "only-a",
            "match": {"prefix": "/tenant"},
            "upstream": "node",
            "require": {"when": 'request.host == "a.example"'},
        },
    ]
    made["admin"] = {"host": "127.0.0.1", "port": admin}
    made["audit"]["sinks"][0]["rotate"] = "4GiB"  # all of a long run is in one file, and no refusals in another
    return made | members


@dataclass(frozen=True)
class Ask:
    """A request, said in the words of whichever front it is asked on. token: for `Authorization: Bearer`."""

    target: str
    method: str = "GET"
    fields: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    token: str | None = None
    host: str = "gateway.test"

    def _fields(self) -> list[tuple[bytes, bytes]]:
        made = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.fields]
        if self.token is not None:
            made.append((b"Authorization", b"Bearer " + self.token.encode()))
        if self.body is not None:
            made.append((b"Content-Length", b"%d" % len(self.body)))
        return made

    def http1(self) -> bytes:
        """Write it in HTTP/1.1."""
        lines = [f"{self.method} {self.target} HTTP/1.1".encode("latin-1"), b"Host: " + self.host.encode("latin-1")]
        lines += [name + b": " + value for name, value in self._fields()]
        return b"\r\n".join(lines) + b"\r\n\r\n" + (self.body or b"")

    def http2(self, stream: int, scheme: bytes) -> list[bytes]:
        """Write its frames in HTTP/2."""
        head = [(b":method", self.method.encode("latin-1")), (b":scheme", scheme)]
        head += [(b":authority", self.host.encode("latin-1")), (b":path", self.target.encode("latin-1"))]
        head += [(name.lower(), value) for name, value in self._fields()]
        flags = END_HEADERS | (0 if self.body else END_STREAM)
        frames = [frame(HEADERS, flags, stream, block(head))]
        return [*frames, frame(DATA, END_STREAM, stream, self.body)] if self.body else frames


class Rig:
    """Both origins and, each started when it is first asked for, the gateways before them."""

    def __init__(self, directory: Path, **members: Any) -> None:
        """members: take the place of the policy's top-level ones."""
        self.directory = directory
        self.members = members
        self.authority = Authority(directory)
        self.corp_key = ec.generate_private_key(ec.SECP256R1())
        self._stack = ExitStack()
        self._gateways: dict[tuple[Host, bool], Attacked] = {}
        self.origins: tuple[Origin, ...] = ()
        self._started = 0

    def __enter__(self) -> Self:
        """Start the origins."""
        self.origins = tuple(self._stack.enter_context(kind(self.directory)) for kind in (NodeOrigin, NginxOrigin))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop everything."""
        self._stack.__exit__(kind, value, tb)

    @property
    def corp_public(self) -> bytes:
        """The public key of issuer corp, as PEM."""
        public = self.corp_key.public_key()
        return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def gateway(self, host: Host, front: Front) -> "Attacked":
        """Return the running gateway of a host that takes a front's connections."""
        tls = _secured(front)
        found = self._gateways.get((host, tls))
        if found is None:
            found = self._gateways[host, tls] = self._start(host, tls)
        found.front = front
        return found

    def restarted(self, host: Host, front: Front) -> "Attacked":
        """Return a new one in the place of the running gateway, whose process is killed."""
        self._gateways.pop((host, _secured(front))).gateway.kill()
        return self.gateway(host, front)

    def _start(self, host: Host, tls: bool) -> "Attacked":
        self._started += 1
        directory = self.directory / f"{host}-{self._started}"
        directory.mkdir()
        (directory / "corp.pem").write_bytes(self.corp_public)
        admin = free_port()
        node, nginx = (origin.url for origin in self.origins)
        made = attack_policy(directory, node, nginx, admin, **self.members)
        if tls:
            certificate, key = self.authority.issue("gateway.test")
            made["listen"] = {"tls": {"certificate": certificate, "key": key}}
        gateway = self._stack.enter_context(Gateway(write_policy(directory, made), host=host))
        return Attacked(gateway, admin, self.authority.ca if tls else None, self.origins)


def _secured(front: Front) -> bool:
    return front in {"http1-tls", "http2"}


class Attacked:
    """A running gateway, its audit file, and what its origins log."""

    def __init__(self, gateway: Gateway, admin: int, ca: str | None, origins: tuple[Origin, ...]) -> None:
        """admin: its admin port. ca: the authority of its certificate; None: it listens without TLS."""
        self.gateway = gateway
        self.admin = admin
        self.ca = ca
        self.scheme = b"http" if ca is None else b"https"
        self.origins = origins
        self.front: Front = "http1"
        self.audit = gateway.policy_path.with_name("audit.jsonl")
        self._at = 0
        self._logged: dict[Path, int] = {}
        self._fences = 0
        self.rests = True
        """Whether it came to rest when it was last waited for."""

    @cached_property
    def _contexts(self) -> dict[str, ssl.SSLContext]:
        made = {}
        for protocol in ("http/1.1", "h2"):
            context = ssl.create_default_context(cafile=self.ca)
            context.set_alpn_protocols([protocol])
            made[protocol] = context
        return made

    def http1(self) -> Http1:
        """Connect for HTTP/1.1."""
        return Http1(self.gateway.port, None if self.ca is None else self._contexts["http/1.1"])

    def http2(self, first: bytes = b"", **options: Any) -> Http2:
        """Connect for HTTP/2: with TLS, or by prior knowledge."""
        return Http2(self.gateway.port, None if self.ca is None else self._contexts["h2"], first, **options)

    def ask(self, *asked: "Ask") -> list[Partial]:
        """Ask one after the other on one connection of the front; what follows an end of it is asked on a new one."""
        found: list[Partial] = []
        client: Http1 | Http2 | None = None
        count = 0
        for one in asked:
            if client is None or client.link.ended:
                client, count = self.http2() if self.front.startswith("http2") else self.http1(), 0
            count += 1
            if isinstance(client, Http1):
                client.link.received.clear()
                client.link.send(one.http1())
                found += client.wait(1, [one.method])[:1] or [Partial()]
                client.link.read(0.0 if (found[-1].one("connection") or "") != "close" else 1)
            else:
                stream = 2 * count - 1
                client.send(*one.http2(stream, self.scheme))
                client.wait([stream])
                found.append(client.streams.get(stream, Partial()))
            if client.link.ended:
                client.link.close()
        if client is not None:
            client.link.close()
        return found

    def judged(self) -> tuple[list[dict[str, Any]], list[Logged]]:
        """Settle, and fail where the origins logged anything else than what the audit file says was admitted."""
        events, logged = self.settle()
        assert violations(events, logged) == []
        assert "Traceback" not in self.log_since()
        return events, logged

    def settle(self) -> tuple[list[dict[str, Any]], list[Logged]]:
        """Wait until nothing runs any more, and return the audit events and the origins' requests since the last call.

        All clients must have closed. A first fence has been accepted after all of their connections; then none is open
        and no request in flight; and what a second one's event follows in the audit file is all that there was.
        """
        self._fence()
        self.rests = False
        wait_for(self._idle, "the gateway to be done with clients that have left")
        self.rests = True
        name = self._fence()
        events: list[dict[str, Any]] = []

        def fenced() -> bool:
            with self.audit.open("rb") as file:
                file.seek(self._at)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            events.extend(json.loads(line) for line in whole.splitlines())
            return any(event.get("query") == name for event in events)

        wait_for(fenced, "the audit event of a fence")
        logged = [one for origin in self.origins for one in origin.requests()]
        kept = [e for e in events if e["event"] == "request" and not e.get("query", "").startswith("fence=")]
        return kept, logged

    def log_since(self) -> str:
        """Return what the gateway has logged since the last call."""
        found = b""
        for path in (self.gateway.stderr, self.gateway.stdout):
            with path.open("rb") as file:
                file.seek(self._logged.get(path, 0))
                found += file.read()
                self._logged[path] = file.tell()
        return found.decode(errors="replace")

    def _fence(self) -> str:
        self._fences += 1
        name = f"fence={self._fences}"
        client = self.http1()
        client.link.send(b"GET /health?%s HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\r\n" % name.encode())
        (response,) = client.wait(1)
        assert response.status == 200, response
        client.link.close()
        return name

    def _idle(self) -> bool:
        text = request(self.admin, "GET", "/metrics", host="127.0.0.1").body.decode()
        found = dict(re.findall(r"^(mitmgate_connections|mitmgate_requests_in_flight) (\S+)$", text, re.MULTILINE))
        return len(found) == 2 and set(map(float, found.values())) == {0.0}
