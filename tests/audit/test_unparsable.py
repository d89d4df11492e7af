"""A request line that can't be parsed is on record as it was asked: method and target, sanitised, bounded, redacted.

On every front: the lane and the layers of `serve`, mitmweb, TLS and HTTP/2.
"""

import contextlib
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.audit import redact
from mitmgate.audit.asked import wire_text
from mitmgate.core.http1.recorded import SHOWN, asked, shown
from tests.live.harness import Gateway, policy_file
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.protocol.raw_http2 import request_fields
from tests.protocol.tls_gateway import TlsGateway

Sent = list[tuple[bytes, str, str, str]]

LINES: Sent = [
    # What is sent, and the method, path and reason of its event.
    (b"GET /asked/1\r\n\r\n", "GET", "/asked/1", "head-malformed"),
    (b"GET /asked/2 with blanks HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "/asked/2\\x20with\\x20blanks", "head-malformed"),
    (b"GET  /asked/3 HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "/asked/3", "head-malformed"),
    (b"GET /asked/4 HTTP/2.7\r\nHost: h\r\n\r\n", "GET", "/asked/4", "version-unsupported"),
    (b"GET /asked/5 HTTX/1.1\r\nHost: h\r\n\r\n", "GET", "/asked/5\\x20HTTX/1.1", "head-malformed"),
    (b"GET /asked/6\x00\x1b[2J HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "/asked/6\\x00\\x1b[2J", "head-malformed"),
    (b"GET /asked/7\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "/asked/7é", "target-invalid"),
    (b"G\x01T /asked/8 HTTP/1.1\r\nHost: h\r\n\r\n", "-", "G\\x01T\\x20/asked/8", "head-malformed"),
    (b'GET /asked/9"}\n{"event":"request" HTTP/1.1\r\n\r\n', "GET", '/asked/9"}', "head-malformed"),
    (b"GET /asked/10?token=hidden-word HTTP/1.1 x\r\n\r\n", "GET", "/asked/10", "head-malformed"),
    (b"DELETE /asked/11 HTTP/1.1\r\nHost: h\r\nA B: c\r\n\r\n", "DELETE", "/asked/11", "head-malformed"),
    (b"GET /asked/12\nHost: h\n\n", "GET", "/asked/12", "head-malformed"),
    (b"GET /asked/13/" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "/asked/13/", "target-too-long"),
    (b"Authorization: Bearer hidden-word\r\n\r\n", "-", "Authorization:[cut]", "head-malformed"),
    (b"Bearer hidden-word HTTP/1.1\r\nHost: h\r\n\r\n", "Bearer", "[cut]", "target-invalid"),
    (b"GET me:hidden-word@h HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "[cut]", "target-invalid"),
    (b"GET ftp://me:hidden-word@h/asked/16 HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "ftp://h/asked/16", "target-invalid"),
    (b"GET me:hidden-word@h://x HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "[cut]", "target-invalid"),
    (b"CONNECT me:hidden-word@asked-17:443 HTTP/1.1\r\n\r\n", "CONNECT", "asked-17:[cut]", "method-invalid"),
    (b"\x16\x03\x01\x02\x00asked-14\x00\r\n\r\n", "-", "\\x16\\x03\\x01\\x02\\x00asked-14\\x00", "head-malformed"),
]


class Front:
    """One way into a gateway: how a connection is made, and where its events are."""

    def __init__(self, connect: Callable[[], socket.socket], audit: Path) -> None:
        self.connect = connect
        self.audit = audit

    def events(self) -> list[dict[str, Any]]:
        lines = self.audit.read_bytes().split(b"\n")[:-1] if self.audit.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == "request"]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsGateway]:
    with TlsGateway(tmp_path_factory.mktemp("tls"), "serve") as gateway:
        yield gateway


@pytest.fixture(scope="module", params=["serve", "web", "tls"])
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    if request.param == "tls":
        tls: TlsGateway = request.getfixturevalue("tls")
        context = ssl.create_default_context(cafile=tls.ca)

        def secured() -> socket.socket:
            plain = socket.create_connection(("127.0.0.1", tls.gateway.port), timeout=PATIENCE)
            return context.wrap_socket(plain, server_hostname="gateway.test")

        yield Front(secured, tls.directory / "audit.jsonl")
        return
    directory = tmp_path_factory.mktemp(request.param)
    with RecordingUpstream() as upstream, Gateway(policy_file(directory, upstream), host=request.param) as gateway:
        yield Front(
            lambda: socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE), directory / "audit.jsonl"
        )


@pytest.mark.parametrize(("line", "method", "path", "reason"), LINES, ids=[path[:20] for _, _, path, _ in LINES])
def test_a_line_that_can_not_be_parsed_is_on_record(
    front: Front, line: bytes, method: str, path: str, reason: str
) -> None:
    before = len(front.events())
    with front.connect() as client:
        client.sendall(line)
        answer = b""
        while part := _read(client):
            answer += part
    assert answer.startswith(b"HTTP/1.1 ")
    wait_for(lambda: len(front.events()) > before, "the event")
    (event,) = front.events()[before:]
    assert (event["method"], event["reason"]) == (method, reason)
    assert event["stage"] == ("hygiene" if "ftp:" in path else "protocol")
    if len(line) > 1000:
        assert event["path"].startswith(path)
        assert event["path"].endswith("-bytes]")
        assert len(event["path"]) < 700
    else:
        assert event["path"] == path
    assert "hidden-word" not in json.dumps(event)


def _read(client: socket.socket) -> bytes:
    try:
        return client.recv(65536)
    except ConnectionError:
        return b""


def test_half_a_head_that_never_ends_is_on_record(front: Front) -> None:
    """The client leaves inside the head."""
    before = len(front.events())
    with front.connect() as client:
        client.sendall(b"PUT /asked/half HTTP/1.1\r\nHost: h\r\nX-")
        if isinstance(client, ssl.SSLSocket):
            with contextlib.suppress(OSError):  # the gateway still answers
                client.unwrap()
        else:
            client.shutdown(socket.SHUT_WR)
            while _read(client):
                pass
    wait_for(lambda: len(front.events()) > before, "the event")
    (event,) = front.events()[before:]
    assert (event["method"], event["path"]) == ("PUT", "/asked/half")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (request_fields("GET", "/asked/h2-large", *[(b"x-%d" % n, b"y") for n in range(150)]), "/asked/h2-large"),
        (request_fields("GET", "/asked/h2-long/" + "a" * 20_000), "/asked/h2-long/"),
        (request_fields("GET", "/asked/h2-expect?token=hidden-word", (b"expect", b"magic")), "/asked/h2-expect"),
    ],
    ids=["large", "long", "expectation"],
)
def test_an_http2_head_that_is_not_taken_is_on_record(
    tls: TlsGateway, fields: list[tuple[bytes, bytes]], path: str
) -> None:
    """What libnghttp2 itself finds malformed is on record without its path: it does not pass that on."""
    with tls.connect() as client:
        number = client.request(fields)
        client.until(lambda: client.streams[number].over, "an answer")
    event = tls.event(lambda event: event.get("path", "").startswith(path))
    assert (event["method"], event["stage"]) == ("GET", "protocol")
    assert event["path"] == path or path.endswith("/")
    assert len(event["path"]) < 700
    assert "hidden-word" not in json.dumps(event)


def test_what_is_taken_from_a_line() -> None:
    assert asked(b"") == (b"", b"")
    assert asked(b"GET / HTTP/1.1") == (b"GET", b"/")
    assert asked(b"GET") == (b"GET", b"")
    assert asked(b"get-" * 10 + b" /a HTTP/1.1") == (b"", b"get-" * 10 + b"\\x20/a")
    assert asked(b"CONNECT me:word@h:443 HTTP/1.1") == (b"CONNECT", b"h:[cut]")
    assert asked(b"GET /v1/a:b") == (b"GET", b"/v1/a:b")
    assert len(shown(b"/" + b"\x00" * 100_000)) <= 4 * SHOWN + 30
    assert shown(b"/\\x20") == b"/\\x5cx20", "an escape can't be forged"


@given(st.binary(max_size=40), st.integers(0, 400))
def test_stray_bytes_are_written_as_backslashreplace_does(octets: bytes, times: int) -> None:
    """However many there are; behind what is looked at nothing is written."""
    text = octets * times
    escaped, wire = text.decode("utf-8", "backslashreplace"), text.decode("latin-1")
    assert wire_text(wire) == escaped
    assert wire_text(wire, redact.SHOWN)[: redact.SHOWN] == escaped[: redact.SHOWN]
