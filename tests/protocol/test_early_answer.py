"""A service that answers while the client still uploads: the answer is delivered, and is what the service said."""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Self

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.rules import UpstreamTls
from tests.live.harness import Gateway, policy, write_policy
from tests.live.harness_http import request
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, route
from tests.workers.processes import events

MIB = 1024 * 1024
RUNS = 10


class Refusing:
    """A service that reads a head and some of the body, answers, and closes: what it has not read resets the rest."""

    def __init__(self, status: bytes, tls: ssl.SSLContext | None) -> None:
        self._status = status
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError), ExitStack() as closing:
            closing.enter_context(link)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as servers do: the session tickets come first
            if self._tls is not None:
                link = closing.enter_context(self._tls.wrap_socket(link, server_side=True))
            got = b""
            while b"\r\n\r\n" not in got or len(got) < 100_000:
                got += link.recv(65536)
            link.sendall(b"HTTP/1.1 " + self._status + b"\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(20)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("status", [b"413 Content Too Large", b"401 Unauthorized"])
@pytest.mark.parametrize("kind", ["streamed", "chunked", "held"])
def test_early_answer_is_delivered(status: bytes, kind: str, secure: bool, tmp_path: Path) -> None:
    context, tls = None, None
    if secure:
        authority = Authority(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("127.0.0.1"))
        tls = UpstreamTls(Path(authority.ca).read_bytes())
    size = {"streamed": 8 * MIB, "chunked": 8 * MIB, "held": MIB - 1}[kind]
    parts = [b"x" * 65536] * (size // 65536)
    with Refusing(status, context) as service, Gate(route(service.url, max_body=64 * MIB, tls=tls)) as gate:
        statuses: Counter[tuple[int, bytes]] = Counter()
        for _ in range(RUNS):
            answered = request(gate.port, "POST", "/p", body=parts if kind == "chunked" else b"x" * size)
            statuses[answered.status, answered.body[:5]] += 1
        assert statuses[int(status[:3]), b"early"] >= RUNS - 1, statuses
        reasons = Counter(reason for _, reason in gate.hooks.wait_ends(RUNS))
        assert reasons[Reason.OK] >= RUNS - 1, reasons


def test_early_answer_reaches_clients_over_tls_and_http2(tmp_path: Path, host: str) -> None:
    """Uploads by curl: of a body that is held back, and of one that streams."""
    authority = Authority(tmp_path)
    upload = tmp_path / "upload"
    upload.write_bytes(b"x" * 2 * MIB)
    with Refusing(b"413 Content Too Large", None) as service:
        made = policy(tmp_path, service.url)
        certificate, key = authority.issue("localhost")
        made["listen"] = {"tls": {"certificate": certificate, "key": key}}
        common = {"upstream": "users", "auth": "none", "max_body": "64MiB"}
        made["routes"] += [
            {"name": stream, "match": {"prefix": f"/{stream}"}, "stream": stream, **common}
            for stream in ("auto", "always")
        ]
        with Gateway(write_policy(tmp_path, made), host="serve" if host == "lean" else "web") as gateway:
            for version, stream in product(("--http1.1", "--http2"), ("auto", "always")):
                words = ["curl", "-s", version, "--cacert", authority.ca, "-w", " %{http_code}", "-T", str(upload)]
                words += ["-H", "Expect:", "--max-time", "60", f"https://localhost:{gateway.port}/{stream}"]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                assert (done.stdout, done.returncode) == ("early 413", 0), (version, stream, gateway.log)
        kept = [event for event in events(tmp_path / "audit.jsonl") if event["event"] == "request"]
        assert [(event["reason"], event["status"]) for event in kept] == [("ok", 413)] * 4
