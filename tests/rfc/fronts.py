"""Each way that a client's bytes can take into the gateway, as one thing for tests to ask: real processes and sockets.

lane: `serve`, plain HTTP/1.1. tls: `serve` with TLS, HTTP/1.1 or HTTP/2. web: `mitmgate web`, plain HTTP/1.1.
"""

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset

from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_http import Answered, free_port, wait_for
from tests.live.harness_upstream import PATIENCE, Recorded, RecordingUpstream
from tests.protocol.certificates import Authority

Kind = Literal["lane", "tls", "web"]
KINDS: Final[tuple[Kind, ...]] = ("lane", "tls", "web")
TRUSTED: Final = "127.0.0.2"
"""The address of a trusted proxy; every other address of 127.0.0.0/8 is a client's."""


@dataclass
class Front:
    """A running gateway, and the service behind it."""

    kind: Kind
    gateway: Gateway
    upstream: RecordingUpstream
    authority: Authority
    admin: int = 0
    """The port of the admin listener."""

    def connect(self, source: str = "127.0.0.1", *protocols: str) -> socket.socket:
        """Open a connection from an address; protocols: what ALPN offers where the front speaks TLS."""
        link = self.plain(source)
        if self.kind != "tls":
            return link
        context = ssl.create_default_context(cafile=self.authority.ca)
        context.set_alpn_protocols(list(protocols) or ["http/1.1"])
        return context.wrap_socket(link, server_hostname="localhost")

    def plain(self, source: str = "127.0.0.1") -> socket.socket:
        """Open a TCP connection."""
        return socket.create_connection(("127.0.0.1", self.gateway.port), PATIENCE, source_address=(source, 0))

    def raw(self, data: bytes, *, source: str = "127.0.0.1", answers: int | None = None) -> bytes:
        """Send bytes as they are, and return all that comes back until the connection ends.

        answers: stop after so many final responses, where the connection goes on.
        """
        got = b""
        with self.connect(source) as link:
            try:
                link.sendall(data)
                while (answers is None or complete(got, bodiless=data.startswith(b"HEAD ")) < answers) and (
                    part := link.recv(65536)
                ):
                    got += part
            except (ConnectionError, ssl.SSLError):
                pass
            except TimeoutError:
                raise AssertionError(f"no end within {PATIENCE:.0f} s; so far {got!r}") from None
        return got

    def ask(
        self,
        target: str,
        *lines: str,
        method: str = "GET",
        version: str = "HTTP/1.1",
        host: str | None = "localhost",
        body: bytes = b"",
        source: str = "127.0.0.1",
    ) -> Answered:
        """Send one request of these header lines, and read its answer."""
        fields = [] if host is None else [f"Host: {host}"]
        fields += lines
        if body:
            fields.append(f"Content-Length: {len(body)}")
        head = "".join(f"{line}\r\n" for line in (f"{method} {target} {version}", *fields))
        return parse(self.raw(head.encode("latin-1") + b"\r\n" + body, source=source, answers=1))

    def seen(self, *arguments: Any, **named: Any) -> Recorded:
        """Send a request as `ask` does, and return what the service saw of it."""
        self.upstream.forget()
        answered = self.ask(*arguments, **named)
        assert answered.status == 200, answered
        self.upstream.assert_saw_only(1)
        return self.upstream.last()

    def refused(self, status: int, reason: str, *arguments: Any, **named: Any) -> Answered:
        """Send a request that must be refused, and check that the service saw nothing and the audit did."""
        self.upstream.forget()
        answered = self.ask(*arguments, **named)
        assert (answered.status, answered.reason) == (status, reason), answered
        self.upstream.assert_saw_nothing()
        assert self.event(answered)["reason"] == reason
        return answered

    def event(self, answered: Answered) -> dict[str, Any]:
        """Return the audit event of an answer."""
        path = self.gateway.policy_path.with_name("audit.jsonl")
        request_id = (answered.one("x-request-id") or "").encode()
        assert request_id

        def mine() -> list[bytes]:
            return [line for line in path.read_bytes().split(b"\n")[:-1] if request_id in line]

        wait_for(lambda: bool(mine()), f"the audit event of {request_id!r}")
        (line,) = mine()
        event: dict[str, Any] = json.loads(line)
        return event


class Http2Front(Front):
    """The front with TLS, asked in HTTP/2."""

    def ask(
        self,
        target: str,
        *lines: str,
        method: str = "GET",
        version: str = "HTTP/2",
        host: str | None = "localhost",
        body: bytes = b"",
        source: str = "127.0.0.1",
    ) -> Answered:
        """Send one request of these header lines, and read its answer."""
        assert version == "HTTP/2"
        configuration = H2Configuration(
            client_side=True,
            header_encoding="latin-1",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        client = H2Connection(configuration)
        client.decoder.max_header_list_size = 1 << 20
        fields = [(":method", method), (":scheme", "https"), (":path", target)]
        fields += [] if host is None else [(":authority", host)]
        fields += [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        client.initiate_connection()
        client.send_headers(1, fields, end_stream=not body)
        if body:
            client.send_data(1, body, end_stream=True)
        answered, content = [], b""
        with self.connect(source, "h2") as link:
            while True:
                link.sendall(client.data_to_send())
                for event in client.receive_data(link.recv(65536)):
                    if isinstance(event, ResponseReceived):
                        answered = event.headers
                    elif isinstance(event, DataReceived):
                        content += event.data
                    elif isinstance(event, StreamEnded | StreamReset | ConnectionTerminated):
                        status, *headers = [(str(name), str(value)) for name, value in answered]
                        return Answered(int(status[1]), tuple(headers), content)


def complete(got: bytes, *, bodiless: bool = False) -> int:
    """Count the final responses that are complete; one whose end is that of the connection is not.

    bodiless: they answer HEAD.
    """
    count = 0
    while (cut := got.find(b"\r\n\r\n")) >= 0:
        status = int(got[9:12])
        lengths = [line for line in got[:cut].lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths else 0 if status in {204, 304} or status < 200 else None
        length = 0 if bodiless else length
        if length is None or len(got) < cut + 4 + length:
            break
        count += status >= 200
        got = got[cut + 4 + length :]
    return count


def parse(got: bytes) -> Answered:
    """Read the bytes of the last response of a connection; interim ones are left out."""
    while got.startswith(b"HTTP/1.1 1") and not got.startswith(b"HTTP/1.1 101 "):
        got = got.partition(b"\r\n\r\n")[2]
    head, separator, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ") and separator, got
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    return Answered(int(first.split(" ")[1]), fields, body)


def bearer(*arguments: Any, **named: Any) -> str:
    """Return an Authorization line with a token; see `mint`."""
    return f"Authorization: Bearer {mint(*arguments, **named)}"


def front_policy(directory: Path, upstream: RecordingUpstream) -> dict[str, Any]:
    """Make the policy of all fronts: that of the live tests, and a route for each subject here."""
    made = policy(directory, upstream)
    made["trusted_proxies"] = [TRUSTED]
    made["identity"]["keep"] = ["X-User-Agent", "X-JWT-Kept"]
    made["rate_limits"]["per-user"]["limit"] = 1_000_000
    made["limits"] = {"head": "48KiB", "target": "12KiB", "fields": 150, "token": "24KiB", "response_head": "128KiB"}
    made["identity"]["forward"] = {"encoding": "percent"}
    made["cors"]["sandbox"] = {"origins": ["null", "https://app.example"]}
    odd = {"allow_encoded_slash": True, "allow_parameters": True, "allow_empty_segments": True}
    made["routes"] += [
        {"name": "odd", "match": {"prefix": "/odd"}, "upstream": "users", "auth": "none", **odd},
        {
            "name": "strict",
            "match": {"prefix": "/odd/strict"},
            "upstream": "users",
            "require": {"roles_any": ["admin"]},
        },
        {
            "name": "reads",
            "match": {"prefix": "/reads", "methods": ["GET"]},
            "upstream": "users",
            "auth": "none",
        },
        {
            "name": "stripped",
            "match": {"prefix": "/stripped"},
            "upstream": "users",
            "auth": "none",
            "rewrite": {"strip_prefix": True},
            **odd,
        },
    ]
    made["routes"] += [
        {"name": "sandbox", "match": {"prefix": "/sandbox"}, "upstream": "users", "auth": "none", "cors": "sandbox"},
        {
            "name": "mail",
            "match": {"prefix": "/mail"},
            "upstream": "users",
            "rewrite": {"set": {"X-Mail": "<{claim:mail}>", "X-Echo": "{header:x-asked}"}},
        },
        {"name": "loop", "match": {"prefix": "/loop"}, "upstream": "itself", "auth": "none"},
    ]
    made["routes"].append(
        {"name": "ws", "match": {"prefix": "/ws"}, "upstream": "users", "auth": "none", "websocket": True}
    )
    made["routes"].append(
        {"name": "lasting", "match": {"prefix": "/lasting"}, "upstream": "users", "stream": "always", "websocket": True}
    )
    for name in made["upstreams"]:
        made["upstreams"][name]["circuit"] = {"failures": 10000}
    made["upstreams"]["users"]["trailers"] = ["X-Sum"]
    return made


@contextmanager
def relay(port: int) -> Iterator[int]:
    """Hand connections on to a port, as a proxy of the transport layer does; the port that it listens on."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back[1]), pump(back[0], writer))

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        bound.append(server.sockets[0].getsockname()[1])
        started.set()
        await stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    bound: list[int] = []
    started, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: (loop.run_until_complete(run()), loop.close()))
    thread.start()
    assert started.wait(PATIENCE)
    try:
        yield bound[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE)


@contextmanager
def running(kind: Kind, directory: Path) -> Iterator[Front]:
    """Run a front."""
    authority = Authority(directory)
    with RecordingUpstream() as upstream, ExitStack() as stack:
        made = front_policy(directory, upstream)
        admin = free_port()
        made["admin"] = {"host": "127.0.0.1", "port": admin}
        if kind == "tls":
            certificate, key = authority.issue("localhost")
            made["listen"] = {"tls": {"certificate": certificate, "key": key}}
        gateway = Gateway(directory / "policy.yaml", host="web" if kind == "web" else "serve")
        scheme = "https" if kind == "tls" else "http"
        back = stack.enter_context(relay(gateway.port))
        made["upstreams"]["itself"] = {"endpoints": [f"{scheme}://127.0.0.1:{back}"]}
        if kind == "tls":
            made["upstreams"]["itself"]["tls"] = {"ca": authority.ca, "server_name": "localhost"}
        write_policy(directory, made)
        with gateway:
            yield Front(kind, gateway, upstream, authority, admin)
