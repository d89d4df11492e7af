"""A small HTTP/1.1 client for live tests: well-formed requests, and bytes as they are."""

import contextlib
import http.client
import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.live.harness_upstream import PATIENCE


@dataclass(frozen=True)
class Answered:
    """A response as the client read it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return every value of a header field."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """Return the only value of a header field; None where absent; a repeated one fails."""
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def reason(self) -> str | None:
        """The reason code of a problem body; None where the response is none."""
        if (self.one("content-type") or "").split(";")[0] != "application/problem+json":
            return None
        return str(self.json["reason"])


_PORTS = range(20000, 32768)
_WORKERS = 8  # more than .ci/checks starts
_handed: set[int] = set()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, and that nobody else in this test run is given.

    It lies below the ports that the kernel gives to outgoing connections (32768 and up on Linux), so that none of
    those takes it before the process under test does. Each of pytest-xdist's workers has a range of its own, and no
    port is handed out twice: between here and the process that binds it, a port only looks free.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    mine = _PORTS[worker::_WORKERS]
    while len(_handed) < len(mine):
        port = random.SystemRandom().choice(mine)  # Hypothesis seeds the shared generator
        if port in _handed:
            continue
        _handed.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("this test run has used up its ports")


def wait_for(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Return when the condition holds; fail with `what` when it does not within `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.01)


def request(
    port: int,
    method: str,
    target: str,
    *,
    token: str | None = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes | Iterable[bytes] | None = None,
    host: str = "gateway.test",
    connection: http.client.HTTPConnection | None = None,
) -> Answered:
    """Send a well-formed request and read the whole response.

    A body that is an iterable goes in chunks. Without `connection` a new one is made, and closed afterwards.
    """
    own = connection is None
    link = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        link.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        link.putheader("Host", host)
        if token is not None:
            link.putheader("Authorization", f"Bearer {token}")
        for name, value in headers.items() if isinstance(headers, Mapping) else headers:
            link.putheader(name, value)
        if isinstance(body, bytes):
            link.putheader("Content-Length", str(len(body)))
        elif body is not None:
            link.putheader("Transfer-Encoding", "chunked")
        # The gateway may answer and close before it has the whole body.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            link.endheaders(body, encode_chunked=body is not None and not isinstance(body, bytes))
        response = link.getresponse()
        return Answered(response.status, tuple(response.getheaders()), response.read())
    finally:
        if own:
            link.close()


def raw_request(port: int, data: bytes, *, until_close: bool = False, patience: float = PATIENCE) -> bytes:
    """Send bytes as they are; return what comes back, up to one complete response, or to the end of the connection.

    The end of the connection always ends it, a reset too. Silence for `patience` seconds fails.
    """
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as link:
        try:
            link.sendall(data)
            while until_close or not _complete(got):
                part = link.recv(65536)
                if not part:
                    break
                got += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError:
            raise AssertionError(f"no complete answer within {patience:.0f} s; so far {got!r}") from None
    return got


def _complete(got: bytes) -> bool:
    head, separator, body = got.partition(b"\r\n\r\n")
    if not separator:
        return False
    fields = head.lower().split(b"\r\n")
    if any(line.startswith(b"transfer-encoding:") for line in fields):
        return body.endswith(b"0\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in fields if line.startswith(b"content-length:")]
    return bool(lengths) and len(body) >= lengths[0]


def status_of(response: bytes) -> int:
    """Return the status of raw response bytes; 0 where there are none."""
    return int(response.split(b" ", 2)[1]) if response.startswith(b"HTTP/1.1 ") else 0
