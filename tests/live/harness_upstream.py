"""A recording upstream: a real socket server that keeps every byte it gets, and answers as a test says."""

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

PATIENCE = 60.0  # seconds that anything in the harness waits before it fails


@dataclass(frozen=True)
class Recorded:
    """A request as the upstream read it. body is without chunked framing; raw is every byte, framing included."""

    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    raw: bytes
    connection: int

    def all(self, name: str) -> list[str]:
        """Return every value of a header field, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """Return the only value of a header field; None where absent; a repeated one fails."""
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None


@dataclass
class Reply:
    """What the upstream answers.

    chunked: send the body's parts as chunks. until: hold the answer back till the event is set. delay: seconds to hold
    it back. close: close the connection after the answer. echo: the body is JSON of what was received.
    """

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b"upstream says hello"
    chunked: bool = False
    until: threading.Event | None = None
    delay: float = 0.0
    close: bool = False
    echo: bool = False

    def wire(self, request: Recorded) -> bytes:
        """Return the bytes of the answer."""
        body, headers = self.body, list(self.headers)
        if self.echo:
            body = json.dumps({"method": request.method, "target": request.target, "headers": request.headers}).encode()
            headers.append(("Content-Type", "application/json"))
        if self.chunked:
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif self.status >= 200 and self.status not in {204, 304}:
            headers.append(("Content-Length", str(len(body))))
        if request.method == "HEAD" or self.status in {204, 304}:
            body = b""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"HTTP/1.1 {self.status} Status\r\n{lines}\r\n".encode("latin-1") + body


@dataclass
class Raw:
    """Bytes to send as they are: garbage, half an answer; b"" and close=False hangs, close=True hangs up."""

    data: bytes = b""
    close: bool = True


HANG = Raw(b"", close=False)
HANG_UP = Raw(b"", close=True)

Script = Reply | Raw | Callable[[Recorded], Reply | Raw]


@dataclass
class _Shared:
    requests: list[Recorded] = field(default_factory=list)
    raw: list[bytearray] = field(default_factory=list)  # one for each connection, in order of arrival
    arrived: int = 0
    forgotten: int = 0


class RecordingUpstream:
    """The server, in a thread of its own; use it as a context manager.

    reply: the answer to every request, or a function of it. script: answers taken first, one for each request.
    """

    def __init__(self, reply: Script | None = None, port: int = 0, address: str = "127.0.0.1") -> None:
        self.reply: Script = reply if reply is not None else Reply()
        self.script: deque[Script] = deque()
        self._shared = _Shared()
        self._loop = asyncio.new_event_loop()
        self._listening = socket.create_server((address, port), backlog=1024)
        self.address = address
        self.port: int = self._listening.getsockname()[1]
        self._transports: set[asyncio.Transport] = set()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()

    @property
    def url(self) -> str:
        """The endpoint as a policy names it."""
        return f"http://{self.address}:{self.port}"

    @property
    def requests(self) -> list[Recorded]:
        """The complete requests so far."""
        return list(self._shared.requests)

    @property
    def connections(self) -> int:
        """How many connections came since the last `forget`, the harness's own not counted."""
        return self._shared.arrived - self._shared.forgotten

    @property
    def raw(self) -> bytes:
        """Every byte that came, connection after connection."""
        return b"".join(bytes(part) for part in self._shared.raw)

    def last(self) -> Recorded:
        """Return the newest request."""
        assert self._shared.requests, "the upstream got no request"
        return self._shared.requests[-1]

    def settle(self) -> None:
        """Return when everything that was sent or connected before the call has been read.

        A connection of the harness's own is queued behind all others; when it has been read, so have they.
        """
        with socket.create_connection((self.address, self.port), timeout=PATIENCE) as fence:
            fence.sendall(b"FENCE")
            fence.settimeout(PATIENCE)
            assert fence.recv(16) == b"PASSED"

    def assert_saw_nothing(self) -> None:
        """Fail where any connection or byte reached the upstream."""
        self.settle()
        assert self.connections == 0 and not self.raw, f"{self.connections} connections, bytes: {self.raw[:400]!r}"

    def assert_saw_only(self, count: int) -> None:
        """Fail where other than `count` requests reached the upstream, bytes of half requests included."""
        self.settle()
        assert len(self.requests) == count, [f"{r.method} {r.target}" for r in self.requests]
        complete = sum(len(request.raw) for request in self.requests)
        assert len(self.raw) == complete, f"{len(self.raw) - complete} bytes beyond the complete requests"

    def forget_requests(self) -> None:
        """Forget the requests and bytes so far; the reply stays."""
        asyncio.run_coroutine_threadsafe(self._forget(), self._loop).result(PATIENCE)

    def forget(self) -> None:
        """Forget what came so far, and the script, so that a test can share the server; open connections stay open."""
        self.settle()
        self.reply, self.script = Reply(), deque()
        self.forget_requests()

    async def _forget(self) -> None:
        shared = self._shared
        shared.requests.clear()
        shared.forgotten = shared.arrived
        for record in shared.raw:
            record.clear()

    def hang_up(self) -> None:
        """Close every open connection; the server goes on listening."""
        asyncio.run_coroutine_threadsafe(self._close_connections(), self._loop).result(PATIENCE)

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        assert self._started.wait(PATIENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop, and close what is open."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        server = await self._loop.create_server(lambda: _Connection(self), sock=self._listening, backlog=1024)
        self._started.set()
        await self._stop.wait()
        server.close()
        await self._close_connections()

    async def _close_connections(self) -> None:
        for transport in list(self._transports):
            transport.abort()
        while self._transports:  # noqa: ASYNC110 - each turn of the loop runs the connection_lost of some
            await asyncio.sleep(0)

    def answer(self, request: Recorded) -> Reply | Raw:
        """Choose the answer to a request."""
        self._shared.requests.append(request)
        script = self.script.popleft() if self.script else self.reply
        return script if isinstance(script, (Reply, Raw)) else script(request)


class _Connection(asyncio.Protocol):
    """One connection: record, parse, answer in order."""

    def __init__(self, upstream: RecordingUpstream) -> None:
        self.upstream = upstream
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        shared = self.upstream._shared
        self.number = shared.arrived
        shared.arrived += 1
        self.record = bytearray()
        shared.raw.append(self.record)
        self.upstream._transports.add(transport)

    def data_received(self, data: bytes) -> None:
        if data == b"FENCE":
            shared = self.upstream._shared
            shared.raw = [record for record in shared.raw if record is not self.record]
            shared.arrived -= 1
            # One more turn of the loop reads what lies ready on the other connections.
            loop = self.upstream._loop
            loop.call_soon(loop.call_soon, loop.call_soon, self.transport.write, b"PASSED")
            return
        self.record += data
        self.buffer += data
        self.parse()

    def parse(self) -> None:
        """Take complete requests off the buffer while nothing is being answered."""
        while self.task is None and (found := take_request(self.buffer, self.number)) is not None:
            request, self.buffer = found
            self.task = self.upstream._loop.create_task(self.answer(request))

    async def answer(self, request: Recorded) -> None:
        reply = self.upstream.answer(request)
        if isinstance(reply, Raw):
            self.transport.write(reply.data)
            close = reply.close
        else:
            if reply.until is not None:
                await asyncio.to_thread(reply.until.wait, PATIENCE)
            if reply.delay:
                await asyncio.sleep(reply.delay)
            self.transport.write(reply.wire(request))
            close = reply.close
        self.task = None
        if close:
            self.transport.close()
        else:
            self.parse()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream._transports.discard(self.transport)
        if self.task is not None:
            self.task.cancel()


def take_request(data: bytes, connection: int) -> tuple[Recorded, bytes] | None:
    """Take one complete request off the front of data; None where it is not complete yet."""
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
    by_name = {name.lower(): value for name, value in headers}
    body = b""
    if "chunked" in by_name.get("transfer-encoding", ""):
        taken = take_chunks(rest)
        if taken is None:
            return None
        body, rest = taken
    elif "content-length" in by_name:
        length = int(by_name["content-length"])
        if len(rest) < length:
            return None
        body, rest = rest[:length], rest[length:]
    raw = data[: len(data) - len(rest)]
    return Recorded(method, target, version, headers, body, raw, connection), rest


def take_chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """Take a chunked body with its trailers off the front of data; None where it is not complete yet."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        length = int(data[at:end].split(b";")[0], 16)
        if length == 0:
            last = data.find(b"\r\n\r\n", end)
            return (b"".join(parts), data[last + 4 :]) if last >= 0 else None
        at = end + 2 + length + 2
        if len(data) < at - 2:
            return None
        parts.append(data[end + 2 : at - 2])
