"""Known fields: what is not parsed again reads as if it had been, and is forgotten soon."""

import itertools

import pytest

from mitmgate.core.http1 import END, Bounds, RequestHead, RequestReader
from mitmgate.core.http1.known import LONGEST, MOST, ROOM, KnownFields
from mitmgate.core.http1.reader import RequestEvent
from mitmgate.core.refusal import Refusal

LINES = [
    b"GET / HTTP/1.1",
    b"GET /a?b=c HTTP/1.1",
    b"POST /a HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET / HTTP/2.0",
    b"GET  / HTTP/1.1",
    b"GET /a b HTTP/1.1",
    b"GET /\n HTTP/1.1",
    b"GET /\r HTTP/1.1",
    b"GET /\0 HTTP/1.1",
    b"GET /# HTTP/1.1",
    b"PROPFIND / HTTP/1.1",
    b"G(T / HTTP/1.1",
    b"GET http://x/a HTTP/1.1",
    b"GET /" + b"a" * 60 + b" HTTP/1.1",
    b"",
]
FIELDS = [
    b"Host: x",
    b"Host: x\r\nAuthorization: Bearer a",
    b"Host: x\r\nAuthorization: Bearer b",
    b"Host: x\r\nContent-Length: 0",
    b"Host: x\r\nContent-Length: 2",
    b"Host: x\r\nContent-Length: 0\r\nContent-Length: 0",
    b"Host: x\r\nTransfer-Encoding: chunked",
    b"Host: x\r\nConnection: close",
    b"Host: x\r\nExpect: 100-continue",
    b"Host: x\r\nExpect: more",
    b"Host: x\r\nUpgrade: websocket",
    b"Host: x\r\nA : b",
    b"Host: x\r\nA: 1\r\nA: 2\r\nA: 3",
    b"Host: x\nA: b",
    b"",
]
NARROW = Bounds(target=32, fields=3)


def said(events: list[RequestEvent]) -> list[object]:
    """Write events so that two of them can be compared."""
    return [
        (*event._replace(headers=event.headers.fields), list(event.headers.names()))  # type: ignore[arg-type]
        if isinstance(event, RequestHead)
        else event
        for event in events
    ]


@pytest.mark.parametrize("fields", FIELDS)
def test_heads_read_as_if_nothing_was_known(fields: bytes) -> None:
    for first, second in itertools.product(LINES, repeat=2):
        known = KnownFields()
        for line, bounds in ((first, Bounds()), (second, Bounds()), (second, NARROW)):
            raw = line + b"\r\n" + fields + b"\r\n\r\n"
            assert said(RequestReader(bounds, known).feed(raw)) == said(RequestReader(bounds).feed(raw)), (first, line)


def head_of(known: KnownFields, raw: bytes) -> RequestHead:
    head, end = RequestReader(Bounds(), known).feed(raw)
    assert isinstance(head, RequestHead)
    assert end is END
    return head


def test_the_same_fields_are_the_same_headers_and_only_then_is_anything_remembered_with_them() -> None:
    known = KnownFields()
    first = head_of(known, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not first.headers.again
    second = head_of(known, b"POST /b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert second.headers is first.headers
    assert (second.method, second.target) == (b"POST", b"/b")
    assert second.headers.again
    for other in (b"Host: y", b"host: x", b"Host:  x", b"Host: x\r\nA: b"):
        assert head_of(known, b"GET /a HTTP/1.1\r\n" + other + b"\r\n\r\n").headers is not first.headers


def test_what_is_not_asked_for_during_two_generations_is_forgotten() -> None:
    known = KnownFields()
    first = head_of(known, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    known.age()
    assert head_of(known, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").headers is first.headers
    known.age()
    known.age()
    assert len(known) == 0
    assert head_of(known, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").headers is not first.headers


def test_memory_is_bounded() -> None:
    known = KnownFields()
    for number in range(3 * MOST):
        head_of(known, b"GET / HTTP/1.1\r\nHost: x\r\nA: %d\r\n\r\n" % number)
    assert len(known) <= 2 * MOST
    head_of(known, b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n" % (b"a" * LONGEST))
    assert not any(known.find(b"Host: x\r\nA: %b" % (b"a" * LONGEST)) or ())


@pytest.mark.parametrize("fields", [b"Host: x\r\nA : b", b"Host: x\r\nContent-Length: x"])
def test_a_refusal_is_not_remembered(fields: bytes) -> None:
    known = KnownFields()
    for _ in range(3):
        (event,) = RequestReader(Bounds(), known).feed(b"GET / HTTP/1.1\r\n" + fields + b"\r\n\r\n")
        assert isinstance(event, Refusal)
    assert len(known) == 0


def test_memory_is_bounded_by_octets_too() -> None:
    known = KnownFields()
    for number in range(3 * ROOM // LONGEST):
        fields = b"Host: x\r\nA: %d\r\nB: " % number
        head_of(known, b"GET / HTTP/1.1\r\n" + fields + b"b" * (LONGEST - len(fields)) + b"\r\n\r\n")
    assert 0 < len(known) <= 2 * ROOM // LONGEST
    assert sum(map(len, known._present)) <= ROOM
    assert sum(map(len, known._former)) <= ROOM
