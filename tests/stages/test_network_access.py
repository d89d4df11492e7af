"""NetworkAccess: the policy's networks, deny before allow; who can't be named stays out. Routes' own: Authorization."""

from dataclasses import replace
from pathlib import Path

import pytest

from mitmgate.core.address import CidrSet, parse_address
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Networks
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.authorization import Authorization
from mitmgate.stages.network_access import NetworkAccess
from tests.stages.exchanges import (
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    routed,
    said,
    snapshot_of,
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def from_client(snapshot: Snapshot, client: str, path: str) -> Exchange:
    made = routed(snapshot, path=path)
    made.client = parse_address(client)
    return made


@pytest.mark.parametrize(
    ("client", "path"),
    [
        ("192.0.2.7", "/users/7"),
        ("192.0.2.7", "/near"),
        ("::ffff:192.0.2.7", "/near"),
        ("2001:db8::1", "/users/7"),
        ("192.0.2.7", "/nowhere"),
        ("192.0.2.66", "/near"),  # whom the route denies: that is told by Authorization
        ("198.51.100.1", "/near"),
    ],
)
def test_admits(snapshot: Snapshot, client: str, path: str) -> None:
    assert said(NetworkAccess(), from_client(snapshot, client, path)) == (Outcome.ADMIT, Reason.OK)


DENIALS = [
    ("203.0.113.1", "/users/7", Reason.ADDRESS_DENIED),
    ("::ffff:203.0.113.1", "/users/7", Reason.ADDRESS_DENIED),
    ("203.0.113.1", "/nowhere", Reason.ADDRESS_DENIED),
    ("unknown", "/users/7", Reason.ADDRESS_UNKNOWN),
]


@pytest.mark.parametrize(("client", "path", "reason"), DENIALS)
def test_denies(snapshot: Snapshot, client: str, path: str, reason: Reason) -> None:
    made = from_client(snapshot, client, path)
    assert said(NetworkAccess(), made) == (Outcome.DENY, reason)
    assert_refused(snapshot, made, reason)


@pytest.mark.parametrize(("client", "path", "reason"), DENIALS)
def test_report_mode_observes(tmp_path: Path, client: str, path: str, reason: Reason) -> None:
    made = from_client(snapshot_of(tmp_path, "report"), client, path)
    # A client that nobody can name stays out: there is nobody to count, record or forward it for.
    outcome = Outcome.DENY if reason is Reason.ADDRESS_UNKNOWN else Outcome.OBSERVE
    assert said(NetworkAccess(), made) == (outcome, reason)


ROUTES = [
    ("192.0.2.7", "/near", Outcome.ADMIT),
    ("::ffff:192.0.2.7", "/near", Outcome.ADMIT),
    ("2001:db8::1", "/users/7", Outcome.ADMIT),
    ("192.0.2.66", "/near", Outcome.DENY),
    ("::ffff:192.0.2.66", "/near", Outcome.DENY),
    ("198.51.100.1", "/near", Outcome.DENY),
    ("2001:db8::1", "/near", Outcome.DENY),
    ("unknown", "/near", Outcome.DENY),
    ("192.0.2.7", "/trial", Outcome.OBSERVE),
    ("198.51.100.7", "/trial", Outcome.ADMIT),
]


@pytest.mark.parametrize(("client", "path", "outcome"), ROUTES)
def test_the_routes_own_networks_are_asked_by_authorization(
    snapshot: Snapshot, client: str, path: str, outcome: Outcome
) -> None:
    made = from_client(snapshot, client, path)
    reason = Reason.OK if outcome is Outcome.ADMIT else Reason.ADDRESS_DENIED
    assert said(Authorization(), made) == (outcome, reason)
    if outcome is Outcome.DENY:
        assert_refused(snapshot, made, reason)


@pytest.mark.parametrize(
    ("client", "said_of_it"),
    [("192.0.2.7", (Outcome.SKIP, Reason.NOT_APPLICABLE)), ("", (Outcome.DENY, Reason.ADDRESS_UNKNOWN))],
)
def test_without_any_rule_it_skips_whom_it_can_name(
    snapshot: Snapshot, client: str, said_of_it: tuple[Outcome, Reason]
) -> None:
    bare = replace(snapshot, networks=Networks(CidrSet(), CidrSet()))
    assert said(NetworkAccess(), from_client(bare, client, "/users/7")) == said_of_it


def test_the_route_can_not_open_what_the_policy_closes(snapshot: Snapshot) -> None:
    shut = replace(snapshot, networks=Networks(CidrSet(["198.51.100.0/24"]), CidrSet()))
    assert said(NetworkAccess(), from_client(shut, "192.0.2.7", "/near")) == (Outcome.DENY, Reason.ADDRESS_DENIED)


def test_the_policy_can_not_open_what_the_route_closes(snapshot: Snapshot) -> None:
    wide = replace(snapshot, networks=Networks(CidrSet(["0.0.0.0/0"]), CidrSet()))
    made = from_client(wide, "192.0.2.66", "/near")
    assert said(NetworkAccess(), made) == (Outcome.ADMIT, Reason.OK)
    assert said(Authorization(), made) == (Outcome.DENY, Reason.ADDRESS_DENIED)


def test_already_denied(snapshot: Snapshot) -> None:
    assert_leaves_decided_alone(NetworkAccess(), routed(snapshot))


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(NetworkAccess, snapshot, routed(snapshot), monkeypatch)
