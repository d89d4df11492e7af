"""The parts of replay by themselves: conditions taken apart, policies without their secrets, templates, tnetstrings."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.io import tnetstring as theirs

from mitmgate.policy.condition import STEPS
from mitmgate.replay import tnetstring as ours
from mitmgate.replay.condition_trace import PATIENCE, failing
from mitmgate.replay.decision import ADMIT, Decision
from mitmgate.replay.differences import Kind, Tally, compare
from mitmgate.replay.evidence import Place, room, templates
from mitmgate.replay.offline import load_offline
from mitmgate.usage import UserError
from tests.live.harness import policy, write_policy

FACTS: dict[str, dict[str, Any]] = {
    "request": {"method": "DELETE", "path": "/x", "query": "", "host": "a", "headers": {"x-a": "1"}},
    "principal": {"roles": ["user"], "claims": {"tenant": "acme"}, "subject": "a", "scopes": [], "issuer": "corp"},
}


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("true", []),
        ('request.method == "DELETE"', []),
        (
            'request.method != "DELETE" || "admin" in principal.roles',
            [
                ('request.method != "DELETE"', "request.method", "DELETE"),
                ('"admin" in principal.roles', "principal.roles", ["user"]),
            ],
        ),
        ('request.path.startsWith("/y") && true', [('request.path.startsWith("/y")', "request.path", "/x")]),
        (
            '(principal.claims["tenant"] == "globex" && request.method == "DELETE") || has(principal.claims.level)',
            [
                ('principal.claims["tenant"] == "globex"', 'principal.claims["tenant"]', "acme"),
                ("has(principal.claims.level)", "principal.claims.level", "absent"),
            ],
        ),
        ("principal.claims.level > 3", [("principal.claims.level > 3", "principal.claims.level", "absent")]),
        (
            'principal.claims.tenant == "a||b"',
            [('principal.claims.tenant == "a||b"', "principal.claims.tenant", "acme")],
        ),
        (
            'request.method == "DELETE" ? false : true',
            [('request.method == "DELETE" ? false : true', "request.method", "DELETE")],
        ),
        ('!("user" in principal.roles)', [('!("user" in principal.roles)', "principal.roles", ["user"])]),
        (
            'request.method == "DELETE" && principal.roles.exists(r, r == "admin")',
            [('principal.roles.exists(r, r == "admin")', "principal.roles", ["user"])],
        ),
    ],
)
def test_the_first_failing_predicates_of_a_condition(source: str, parts: list[tuple[str, str, object]]) -> None:
    found = failing(source, FACTS)
    assert [predicate.text for predicate in found] == [text for text, _, _ in parts]
    for predicate, (_, path, value) in zip(found, parts, strict=True):
        assert predicate.found[path] == value


def test_a_part_of_a_condition_is_evaluated_within_the_bounds_of_a_condition() -> None:
    many = {"roles": [f"role-{number}" for number in range(800)]}
    facts = {**FACTS, "principal": {**FACTS["principal"], **many}}
    (loop, rest) = failing(
        'principal.roles.exists(x, principal.roles.exists(y, x == y + "-")) || request.method == "PUT"', facts
    )
    assert loop.error == f"the condition could take more than {STEPS} steps"
    assert not rest.error


def test_all_parts_of_a_condition_are_explained_in_a_bounded_time() -> None:
    """Each pair of parentheses around a long disjunction is one more evaluation of what is in them."""
    patterns = "".join(f' || request.path.matches("([a-z]{{1,80}}){{1,90}}{n}"))' for n in range(60))
    began = time.thread_time()
    found = failing("(" * 60 + 'request.method == "PUT"' + patterns, FACTS)
    assert time.thread_time() - began < 3 * PATIENCE
    assert len(found) == 61
    assert found[-1].error.startswith("not evaluated") or not found[-1].error


def test_a_policy_loads_without_what_only_production_has(tmp_path: Path) -> None:
    made = policy(tmp_path, "http://127.0.0.1:9")
    issuers = made["identity"]["issuers"]
    public = {"issuer": "https://b.example", "algorithms": ["ES256"]}
    issuers["file"] = {**public, "keys": {"jwks_file": "absent.json"}}
    issuers["pem"] = {**public, "issuer": "https://c.example", "keys": {"public_key_file": "absent.pem"}}
    made["identity"]["forward"] = {"assertion": {"key_file": "absent-key.pem"}}
    made["listen"] = {"tls": {"certificate": "absent.crt", "key": "absent.key"}}
    made["audit"] = {"chain": {"key_env": "ABSENT_KEY"}}
    found = load_offline(str(write_policy(tmp_path, made)), {})
    assert len(found.notes) == 7
    assert found.ignored == {b"x-gateway-assertion"} and found.snapshot.forward.assertion is None
    assert b"x-gateway-assertion" in found.snapshot.client_fields.identity, "a client's own is stripped all the same"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made["routes"][0].update(upstream="user"), "did you mean users"),
        (lambda made: made["identity"]["issuers"]["dev"].update(audience="${ABSENT}"), "ABSENT is not set"),
        (lambda made: made["identity"]["issuers"]["dev"].update(keys={"jwks_file": "bad.json"}), "bad.json"),
        (lambda made: made["networks"].update(allow=["10.0.0.1/8"]), "10.0.0.0/8"),
    ],
)
def test_everything_else_is_an_error_as_in_production(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    (tmp_path / "bad.json").write_text("no keys")
    made = {**policy(tmp_path, "http://127.0.0.1:9"), "networks": {}}
    change(made)
    with pytest.raises(UserError) as raised:
        load_offline(str(write_policy(tmp_path, made)), {"MITMGATE_TEST_SECRET": "x" * 64})
    assert message in str(raised.value) and "policy.yaml:" in str(raised.value)


def test_jwks_given_by_hand(tmp_path: Path) -> None:
    path = str(write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9")))
    key = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key]}))
    found = load_offline(path, {}, {"dev": str(tmp_path / "keys.json")})
    assert found.snapshot.issuers["dev"].keys.kind == "jwks"
    with pytest.raises(UserError, match="has no such issuer; issuers: dev"):
        load_offline(path, {}, {"corp": str(tmp_path / "keys.json")})


def test_segments_become_values_where_too_many_differ() -> None:
    plain = [Place("a", ("api", "users", name), "GET") for name in ("me", "list")]
    many = [Place("a", ("files", f"name-{chr(97 + number)}"), "GET") for number in range(20)]
    proposed = templates([*plain, *many])
    assert {proposed[place.template] for place in plain} == {("api", "users", "me"), ("api", "users", "list")}
    assert {proposed[place.template] for place in many} == {("files", "{}")}


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_a_proposed_limit_has_room_above_everything_seen(peaks: list[int]) -> None:
    found = room(peaks)
    assert found is not None
    assert found.limit >= max(peaks) * 5 / 4 and found.limit >= 10


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_tnetstrings_are_those_of_mitmproxy(value: Any) -> None:
    raw = ours.dumps(value)
    assert theirs.loads(raw) == value
    assert ours.value(raw, ours.span_of(raw)) == value
    again = theirs.dumps(value)
    assert ours.value(again, ours.span_of(again)) == value


@given(st.binary(max_size=60))
def test_no_bytes_make_the_reader_raise_anything_else(data: bytes) -> None:
    try:
        ours.value(data, ours.span_of(data))
    except ours.DamagedError:
        return


def decision(outcome: str = ADMIT, reason: str = "ok", **members: Any) -> Decision:
    return Decision(outcome, reason, **members)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (decision(), decision(), None),
        (decision(), decision("deny", "no-route", stage="authorization"), Kind.TIGHTENED),
        (decision("answer", "health"), decision("deny", "no-route"), Kind.TIGHTENED),
        (decision("deny", "no-route"), decision(), Kind.LOOSENED),
        (decision("deny", "no-route"), decision("answer", "preflight"), Kind.LOOSENED),
        (decision("answer", "health"), decision(), Kind.OUTCOME),
        (decision("deny", "no-route"), decision("deny", "role-missing"), Kind.REASON),
        (
            decision("deny", "quota-exceeded", stage="client-quota"),
            decision("deny", "quota-exceeded", stage="rate-limit"),
            Kind.REASON,
        ),
        (decision(route="a"), decision(route="b"), Kind.ROUTE),
        (decision(target="/a"), decision(target="/b"), Kind.TARGET),
        (decision(endpoint="http://a"), decision(endpoint="http://b"), Kind.UPSTREAM),
        (decision(fields=((b"A", b"1"),)), decision(fields=((b"a", b"1"),)), None),
        (decision(fields=((b"A", b"1"),)), decision(fields=((b"A", b"2"),)), Kind.HEADERS),
        (decision(fields=((b"X-Request-ID", b"1"),)), decision(fields=()), None),
        (decision(fields=None), decision(fields=((b"A", b"2"),)), None),
        (decision(observed=("authorization/role-missing",)), decision(), Kind.OBSERVED),
        (decision(observed=None), decision(observed=("a/b",)), None),
    ],
)
def test_what_differs(before: Decision, after: Decision, kind: Kind | None) -> None:
    found = compare(before, after)
    assert (None if found is None else found.kind) == kind


def test_a_tally_does_not_grow_with_the_recording() -> None:
    tally = Tally()
    before, after = decision(), decision("deny", "no-route")
    found = compare(before, after)
    assert found is not None
    for number in range(5000):
        tally.add(str(number), found, before, after._replace(principal=f"corp/{number}"))
    (group,) = tally.groups
    assert (group.count, len(group.examples), len(group.principals)) == (5000, 5, 1001)
    assert group.ranked[0] == ("(others)", 4000)
