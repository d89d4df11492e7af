"""HTTP/2 requests: what may become HTTP/1.1, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.http1 import Bounds, Refusal, request_head
from mitmgate.core.http2 import Http2Request, read_request
from mitmgate.core.reason import Reason

BOUNDS = Bounds()
PSEUDO = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"x"), (b":path", b"/p?q")]


def read(fields: list[tuple[bytes, bytes]], *, ended: bool = True) -> Http2Request | Refusal:
    return read_request(fields, b"https", ended, BOUNDS)


def test_request() -> None:
    cookies = [(b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")]
    found = read([*PSEUDO, *cookies])
    assert isinstance(found, Http2Request)
    assert (found.method, found.authority, found.path, found.length) == (b"GET", b"x", b"/p?q", 0)
    assert found.fields == ((b"x", b"y"), (b"cookie", b"a=1; b=2"))


def test_length() -> None:
    for fields, ended, length in [
        ([], False, None),
        ([(b"content-length", b"5")], False, 5),
        ([(b"content-length", b"0")], True, 0),
    ]:
        found = read([*PSEUDO, *fields], ended=ended)
        assert isinstance(found, Http2Request)
        assert found.length == length


def replaced(name: bytes, *values: bytes) -> list[tuple[bytes, bytes]]:
    return [field for field in PSEUDO if field[0] != name] + [(name, value) for value in values]


REFUSED = {
    "no-method": (replaced(b":method"), Reason.HEAD_MALFORMED),
    "method-with-space": (replaced(b":method", b"GET /x HTTP/1.1"), Reason.HEAD_MALFORMED),
    "no-path": (replaced(b":path"), Reason.TARGET_INVALID),
    "empty-path": (replaced(b":path", b""), Reason.TARGET_INVALID),
    "path-with-space": (replaced(b":path", b"/ HTTP/1.1\r\nX: y"), Reason.TARGET_INVALID),
    "path-with-lf": (replaced(b":path", b"/\n"), Reason.TARGET_INVALID),
    "path-fragment": (replaced(b":path", b"/#a"), Reason.TARGET_INVALID),
    "path-not-ascii": (replaced(b":path", b"/\xe9"), Reason.TARGET_INVALID),
    "path-too-long": (replaced(b":path", b"/" + b"a" * 8192), Reason.TARGET_TOO_LONG),
    "no-scheme": (replaced(b":scheme"), Reason.TARGET_INVALID),
    "other-scheme": (replaced(b":scheme", b"http"), Reason.TARGET_INVALID),
    "authority-with-space": (replaced(b":authority", b"x y"), Reason.TARGET_INVALID),
    "connect": ([(b":method", b"CONNECT"), (b":authority", b"x:443")], Reason.METHOD_INVALID),
    "extended-connect": (
        [*replaced(b":method", b"CONNECT"), (b":protocol", b"websocket")],
        Reason.METHOD_INVALID,
    ),
    "pseudo-unknown": ([*PSEUDO, (b":protocol", b"websocket")], Reason.HEAD_MALFORMED),
    "pseudo-of-responses": ([*PSEUDO, (b":status", b"200")], Reason.HEAD_MALFORMED),
    "pseudo-twice": ([*PSEUDO, (b":path", b"/x")], Reason.HEAD_MALFORMED),
    "pseudo-late": ([PSEUDO[0], (b"x", b"y"), *PSEUDO[1:]], Reason.HEAD_MALFORMED),
    "upper-case": ([*PSEUDO, (b"X-A", b"y")], Reason.HEAD_MALFORMED),
    "name-with-space": ([*PSEUDO, (b"x y", b"z")], Reason.HEAD_MALFORMED),
    "name-with-colon": ([*PSEUDO, (b"x:y", b"z")], Reason.HEAD_MALFORMED),
    "name-empty": ([*PSEUDO, (b"", b"z")], Reason.HEAD_MALFORMED),
    "name-with-crlf": ([*PSEUDO, (b"x\r\ny", b"z")], Reason.HEAD_MALFORMED),
    "value-with-cr": ([*PSEUDO, (b"x", b"y\rz")], Reason.HEAD_MALFORMED),
    "value-with-lf": ([*PSEUDO, (b"x", b"y\nz: a")], Reason.HEAD_MALFORMED),
    "value-with-nul": ([*PSEUDO, (b"x", b"y\0")], Reason.HEAD_MALFORMED),
    "value-leading-space": ([*PSEUDO, (b"x", b" y")], Reason.HEAD_MALFORMED),
    "value-trailing-tab": ([*PSEUDO, (b"x", b"y\t")], Reason.HEAD_MALFORMED),
    "connection": ([*PSEUDO, (b"connection", b"close")], Reason.HEAD_MALFORMED),
    "transfer-encoding": ([*PSEUDO, (b"transfer-encoding", b"chunked")], Reason.HEAD_MALFORMED),
    "upgrade": ([*PSEUDO, (b"upgrade", b"websocket")], Reason.HEAD_MALFORMED),
    "te": ([*PSEUDO, (b"te", b"gzip")], Reason.HEAD_MALFORMED),
    "length-twice": ([*PSEUDO, (b"content-length", b"1"), (b"content-length", b"1")], Reason.FRAMING_AMBIGUOUS),
    "length-sign": ([*PSEUDO, (b"content-length", b"+1")], Reason.FRAMING_AMBIGUOUS),
    "expectation": ([*PSEUDO, (b"expect", b"x")], Reason.EXPECTATION_REFUSED),
    "too-large": ([*PSEUDO, (b"x", b"y" * 40000)], Reason.HEAD_TOO_LARGE),
    "too-many": ([*PSEUDO, *[(b"x", b"y")] * 101], Reason.HEAD_TOO_LARGE),
}


@pytest.mark.parametrize(
    "fields",
    [
        replaced(b":path", b"Bearer word"),
        replaced(b":path", b"word"),
        replaced(b":path", b"/ Authorization: word"),
        replaced(b":path", b"https://me:word@x/ y"),
        [*replaced(b":path", b"/?token=word"), (b"Authorization", b"word")],
        [(b":method", b"CONNECT"), (b":authority", b"me:word@x:443")],
        [(b":method", b"Bearer word"), *PSEUDO[1:]],
    ],
    ids=str,
)
def test_no_credential_is_in_what_is_recorded_of_a_refused_head(fields: list[tuple[bytes, bytes]]) -> None:
    found = read(fields)
    assert isinstance(found, Refusal)
    assert b"word" not in found.method + found.target + b"".join(b"".join(field) for field in found.fields)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    fields, reason = REFUSED[name]
    found = read(fields)
    assert isinstance(found, Refusal)
    assert found.reason is reason


hostile = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [
            b":method",
            b":path",
            b":scheme",
            b":authority",
            b"https",
            b"GET",
            b"/",
            b"x",
            b"cookie",
            b"content-length",
            b"1",
        ]
    ),
)


@given(st.lists(st.tuples(hostile, hostile), max_size=6), st.booleans(), st.booleans())
def test_whatever_is_accepted_is_one_head_of_http_1(
    fields: list[tuple[bytes, bytes]], complete: bool, ended: bool
) -> None:
    found = read(([*PSEUDO] if complete else []) + fields, ended=ended)
    if isinstance(found, Http2Request):
        raw = request_head(found.method, found.path, found.fields)
        assert raw is not None
        assert raw.count(b"\r\n") == len(found.fields) + 2
