"""Hygiene: one reading of the head or a denial, in report mode too. What it strips is tested in tests/core."""

from dataclasses import replace

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.core.via import MOST_PASSES, Via
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.hygiene import Hygiene
from tests.stages.exchanges import (
    Fields,
    arrived,
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    flow_of,
    said,
    snapshot_of,
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def fresh(snapshot: Snapshot, method: str = "GET", path: str = "/users/7", fields: Fields = ()) -> Exchange:
    return arrived(snapshot, flow_of(method, path, fields))


def test_admits_with_one_reading_of_the_head(snapshot: Snapshot) -> None:
    sent = [
        (b"Host", b"API.example:8080"),
        (b"Accept", b"*/*"),
        (b"X-User-ID", b"root"),
        (b"X_User.Role", b"admin"),
        (b"X-Forwarded-For", b"127.0.0.1"),
        (b"Connection", b"X-Hop"),
        (b"X-Hop", b"1"),
    ]
    made = fresh(snapshot, path="/%75sers/7?a=%2F", fields=sent)
    assert said(Hygiene(), made) == (Outcome.ADMIT, Reason.OK)
    head = made.head
    assert head is not None
    assert (head.method, head.path, head.query, head.host, head.port) == (
        "GET",
        "/users/7",
        "a=%2F",
        "api.example",
        8080,
    )
    assert head.headers.fields == ((b"Host", b"API.example:8080"), (b"Accept", b"*/*"))
    assert made.request.headers.fields == tuple(sent), "what arrived is kept as it was"


DENIALS = [
    ("get", "/", [], Reason.METHOD_INVALID),
    ("TRACE", "/", [], Reason.METHOD_INVALID),
    ("CONNECT", "/", [], Reason.METHOD_INVALID),
    ("GET", "*", [], Reason.TARGET_INVALID),
    ("GET", "/?a=\x80", [], Reason.TARGET_INVALID),
    ("GET", "/" + "a" * 8192, [], Reason.TARGET_TOO_LONG),
    ("GET", "/a/../b", [], Reason.PATH_AMBIGUOUS),
    ("GET", "/a%252fb", [], Reason.PATH_AMBIGUOUS),
    ("GET", "/", [(b"Host", b"a b")], Reason.HOST_INVALID),
    ("GET", "/", [(b"Host", b"a"), (b"Host", b"a")], Reason.HOST_INVALID),
    ("GET", "/", [(b"X Y", b"1")], Reason.HEADER_INVALID),
    ("GET", "/", [(b"X", b"a\nb")], Reason.HEADER_INVALID),
    ("GET", "/", [(b"Connection", b"Authorization")], Reason.HEADER_INVALID),
    ("GET", "/", [(b"Authorization", b"a"), (b"authorization", b"b")], Reason.HEADER_REPEATED),
    ("GET", "/", [(b"Upgrade", b"websocket")], Reason.UPGRADE_REFUSED),
    ("GET", "/", [(b"X", b"a" * 33_000)], Reason.HEAD_TOO_LARGE),
]


@pytest.mark.parametrize("mode", ["enforce", "report"])
@pytest.mark.parametrize(("method", "path", "fields", "reason"), DENIALS)
def test_denies_in_every_mode(
    snapshot: Snapshot, mode: str, method: str, path: str, fields: list[tuple[bytes, bytes]], reason: Reason
) -> None:
    made = fresh(replace(snapshot, mode=mode), method, path, fields)  # type: ignore[arg-type]  # a Mode
    assert said(Hygiene(), made) == (Outcome.DENY, reason)
    assert made.head is None
    assert_refused(snapshot, made, reason)


def test_the_head_may_be_as_large_as_the_policy_says(snapshot: Snapshot) -> None:
    size = len(b"Host") + len(b"api.example") + 4
    made = fresh(replace(snapshot, max_head=size))
    assert said(Hygiene(), made) == (Outcome.ADMIT, Reason.OK)
    assert said(Hygiene(), fresh(replace(snapshot, max_head=size - 1))) == (Outcome.DENY, Reason.HEAD_TOO_LARGE)


@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_what_has_come_through_this_gateway_too_often_goes_no_further(snapshot: Snapshot, mode: str) -> None:
    named = replace(snapshot, via=Via(b"Edge"), mode=mode)  # type: ignore[arg-type]  # a Mode
    passes = [(b"Via", b"1.1 edge, 1.1 other"), (b"Via", b", ".join([b"1.1 EDGE"] * (MOST_PASSES - 2)))]
    assert said(Hygiene(), fresh(named, fields=passes)) == (Outcome.ADMIT, Reason.OK)
    for once_more in ([*passes, (b"via", b"2.0 edge")], [(b"Via", b"1.0 edge,1.1 edge"), *passes]):
        made = fresh(named, fields=once_more)
        assert said(Hygiene(), made) == (Outcome.DENY, Reason.LOOP_DETECTED)
        assert made.head is None
        assert_refused(named, made, Reason.LOOP_DETECTED)
    nameless = replace(snapshot, via=None)
    assert said(Hygiene(), fresh(nameless, fields=once_more)) == (Outcome.ADMIT, Reason.OK)


def test_a_handshake_that_is_refused_names_the_version_and_nothing_else_does(snapshot: Snapshot) -> None:
    for fields, answer in (
        ([(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")], True),
        ([(b"X Y", b"1")], False),
    ):
        made = fresh(snapshot, fields=fields)
        assert said(Hygiene(), made)[0] is Outcome.DENY
        assert (made.answer is not None) is answer
    assert_refused(snapshot, made, Reason.HEADER_INVALID)


def test_already_denied(snapshot: Snapshot) -> None:
    made = fresh(snapshot)
    assert_leaves_decided_alone(Hygiene(), made)
    assert made.head is None


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(Hygiene, snapshot, fresh(snapshot), monkeypatch)
