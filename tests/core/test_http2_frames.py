"""What is counted of a client's HTTP/2 frames: what each costs, what earns, and heads that do not end, in any cut."""

import pytest

from mitmgate.core.http2_frames import BURST, BYTES_A_FRAME, CONTENT, CONTROL, EARNED, PREFACE, RATE, RESET, FrameMeter

DATA, HEADERS, RST, SETTINGS, PING, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x6, 0x9
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8


def frame(kind: int, stream: int = 1, payload: bytes = b"", flags: int = 0) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def fed(meter: FrameMeter, data: bytes, step: int = 1 << 20, now: float = 0.0) -> str:
    for at in range(0, len(data), step):
        said = meter.feed(memoryview(data[at : at + step]), now)
        if said:
            return said
    return ""


@pytest.mark.parametrize("step", [1, 5, 9, 10, 1 << 20])
@pytest.mark.parametrize(
    ("data", "cost"),
    [
        (frame(DATA), 1.0),
        (frame(DATA, flags=END_STREAM), 0.0),
        (frame(DATA, payload=b"x" * CONTENT), 0.0),
        (frame(DATA, payload=b"x" * (2 * CONTENT)), 0.0),
        (frame(DATA, payload=b"x" * CONTENT, flags=PADDED), 1.0),
        (frame(DATA, payload=b"x" * CONTENT, flags=PADDED | END_STREAM), 0.0),
        (frame(PING, 0, b"x" * 8), 1.0 + 8 / CONTROL),
        (frame(SETTINGS, 0, b"x" * 64), 2.0),
        (frame(CONTINUATION, payload=b"x" * 999), 1.0),
        (frame(RST, payload=b"x" * 4), RESET),
        (frame(0x99, 0), 1.0),
        (frame(HEADERS, 2, b"x" * 999, END_HEADERS), 0.0),  # no client opens an even one: nothing earned
    ],
    ids=repr,
)
def test_what_a_frame_costs(data: bytes, cost: float, step: int) -> None:
    meter = FrameMeter()
    assert fed(meter, PREFACE, step) == ""
    assert meter.spend(BURST - 10 * cost)
    assert fed(meter, data * 10, step) == ""
    assert meter.spend(0.0)
    assert not meter.spend(0.001), "exactly that"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (frame(PING, 0, b"x" * 8), "PING frames"),
        (frame(DATA), "empty DATA frames"),
        (frame(0x99), "frames of unknown types"),
    ],
)
def test_too_many_are_said_at_once_whatever_the_cut(data: bytes, name: str) -> None:
    for step in (1, 1 << 20):
        meter = FrameMeter()
        assert fed(meter, PREFACE + data * 2000, step) == name


def test_time_and_what_is_sent_earn_up_to_a_burst() -> None:
    meter = FrameMeter()
    fed(meter, PREFACE, now=10.0)
    assert meter.spend(BURST)
    assert not meter.spend(1.0)
    meter.sent(3 * BYTES_A_FRAME)
    assert meter.spend(2.0)
    assert not meter.spend(0.5)
    fed(meter, frame(DATA, flags=END_STREAM), now=10.5)
    assert meter.spend(RATE / 2 - 0.5)
    assert not meter.spend(0.5)
    fed(meter, frame(DATA, flags=END_STREAM), now=1000.0)
    meter.sent(1 << 30)
    assert meter.spend(BURST)
    assert not meter.spend(0.5), "no more than a burst"


def test_a_request_earns_and_is_counted_once() -> None:
    meter = FrameMeter()
    fed(meter, PREFACE)
    meter.spend(BURST)
    for stream in (1, 3, 3, 1, 2, 0, 5):
        fed(meter, frame(HEADERS, stream, b"x", END_HEADERS))
    assert meter.opened == 3
    assert meter.spend(3 * EARNED)
    assert not meter.spend(0.5)


@pytest.mark.parametrize("step", [1, 9, 1 << 20])
def test_a_head_lasts_from_its_first_frame_to_the_last_octet_of_its_last(step: int) -> None:
    meter = FrameMeter()
    fed(meter, PREFACE, step, 1.0)
    assert meter.head_since is None
    first, more = frame(HEADERS, 1, b"x" * 20), frame(CONTINUATION, 1, b"y" * 20)
    fed(meter, first, step, 2.0)
    fed(meter, more, step, 3.0)
    assert meter.head_since == 2.0
    last = frame(CONTINUATION, 1, b"z" * 20, END_HEADERS)
    fed(meter, last[:-1], step, 4.0)
    assert meter.head_since == 2.0, "one octet is missing"
    fed(meter, last[-1:], step, 5.0)
    assert meter.head_since is None
    fed(meter, frame(HEADERS, 3, b"x" * 20, END_HEADERS), step, 6.0)
    assert meter.head_since is None
    fed(meter, frame(HEADERS, 5, b"x" * 20, END_HEADERS)[:-5], step, 7.0)
    assert meter.head_since == 7.0
