"""What is written to an upstream is exactly one request, or the connection says that it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.http1 import END, Bounds, RequestHead, RequestReader
from mitmgate.core.http1.outgoing import OutgoingRequest
from mitmgate.core.http1.reader import RequestEvent
from mitmgate.core.refusal import Refusal

HOST = ((b"Host", b"x"),)
UPGRADE = (*HOST, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
LYING = (*HOST, (b"Content-Length", b"99"), (b"Transfer-Encoding", b"chunked"))


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"DELETE"])
@pytest.mark.parametrize("fields", [HOST, LYING])
def test_request_without_body(method: bytes, fields: tuple[tuple[bytes, bytes], ...]) -> None:
    outgoing = OutgoingRequest()
    head = outgoing.begin(method, b"/", fields, 0)
    assert head is not None
    assert (b"Content-Length: 0" in head) == (method == b"POST")
    assert b"99" not in head
    assert b"chunked" not in head
    assert not outgoing.complete
    assert outgoing.end() == b""
    assert outgoing.complete


@pytest.mark.parametrize("parts", [[b"abc"], [b"a", b"bc"], [b"", b"abc", b""]])
def test_body_of_the_declared_length(parts: list[bytes]) -> None:
    outgoing = OutgoingRequest()
    outgoing.begin(b"POST", b"/", HOST, 3)
    assert b"".join(outgoing.body(part) or b"" for part in parts) == b"abc"
    assert outgoing.end() == b""
    assert outgoing.complete


@pytest.mark.parametrize("parts", [[], [b"ab"], [b"abcd"], [b"abc", b"d"], [b"ab", b"cd"]])
def test_body_of_another_length_is_never_complete_again(parts: list[bytes]) -> None:
    outgoing = OutgoingRequest()
    outgoing.begin(b"POST", b"/", HOST, 3)
    written = [outgoing.body(part) for part in parts]
    assert None in [*written, outgoing.end()]
    assert sum(len(part) for part in written if part) <= 3
    assert not outgoing.complete
    assert outgoing.begin(b"GET", b"/", HOST, 0) is None
    assert not outgoing.complete


def test_a_body_of_no_declared_length_goes_in_chunks() -> None:
    outgoing = OutgoingRequest()
    outgoing.begin(b"POST", b"/", HOST, None)
    assert [outgoing.body(part) for part in (b"abc", b"", b"d" * 16)] == [
        b"3\r\nabc\r\n",
        b"",
        b"10\r\n" + b"d" * 16 + b"\r\n",
    ]
    assert outgoing.end() == b"0\r\n\r\n"
    assert outgoing.complete


@pytest.mark.parametrize("length", [0, 3, None])
def test_what_has_no_head_has_no_body_and_no_end(length: int | None) -> None:
    outgoing = OutgoingRequest()
    assert outgoing.begin(b"GET", b"/ HTTP/1.1\r\nX: y", HOST, length) is None
    assert outgoing.body(b"abc") is None
    assert outgoing.end() is None
    assert not outgoing.complete


def test_nothing_follows_the_end() -> None:
    for length in (0, None):
        outgoing = OutgoingRequest()
        outgoing.begin(b"POST", b"/", HOST, length)
        outgoing.end()
        assert outgoing.complete
        assert outgoing.body(b"x") is None
        assert not outgoing.complete
        assert outgoing.begin(b"GET", b"/", HOST, 0) is None


def test_second_end_is_none() -> None:
    outgoing = OutgoingRequest()
    outgoing.begin(b"POST", b"/", HOST, None)
    assert outgoing.end() == b"0\r\n\r\n"
    assert outgoing.end() is None
    assert not outgoing.complete


def test_request_does_not_begin_before_the_last_one_is_complete() -> None:
    outgoing = OutgoingRequest()
    outgoing.begin(b"POST", b"/", HOST, 3)
    assert outgoing.begin(b"GET", b"/", HOST, 0) is None


@pytest.mark.parametrize("length", [-1, -5])
def test_length_below_zero_is_none(length: int) -> None:
    assert OutgoingRequest().begin(b"POST", b"/", HOST, length) is None


def test_upgrade_has_no_body_and_says_of_none() -> None:
    outgoing = OutgoingRequest()
    head = outgoing.begin(b"GET", b"/", (*UPGRADE, *LYING[1:]), 0, upgrade=True)
    assert head == b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert outgoing.body(b"early") is None
    for length in (3, None):
        assert OutgoingRequest().begin(b"GET", b"/", UPGRADE, length, upgrade=True) is None


def read(data: bytes) -> list[RequestEvent]:
    """Read requests strictly, one after the other."""
    reader, events = RequestReader(Bounds()), []
    events += reader.feed(data)
    while reader.complete and reader.pending:
        events += reader.next()
    return events


@given(st.data())
def test_whatever_callers_do_an_upstream_reads_the_requests_that_were_begun(data: st.DataObject) -> None:
    """A connection is used while `complete`, as its owner does: a strict reader then finds begun requests alone."""
    outgoing, wire, begun = OutgoingRequest(), b"", []
    for number in range(data.draw(st.integers(1, 4))):
        length = data.draw(st.none() | st.integers(0, 4))
        head = outgoing.begin(b"POST", b"/%d" % number, HOST, length)
        assert head is not None
        wire += head
        begun.append(b"/%d" % number)
        for step in data.draw(st.lists(st.binary(max_size=5) | st.none(), max_size=5)):
            written = outgoing.end() if step is None else outgoing.body(step)
            if written is None:
                break
            wire += written
        if not outgoing.complete:
            break
    events = read(wire)
    targets = [event.target for event in events if isinstance(event, RequestHead)]
    assert targets == begun
    assert not any(isinstance(event, Refusal) for event in events)
    assert events.count(END) >= len(begun) - 1
    if outgoing.complete:
        assert events.count(END) == len(begun)
