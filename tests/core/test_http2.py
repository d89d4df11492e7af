"""HTTP/2 requests: what may become HTTP/1.1, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.http1 import Bounds, request_head
from mitmgate.core.http2 import Http2Request, read_request, trailers_flaw
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

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


@pytest.mark.parametrize(
    ("fields", "ended", "outcome"),
    [
        ([(b"content-length", b"5")], True, Reason.LENGTH_MISMATCH),
        ([(b"content-length", b"00")], True, Reason.FRAMING_AMBIGUOUS),
        ([(b"content-length", b"0")], True, 0),
        ([(b"content-length", b"5")], False, 5),
        ([], False, None),
        ([(b"te", b"trailers")], True, 0),
        ([(b"te", b"trailers, gzip")], True, Reason.HEAD_MALFORMED),
        ([(b"expect", b"100-Continue")], False, None),
        ([(b"expect", b"100-continue"), (b"expect", b"100-continue")], False, Reason.EXPECTATION_REFUSED),
        ([(b"expect", b"miracles")], False, Reason.EXPECTATION_REFUSED),
    ],
)
def test_what_a_head_says_of_its_body(
    fields: list[tuple[bytes, bytes]], ended: bool, outcome: Reason | int | None
) -> None:
    found = read([*PSEUDO, *fields], ended=ended)
    if isinstance(outcome, Reason):
        assert isinstance(found, Refusal)
        assert (found.reason, found.method) == (outcome, b"GET")
        return
    assert isinstance(found, Http2Request)
    assert found.length == outcome
    assert found.expects_continue is any(name == b"expect" for name, _ in fields)


def test_a_head_may_be_as_large_as_it_may() -> None:
    sized = replace(BOUNDS, head=sum(len(name) + len(value) + 32 for name, value in PSEUDO) + 34, fields=2, target=10)
    for fields, reason in (
        ([(b"x", b"y")], None),
        ([(b"x", b"yz")], Reason.HEAD_TOO_LARGE),
        ([(b"", b"")], Reason.HEAD_MALFORMED),
    ):
        found = read_request([*PSEUDO, *fields], b"https", True, sized)
        assert (found.reason if isinstance(found, Refusal) else None) is reason
    for count in (1, 2, 3):
        found = read_request([*PSEUDO, *[(b"x", b"y")] * count], b"https", True, replace(BOUNDS, fields=2))
        assert isinstance(found, Refusal) is (count == 3)
    for length in (9, 10, 11):
        found = read_request(replaced(b":path", b"/" + b"a" * (length - 1)), b"https", True, sized)
        assert (found.reason if isinstance(found, Refusal) else None) is (
            Reason.TARGET_TOO_LONG if length == 11 else None
        )


def test_a_browser_can_read_why_its_request_was_refused() -> None:
    """The origin alone goes with a refusal that keeps no fields: what else was sent may be a credential."""
    origin = (b"origin", b"https://app.example")
    found = read([*PSEUDO, origin, (b"authorization", b"word"), (b"x", b"y\0")])
    assert isinstance(found, Refusal)
    assert found.fields == (origin,)
    found = read([*PSEUDO, origin, (b"x", b"y"), (b"expect", b"x")])
    assert isinstance(found, Refusal)
    assert found.fields == (origin, (b"x", b"y"), (b"expect", b"x"))


def test_what_is_recorded_of_a_refused_head() -> None:
    for fields, method, target in (
        (replaced(b":path", b"/a b"), b"GET", b"/a\\x20b"),
        ([(b":method", b"CONNECT"), (b":authority", b"x:443")], b"CONNECT", b"x:[cut]"),
        ([(b":method", b"CONNECT"), (b":authority", b"x:443"), (b":path", b"/p")], b"CONNECT", b"/p"),
        ([*PSEUDO, (b"X", b"y")], b"GET", b"/p?q"),
        ([(b":method", b"no token"), *PSEUDO[1:], (b"X", b"y")], b"", b"/p?q"),
        ([*PSEUDO, (b"x", b"y" * 40000)], b"GET", b"/p?q"),
    ):
        found = read(fields)
        assert isinstance(found, Refusal)
        assert (found.method, found.target) == (method, target)


@pytest.mark.parametrize(
    ("fields", "flaw"),
    [
        ([(b"x", b"y")], False),
        ([], False),
        ([(b":path", b"/")], True),
        ([(b"content-length", b"0")], True),
        ([(b"X", b"y")], True),
        ([(b"x", b"y\n")], True),
        ([(b"connection", b"close")], True),
        ([(b"transfer-encoding", b"chunked")], True),
        ([(b"x", b"y" * 40000)], True),
        ([(b"x", b"y")] * 101, True),
        ([(b"x", b"y")] * 100, False),
    ],
)
def test_trailers(fields: list[tuple[bytes, bytes]], flaw: bool) -> None:
    assert (trailers_flaw(fields, BOUNDS) is not None) is flaw


def test_trailers_may_be_as_large_as_a_head_may() -> None:
    for value, flaw in ((b"y", False), (b"yz", True)):
        assert (trailers_flaw([(b"x", value)], replace(BOUNDS, head=34)) is not None) is flaw


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
