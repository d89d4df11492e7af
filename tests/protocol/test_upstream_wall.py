"""Behind a front that lies about bodies, no upstream connection carries a second request."""

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from typing import Self

import h2.events
import h2.exceptions
import pytest

from mitmgate.core.http1.body import LengthBody
from mitmgate.core.http1.reader import RequestReader
from mitmgate.core.reason import Reason
from tests.live.harness_http import request
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.certificates import Authority
from tests.protocol.harness import Gate, route
from tests.protocol.test_http2 import Client
from tests.protocol.test_tls import listen

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\nX-User-ID: root\r\n\r\n"


def shorter(data: bytes) -> bytes:
    return data[:-1]


def longer(data: bytes) -> bytes:
    return data + SMUGGLED


def nothing(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("lie", [shorter, longer, nothing])
@pytest.mark.parametrize("stream", ["always", "auto"])
def test_front_that_lies_about_a_body_smuggles_nothing(
    upstream: RecordingUpstream, monkeypatch: pytest.MonkeyPatch, lie: Callable[[bytes], bytes], stream: str
) -> None:
    honest = RequestReader._read_body

    def read(reader: RequestReader, data: bytes, events: list[object]) -> None:
        taken: list[object] = []
        honest(reader, data, taken)  # type: ignore[arg-type]
        counted = isinstance(reader._body, LengthBody)
        events += [lie(event) if isinstance(event, bytes) and counted else event for event in taken]

    monkeypatch.setattr(RequestReader, "_read_body", read)
    with Gate(route(upstream.url, stream=stream)) as gate:
        size = 10 if stream == "always" else 2_000_000
        body = b"x" * size
        answered = request(gate.port, "POST", "/lie", body=body)
        assert (answered.status, answered.reason) == (400, "body-malformed")
        for target in ("/a", "/b"):
            assert request(gate.port, "GET", target).status == 200
        ends = gate.hooks.wait_ends(3)
    assert ends == [("response", Reason.BODY_MALFORMED), *[("response", Reason.OK)] * 2]
    upstream.settle()
    assert [seen.target for seen in upstream.requests if seen.target != "/lie"] == ["/a", "/b"]
    again = [seen.target for seen in upstream.requests if seen.connection == 0]
    assert again in ([], ["/lie"]), "a connection was used again behind a lie"


class Eager:
    """A service as Node's: it answers when it has a head, and takes the declared body for what it is afterwards."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []  # the target of each request, and its head
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._links: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._listening.accept()
                self._links.append(link)
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        buffer = b""
        with contextlib.suppress(OSError), link:
            while data := link.recv(65536):
                buffer += data
                while b"\r\n\r\n" in buffer:
                    head, _, buffer = buffer.partition(b"\r\n\r\n")
                    self.seen.append((head.split(b" ")[1].decode(), head))
                    link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    lengths = re.findall(rb"(?i)content-length: (\d+)", head)
                    left = int(lengths[0]) if lengths else 0
                    while len(buffer) < left:
                        more = link.recv(65536)
                        if not more:
                            return
                        buffer += more
                    buffer = buffer[left:]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("short", "sent"), [(0, None), (5, b"abcde")])
def test_http2_body_that_is_not_as_long_as_declared_smuggles_nothing(
    authority: Authority, short: int, sent: bytes | None
) -> None:
    """The next request's head becomes the body, and its body a request of the client's making."""
    post = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"x")]
    length = (b"content-length", b"%d" % len(SMUGGLED))
    follow, last = [*post, (b":path", b"/follow"), length], [*post, (b":path", b"/last"), length]
    with Eager() as service, Gate(route(service.url, stream="always"), tls=listen(authority)) as gate:
        # What the gateway writes for the next head, as far as this client can tell it.
        with Client(gate, authority) as client:
            assert client.answer(client.request(follow, SMUGGLED))[0] == 200
        head = len(service.seen[0][1]) + 4
        lie = [*post, (b":path", b"/lie"), (b"content-length", b"%d" % (head + short))]
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError), Client(gate, authority) as client:
            stream = client.h2.get_next_available_stream_id()
            client.h2.send_headers(stream, lie, end_stream=sent is None)
            if sent is not None:
                client.h2.send_data(stream, sent)
                client.h2.send_headers(stream, [(b"x-trailer", b"1")], end_stream=True)  # h2 counts on DATA alone
            client.flush()
            ends = h2.events.StreamEnded, h2.events.StreamReset
            client.read(lambda: any(client.of(stream, kind) for kind in ends) or client.terminated())
            client.answer(client.request(follow, SMUGGLED))
        with Client(gate, authority) as client:
            assert client.answer(client.request(last, SMUGGLED))[0] == 200
        assert [target for target, _ in service.seen if target != "/lie"][-1] == "/last"
        assert {target for target, _ in service.seen} <= {"/follow", "/lie", "/last"}, service.seen


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("wall"))
