"""Bodies: lengths and chunks in any cut, and what a chunked body may not be."""

from itertools import pairwise

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.http1 import END, Bounds, RequestHead, RequestReader, chunk, request_head, response_head
from mitmgate.core.http1.body import MAX_CHUNK_LINE, MAX_EXTENSIONS, MAX_TRAILERS, ChunkedBody, LengthBody
from mitmgate.core.http1.writer import end_to_end
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal


def decode(data: bytes, cuts: list[int] | None = None) -> tuple[bytes, ChunkedBody] | Refusal:
    body = ChunkedBody(Reason.BODY_MALFORMED)
    got = b""
    edges = [0, *sorted(cuts or []), len(data)]
    for start, end in pairwise(edges):
        if start == end:
            continue
        part = body.feed(data[start:end]) if not body.complete else b""
        if isinstance(part, Refusal):
            return part
        got += part
    return got, body


@pytest.mark.parametrize(
    ("data", "decoded", "leftover"),
    [
        (b"0\r\n\r\n", b"", b""),
        (b"3\r\nabc\r\n0\r\n\r\nGET", b"abc", b"GET"),
        (b"003\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789", b""),
        (b'1;a;b=c;d="e \\" f"\r\nx\r\n0;z\r\n\r\n', b"x", b""),
        (b"1\r\nx\r\n0\r\nTrailer-A: b\r\nX: y\r\n\r\nrest", b"x", b"rest"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", b""),
    ],
)
def test_chunked(data: bytes, decoded: bytes, leftover: bytes) -> None:
    whole = decode(data)
    assert not isinstance(whole, Refusal)
    assert (whole[0], whole[1].complete, whole[1].leftover) == (decoded, True, leftover)
    single = decode(data, list(range(1, len(data) - len(leftover) + 1)))
    assert not isinstance(single, Refusal)
    assert (single[0], single[1].complete) == (decoded, True)


REFUSED = {
    "bare-lf-after-size": b"3\nabc\r\n0\r\n\r\n",
    "bare-cr-after-size": b"3\rabc\r\n0\r\n\r\n",
    "bare-lf-after-data": b"3\r\nabc\n0\r\n\r\n",
    "longer-than-size": b"3\r\nabcd\r\n0\r\n\r\n",
    "two-other-octets-after-data": b"3\r\nabcXX0\r\n\r\n",
    "one-other-octet-after-data": b"3\r\nabc\rX0\r\n\r\n",
    "lf-cr-after-data": b"3\r\nabc\n\r0\r\n\r\n",
    "trailer-bare-cr": b"0\r\nA: b\rc\r\n\r\n",
    "trailer-ends-with-two-cr": b"0\r\nA: b\r\r\n\r\n",
    "no-size": b"\r\nabc\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "space-before": b" 3\r\nabc\r\n0\r\n\r\n",
    "space-after": b"3 \r\nabc\r\n0\r\n\r\n",
    "underscore": b"1_0\r\n",
    "too-many-digits": b"0" * 15 + b"3\r\nabc\r\n0\r\n\r\n",
    "overflow": b"FFFFFFFFFFFFFFFFF\r\n",
    "extension-with-lf": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "extension-not-a-token": b"3;a=b c\r\nabc\r\n0\r\n\r\n",
    "extension-with-control": b"3;a=\x01\r\nabc\r\n0\r\n\r\n",
    "extension-open-quote": b'3;a="b\r\nabc\r\n0\r\n\r\n',
    "extension-too-long": b"3;a=" + b"b" * 2000,
    "extensions-too-many": (b"1;a=" + b"b" * 1000 + b"\r\nx\r\n") * (MAX_EXTENSIONS // 1000 + 1),
    "trailer-folded": b"0\r\nA: b\r\n c\r\n\r\n",
    "trailer-bare-lf": b"0\r\nA: b\n\r\n\r\n",
    "trailer-no-colon": b"0\r\nabc\r\n\r\n",
    "trailer-with-nul": b"0\r\nA: \0\r\n\r\n",
    "trailers-too-large": b"0\r\nA: " + b"b" * 10000,
    "end-with-lf": b"0\r\n\n",
    "garbage": b"zz\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("step", [0, 1])
def test_malformed_chunks_are_refused(name: str, step: int) -> None:
    data = REFUSED[name]
    found = decode(data, list(range(1, len(data))) if step else None)
    assert isinstance(found, Refusal)
    assert found.reason is Reason.BODY_MALFORMED


@pytest.mark.parametrize(
    "data", [b"3\n", b"3\rx", b"z", b"3\r\nabcX", b"3\r\nabc\rX", b"0\r\nA: b\rc", b"0\r\nA: b\n", b"0\r\nA: \0"]
)
def test_what_can_not_become_a_body_any_more_is_not_waited_for(data: bytes) -> None:
    for cuts in (None, list(range(1, len(data)))):
        assert isinstance(decode(data, cuts), Refusal)


@pytest.mark.parametrize(
    "data", [b"3", b"3;a", b"3\r", b"3\r\nabc\r", b"0\r\nA: b\r", b"0\r\nA: b\r\n", b"0\r\nA: b\r\n\r"]
)
def test_what_may_yet_become_one_is(data: bytes) -> None:
    for cuts in (None, list(range(1, len(data)))):
        found = decode(data, cuts)
        assert not isinstance(found, Refusal)
        assert not found[1].complete


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("step", [0, 1])
def test_lines_extensions_and_trailers_are_as_long_as_they_may_be(more: int, step: int) -> None:
    line = b"1;" + b"a" * (MAX_CHUNK_LINE - 2 + more) + b"\r\nx\r\n0\r\n\r\n"
    extension = b"1;" + b"a" * (MAX_EXTENSIONS // 32 - 1) + b"\r\nx\r\n"
    extensions = extension * 32 + (b"1;a" if more else b"1") + b"\r\nx\r\n0\r\n\r\n"
    room = 3 * step  # while they come, what ends them counts as well
    trailers = b"0\r\nA: " + b"b" * (MAX_TRAILERS - 3 - room * (not more) + more) + b"\r\n\r\n"
    for data in (line, extensions, trailers):
        found = decode(data, list(range(1, len(data))) if step else None)
        assert isinstance(found, Refusal) is bool(more)
        assert isinstance(found, Refusal) or found[1].complete


def test_length() -> None:
    body = LengthBody(3)
    assert body.feed(b"ab") == b"ab"
    assert not body.complete
    assert body.feed(b"cde") == b"c"
    assert body.complete
    assert body.leftover == b"de"


bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(bodies, st.lists(st.integers(0, 200), max_size=8))
def test_chunks_survive_every_cut(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(chunk(part) for part in parts) + b"0\r\n\r\n"
    found = decode(data, [cut for cut in cuts if cut < len(data)])
    assert not isinstance(found, Refusal)
    assert found[0] == b"".join(parts)
    assert found[1].complete


hostile = st.lists(
    st.one_of(
        st.binary(max_size=6),
        st.sampled_from(
            [
                b"GET ",
                b"POST ",
                b"/",
                b"/a",
                b" HTTP/1.1",
                b" HTTP/1.0",
                b"\r\n",
                b"\r\n\r\n",
                b"\n",
                b"\r",
                b" ",
                b"\t",
                b"Host: x\r\n",
                b"Content-Length: 3\r\n",
                b"Content-Length: 0\r\n",
                b"Transfer-Encoding: chunked\r\n",
                b"Transfer-Encoding : chunked\r\n",
                b"3\r\nabc\r\n",
                b"0\r\n",
                b"0\r\n\r\n",
                b"abc",
                b"Expect: 100-continue\r\n",
                b"GET / HTTP/1.1\r\nHost: x\r\n",
                b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"\0",
            ]
        ),
    ),
    max_size=14,
).map(b"".join)


def every(data: bytes, cuts: list[int]) -> list[object]:
    """Read all requests in data, cut as told."""
    reader = RequestReader(Bounds())
    found: list[object] = []
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in pairwise(edges):
        if start == end:
            continue
        taken = reader.feed(data[start:end])
        while taken:
            found += taken
            taken = reader.next() if taken[-1] is END else []
    return found


def joined(events: list[object]) -> list[object]:
    """Join body bytes that follow one another."""
    out: list[object] = []
    for event in events:
        if isinstance(event, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += event
        elif isinstance(event, RequestHead):
            out.append((event.method, event.target, event.version, event.headers.fields, event.body))
        elif isinstance(event, Refusal):
            out.append(Refusal)
        else:
            out.append(event)
    return out


@given(hostile, st.lists(st.integers(0, 300), max_size=6))
def test_what_is_read_does_not_depend_on_the_cut(data: bytes, cuts: list[int]) -> None:
    whole, pieces = joined(every(data, [])), joined(every(data, cuts))
    refused_early = pieces and pieces[-1] is Refusal
    assert pieces == whole or (refused_early and [p for p in pieces if p is not Refusal] == whole[: len(pieces) - 1])


@given(hostile)
def test_what_is_accepted_is_what_h11_reads(data: bytes) -> None:
    """An independent reader finds the same requests in what is accepted: never two for one."""
    ours = joined(every(data, []))
    theirs = h11.Connection(h11.SERVER)
    theirs.receive_data(data.removeprefix(b"\r\n"))
    for event in ours:
        if event is Refusal:
            return
        if isinstance(event, tuple):
            try:
                other = theirs.next_event()
            except h11.RemoteProtocolError:
                return  # h11 wants Host in every HTTP/1.1 request; that is Hygiene's part here
            if not isinstance(other, h11.Request):
                return
            assert (other.method, other.target) == event[:2]
        elif isinstance(event, bytes):
            got = b""
            while isinstance(other := theirs.next_event(), h11.Data):
                got += bytes(other.data)
            assert got == event
            if other is not h11.NEED_DATA:
                assert isinstance(other, h11.EndOfMessage)
            return
        else:
            return


@given(
    st.binary(min_size=1, max_size=12),
    st.binary(max_size=12),
    st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=4),
)
def test_what_is_written_is_one_head_or_nothing(
    method: bytes, target: bytes, fields: list[tuple[bytes, bytes]]
) -> None:
    raw = request_head(method, target, tuple(fields))
    if raw is not None:
        assert raw.count(b"\r\n") == len(fields) + 2
        assert raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r")
        assert raw.endswith(b"\r\n\r\n")
        assert raw.split(b"\r\n")[0].split(b" ") == [method, target, b"HTTP/1.1"]


def test_writer_refuses_what_would_break_out() -> None:
    assert response_head(200, ((b"A", b"b\r\nC: d"),)) is None
    assert response_head(200, ((b"A\n", b"b"),)) is None
    assert request_head(b"GET", b"/ HTTP/1.1\r\nX: y", ()) is None
    assert request_head(b"GET", b"/a b", ()) is None


def test_hop_by_hop_fields_are_not_passed_on() -> None:
    fields = ((b"A", b"1"), (b"Connection", b"X-Hop, close"), (b"x-hop", b"2"), (b"TE", b"trailers"))
    assert end_to_end(fields) == ((b"A", b"1"),)
    plain = ((b"A", b"1"),)
    assert end_to_end(plain) is plain
