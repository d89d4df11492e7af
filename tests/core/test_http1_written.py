"""What is written and passed on, against its plainest definition: every octet checked, every name in every spelling."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitmgate.core.headers import Fields
from mitmgate.core.http1 import names
from mitmgate.core.http1.framing import frame_request, frame_response, received_fields
from mitmgate.core.http1.head import TARGET, TEXT, TOKEN
from mitmgate.core.http1.names import LOWER
from mitmgate.core.http1.writer import HOP_BY_HOP, PHRASES, end_to_end, request_head, response_head

OTHERS = [b"Content-Type", b"X-Own", b"x-own", b"X-Other", b"Date", b""]
SPELT = st.sampled_from([*sorted(HOP_BY_HOP), *OTHERS]).flatmap(
    lambda name: st.sampled_from([name, name.lower(), name.upper(), name.title(), name.swapcase()])
)
VALUE = st.sampled_from([b"1", b"close", b"X-OWN", b" x-own ,keep-alive,", b"content-type", b"content-length"])
FIELDS = st.lists(st.tuples(SPELT, VALUE), max_size=6).map(tuple)


def plainly(fields: Fields) -> Fields:
    """Drop hop-by-hop fields and those that Connection names, in the plainest way."""
    gone = {
        token.strip().lower() for name, value in fields if name.lower() == b"connection" for token in value.split(b",")
    }
    return tuple(field for field in fields if field[0].lower() not in HOP_BY_HOP | gone)


def lengths(fields: Fields) -> Fields:
    return tuple(field for field in fields if field[0].lower() == b"content-length")


@given(FIELDS)
def test_what_is_for_the_other_end(fields: Fields) -> None:
    kept = plainly(fields)
    assert end_to_end(fields) == kept
    assert received_fields(200, fields) == kept + lengths(fields)
    assert received_fields(204, fields) == kept
    assert frame_request(b"GET", fields, 0) == kept
    assert frame_request(b"GET", fields, None) == (*kept, (b"Transfer-Encoding", b"chunked"))
    assert frame_response(200, fields, 7, b"GET", "HTTP/1.1").fields == (*kept, (b"Content-Length", b"7"))
    assert frame_response(200, fields, None, b"GET", "HTTP/1.0").fields == kept
    assert frame_response(304, fields, 7, b"GET", "HTTP/1.1").fields == kept + lengths(fields)[:1]
    assert frame_response(204, fields, 7, b"HEAD", "HTTP/1.1").fields == kept


def written(first: bytes, fields: Fields) -> bytes | None:
    """Write a head where no part holds what ends a line or is no text."""
    parts = [first, *(part for field in fields for part in field)]
    if any(octet not in TEXT or octet in b"\r\n" for part in parts for octet in part):
        return None
    return first + b"\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in fields) + b"\r\n"


PARTS = st.one_of(st.binary(max_size=6), st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\0", b"\x7f", b"\xff", b"\t"]))


@given(st.binary(max_size=5), st.binary(max_size=5), st.lists(st.tuples(PARTS, PARTS), max_size=3).map(tuple))
@example(b"GET", b"/", ((b"A", b"b"), (b"C", b"d\r\nE: f")))
def test_a_head_is_written_where_every_octet_may_be_there(method: bytes, target: bytes, fields: Fields) -> None:
    sound = TOKEN.fullmatch(method) and target and all(octet in TARGET for octet in target)
    assert request_head(method, target, fields) == (
        written(method + b" " + target + b" HTTP/1.1", fields) if sound else None
    )
    for status in (200, 204, 299, 404):
        first = b"HTTP/1.1 %d %b" % (status, PHRASES.get(status, b""))
        assert response_head(status, fields) == written(first, fields)


@pytest.mark.parametrize("octet", range(256))
def test_each_octet_alone_in_each_place(octet: int) -> None:
    one, text = bytes([octet]), octet in TEXT and octet not in b"\r\n"
    assert (response_head(200, ((b"a" + one, b"b"),)) is not None) is text
    assert (response_head(200, ((b"a", one + b"b"),)) is not None) is text
    assert (request_head(b"GET", b"/" + one, ()) is not None) is (octet in TARGET)
    assert (request_head(b"GET" + one, b"/", ()) is not None) is (TOKEN.fullmatch(one) is not None)


@given(st.binary(max_size=80))
def test_a_name_that_is_looked_up_is_in_lower_case(name: bytes) -> None:
    assert LOWER[name] == LOWER[bytes(name)] == name.lower()


def test_made_up_names_take_no_room_without_bound() -> None:
    lowered = names._Lowered({b"Host": b"host"})
    for number in range(10_000):
        assert lowered[b"X-%d" % number] == b"x-%d" % number
    assert len(lowered) == 4096
    fresh = names._Lowered()
    assert fresh[b"X" * 65] == b"x" * 65
    assert not fresh
    assert (lowered[b"Host"], lowered[b"HOST"]) == (b"host", b"host")
