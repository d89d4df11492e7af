"""What stages share of one request, and the messages that they make."""

from dataclasses import replace
from email.utils import parsedate_to_datetime
from time import perf_counter

import pytest

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.pipeline.exchange import expired, seconds_left
from mitmgate.pipeline.message import date_field, headers_of, make_response
from mitmgate.policy.snapshot import Snapshot
from tests.stages.identity import NOW, exchange, snapshot_of


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("expires", "left"), [(NOW + 60, 90.0), (NOW, 30.0), (NOW - 29, 1.0), (NOW - 30, 0.0), (NOW - 3600, 0.0)]
)
def test_an_admitted_token_lasts_its_leeway_longer(snapshot: Snapshot, expires: float, left: float) -> None:
    made = exchange(snapshot, "GET", "/users/7")
    assert seconds_left(made) is None, "it needed none"
    made.started = perf_counter()
    made.principal = Principal("alice", "dev", (), frozenset(), {}, expires)
    assert seconds_left(made) == pytest.approx(left, abs=5.0)
    assert (seconds_left(made) == 0.0) is (left == 0.0)
    made.started -= 1000.0
    assert seconds_left(made) == 0.0
    made.snapshot = replace(snapshot, mode="report")
    assert seconds_left(made) is None, "it is only observed"


@pytest.mark.parametrize(
    ("ends", "left", "reason"),
    [
        ({"dev": 60.0}, 90.0, Reason.TOKEN_EXPIRED),
        ({"api-key": 60.0}, 60.0, Reason.API_KEY_EXPIRED),
        ({"certificate": 60.0}, 60.0, Reason.CERTIFICATE_EXPIRED),
        ({"dev": 60.0, "api-key": 70.0}, 70.0, Reason.API_KEY_EXPIRED),  # a key has no leeway
        ({"api-key": 100.0, "dev": 60.0}, 90.0, Reason.TOKEN_EXPIRED),
        ({"certificate": 500.0, "dev": 400.0, "api-key": 300.0}, 300.0, Reason.API_KEY_EXPIRED),
    ],
)
def test_what_ends_first_says_when_and_why(
    snapshot: Snapshot, ends: dict[str, float], left: float, reason: Reason
) -> None:
    made = exchange(snapshot, "GET", "/users/7")
    made.started = perf_counter()
    made.principal, *beside = (Principal("a", name, (), frozenset(), {}, NOW + end) for name, end in ends.items())
    made.beside = tuple(beside)
    assert seconds_left(made) == pytest.approx(left, abs=5.0)
    assert expired(made) is reason


def test_a_date_is_that_of_its_second() -> None:
    for now in (784_111_777.0, 784_111_777.9, 784_111_778.0, 784_111_777.0):
        name, value = date_field(now)
        assert name == b"Date"
        assert parsedate_to_datetime(value.decode()).timestamp() == int(now)
    assert date_field(784_111_777.0)[1] == b"Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("status", "complete", "dated"), [(200, True, True), (200, False, False), (199, True, False), (503, True, True)]
)
def test_what_the_gateway_says_itself_is_dated(status: int, complete: bool, dated: bool) -> None:
    made = make_response(status, headers_of(()), b"", complete=complete)
    assert ("Date" in made.headers) is dated
    assert (made.timestamp_end is not None) is complete
