"""HTTP/2 messages that are not what they declare: an error of their stream alone, and never whole for a service."""

import threading
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import Frame

from mitmgate.core.reason import Reason
from tests.live.harness import Host
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE, Raw, Recorded, Reply
from tests.protocol.raw_http2 import RawHttp2, request_fields
from tests.protocol.tls_gateway import TlsGateway

LENGTH = b"content-length"
SMUGGLED = b"GET /streamed/smuggled HTTP/1.1\r\nHost: gateway.test\r\nX-User-ID: root\r\nX-User-Role: admin\r\n\r\n"
"""What a client wants a service to take for a request of its own: the body of the next one."""
WHOLE = b"%d" % len(SMUGGLED)
REFUSED_STREAM = 7
PROTOCOL_ERROR = 1


@pytest.fixture(params=["serve", "web"], scope="module", autouse=True)
def host(request: pytest.FixtureRequest) -> Host:
    """Run in both hosts, as processes: with TLS in one of them, by prior knowledge in the other."""
    name: Host = request.param
    return name


@pytest.fixture(scope="module")
def front(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsGateway]:
    """Run a gateway before a recording upstream and a stock Node server."""
    with TlsGateway(tmp_path_factory.mktemp(f"messages-{host}"), host, tls=host == "serve", node=True) as running:
        yield running


Send = Callable[[RawHttp2, str], int]
"""Sends a request to a path, and returns its stream."""


def frames(
    *parts: bytes | tuple[bytes, int] | list[tuple[bytes, bytes]],
    length: bytes | None = None,
    method: str = "POST",
    more: tuple[tuple[bytes, bytes], ...] = (),
    end: bool = True,
) -> Send:
    """Make a request of a head and parts: DATA, DATA with padding, trailers; the last of all ends the stream."""

    def send(client: RawHttp2, path: str) -> int:
        number = client.stream()
        declared = () if length is None else ((LENGTH, length),)
        fields = request_fields(method, path, *declared, *more)
        made: list[Frame] = [client.head(number, fields, end=end and not parts)]
        for at, part in enumerate(parts, 1):
            last = end and at == len(parts)
            if isinstance(part, list):
                made.append(client.head(number, part, end=last))
            elif isinstance(part, tuple):
                made.append(client.data(number, part[0], padding=part[1], end=last))
            else:
                made.append(client.data(number, part, end=last))
        client.send(*made)
        return number

    return send


def pieces(*parts: bytes, length: bytes, end: bool = True) -> Send:
    """Make a request whose frames come one after the other, each looked at before the next is sent."""

    def send(client: RawHttp2, path: str) -> int:
        number = client.stream()
        client.send(client.head(number, request_fields("POST", path, (LENGTH, length))))
        for at, part in enumerate(parts, 1):
            client.ping()
            client.send(client.data(number, part, end=end and at == len(parts)))
        return number

    return send


TRAILER = [(b"x-trailer", b"y")]
MISMATCH: dict[str, Send] = {
    "end-stream-on-the-head": frames(length=WHOLE),
    "end-stream-on-the-head-of-a-get": frames(length=WHOLE, method="GET"),
    "end-stream-on-the-head-of-a-head": frames(length=b"1", method="HEAD"),
    "empty-data": frames(b"", length=WHOLE),
    "too-little": frames(b"x" * 20, length=WHOLE),
    "too-little-in-pieces": pieces(b"x" * 20, b"x" * 20, length=WHOLE),
    "too-little-by-one": frames(b"x" * (len(SMUGGLED) - 1), length=WHOLE),
    "too-little-and-trailers": frames(b"x" * 20, TRAILER, length=WHOLE),
    "nothing-and-trailers": frames(TRAILER, length=WHOLE),
    "too-little-and-padding": frames((b"x" * 20, len(SMUGGLED) - 20), length=WHOLE),
    "nothing-but-padding": frames((b"", len(SMUGGLED)), length=WHOLE),
    "too-much": frames(b"x" * 10 + SMUGGLED, length=b"10"),
    "too-much-in-the-next-frame": frames(b"x" * 10, SMUGGLED, length=b"10"),
    "too-much-in-pieces": pieces(b"x" * 10, SMUGGLED, length=b"10"),
    "too-much-and-no-end": pieces(b"x" * 10, SMUGGLED, length=b"10", end=False),
    "too-much-by-one-and-trailers": frames(b"x" * 11, TRAILER, length=b"10"),
    "something-for-nothing": frames(SMUGGLED, length=b"0"),
    "something-for-nothing-of-a-get": frames(SMUGGLED, length=b"0", method="GET"),
}
AMBIGUOUS: dict[str, Send] = {
    "twice": frames(b"x" * 5, length=b"5", more=((LENGTH, b"5"),)),
    "two-lengths": frames(b"x" * 5, length=b"5", more=((LENGTH, b"6"),)),
    **{
        f"length-{value!r}": frames(b"x" * 5, length=value)
        for value in (b"+5", b"-5", b"5,5", b"5, 5", b"0x5", b"05", b"5.0", b"", b"9" * 20, "\u0665".encode())
    },
}
TRAILERS: dict[str, Send] = {
    **{
        f"trailer-{name!r}-{value!r}": frames(b"x" * 5, [(b"x-a", b"b"), (name, value)])
        for name, value in (
            (b":path", b"/admin"),
            (b":method", b"GET"),
            (b":status", b"100"),
            (b"x-b", b"c\r\nX-User-ID: root"),
            (b"x-b", b"c\nd"),
            (b"x-b", b"\0"),
            (b"x-b", b" c"),
            (b"x b", b"c"),
            (b"X-B", b"c"),
            (b"x-b:", b"c"),
            (b"transfer-encoding", b"chunked"),
            (b"connection", b"close"),
            (LENGTH, b"5"),
        )
    },
    "trailers-of-a-status": frames(b"x" * 5, [(b":status", b"103")]),
    "trailers-that-do-not-end": frames(b"x" * 5, TRAILER, end=False),
    "trailers-that-go-on": frames(b"x" * 5, TRAILER, TRAILER, SMUGGLED, TRAILER),
    "trailers-at-once-that-do-not-end": frames(TRAILER, end=False),
    "trailers-too-many": frames(b"x" * 5, TRAILER * 101),
}
AT_THE_HEAD = {Reason.LENGTH_MISMATCH: 3, Reason.FRAMING_AMBIGUOUS: 11, Reason.BODY_MALFORMED: 0}
CASES = {
    Reason.LENGTH_MISMATCH: MISMATCH,
    Reason.FRAMING_AMBIGUOUS: AMBIGUOUS,
    Reason.BODY_MALFORMED: TRAILERS,
}


@pytest.mark.parametrize("route", ["held", "streamed"])
@pytest.mark.parametrize("reason", CASES, ids=lambda reason: reason.code)
def test_a_malformed_message_is_an_error_of_its_stream_alone(front: TlsGateway, route: str, reason: Reason) -> None:
    upstream = front.upstream
    before = front.mark()
    go_on = threading.Event()

    def answer(request: Recorded) -> Reply | Raw:
        return Reply(until=go_on if request.target.endswith("/beside") else None)

    upstream.reply = answer
    for name, send in CASES[reason].items():
        go_on.clear()
        with front.connect() as client:
            beside = client.request(request_fields("GET", f"/{route}/beside"))
            number = send(client, f"/{route}/malformed")
            client.until(lambda: client.streams[number].over, name)  # noqa: B023 - called at once
            stream = client.streams[number]
            assert (stream.status in {0, 400}) and (stream.reset in {None, PROTOCOL_ERROR}), (name, stream)
            assert not client.streams[beside].over, name
            go_on.set()
            assert client.response(beside).status == 200, name
            # What the service sees next on any connection begins with a request of the gateway's, not the client's.
            after = client.request(request_fields("POST", f"/{route}/after"), SMUGGLED)
            assert client.response(after).status == 200, name
            assert client.goaway is None, name
    count = len(CASES[reason])
    wait_for(lambda: len(front.events()) >= before + 3 * count, "all events")
    events = front.events()[before:]
    assert len(events) == 3 * count
    refused = [event for event in events if event["status"] == 400]
    # Of a head that libnghttp2 refuses nothing but that is known: neither the path nor which rule it broke.
    at_the_head = [event for event in refused if event["reason"] == Reason.HEAD_MALFORMED.code]
    assert all(event["path"] == "-" for event in at_the_head)
    assert len(at_the_head) == AT_THE_HEAD[reason]
    told = [event for event in refused if event not in at_the_head]
    assert {event["path"] for event in told} <= {f"/{route}/malformed"}
    assert {event["reason"] for event in told} <= {reason.code}
    assert len(refused) == count
    assert all(event.get("bytes_in", 0) < 2 * len(SMUGGLED) for event in refused)  # never what was only declared
    upstream.settle()
    assert {request.target for request in upstream.requests} == {f"/{route}/after", f"/{route}/beside"}
    bodies = [request.body for request in upstream.requests if request.target.endswith("after")]
    assert bodies == [SMUGGLED] * count


def test_a_body_that_has_its_length_is_not_whole_before_its_end(front: TlsGateway) -> None:
    front.upstream.forget()
    with front.connect() as client:
        number = client.stream()
        fields = request_fields("POST", "/streamed/whole", (LENGTH, b"10"))
        client.send(client.head(number, fields), client.data(number, b"01234"), client.data(number, b"56789"))
        wait_for(lambda: front.upstream.raw.endswith(b"01234"), "the first half of the body")
        client.ping()
        front.upstream.settle()
        assert front.upstream.requests == []
        client.send(client.data(number, b"", end=True))
        assert client.response(number).status == 200
    assert front.upstream.last().body == b"0123456789"


def test_bytes_that_were_streamed_are_broken_off_and_their_connection_is_closed(front: TlsGateway) -> None:
    front.upstream.forget()
    with front.connect() as client:
        number = client.stream()
        client.send(client.head(number, request_fields("POST", "/streamed/half", (LENGTH, WHOLE))))
        client.send(client.data(number, b"x" * 20))
        wait_for(lambda: front.upstream.raw.endswith(b"x" * 20), "the beginning of the body")
        client.send(client.head(number, TRAILER, end=True))
        client.until(lambda: client.streams[number].over, "the reset")
        assert client.streams[number].reset == PROTOCOL_ERROR
        wait_for(lambda: not front.upstream._transports, "the upstream connection to be closed")
        assert client.response(client.request(request_fields("POST", "/streamed/next"), SMUGGLED)).status == 200
    assert [(seen.target, seen.body) for seen in front.upstream.requests] == [("/streamed/next", SMUGGLED)]


def test_a_response_that_has_begun_is_broken_off(front: TlsGateway) -> None:
    front.upstream.forget()
    begun = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun", close=False)
    front.upstream.reply = lambda _: begun
    with front.connect() as client:
        number = client.stream()
        client.send(client.head(number, request_fields("POST", "/streamed/both"), end=False), client.data(number, b"x"))
        wait_for(lambda: front.upstream.raw.endswith(b"1\r\nx\r\n"), "the beginning of the body")
        # an early answer: the upstream has not waited for the end of the request
        for transport in list(front.upstream._transports):
            front.upstream._loop.call_soon_threadsafe(transport.write, begun.data)
        client.until(lambda: client.streams[number].body == b"begun", "the beginning of the response")
        client.send(client.head(number, [(b":path", b"/")], end=True))
        client.until(lambda: client.streams[number].over, "the end of the stream")
        assert client.streams[number].reset == PROTOCOL_ERROR
        front.upstream.reply = Reply()
        assert client.response(client.request(request_fields("GET", "/streamed/later"))).status == 200


GOOD: dict[str, tuple[Send, bytes, str | None]] = {
    "a-length": (frames(b"01234", b"56789", length=b"10"), b"0123456789", "10"),
    "a-length-then-an-empty-frame": (frames(b"0123456789", b"", length=b"10"), b"0123456789", "10"),
    "a-length-and-trailers": (frames(b"0123456789", TRAILER, length=b"10"), b"0123456789", "10"),
    "a-length-and-padding": (frames((b"01234", 200), (b"56789", 0), length=b"10"), b"0123456789", "10"),
    "a-get-with-a-body": (frames(b"0123456789", length=b"10", method="GET"), b"0123456789", "10"),
    "a-head-with-a-body": (frames(b"0123456789", length=b"10", method="HEAD"), b"0123456789", "10"),
    "a-length-of-nothing": (frames(length=b"0"), b"", "0"),
    "a-length-of-nothing-and-an-empty-frame": (frames(b"", length=b"0"), b"", "0"),
    "no-length": (frames(b"01234", b"56789"), b"0123456789", None),
    "no-length-and-trailers": (frames(b"0123456789", TRAILER), b"0123456789", None),
}


@pytest.mark.parametrize("route", ["held", "streamed"])
@pytest.mark.parametrize("name", GOOD)
def test_a_message_that_is_what_it_declares_arrives_whole(front: TlsGateway, route: str, name: str) -> None:
    send, body, length = GOOD[name]
    front.upstream.forget()
    with front.connect() as client:
        assert client.response(send(client, f"/{route}/good")).status == 200
    front.upstream.assert_saw_only(1)
    seen = front.upstream.last()
    assert seen.body == body
    if length is not None:
        assert seen.one("content-length") == length
    assert seen.all("x-trailer") == []


def test_frames_after_the_end_of_a_request_end_the_connection(front: TlsGateway) -> None:
    """RFC 9113, section 5.4.2: an endpoint may take a stream's error for the connection's, as libnghttp2 does here."""
    before = front.mark()
    go_on = threading.Event()
    front.upstream.reply = Reply(until=go_on)
    with front.connect() as client:
        number = client.request(request_fields("POST", "/held/ended"), b"x")
        wait_for(lambda: len(front.upstream.requests) == 1, "the request")
        client.send(client.data(number, SMUGGLED))
        client.until(lambda: client.goaway is not None, "the goodbye")
        go_on.set()
    assert front.event(lambda e: e.get("path") == "/held/ended", after=before)["reason"] == Reason.CLIENT_CLOSED.code
    front.upstream.settle()
    assert [request.body for request in front.upstream.requests] == [b"x"]


def test_pseudo_headers_of_a_response_are_an_error_of_the_stream(front: TlsGateway) -> None:
    before = front.mark()
    with front.connect() as client:
        fields = [*request_fields("GET", "/held/x")[:4], (b":status", b"100")]
        number = client.request(fields)
        client.until(lambda: client.streams[number].over, "the reset")
        assert client.streams[number].reset == PROTOCOL_ERROR
        assert client.response(client.request(request_fields("GET", "/held/x"))).status == 200
    assert front.event(lambda e: e["status"] == 400, after=before)["reason"] == Reason.HEAD_MALFORMED.code
    front.upstream.assert_saw_only(1)


def test_a_hundred_crumbs_are_one_cookie(front: TlsGateway) -> None:
    front.upstream.forget()
    crumbs = [b"c%d=%d" % (number, number) for number in range(100)]
    with front.connect() as client:
        fields = request_fields("GET", "/held/cookies", *[(b"cookie", crumb) for crumb in crumbs], (b"x-last", b"1"))
        assert client.response(client.request(fields)).status == 200
        whole = request_fields("GET", "/held/cookies", *[(b"cookie", b"x" * 300) for _ in range(100)])
        assert client.response(client.request(whole)).status == 200  # 30 KiB: within the head, as one field would be
        more = request_fields("GET", "/held/cookies", *[(b"cookie", b"x" * 340) for _ in range(100)])
        assert client.response(client.request(more)).status == 431
    first, second = front.upstream.requests
    assert first.one("cookie") == b"; ".join(crumbs).decode()
    assert first.one("x-last") == "1"
    assert len(second.one("cookie") or "") == 100 * 302 - 2


def test_one_request_too_many_is_refused_alone(front: TlsGateway) -> None:
    before = front.mark()
    go_on = threading.Event()
    front.upstream.reply = Reply(until=go_on)
    with front.connect() as client:
        numbers = [client.stream() for _ in range(66)]
        client.send(*[client.head(n, request_fields("GET", f"/held/{n}"), end=True) for n in numbers])
        client.until(lambda: client.streams[numbers[-1]].over, "the refusal")
        assert [client.streams[number].reset for number in numbers[-2:]] == [REFUSED_STREAM] * 2
        wait_for(lambda: len(front.upstream.requests) == 64, "the others to arrive")
        go_on.set()
        assert {client.response(number).status for number in numbers[:-2]} == {200}
        assert client.response(client.request(request_fields("GET", "/held/again"))).status == 200
    wait_for(lambda: len(front.events()) >= before + 67, "all to be on record", PATIENCE)
    reasons = [event["reason"] for event in front.events()[before:]]
    assert sorted(reasons) == [Reason.CONNECTIONS_EXHAUSTED.code] * 2 + ["ok"] * 65


def test_what_node_logs_is_what_the_audit_says_was_admitted(front: TlsGateway) -> None:
    assert front.node is not None
    before, logged = front.mark(), len(front.node.log())
    sent = 0
    hostile = [send for cases in CASES.values() for send in cases.values()]
    for route in ("/node/held", "/node/streamed"):
        for send in hostile:
            with front.connect() as client:
                client.response(send(client, f"{route}/bad"))
                client.response(client.request(request_fields("POST", f"{route}/next", (LENGTH, WHOLE)), SMUGGLED))
                client.response(client.request(request_fields("GET", f"{route}/last")))
            sent += 3
        for good, _, _ in GOOD.values():
            with front.connect() as client:
                assert client.response(good(client, f"{route}/good")).status == 200
            sent += 1
    wait_for(lambda: len(front.events()) >= before + sent, "all events")
    events = front.events()[before:]
    assert len(events) == sent
    admitted = {e["request_id"]: (e["method"], e["path"], e["bytes_in"]) for e in events if e["outcome"] == "proxied"}
    log = front.node.log()[logged:]
    assert {line["error"] for line in log if "error" in line} <= {"HPE_INVALID_EOF_STATE"}  # a body broken off
    whole = {
        line["fields"]["x-request-id"]: (line["method"], line["target"], line["length"])
        for line in log
        if line.get("complete")
    }
    assert whole == admitted
    assert len(whole) == 2 * (2 * len(hostile) + len(GOOD))
    broken = {line["target"].rsplit("/", 1)[1] for line in log if line.get("complete") is False}
    assert broken == {"bad"}
