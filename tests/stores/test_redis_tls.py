"""Redis over TLS: the authority that the URL names is read again for each connection, by counters and audit stream."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from mitmgate.audit.redis_stream import StreamAppender
from mitmgate.audit.settings import RedisStreamSink
from mitmgate.audit.sink import Health, SinkError
from mitmgate.net.dialler import Dialler
from mitmgate.stores.redis import _DialledTls
from tests.live.harness_http import wait_for
from tests.protocol.certificates import Authority
from tests.redis_server import RedisServer
from tests.stores.asking import PATIENT, ask, limit_of, redis_store, take_of


class TlsFront:
    """TLS before a server that has none, with a certificate that can be changed."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._links: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._context: ssl.SSLContext

    def present(self, certificate: str, key: str) -> None:
        """Present another certificate from now on, and end the connections that there are."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._behind)) as behind:
            self._links += [behind]
            with self._context.wrap_socket(link, server_side=True) as secured:
                back = threading.Thread(target=_copy, args=(behind, secured), daemon=True)
                back.start()
                _copy(secured, behind)
                back.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        source.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


class World:
    """The front, with a certificate of an authority whose file the URL names."""

    def __init__(self, directory: Path, front: TlsFront) -> None:
        self._directory, self._front = directory, front
        self.ca = directory / "ca.pem"
        self._authorities = 0
        self.url = f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={self.ca}"
        self.rotate()

    def rotate(self, *, written: bool = True) -> None:
        """Have a certificate of another authority. written: its own certificate is in the file."""
        self._authorities += 1
        authority = Authority(self._directory, f"authority-{self._authorities}")
        if written:
            os.replace(authority.ca, self.ca)
        self._front.present(*authority.issue("127.0.0.1"))

    def drop(self) -> None:
        """Put a pipe in the file's place, and end the connections."""
        self.ca.unlink()
        os.mkfifo(self.ca)
        for link in list(self._front._links):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def world(shared_server: RedisServer, tmp_path: Path) -> Iterator[World]:
    with TlsFront(shared_server.port) as front:
        yield World(tmp_path, front)


def test_counters_follow_a_rotated_authority(world: World) -> None:
    limit = limit_of(100)

    async def body() -> None:
        async with asyncio.timeout(60), redis_store(world.url, PATIENT) as store:

            async def exact() -> bool:
                (grant,) = await ask(store, take_of(limit))
                return not grant.degraded

            assert await exact()
            world.rotate()
            while not await exact():  # noqa: ASYNC110 - it is tried again in the background
                await asyncio.sleep(0.01)
            world.drop()  # nothing can be read: what was is used on, and the loop goes on
            while not await exact():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            world.rotate(written=False)
            while await exact():  # noqa: ASYNC110 - nobody trusts that one
                await asyncio.sleep(0.01)

    asyncio.run(body())


def test_files_that_are_read_slowly_take_nothing_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that was given up goes on in its thread, beside the next one, which finds nothing to read."""
    started, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **named: Any) -> ssl.SSLContext:
        started.set()
        assert go_on.wait(60)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    link = _DialledTls(ssl_ca_certs=str(world.ca), dialler=Dialler())
    link._read_files()
    used = link.ssl_context.context
    assert used is not None
    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr(ssl, "create_default_context", slow)
        given_up = pool.submit(link._read_files)
        assert started.wait(60)
        world.drop()
        link._read_files()
        assert link.ssl_context.context is used
        world.rotate()
        go_on.set()
        given_up.result(60)


def test_a_stream_follows_a_rotated_authority(world: World) -> None:
    sink = RedisStreamSink("mitmgate:tls", world.url, spill=None, timeout=PATIENT)
    stream = StreamAppender(sink, Health(sink.stream, lambda event: None), lambda event: None)
    sent = 0

    def write() -> bool:
        nonlocal sent
        with contextlib.suppress(SinkError):
            sent += stream.write([b"{}"])
            return True
        return False

    stream.open()
    assert write()
    world.rotate()
    wait_for(write, "records to go out again")
    world.drop()
    wait_for(lambda: not write(), "the connection to end")
    assert not write()  # a new one: it does not wait for a pipe
    world.ca.unlink()
    world.rotate()
    wait_for(write, "records to go out again")
    stream.close()
