"""RateLimit: the route's limits, counted under who is known by now; all or none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from mitmgate.core.address import parse_address
from mitmgate.core.limit import Limit
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.core.window import Grant, Take
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.client_quota import ClientQuota
from mitmgate.stages.quota import LONGEST_KEY, key_of
from mitmgate.stages.rate_limit import RateLimit
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.protocol import CounterStore
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


@pytest.mark.parametrize(
    ("key", "made_key"),
    [
        (("principal",), "dev\0alice"),
        (("issuer",), "dev"),
        (("claim:tenant",), "='acme'"),
        (("claim:absent",), "-"),
        (("header:x-key",), "=k"),
        (("header:x-absent",), "-"),
        (("client_ip",), "4.c0000207"),
        (("route",), "users"),
        (("issuer", "route"), "3:dev5:users"),
        (("principal", "client_ip"), "9:dev\0alice10:4.c0000207"),
    ],
)
def test_what_is_counted(snapshot: Snapshot, key: tuple[str, ...], made_key: str) -> None:
    limit = Limit("l", 1, 60.0, key)
    made = known(snapshot, tenant="acme")
    assert key_of(limit, made) == limit.prefix + made_key
    made.principal = made.client = made.head = None
    nobody = {"principal": "-", "issuer": "-", "client_ip": "-", "route": "users"}
    parts = [nobody.get(part, "-") for part in key]
    whole = parts[0] if len(parts) == 1 else "".join(f"{len(part)}:{part}" for part in parts)
    assert key_of(limit, made) == limit.prefix + whole


def test_strangers_are_not_told_routes_apart_by_what_remains_of_a_limit(snapshot: Snapshot) -> None:
    limit = Limit("l", 1, 60.0, ("route",))
    made = known(snapshot)
    assert made.route is not None
    made.route = replace(made.route, issuers=("dev",))
    assert key_of(limit, made) == limit.prefix + "users"
    made.principal = None
    assert key_of(limit, made) == limit.prefix + "-"
    made.route = None
    made.principal = known(snapshot).principal
    assert key_of(limit, made) == limit.prefix + "-"


def test_a_key_may_be_as_long_as_it_may(snapshot: Snapshot) -> None:
    limit = Limit("l", 1, 60.0, ("header:x-key",))
    for more, kept in ((0, True), (1, False)):
        text = "a" * (LONGEST_KEY - len(limit.prefix) - 1 + more)
        made = routed(snapshot, fields=[(b"X-Key", text.encode())])
        assert (key_of(limit, made) == f"{limit.prefix}={text}") is kept


def outcomes(store: CounterStore, snapshot: Snapshot, *limits: Limit) -> tuple[tuple[Outcome, Reason], Exchange]:
    made = routed(snapshot)
    assert made.route is not None
    made.route = replace(made.route, limits=limits)
    return said(RateLimit(store), made), made


class Says:
    """A store that says what it is given."""

    def __init__(self, *words: tuple[bool, bool]) -> None:
        self.words = words

    def take_one(self, limit: Limit, key: str, now: float) -> Grant | None:
        return None

    def take(self, takes: Sequence[Take], now: float, held: Sequence[Grant]) -> Sequence[Grant]:
        return [
            Grant(take.limit, admitted, 0, 60.0, 9.0, degraded)
            for take, (admitted, degraded) in zip(takes, self.words, strict=True)
        ]


HARD = Limit("hard", 1, 60.0, ("route",), on_store_failure="deny")
SOFT = Limit("soft", 1, 60.0, ("route",), on_store_failure="local")
TRIED = Limit("tried", 1, 60.0, ("route",), mode="report")


@pytest.mark.parametrize(
    ("limits", "words", "outcome", "named"),
    [
        ((HARD,), [(True, False)], ADMITTED, ""),
        ((HARD,), [(False, False)], REFUSED, "hard"),
        ((HARD,), [(False, True)], AWAY, ""),
        ((SOFT,), [(False, True)], REFUSED, "soft"),  # its own count says so
        ((HARD, SOFT), [(False, True), (False, True)], REFUSED, "hard, soft"),
        ((HARD, SOFT), [(False, True), (True, True)], AWAY, ""),
        ((HARD, TRIED), [(True, False), (False, False)], OBSERVED, "tried"),
        ((HARD, TRIED), [(False, False), (False, False)], REFUSED, "hard"),
        ((TRIED, HARD), [(False, True), (False, True)], AWAY, ""),
        ((HARD, SOFT), [(False, False), (False, True)], REFUSED, "hard, soft"),
    ],
)
def test_what_grants_come_to(
    snapshot: Snapshot,
    limits: tuple[Limit, ...],
    words: list[tuple[bool, bool]],
    outcome: tuple[Outcome, Reason],
    named: str,
) -> None:
    step, made = outcomes(cast(CounterStore, Says(*words)), snapshot, *limits)
    assert step == outcome
    assert len(made.grants) == len(limits)
    detail = made.verdict.steps[-1].detail
    assert not named or detail == f"The limit {named} is used up."
    if outcome[0] is Outcome.DENY:
        assert made.answer is not None
        assert made.answer.status == (503 if outcome is AWAY else 429)
        assert made.answer.fields == ((b"Retry-After", b"9"),)
    else:
        assert made.answer is None


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
