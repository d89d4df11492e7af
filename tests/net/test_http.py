"""Asking services of the operator's: one that answers in tiny parts takes no turn of others, and no more time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mitmgate.net.dialler import Dialler
from mitmgate.net.http import Answer, ask

MANY = 20_000
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = HEAD + b"1\r\nx\r\n" * MANY + b"0\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n" * MANY + HEAD + b"0\r\n\r\n"


@asynccontextmanager
async def service(answer: bytes) -> AsyncIterator[str]:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answering, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def asked(url: str) -> Answer:
    return await ask(url, "GET", "/", ((b"Host", b"x"),), dialler=Dialler(), within=600.0, most=MANY)


async def turns_during(answer: bytes, body: bytes) -> int:
    turns = 0

    async def counting() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with service(answer) as url:
        other = asyncio.create_task(counting())
        assert (await asked(url)).body == body
        other.cancel()
    return turns


@pytest.mark.parametrize(("answer", "body"), [(CHUNKS, b"x" * MANY), (INTERIM, b"")], ids=["chunks", "interim"])
def test_others_run_while_an_answer_in_tiny_parts_is_read(answer: bytes, body: bytes) -> None:
    """As the timeout does, which is looked at when the loop gets a turn."""
    assert asyncio.run(turns_during(answer, body)) > MANY / 100, "the reads alone are some tens"
