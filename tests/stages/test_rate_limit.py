"""RateLimit: the route's limits, counted under who is known by now; all or none."""

from dataclasses import replace
from pathlib import Path

import pytest

from mitmgate.core.address import parse_address
from mitmgate.core.limit import Limit
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.client_quota import ClientQuota
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.quota import key_of
from mitmgate.stages.rate_limit import RateLimit
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
OBSERVED, SKIPPED = (Outcome.OBSERVE, Reason.QUOTA_EXCEEDED), (Outcome.SKIP, Reason.NOT_APPLICABLE)
AWAY = (Outcome.DENY, Reason.STORE_UNAVAILABLE)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize(
    ("path", "mode", "second"),
    [
        ("/users/7", "enforce", REFUSED),
        ("/strict", "enforce", REFUSED),
        ("/users/7", "report", OBSERVED),
        ("/trial", "enforce", OBSERVED),  # the route reports
        ("/watched", "enforce", OBSERVED),  # the limit reports
    ],
)
def test_admits_then_denies_or_observes(tmp_path: Path, path: str, mode: str, second: tuple[Outcome, Reason]) -> None:
    stage, snapshot = RateLimit(MemoryStore()), snapshot_of(tmp_path, mode)
    assert said(stage, routed(snapshot, path=path)) == ADMITTED
    made = routed(snapshot, path=path)
    assert said(stage, made) == second
    if second is REFUSED:
        response = assert_refused(snapshot, made, Reason.QUOTA_EXCEEDED).response
        assert response is not None and response.headers["Retry-After"] == "60"
    else:
        assert made.answer is None and made.verdict.final is None


@pytest.mark.parametrize("path", ["/near", "/nowhere"])
def test_without_limits_it_skips(snapshot: Snapshot, path: str) -> None:
    assert said(RateLimit(MemoryStore()), routed(snapshot, path=path)) == SKIPPED


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/users/7", [ADMITTED, REFUSED]), ("/strict", [AWAY, AWAY]), ("/watched", [ADMITTED, OBSERVED])],
)
def test_store_down(snapshot: Snapshot, path: str, expected: list[tuple[Outcome, Reason]]) -> None:
    made = [routed(snapshot, path=path) for _ in expected]
    assert said_without_store(RateLimit, made) == expected
    if expected[-1] is AWAY:
        response = assert_refused(snapshot, made[-1], Reason.STORE_UNAVAILABLE).response
        assert response is not None and int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(("mode", "left"), [("enforce", 1), ("report", 0)])
def test_what_a_route_denies_has_not_spent_the_clients_limit(tmp_path: Path, mode: str, left: int) -> None:
    snapshot, store = snapshot_of(tmp_path, mode), MemoryStore()
    client, route = ClientQuota(store), RateLimit(store)
    for second in (False, True):
        made = routed(snapshot)
        assert said(client, made) == ADMITTED
        assert said(route, made) == (ADMITTED if not second else REFUSED if left else OBSERVED)
    told = {grant.limit.name: grant.remaining for grant in made.grants}
    assert told == {"per-client": left, "per-route": 0}
    assert [said(client, routed(snapshot, path="/near"))[0] for _ in range(left + 1)] == [
        *[Outcome.ADMIT] * left,
        Outcome.DENY if left else Outcome.OBSERVE,
    ]


def test_all_limits_or_none(snapshot: Snapshot) -> None:
    made = routed(snapshot)
    assert made.route is not None
    wide, narrow = Limit("wide", 2, 60.0, ("client_ip",)), Limit("narrow", 1, 60.0, ("client_ip",))
    route = replace(made.route, limits=(wide, narrow))
    stage = RateLimit(MemoryStore())
    remaining = []
    for _ in range(3):
        made = routed(snapshot)
        made.route = route
        said(stage, made)
        remaining.append([grant.remaining for grant in made.grants])
    assert remaining == [[1, 0], [1, 0], [1, 0]], "the narrow one's refusal spends nothing of the wide one"


def known(snapshot: Snapshot, subject: str | None = "alice", issuer: str = "dev", **claims: object) -> Exchange:
    made = routed(snapshot, fields=[(b"X-Key", b"k")])
    if subject is not None:
        made.principal = Principal(subject, issuer, (), frozenset(), claims, NOW + 60)
    return made


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        (("principal",), {}, {"subject": "bob"}),
        (("principal",), {}, {"issuer": "corp"}),
        (("principal",), {}, {"subject": None}),
        (("issuer",), {}, {"issuer": "corp"}),
        (("claim:tenant",), {"tenant": "a"}, {"tenant": "b"}),
        (("claim:tenant",), {"tenant": "-"}, {}),
        (("claim:tenant",), {"tenant": "1"}, {"tenant": 1}),
        (("claim:a", "claim:b"), {"a": "x", "b": "yz"}, {"a": "xy", "b": "z"}),
        (("principal", "issuer"), {"subject": "a", "issuer": "b"}, {"subject": "b", "issuer": "a"}),
    ],
)
def test_who_differs_in_the_key_is_counted_apart(
    snapshot: Snapshot, key: tuple[str, ...], one: dict[str, str], other: dict[str, str]
) -> None:
    limit = Limit("l", 1, 60.0, key)
    first, again, second = known(snapshot, **one), known(snapshot, **one), known(snapshot, **other)
    assert key_of(limit, first) == key_of(limit, again) != key_of(limit, second)
    assert key_of(limit, first) != key_of(replace(limit, name="m"), first)


def test_long_keys_are_counted_by_their_digest(snapshot: Snapshot) -> None:
    for key in (("principal",), ("claim:tenant", "route"), ("header:x-key",)):
        limit, keys = Limit("l", 1, 60.0, key), set()
        for text in ("a" * 30_000, "a" * 30_000 + "b", "\ud800" * 5_000):
            made = routed(snapshot, fields=[(b"X-Key", text.encode("utf-8", "surrogatepass"))])
            made.principal = Principal(text, "dev", (), frozenset(), {"tenant": [text]}, NOW + 60)
            keys.add(key_of(limit, made))
        assert len(keys) == 3
        assert max(len(made_key) for made_key in keys) <= 128


def test_addresses_are_counted_apart_and_without_one_together(snapshot: Snapshot) -> None:
    limit, keys = Limit("l", 1, 60.0, ("client_ip",)), []
    for text in ("0.0.0.1", "::1", "2001:db8::1", "2001:db8:0:1::1", None, None):
        made = routed(snapshot)
        made.client = None if text is None else parse_address(text)
        keys.append(key_of(limit, made))
    assert len(set(keys)) == 5
    assert keys[-1] == keys[-2]


def test_a_key_that_nobody_knows_denies(snapshot: Snapshot) -> None:
    made = routed(snapshot)
    assert made.route is not None
    made.route = replace(made.route, limits=(Limit("l", 1, 60.0, ("moon",)),))
    assert said(RateLimit(MemoryStore()), made) == (Outcome.DENY, Reason.STAGE_ERROR)


def test_already_denied(snapshot: Snapshot) -> None:
    store = MemoryStore()
    assert_leaves_decided_alone(RateLimit(store), routed(snapshot))
    assert len(store) == 0, "and nothing was spent"


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(lambda: RateLimit(MemoryStore()), snapshot, routed(snapshot), monkeypatch)
