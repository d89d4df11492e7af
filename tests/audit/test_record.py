"""A record is one ASCII line that JSON reads back, whatever is in the event."""

import json
import math
import time
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitmgate.audit.record import LONGEST, render
from tests.audit.facts import JWT

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def one_line(record: bytes) -> Any:
    assert record.isascii()
    assert len(record.decode("ascii").splitlines()) == 1
    assert b"\n" not in record and b"\r" not in record
    assert not any(byte < 0x20 for byte in record)
    strict = orjson.loads(record)
    assert json.loads(record) == strict or b"e" in record  # floats at the edge are read differently
    return strict


@given(st.dictionaries(st.text(), VALUES))
@example({"x": "\u001eyJaaaa.bbbb.cccc"})  # a redaction in the serialised form would tear the escape
@example({"x": "\u000ewoaaaaaaaaaaaaaaaaaaaaa.bbbb.cccc"})
@example({"x": "\ud800", "y": 2**70, "z": math.nan})
def test_any_event_is_one_line(event: dict[str, object]) -> None:
    one_line(render(event))


@pytest.mark.parametrize(
    "text",
    [
        'x"}\n{"event":"request","user":"mallory"}',
        "a\r\nb",
        '","user":"mallory',
        "\\",
        "\\u0022,",
        "\u2028forged",
        "\u2029forged",
        "\x85forged",
        "\x0b\x0c\x1c\x1d\x1e",
        "nul\x00byte",
        "\x1b[2J\x1b]0;title\x07",
        "\u202eoverride",
        "\ufeffbom",
        "é☃🎉",
        "\udce9 lone",
        "\x7f",
    ],
)
def test_text_that_forges_is_text(text: str) -> None:
    event = one_line(render({"event": "request", "path": text, "user": "alice"}))
    assert set(event) == {"event", "path", "user"}
    assert event["user"] == "alice"
    assert event["path"] == text.replace("\udce9", "\\udce9")


def test_a_megabyte_is_cut_and_says_so() -> None:
    event = one_line(render({"user_agent": "x" * 1_000_000, "path": "/"}))
    assert event["user_agent"] == "x" * LONGEST + "[cut: 1000000 characters]"
    assert event["path"] == "/"


def test_long_lists_are_cut() -> None:
    event = one_line(render({"roles": [f"role-{number}" for number in range(5000)]}))
    assert event["roles"][-1] == "[cut: 5000 members]"
    assert len(event["roles"]) == 129


def test_a_token_across_the_cut_is_redacted_not_halved() -> None:
    event = one_line(render({"user_agent": "x" * (LONGEST - 20) + " " + JWT}))
    assert "eyJ" not in event["user_agent"]


@pytest.mark.parametrize("name", ["user", "path", "query", "user_agent", "method", "host", "request_id", "detail"])
def test_a_jwt_is_redacted_in_every_member(name: str) -> None:
    for text in (
        JWT,
        f"x {JWT} y",
        f"/a/{JWT}/b",
        f"v={JWT}&w",
        f"pre-{JWT}",
        JWT.rpartition(".")[0] + ".",
        f"\x1e{JWT}",
        f"\\u001{JWT}",
        f"é{JWT}",
        JWT.replace(".", "%2E"),
        "eyJx.y.z.z.z",
    ):
        record = render({name: text, "roles": [text], "facts": {"deep": text}})
        assert b"eyJ" not in record, text
        assert b"[redacted]" in record
        one_line(record)


@pytest.mark.parametrize("text", ["/views/ewok", "eyewitness.example.com", "/a/eyJ", "review.new.example", "eyJson"])
def test_what_is_no_jwt_is_kept(text: str) -> None:
    assert one_line(render({"path": text}))["path"] == text


@pytest.mark.parametrize("unit", ["eyJ", "eyJ.", "eyA" + "a" * 13, "ewo.", "a.", "%2E", "eyJ%2", "-", "eyJ-."])
def test_hostile_text_costs_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    started = time.process_time()
    one_line(render({"path": text}))
    assert time.process_time() - started < 2
