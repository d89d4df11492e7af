"""Authorisation: every member of a requirement, exact and type-aware; nothing admits for want of a principal."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.authorize import authorize, facts_of, same
from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Head
from mitmgate.core.rules import Requirement


class Says:
    """A condition with one answer."""

    source = "test"

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.seen: Mapping[str, object] | None = None

    reads = None

    def holds(self, facts: Mapping[str, object]) -> bool:
        self.seen = facts
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]  # some answers are no booleans, on purpose


def never() -> NoReturn:
    raise AssertionError("facts were made without a condition")


def someone(*, roles: tuple[str, ...] = (), scopes: str = "", **claims: object) -> Principal:
    return Principal("alice", "corp", roles, frozenset(scopes.split()), claims, 2e9)


def reason_of(require: Requirement, principal: Principal | None) -> Reason | None:
    refusal = authorize(require, principal, never if require.when is None else dict, now=1000.0, leeway=5.0)
    return None if refusal is None else refusal.reason


def test_an_empty_requirement_holds() -> None:
    assert reason_of(Requirement(), someone()) is None
    assert reason_of(Requirement(), None) is None


@pytest.mark.parametrize(
    ("scopes", "reason"),
    [
        ("users.read users.write", None),
        ("users.read users.write admin", None),
        ("users.read", Reason.SCOPE_MISSING),
        ("users.read users.writ", Reason.SCOPE_MISSING),
        ("users.read USERS.WRITE", Reason.SCOPE_MISSING),
        ("users.* *", Reason.SCOPE_MISSING),
        ("", Reason.SCOPE_MISSING),
    ],
)
def test_all_scopes_are_needed(scopes: str, reason: Reason | None) -> None:
    assert reason_of(Requirement(scopes_all=frozenset({"users.read", "users.write"})), someone(scopes=scopes)) is reason


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("admin",), None),
        (("user",), None),
        (("x", "user"), None),
        (("Admin",), Reason.ROLE_MISSING),
        (("admin user",), Reason.ROLE_MISSING),
        ((), Reason.ROLE_MISSING),
    ],
)
def test_any_role_is_enough(roles: tuple[str, ...], reason: Reason | None) -> None:
    assert reason_of(Requirement(roles_any=frozenset({"admin", "user"})), someone(roles=roles)) is reason


@pytest.mark.parametrize(
    ("allowed", "value", "holds"),
    [
        (("acme", "globex"), "acme", True),
        (("acme",), ["globex", "acme"], True),
        (("acme",), [["acme"]], False),
        (("acme",), "ACME", False),
        (("acme",), "acme ", False),
        (("acme",), {"acme": True}, False),
        (("acme",), [], False),
        (("acme",), None, False),
        ((1,), 1, True),
        ((1,), True, False),
        ((1,), "1", False),
        ((1,), 1.0, False),
        ((1,), [True], False),
        ((0,), False, False),
        ((0,), "", False),
        ((True,), True, True),
        ((True,), 1, False),
        ((True,), "true", False),
        ((False,), None, False),
        ((None,), None, True),
        ((), "acme", False),
    ],
)
def test_claims(allowed: tuple[object, ...], value: object, holds: bool) -> None:
    reason = reason_of(Requirement(claims={"tenant": allowed}), someone(tenant=value))
    assert reason is (None if holds else Reason.CLAIM_MISMATCH)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([1], [1], True),
        ([1], [True], False),
        ([0], [False], False),
        ([1], [1.0], False),
        ([[1]], [[True]], False),
        ([1, 2], [1], False),
        ([1], [1, 2], False),
        ([1, 2], [2, 1], False),
        ([], [], True),
        ([], {}, False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": [1]}, {"a": [True]}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": None}, {}, False),
    ],
)
def test_values_are_compared_all_the_way_down(one: object, other: object, equal: bool) -> None:
    """In Python, [1] == [True]; what a token says is JSON, where they differ."""
    assert same(one, other) is equal
    reason = reason_of(Requirement(claims={"a": (one,)}), someone(a=[other]))
    assert reason is (None if equal else Reason.CLAIM_MISMATCH)


def test_an_absent_claim_matches_nothing() -> None:
    assert reason_of(Requirement(claims={"tenant": (None, "")}), someone()) is Reason.CLAIM_MISMATCH


def test_every_claim_must_match() -> None:
    require = Requirement(claims={"tenant": ("acme",), "level": (3,)})
    assert reason_of(require, someone(tenant="acme", level=3)) is None
    assert reason_of(require, someone(tenant="acme", level=2)) is Reason.CLAIM_MISMATCH


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from([0.0, 1.0, "", "1", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@given(JSON, JSON)
def test_the_same_values_are_written_the_same(one: object, other: object) -> None:
    import json

    written = [json.dumps(value, sort_keys=True) for value in (one, other)]
    assert same(one, other) is (written[0] == written[1])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (True, None),
        (False, Reason.CONDITION_FALSE),
        (1, Reason.CONDITION_FALSE),
        ("true", Reason.CONDITION_FALSE),
        (None, Reason.CONDITION_FALSE),
        (ValueError("no such member"), Reason.CONDITION_ERROR),
        (RuntimeError("the evaluator broke"), Reason.CONDITION_ERROR),
        (RecursionError(), Reason.CONDITION_ERROR),
        (TimeoutError("too long"), Reason.CONDITION_TIMEOUT),
    ],
)
def test_conditions(answer: object, reason: Reason | None) -> None:
    assert reason_of(Requirement(when=Says(answer)), someone()) is reason


def test_facts_that_can_not_be_made_deny() -> None:
    refusal = authorize(Requirement(when=Says(True)), someone(), never)
    assert refusal is not None
    assert refusal.reason is Reason.CONDITION_ERROR


@pytest.mark.parametrize(
    ("require", "reason"),
    [
        (Requirement(scopes_all=frozenset({"a"})), Reason.SCOPE_MISSING),
        (Requirement(roles_any=frozenset({"a"})), Reason.ROLE_MISSING),
        (Requirement(claims={"a": (1,)}), Reason.CLAIM_MISMATCH),
        (Requirement(when=Says(True)), Reason.CONDITION_ERROR),
    ],
)
def test_nobody_meets_no_requirement(require: Requirement, reason: Reason) -> None:
    assert reason_of(require, None) is reason


def test_the_facts_of_a_condition() -> None:
    headers = Headers([(b"Accept", b"a"), (b"accept", b"b"), (b"Authorization", b"Bearer x"), (b"X-Tenant", b"acme")])
    head = Head("GET", "/users/7", "a=1", "api.example", None, headers)
    principal = someone(roles=("b", "a"), scopes="y x", tenant="acme")
    assert facts_of(head, principal, ip_address("192.0.2.1"), "users") == {
        "request": {
            "method": "GET",
            "path": "/users/7",
            "query": "a=1",
            "host": "api.example",
            "headers": {"accept": "a, b", "x-tenant": "acme"},
        },
        "principal": {
            "subject": "alice",
            "roles": ["b", "a"],
            "scopes": ["x", "y"],
            "claims": {"tenant": "acme"},
            "issuer": "corp",
        },
        "client": {"ip": "192.0.2.1", "certificate": ""},
        "route": {"name": "users"},
    }
    nobody = facts_of(Head("GET", "/", None, "h", None, Headers([])), None, None, "r")
    assert nobody["principal"] is None
    assert nobody["client"] == {"ip": "", "certificate": ""}


def test_facts_that_are_not_there_are_empty_and_those_that_nobody_reads_are_not_made() -> None:
    head = Head("GET", "/", None, "api.example", None, Headers(()))
    facts = facts_of(head, None, None, "users", "CN=robot")
    assert facts["principal"] is None
    assert facts["client"] == {"ip": "", "certificate": "CN=robot"}
    assert facts["request"] == {"method": "GET", "path": "/", "query": "", "host": "api.example", "headers": {}}
    assert facts_of(head, someone(), None, "users", None, {"principal": ("subject",), "request": ("method",)}) == {
        "principal": {"subject": "alice"},
        "request": {"method": "GET"},
    }
    assert facts_of(head, someone(), None, "users", None, {}) == {}


@pytest.mark.parametrize(
    ("claims", "holds"),
    [
        ({"acr": "mfa"}, True),
        ({"acr": "hwk"}, True),
        *(({"acr": other}, False) for other in ("pwd", "MFA", "mfa hwk", ["mfa"], None, 1)),
        ({}, False),
    ],
)
def test_the_class_of_the_authentication(claims: dict[str, Any], holds: bool) -> None:
    expected = None if holds else Reason.AUTHENTICATION_INSUFFICIENT
    assert reason_of(Requirement(acr_values=("mfa", "hwk")), someone(**claims)) is expected


@pytest.mark.parametrize(
    ("claims", "holds"),
    [
        ({"auth_time": 1000}, True),
        ({"auth_time": 895.0}, True),  # 100 seconds, and 5 of leeway
        ({"auth_time": 894.9}, False),
        ({"auth_time": 1005}, True),
        ({"auth_time": 1005.1}, False),  # of a time to come
        *(({"auth_time": odd}, False) for odd in (0, -1, True, "1000", None, [1000], 1e300, float("nan"))),
        ({}, False),
    ],
)
def test_the_age_of_the_authentication(claims: dict[str, Any], holds: bool) -> None:
    expected = None if holds else Reason.AUTHENTICATION_INSUFFICIENT
    assert reason_of(Requirement(max_age=100.0), someone(**claims)) is expected


def test_nobody_has_authenticated_well_enough() -> None:
    assert reason_of(Requirement(max_age=100.0), None) is Reason.AUTHENTICATION_INSUFFICIENT
    assert reason_of(Requirement(acr_values=("mfa",)), None) is Reason.AUTHENTICATION_INSUFFICIENT
