"""Framing: exactly one statement of a body's length, whatever the other side said of its own connection."""

import pytest

from mitmgate.core.headers import Fields
from mitmgate.core.http1 import Bounds
from mitmgate.core.http1.framing import UNSENDABLE, frame_request, frame_response, received_fields
from mitmgate.core.request import Forward
from mitmgate.core.streaming import LARGE, is_event_stream, streams

TEXT = (b"Content-Type", b"text/plain")
HOP: Fields = (
    TEXT,
    (b"Content-Length", b"5"),
    (b"Transfer-Encoding", b"gzip, chunked"),
    (b"Connection", b"X-Own, keep-alive"),
    (b"X-Own", b"1"),
)
OF_BODY = [b"content-length", b"transfer-encoding"]


def framing(fields: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in fields if name.lower() in OF_BODY]


@pytest.mark.parametrize(
    ("status", "length", "method", "version", "said", "chunked", "until_close", "bodiless"),
    [
        (200, 7, b"GET", "HTTP/1.1", [(b"content-length", b"7")], False, False, False),
        (200, 0, b"GET", "HTTP/1.1", [(b"content-length", b"0")], False, False, False),
        (200, None, b"GET", "HTTP/1.1", [(b"transfer-encoding", b"chunked")], True, False, False),
        (200, None, b"GET", "HTTP/1.0", [], False, True, False),
        (200, 7, b"HEAD", "HTTP/1.1", [(b"content-length", b"5")], False, False, True),
        (200, None, b"HEAD", "HTTP/1.0", [(b"content-length", b"5")], False, False, True),
        (304, None, b"GET", "HTTP/1.1", [(b"content-length", b"5")], False, False, True),
        (204, 7, b"GET", "HTTP/1.1", [], False, False, True),
    ],
)
def test_a_response_is_framed_once(
    status: int,
    length: int | None,
    method: bytes,
    version: str,
    said: list[tuple[bytes, bytes]],
    chunked: bool,
    until_close: bool,
    bodiless: bool,
) -> None:
    framed = frame_response(status, HOP, length, method, version)
    assert framing(framed.fields) == said
    assert framed[1:] == (chunked, until_close, bodiless)
    assert TEXT in framed.fields
    assert not {b"connection", b"x-own"} & {name.lower() for name, _ in framed.fields}


@pytest.mark.parametrize(
    ("method", "length", "said"),
    [
        (b"GET", 0, []),
        (b"DELETE", 3, [(b"content-length", b"3")]),
        (b"POST", 0, [(b"content-length", b"0")]),
        (b"POST", None, [(b"transfer-encoding", b"chunked")]),
    ],
)
def test_a_request_is_framed_once(method: bytes, length: int | None, said: list[tuple[bytes, bytes]]) -> None:
    framed = frame_request(method, HOP, length)
    assert framing(framed) == said
    assert TEXT in framed


def test_a_length_is_kept_of_what_an_upstream_says_of_its_content() -> None:
    assert framing(received_fields(200, HOP)) == [(b"content-length", b"5")]
    assert framing(received_fields(204, HOP)) == []
    assert received_fields(200, (TEXT,)) == (TEXT,)


def test_what_takes_the_place_of_an_unsendable_response_is_complete() -> None:
    assert UNSENDABLE == b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("mode", "length", "events", "expected"),
    [
        ("auto", LARGE, False, False),
        ("auto", LARGE + 1, False, True),
        ("auto", None, False, True),
        ("auto", 5, True, True),
        ("auto", 0, True, False),
        ("always", 1, False, True),
        ("always", 0, False, False),
        ("never", None, True, False),
    ],
)
def test_what_streams(mode: str, length: int | None, events: bool, expected: bool) -> None:
    assert streams(mode, length, events=events) is expected  # type: ignore[arg-type]  # a table of texts


def test_event_streams_are_known_by_their_type() -> None:
    assert is_event_stream(b"Text/Event-Stream; charset=utf-8")
    assert not is_event_stream(b"text/plain")
    assert not is_event_stream(None)


def test_a_body_is_due_after_a_pause_and_within_what_it_has_earned() -> None:
    bounds = Bounds(body_timeout=30.0, body_rate=500.0)
    assert bounds.body_due(100.0, 0, 100.0) == 130.0
    assert bounds.body_due(100.0, 1000, 131.0) == 132.0  # 2 s earned
    assert bounds.body_due(100.0, 10**6, 131.0) == 161.0


def test_a_forward_is_changed_in_the_one_field_alone() -> None:
    made = Forward("GET", "/", "a", ((b"Host", b"a"), (b"Accept", b"x"), TEXT))
    assert made.to_host("b:1").fields == ((b"Host", b"b:1"), (b"Accept", b"x"), TEXT)
    assert made.to_host("b:1").host == "b:1"
