"""Readers: a connection's messages one after the other, whatever the cut, and what is said of its end."""

from dataclasses import replace

import pytest

from mitmgate.core.cause import Cause
from mitmgate.core.http1 import END, Bounds, RequestHead, RequestReader, ResponseHead, ResponseReader
from mitmgate.core.http1.reader import OVERRUN
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

BOUNDS = Bounds()
POST = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde"
CHUNKED = b"POST /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n"
GET = b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n"
EMPTY = b"POST /4 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


def conversation(data: bytes, step: int) -> list[tuple[bytes, bytes, bool]]:
    """Read requests, each when the one before it is answered; return target, body and whether it was complete."""
    reader = RequestReader(BOUNDS)
    found: list[tuple[bytes, bytes, bool]] = []
    for at in range(0, len(data), step):
        events = reader.feed(data[at : at + step])
        while events:
            for event in events:
                assert not isinstance(event, Refusal), event
                assert event != b"", "nothing is no part of a body"
                if isinstance(event, RequestHead):
                    found.append((event.target, b"", False))
                elif event is END:
                    found[-1] = (*found[-1][:2], True)
                elif isinstance(event, bytes):
                    found[-1] = (found[-1][0], found[-1][1] + event, False)
            events = reader.next() if reader.complete else []
    assert reader.idle or not found[-1][2]
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 31, 53, 54, 55, 1000])
def test_requests_one_after_the_other_in_any_cut(step: int) -> None:
    data = POST + b"\r\n" + CHUNKED + GET + GET + EMPTY + CHUNKED + POST[:-2]
    whole = [
        *[(b"/1", b"abcde", True), (b"/2", b"abcde", True), (b"/3", b"", True), (b"/3", b"", True)],
        *[(b"/4", b"", True), (b"/2", b"abcde", True), (b"/1", b"abc", False)],
    ]
    assert conversation(data, step) == whole


def test_what_follows_a_request_waits_however_it_comes() -> None:
    for request in (POST, CHUNKED, GET):
        reader = RequestReader(BOUNDS)
        assert reader.idle
        assert reader.feed(request)[-1] is END
        assert reader.complete and not reader.idle
        assert reader.feed(GET[:5]) == reader.feed(GET[5:] + POST) == []
        assert reader.pending == len(GET + POST)
        head, end = reader.next()
        assert isinstance(head, RequestHead)
        assert (head.target, end) == (b"/3", END)
        head, body, end = reader.next()
        assert isinstance(head, RequestHead)
        assert (head.target, body, end) == (b"/1", b"abcde", END)
        assert reader.next() == []
        assert reader.pending == 0


def test_what_a_connection_is_switched_to_gets_what_is_there() -> None:
    reader = RequestReader(BOUNDS)
    reader.feed(GET + b"frames")
    assert reader.take_pending() == b"frames"
    assert reader.take_pending() == b""


@pytest.mark.parametrize("step", [1, 1000])
def test_a_malformed_body_ends_it_all(step: int) -> None:
    data = CHUNKED.replace(b"abc\r\n", b"abcXX") + GET
    reader = RequestReader(BOUNDS)
    events = [event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])]
    assert isinstance(events[0], RequestHead)
    assert isinstance(events[-1], Refusal)
    assert events[-1].reason is Reason.BODY_MALFORMED
    assert END not in events
    assert not reader.complete
    assert reader.feed(GET) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", None),
        (b"\r\n", None),
        (GET, None),
        (GET + b"GET", None),  # it was not asked for yet
        (GET[:-2], Reason.HEAD_MALFORMED),
        (b"G", Reason.HEAD_MALFORMED),
        (POST[:-1], Reason.BODY_MALFORMED),
        (CHUNKED[:-1], Reason.BODY_MALFORMED),
    ],
)
def test_the_end_of_a_connection(data: bytes, reason: Reason | None) -> None:
    reader = RequestReader(BOUNDS)
    reader.feed(data)
    missing = reader.eof()
    assert (None if missing is None else missing.reason) is reason


def test_a_browser_can_read_why_a_head_was_refused() -> None:
    """The origin alone goes with a refusal that has no fields of its own."""
    for step in (1000, 1):
        for head in (
            b"GET / HTTP/1.1\r\nOrigin: https://app.example\r\nA b\r\n\r\n",
            b"GET / HTTP/9.9\r\norigin:https://app.example \r\nAuthorization: word\r\n\r\n",
        ):
            reader = RequestReader(BOUNDS)
            events = [event for at in range(0, len(head), step) for event in reader.feed(head[at : at + step])]
            (refusal,) = events
            assert isinstance(refusal, Refusal)
            assert refusal.fields == ((b"Origin", b"https://app.example"),)
    (refusal,) = RequestReader(BOUNDS).feed(POST.replace(b"5\r\n", b"+5\r\n"))
    assert isinstance(refusal, Refusal)
    assert refusal.fields == ((b"Host", b"x"), (b"Content-Length", b"+5"))


@pytest.mark.parametrize(
    "start", [b" ", b"\t", b"G\n", b"GET / HTTP/1.1\r\nA: b\rc", b"GET / HTTP/1.1\r\nA: b\n", b"G\0"]
)
def test_what_can_not_become_a_head_any_more_is_not_waited_for(start: bytes) -> None:
    for step in (1000, 1):
        reader = RequestReader(BOUNDS)
        events = [event for at in range(0, len(start), step) for event in reader.feed(start[at : at + step])]
        (refusal,) = events
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.HEAD_MALFORMED


def test_a_head_that_does_not_end_is_too_large_beyond_its_bound() -> None:
    bounds = replace(BOUNDS, head=200, target=100)
    for data, reason in (
        (b"GET /" + b"a" * (201 + OVERRUN), Reason.TARGET_TOO_LONG),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * (201 + OVERRUN), Reason.HEAD_TOO_LARGE),
        (b"GET /" + b"a" * 300 + b" HTTP/1.1\r\n\r\n", Reason.TARGET_TOO_LONG),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 300 + b"\r\n\r\n", Reason.HEAD_TOO_LARGE),
    ):
        for step in (1000, 1):
            reader = RequestReader(bounds)
            events = [event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])]
            (refusal,) = events
            assert isinstance(refusal, Refusal)
            assert refusal.reason is reason
    reader = RequestReader(bounds)
    assert reader.feed(b"GET / HTTP/1.1\r\nA: " + b"b" * (181 + OVERRUN)) == []
    assert isinstance(reader.feed(b"b")[0], Refusal)


# Responses.

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"
PARTS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nabcde"
EARLY = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"


def answered(data: bytes, step: int = 1000) -> tuple[ResponseReader, bytes, list[object]]:
    reader = ResponseReader(b"GET", BOUNDS)
    events = [event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])]
    assert b"" not in events
    body = b"".join(event for event in events if isinstance(event, bytes))
    return reader, body, [event for event in events if not isinstance(event, bytes)]


@pytest.mark.parametrize("step", [1, 2, 17, 1000])
@pytest.mark.parametrize(("data", "ends"), [(OK, True), (EARLY + OK, True), (PARTS, True), (UNTIL_CLOSE, False)])
def test_a_response_in_any_cut(data: bytes, ends: bool, step: int) -> None:
    reader, body, events = answered(data, step)
    assert body == b"abcde"
    assert isinstance(events[0], ResponseHead)
    assert events[1:] == ([END] if ends else [])
    assert reader.started
    assert reader.eof() == ([] if ends else [END])


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("data", [OK, PARTS, b"HTTP/1.1 204 N\r\n\r\n"])
def test_bytes_behind_a_response_are_none_of_it(data: bytes, step: int) -> None:
    reader, _, events = answered(data + b"more", step)
    assert events[-1] is END
    assert (reader.pending, reader.leftover) == (4, b"more")


@pytest.mark.parametrize(
    ("data", "orderly", "end"),
    [
        (b"", True, Cause.CLOSED),
        (OK[:20], True, Cause.CLOSED),
        (EARLY, True, Cause.CLOSED),
        (OK[:-1], True, Cause.BODY_CUT),
        (PARTS[:-1], True, Cause.BODY_CUT),
        (UNTIL_CLOSE, False, Cause.BODY_CUT),
        (UNTIL_CLOSE, True, END),
        (OK, True, None),
    ],
)
def test_the_end_of_an_upstreams_connection(data: bytes, orderly: bool, end: object) -> None:
    reader, _, _ = answered(data)
    events = reader.eof(orderly=orderly)
    if end is None or end is END:
        assert events == ([] if end is None else [END])
    else:
        (refusal,) = events
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.cause) == (Reason.UPSTREAM_CLOSED, end)
    assert reader.eof() == [], "said once"


@pytest.mark.parametrize("step", [1, 1000])
def test_a_response_that_is_malformed_ends_there(step: int) -> None:
    for data, cause in (
        (PARTS.replace(b"abc\r\n", b"abcXX"), Cause.BODY_MALFORMED),
        (b"HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", Cause.HEAD_MALFORMED),
        (b"SSH", Cause.HEAD_MALFORMED),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 40_000, Cause.HEAD_TOO_LARGE),
    ):
        reader, _, events = answered(data, step if len(data) < 1000 else 1000)
        refusal = events[-1]
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.cause) == (Reason.UPSTREAM_MALFORMED, cause)
        assert reader.feed(OK) == []


def test_interim_responses_are_bounded() -> None:
    assert isinstance(answered(EARLY * 32 + OK)[2][0], ResponseHead)
    assert isinstance(answered(EARLY * 33 + OK)[2][0], Refusal)


def test_a_response_may_be_as_large_as_it_may() -> None:
    head = OK[: -len(b"abcde")]
    for less in (0, 1):
        reader = ResponseReader(b"GET", replace(BOUNDS, response_head=len(head) - 4 - less))
        assert isinstance(reader.feed(OK)[0], Refusal) is bool(less)
