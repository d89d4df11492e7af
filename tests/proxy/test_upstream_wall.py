"""An upstream connection under a caller that lies about its bodies: it is never used again."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy.connection import Server

from mitmgate.core.cause import Failure
from mitmgate.core.headers import Fields
from mitmgate.core.http1 import Bounds, ResponseHead
from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.core.rules import Endpoint
from mitmgate.proxy.upstream import Phase, UpstreamConnection

POST = Forward("POST", "/p", "x", ((b"Host", b"x"),))
GET = Forward("GET", "/g", "x", ((b"Host", b"x"),))
UPGRADE = Forward("GET", "/u", "x", ((b"Host", b"x"), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

type Step = bytes | None
"""A part of a body, or its end."""


class Lane:
    """The lane's connection, on a socket that this test is the other end of."""

    def __init__(self) -> None:
        self.kept: list[UpstreamConnection] = []
        self.failed: list[Reason] = []
        self.ended = 0

    # The pool, and who has sent the request.

    def keep(self, connection: UpstreamConnection) -> None:
        self.kept.append(connection)

    def drop(self, connection: UpstreamConnection) -> None:
        self.kept.remove(connection)

    def closed_idle(self, connection: UpstreamConnection) -> None:
        self.drop(connection)

    def response_head(self, head: ResponseHead) -> None:
        pass

    def response_body(self, data: bytes) -> None:
        pass

    def response_end(self, trailers: Fields = ()) -> None:
        self.ended += 1

    def upstream_failed(self, failure: Failure, *, untouched: bool, stale: bool, undelivered: bool) -> None:
        self.failed.append(failure.reason)

    def upstream_congested(self, congested: bool) -> None:
        pass

    def broken(self) -> None:
        raise AssertionError

    async def run(self, forward: Forward, length: int | None, steps: list[Step], answer: bytes) -> tuple[bytes, bool]:
        received, answered = bytearray(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.extend(await reader.readuntil(b"\r\n\r\n"))
            await answered.wait()
            writer.write(answer)
            received.extend(await reader.read())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        buffer = memoryview(bytearray(65536))
        key = (Endpoint("http", "127.0.0.1", port), None)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: UpstreamConnection(self, key, Bounds(), buffer, Server(address=None)), "127.0.0.1", port
        )
        assert connection.send(self, forward, length, None, upgrade=forward is UPGRADE)
        for step in steps:
            if step is None:
                connection.end_body()
            else:
                connection.send_body(step)
        answered.set()
        async with asyncio.timeout(20):
            while not (self.ended or self.failed):  # noqa: ASYNC110
                await asyncio.sleep(0)
            kept = connection in self.kept
            assert kept == (connection.phase is Phase.IDLE)
            connection.abandon()
            server.close()
            await server.wait_closed()
            while connection._transport is not None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        return bytes(received), kept


@pytest.fixture(params=[Lane])
def engine(request: pytest.FixtureRequest) -> Any:
    kind: Callable[[], Any] = request.param
    return kind()


def run(engine: Any, forward: Forward, length: int | None, steps: list[Step], answer: bytes = OK) -> tuple[bytes, bool]:
    written, kept = asyncio.run(engine.run(forward, length, steps, answer))
    return written, kept


@pytest.mark.parametrize(
    ("forward", "length", "steps"),
    [
        (GET, 0, [None]),
        (POST, 3, [b"abc", None]),
        (POST, 3, [b"a", b"bc", None]),
        (POST, None, [b"abc", None]),
        (POST, None, [None]),
    ],
)
def test_connection_whose_request_was_whole_is_kept(
    engine: Any, forward: Forward, length: int | None, steps: list[Step]
) -> None:
    written, kept = run(engine, forward, length, steps)
    assert kept
    assert engine.failed == []
    assert written.startswith(f"{forward.method} ".encode())


@pytest.mark.parametrize(
    ("forward", "length", "steps"),
    [
        (GET, 0, [b"x", None]),
        (POST, 3, [None]),
        (POST, 3, [b"ab", None]),
        (POST, 3, [b"abcd", None]),
        (POST, 3, [b"abc", b"GET /smuggled HTTP/1.1\r\n\r\n"]),
        (POST, 3, [b"abc", None, b"GET /smuggled HTTP/1.1\r\n\r\n"]),
        (POST, None, [b"abc", None, b"GET /smuggled HTTP/1.1\r\n\r\n"]),
        (POST, None, [b"abc", None, None]),
        (UPGRADE, 0, [b"GET /smuggled HTTP/1.1\r\n\r\n"]),
    ],
)
def test_lie_fails_the_exchange_and_closes_the_connection(
    engine: Any, forward: Forward, length: int | None, steps: list[Step]
) -> None:
    written, kept = run(engine, forward, length, steps)
    assert not kept
    assert engine.failed == [Reason.BODY_MALFORMED]
    assert b"smuggled" not in written


@pytest.mark.parametrize(("length", "steps"), [(3, []), (3, [b"ab"]), (3, [b"abc"]), (None, [b"abc"])])
@pytest.mark.parametrize("status", [b"200 OK", b"413 Too Large", b"204 No Content", b"304 Not Modified"])
def test_connection_with_an_early_answer_is_not_kept(
    engine: Any, length: int | None, steps: list[Step], status: bytes
) -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"
    _, kept = run(engine, POST, length, steps, answer)
    assert not kept
    assert engine.failed == []


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", OK),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", OK + b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_connection_with_more_than_the_answer_is_not_kept(engine: Any, method: str, answer: bytes) -> None:
    _, kept = run(engine, Forward(method, "/p", "x", ((b"Host", b"x"),)), 0, [None], answer)
    assert not kept


def test_connection_that_was_asked_to_become_another_is_not_kept() -> None:
    """A service that does not know the upgrade answers 200, and may take what follows for either protocol."""
    _, kept = run(Lane(), UPGRADE, 0, [None])
    assert not kept


def test_connection_that_was_closed_before_its_first_request_fails_it_at_once() -> None:
    """Between the opening of a connection and the request on it there are turns of the loop."""
    lane = Lane()

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            key = (Endpoint("http", "127.0.0.1", port), None)
            buffer = memoryview(bytearray(65536))
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: UpstreamConnection(lane, key, Bounds(), buffer, Server(address=None)), "127.0.0.1", port
            )
            async with asyncio.timeout(20):
                while connection._transport is not None:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            connection.send(lane, GET, 0, b"")

    asyncio.run(main())
    assert lane.failed == [Reason.UPSTREAM_CLOSED]
