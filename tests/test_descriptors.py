"""The shares of file descriptors, what is a shortage of ours, and a log that says it once a second."""

import errno
import logging
import os
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.descriptors import (
    FEWEST,
    KINDS,
    NO_DESCRIPTOR,
    Descriptors,
    Seldom,
    SeldomEach,
    is_shortage,
    is_shortage_text,
)
from mitmgate.proxy.limits import PolicyBounds
from tests.protocol.harness import Source


@given(st.integers(FEWEST, 1 << 20))
def test_shares_leave_something_for_everybody(limit: int) -> None:
    shares = Descriptors(limit)
    assert shares.own >= 32
    assert 2 * shares.clients + shares.own <= limit
    last_client = max(number for number in (limit - shares.own - shares.clients // 4 - 1,))
    assert shares.takes_client(last_client)
    assert not shares.takes_client(last_client + 1)
    assert shares.takes_upstream(last_client + 1)
    assert shares.takes_upstream(limit - shares.own - 1)
    assert not shares.takes_upstream(limit - shares.own)
    bounds = PolicyBounds(Source(), shares)()
    assert 0 < bounds.per_address <= bounds.connections <= 10_000
    assert bounds.connections + bounds.turned_away <= shares.clients or bounds.connections == 10_000


def test_next_number_is_looked_at() -> None:
    with socket.socket() as lowest:
        assert Descriptors(2 * lowest.fileno() + 400).takes_upstream()
        assert not Descriptors(lowest.fileno()).takes_upstream()


def test_shortage_is_told_from_what_the_other_side_did() -> None:
    assert is_shortage(OSError(errno.EMFILE, "Too many open files"))
    assert is_shortage(OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"))
    assert not is_shortage(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    assert not is_shortage(OSError("Multiple exceptions: ..."))
    assert is_shortage_text(str(OSError(errno.ENFILE, os.strerror(errno.ENFILE))))
    assert is_shortage_text(f"Connection killed: {NO_DESCRIPTOR}")
    assert not is_shortage_text(str(OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 24)")))


def test_log_speaks_once_a_second(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seldom = Seldom(logging.getLogger("test"))
    for now in (0.0, 0.1, 0.9, 1.0, 1.5, 5.0):
        seldom.warning("at %g", now)
    assert caplog.messages == [
        "at 0",
        "at 1 (and 2 times more since the last line)",
        "at 5 (and 1 times more since the last line)",
    ]


def test_who_fails_in_ever_new_ways_is_told_of_seldom(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class WildError(Exception):
        def __repr__(self) -> str:
            raise SystemExit

    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    seldom = SeldomEach(logging.getLogger("test"))
    for number in range(1000):
        seldom.failed("%s failed: %s", "one", ValueError(number))
        seldom.failed("%s failed: %s", "one", ValueError("x" * number * 1000))
    assert len(caplog.messages) <= KINDS + 1
    seldom.failed("%s failed: %s", "other", ValueError(1))
    seldom.failed("%s failed: %s", "other", WildError())
    assert caplog.messages[-2:] == ["other failed: ValueError(1)", "other failed: WildError"]
