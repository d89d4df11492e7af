"""ClientQuota: the client's address is counted on every route, before anything else is known of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from mitmgate.core.address import parse_address
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.client_quota import ClientQuota
from mitmgate.stages.response_headers import own_fields
from mitmgate.stores.memory import MemoryStore
from tests.stages.exchanges import (
    NOW,
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    routed,
    said,
    said_without_store,
    snapshot_of,
)

ADMITTED, REFUSED = (Outcome.ADMIT, Reason.OK), (Outcome.DENY, Reason.QUOTA_EXCEEDED)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def asking(snapshot: Snapshot, client: str = "192.0.2.7", path: str = "/users/7", after: float = 0.0) -> Exchange:
    made = routed(snapshot, path=path)
    made.client = parse_address(client)
    made.started = NOW + after
    return made


def test_admits_up_to_the_limit_then_denies_until_the_window_has_passed(snapshot: Snapshot) -> None:
    stage = ClientQuota(MemoryStore())
    asked = [
        ("192.0.2.7", "/users/7", 0.0, ADMITTED),
        ("192.0.2.7", "/nowhere", 10.0, ADMITTED),
        ("192.0.2.7", "/near", 20.0, REFUSED),
        ("::ffff:192.0.2.7", "/near", 20.0, REFUSED),
        ("192.0.2.8", "/near", 20.0, ADMITTED),
        ("192.0.2.7", "/near", 59.9, REFUSED),
        ("192.0.2.7", "/near", 60.0, ADMITTED),
    ]
    for client, path, after, expected in asked:
        assert said(stage, asking(snapshot, client, path, after)) == expected, (client, path, after)


def test_one_network_of_ipv6_is_one_client(snapshot: Snapshot) -> None:
    stage = ClientQuota(MemoryStore())
    asked = [
        ("2001:db8::1", ADMITTED),
        ("2001:db8::ffff:1:2:3", ADMITTED),
        ("2001:db8::2", REFUSED),
        ("2001:db8:0:1::1", ADMITTED),
        ("::1", ADMITTED),
        ("0.0.0.1", ADMITTED),
    ]
    for client, expected in asked:
        assert said(stage, asking(snapshot, client)) == expected, client
    wider = replace(snapshot.client_limits[0], ipv6_prefix=48)
    stage, snapshot = ClientQuota(MemoryStore()), replace(snapshot, client_limits=(wider,))
    found = [said(stage, asking(snapshot, f"2001:db8:0:{number}::1")) for number in range(3)]
    assert found == [ADMITTED, ADMITTED, REFUSED]
    single = replace(wider, ipv6_prefix=128)
    stage, snapshot = ClientQuota(MemoryStore()), replace(snapshot, client_limits=(single,))
    assert {said(stage, asking(snapshot, f"2001:db8::{number}")) for number in range(9)} == {ADMITTED}


def test_a_denial_says_when_to_come_again(snapshot: Snapshot) -> None:
    stage = ClientQuota(MemoryStore())
    for after in (0.0, 1.0):
        said(stage, asking(snapshot, after=after))
    made = asking(snapshot, after=20.5)
    assert said(stage, made) == REFUSED
    response = assert_refused(snapshot, made, Reason.QUOTA_EXCEEDED).response
    assert response is not None and response.headers["Retry-After"] == "40"
    fields = dict(own_fields(made))
    assert (fields[b"X-RateLimit-Limit"], fields[b"X-RateLimit-Remaining"]) == (b"2", b"0")


def test_without_limits_it_skips(tmp_path: Path) -> None:
    bare = snapshot_of(tmp_path, client_limits=())
    made = asking(bare)
    assert said(ClientQuota(MemoryStore()), made) == (Outcome.SKIP, Reason.NOT_APPLICABLE)
    assert made.grants == []


def test_report_mode_observes(tmp_path: Path) -> None:
    stage, snapshot = ClientQuota(MemoryStore()), snapshot_of(tmp_path, "report")
    outcomes = [said(stage, asking(snapshot))[0] for _ in range(3)]
    assert outcomes == [Outcome.ADMIT, Outcome.ADMIT, Outcome.OBSERVE]


def test_store_down_counts_in_this_process(snapshot: Snapshot) -> None:
    made = [asking(snapshot) for _ in range(3)]
    assert said_without_store(ClientQuota, made) == [ADMITTED, ADMITTED, REFUSED]
    assert_refused(snapshot, made[-1], Reason.QUOTA_EXCEEDED)


def test_already_denied(snapshot: Snapshot) -> None:
    store = MemoryStore()
    assert_leaves_decided_alone(ClientQuota(store), asking(snapshot))
    assert len(store) == 0, "and nothing was spent"


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(lambda: ClientQuota(MemoryStore()), snapshot, asking(snapshot), monkeypatch)
