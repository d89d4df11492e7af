"""WebSocket messages of 1 KB: the service that echoes them, a bare relay of bytes, and the load.

`python sockets.py service PORT`, `python sockets.py relay PORT UPSTREAM` and `python sockets.py load PORT TARGET
CONNECTIONS SECONDS [BEARER]`, which prints how many messages went there and back. A connection has one message on its
way at a time. All frames of a kind are the same bytes, so that the load and the service cost little.
"""

import asyncio
import base64
import hashlib
import os
import sys
from typing import cast

SIZE = 1024
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
TEXT = b"x" * SIZE
MASK = b"\x01\x02\x03\x04"
SENT = b"\x81\xfe" + SIZE.to_bytes(2, "big") + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(TEXT))
ECHOED = b"\x81\x7e" + SIZE.to_bytes(2, "big") + TEXT
END = b"\r\n\r\n"
PATIENCE = 240.0  # seconds until each connection has had an echo, on a busy machine


class Link(asyncio.Protocol):
    """One end of a connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)
        self.open = False
        self.rest = bytearray()


class Service(Link):
    """Answer each message of the load with one of the same text. A masking key may be any: a frame is known by size."""

    def data_received(self, data: bytes) -> None:
        """Upgrade, then echo."""
        self.rest += data
        if not self.open:
            head, found, _ = self.rest.partition(END)
            if not found:
                return
            del self.rest[: len(head) + len(END)]
            fields = {name.strip().lower(): value.strip() for name, _, value in _lines(bytes(head))}
            accept = base64.b64encode(hashlib.sha1(fields[b"sec-websocket-key"] + GUID).digest())
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + END
            )
            self.open = True
        whole = len(self.rest) // len(SENT)
        if whole:
            del self.rest[: whole * len(SENT)]
            self.transport.write(ECHOED * whole)


def _lines(head: bytes) -> list[tuple[bytes, bytes, bytes]]:
    return [line.partition(b":") for line in head.split(b"\r\n")[1:]]


class Relay(Link):
    """Pass bytes on as they come, both ways: what moving them costs with nothing looked at."""

    def __init__(self, upstream: int = 0, other: "Relay | None" = None) -> None:
        """upstream: the port that is dialled where there is no other end yet."""
        self.upstream, self.other = upstream, other

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Dial the other end."""
        super().connection_made(transport)
        if self.other is None:
            self.task = asyncio.ensure_future(self._dial())

    async def _dial(self) -> None:
        _, self.other = await asyncio.get_running_loop().create_connection(
            lambda: Relay(other=self), "127.0.0.1", self.upstream
        )
        self.other.transport.write(self.rest)

    def data_received(self, data: bytes) -> None:
        """Pass them on."""
        if self.other is None:
            self.rest += data
        else:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        """End the other side too."""
        if self.other is not None:
            self.other.transport.close()


class Load(Link):
    """Send a message, wait for its echo, send the next."""

    def __init__(self, target: str, bearer: str | None) -> None:
        """target: the path that is upgraded."""
        self.target, self.bearer = target, bearer
        self.messages = 0
        self.echoed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        super().connection_made(transport)
        key = base64.b64encode(os.urandom(16)).decode()
        token = f"Authorization: {self.bearer}\r\n" if self.bearer else ""
        self.transport.write(
            f"GET {self.target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{token}\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Count an echo, and send again."""
        self.rest += data
        if not self.open:
            head, found, _ = self.rest.partition(END)
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise SystemExit(f"no upgrade: {bytes(self.rest)!r}")
            del self.rest[: len(head) + len(END)]
            self.open = True
            self.transport.write(SENT)
        if len(self.rest) >= len(ECHOED):
            if self.rest != ECHOED:
                raise SystemExit("an echo was changed on its way")
            self.rest.clear()
            self.messages += 1
            if not self.echoed.done():
                self.echoed.set_result(None)
            self.transport.write(SENT)


async def _serve(port: int, upstream: int | None) -> None:
    made = Service if upstream is None else lambda: Relay(upstream)
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


async def _load(port: int, target: str, connections: int, seconds: float, bearer: str | None) -> None:
    loop = asyncio.get_running_loop()
    links = [
        (await loop.create_connection(lambda: Load(target, bearer), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(link.echoed for link in links))
    print(sum(link.messages for link in links))


def main(role: str, port: str, *rest: str) -> None:
    """Be what the command line says."""
    if role == "load":
        target, connections, seconds, *bearer = rest
        asyncio.run(_load(int(port), target, int(connections), float(seconds), bearer[0] if bearer else None))
    else:
        asyncio.run(_serve(int(port), int(rest[0]) if rest else None))


if __name__ == "__main__":
    main(*sys.argv[1:])
