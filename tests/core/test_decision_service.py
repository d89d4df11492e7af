"""Decision services: what each protocol's answer means, and that no two questions are written alike."""

from dataclasses import fields, replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.decision_service import Asked, DecisionService, Question, answer, question, recorded
from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.request import Head

AUTHZEN = DecisionService("pdp", "authzen", "https://pdp.example/access/v1/evaluation")
OPA = DecisionService("opa", "opa", "http://127.0.0.1:8181/v1/data/gateway?pretty=false")
CHECK = DecisionService("check", "ext_authz", "http://127.0.0.1:9000/check/", forward=((b"x-tier", b"X-Tier"),))
SERVICES = (AUTHZEN, OPA, CHECK)
ALICE = Principal("alice", "corp", ("admin", "user"), frozenset({"a", "b"}), {"org": {"unit": "ops"}}, 2e9)
HEAD = Head("GET", "/users/7", "page=2", "api.example", None, Headers([(b"X-Tenant", b"acme"), (b"Cookie", b"a=1")]))
ASKED = Asked(HEAD, "users", "https", "api.example", ip_address("192.0.2.7"), ALICE, (b"x-user-id", b"x-user-role"))


def asked(service: DecisionService, facts: Asked = ASKED) -> Question:
    made = question(service, facts)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("service", "status", "body", "said"),
    [
        (AUTHZEN, 200, b'{"decision": true}', "allow"),
        (AUTHZEN, 200, b'{"decision": true, "context": {"id": "0"}}', "allow"),
        (AUTHZEN, 200, b'{"decision": false}', "deny"),
        (AUTHZEN, 200, b'{"result": true}', "invalid"),
        (AUTHZEN, 200, b'{"decision": 1}', "invalid"),
        (AUTHZEN, 200, b'{"Decision": true}', "invalid"),
        (AUTHZEN, 201, b'{"decision": true}', "invalid"),
        (AUTHZEN, 403, b'{"decision": true}', "invalid"),
        (OPA, 200, b'{"result": true}', "allow"),
        (OPA, 200, b'{"result": {"allow": true, "x": 1}}', "allow"),
        (OPA, 200, b'{"result": false}', "deny"),
        (OPA, 200, b'{"result": {"allow": false}}', "deny"),
        (OPA, 200, b"{}", "deny"),  # undefined
        (OPA, 200, b'{"result": {}}', "invalid"),
        (OPA, 200, b'{"result": {"allow": "true"}}', "invalid"),
        (OPA, 200, b'{"result": [true]}', "invalid"),
        (OPA, 200, b'{"result": null}', "invalid"),
        (OPA, 400, b'{"result": true}', "invalid"),
        (OPA, 503, b'{"result": true}', "unavailable"),
        (AUTHZEN, 500, b'{"decision": true}', "unavailable"),
        (CHECK, 200, b"", "allow"),
        (CHECK, 204, b"", "deny"),
        (CHECK, 302, b"", "deny"),
        (CHECK, 401, b"", "deny"),
        (CHECK, 500, b"", "unavailable"),
        (CHECK, 599, b"", "unavailable"),
    ],
)
def test_what_an_answer_says(service: DecisionService, status: int, body: bytes, said: str) -> None:
    made = answer(service, status, (), body)
    assert (made.service, made.said) == (service.name, said)
    assert bool(made.why) is (said != "allow")


@given(st.binary(max_size=60), st.integers(200, 599))
def test_no_octets_admit_but_those_that_say_so(body: bytes, status: int) -> None:
    for service in (AUTHZEN, OPA):
        assert answer(service, status, (), body).said != "allow"


def test_nothing_of_a_request_is_told_that_nobody_names() -> None:
    for service in SERVICES:
        written = repr(asked(service))
        assert "acme" not in written and "a=1" not in written and "page=2" not in written and "ops" not in written


def test_a_check_has_each_field_once() -> None:
    head = replace(HEAD, headers=Headers([(b"User-Agent", b"curl")]))
    made = asked(replace(CHECK, headers=(b"user-agent",)), replace(ASKED, head=head))
    names = [name.lower() for name, _ in made.fields]
    assert len(names) == len(set(names)) and (b"user-agent", b"curl") in made.fields


def test_an_identity_that_fits_in_no_field_is_not_asked_about() -> None:
    for principal in (
        replace(ALICE, subject="al\nice"),
        replace(ALICE, roles=("a,b", "c")),
        replace(ALICE, roles=("é",)),
    ):
        assert question(CHECK, replace(ASKED, principal=principal)) is None


TOLD = tuple(
    replace(
        service, headers=(b"x-tenant", b"cookie"), claims=("/org/unit",) if service is not CHECK else (), query=True
    )
    for service in SERVICES
)
CHANGED = (
    replace(ASKED, head=replace(HEAD, method="POST")),
    replace(ASKED, head=replace(HEAD, path="/users/8")),
    replace(ASKED, head=replace(HEAD, query="page=3")),
    replace(ASKED, head=replace(HEAD, query=None)),
    replace(ASKED, head=replace(HEAD, headers=Headers([(b"X-Tenant", b"acme")]))),
    replace(ASKED, head=replace(HEAD, headers=Headers([(b"X-Tenant", b"acm"), (b"Cookie", b"ea=1")]))),
    replace(ASKED, client=ip_address("192.0.2.8")),
    replace(ASKED, client=None),
    replace(ASKED, scheme="http"),
    replace(ASKED, principal=None),
    replace(ASKED, principal=replace(ALICE, subject="bob")),
    replace(ASKED, principal=replace(ALICE, roles=("admin",))),
)
ONLY_JSON = (
    replace(ASKED, route="other"),
    replace(ASKED, head=replace(HEAD, host="other.example")),
    replace(ASKED, principal=replace(ALICE, issuer="other")),
    replace(ASKED, principal=replace(ALICE, scopes=frozenset({"a"}))),
    replace(ASKED, principal=replace(ALICE, claims={"org": {"unit": "dev"}})),
)
ONLY_CHECK = (replace(ASKED, host="other.example"), replace(ASKED, names=(b"x-user-id", b"x-role")))


@pytest.mark.parametrize("service", TOLD, ids=lambda service: service.protocol)
def test_whatever_is_told_makes_another_question(service: DecisionService) -> None:
    facts = (ASKED, *CHANGED, *(ONLY_CHECK if service.protocol == "ext_authz" else ONLY_JSON))
    assert len({asked(service, one).digest for one in facts}) == len(facts)
    assert len({asked(service, one) for one in facts}) == len(facts)
    varied = {name.name for name in fields(Asked)} - {"head", "principal"}
    assert varied == {"route", "scheme", "host", "client", "names"}, "a fact that is new needs a line in these tables"


PARTS = st.binary(max_size=4)
QUESTIONS = st.builds(
    Question,
    st.text("AB:1", max_size=3),
    st.text("AB:1", max_size=3),
    st.lists(st.tuples(PARTS, PARTS), max_size=3).map(tuple),
    PARTS,
)


@given(QUESTIONS, QUESTIONS)
def test_no_two_questions_have_one_digest(one: Question, other: Question) -> None:
    assert (one.digest == other.digest) is (one == other)


@pytest.mark.parametrize(
    "written", [{}, {"service": "a"}, {"service": "a", "said": "perhaps"}, {"service": 1, "said": "allow"}, [], "allow"]
)
def test_a_damaged_record_is_no_answer(written: object) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        recorded(written)
