"""Authorization: 403s with their reasons, 404 and 405 after authentication, report mode, nothing vacuous."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.routing import NoRoute
from mitmgate.core.rules import Credential, Requirement
from mitmgate.core.verdict import Outcome, Step, Verdict
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.authentication import Authentication
from mitmgate.stages.authorization import Authorization, Required, Requirements
from tests.stages.identity import decided, exchange, snapshot_of, token


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def requiring(made: Exchange, requirement: Requirement) -> None:
    """Let the route of a request require something else."""
    assert made.route is not None
    when = requirement.when
    compiled = {
        "authorization": Requirements({made.route.name: Required(requirement, None if when is None else when.reads)})
    }
    made.snapshot = replace(made.snapshot, compiled={**made.snapshot.compiled, **compiled})


def ask(
    snapshot: Snapshot, method: str = "GET", path: str = "/users/7", *, anonymous: bool = False, **claims: Any
) -> tuple[Step, Exchange]:
    """Authenticate with a token of these claims (or with none), then authorise."""
    ring = KeyRing()
    ring.configure(snapshot.issuers)
    made = exchange(snapshot, method, path, None if anonymous else "Bearer " + token(snapshot, **claims))
    decided(Authentication(ring), made)
    return decided(Authorization(), made), made


@pytest.mark.parametrize(
    ("method", "claims", "reason"),
    [
        ("GET", {}, Reason.OK),
        ("DELETE", {"role": ["user", "admin"]}, Reason.OK),
        ("GET", {"scope": "users.write"}, Reason.SCOPE_MISSING),
        ("GET", {"role": "guest"}, Reason.ROLE_MISSING),
        ("GET", {"tenant": "globex"}, Reason.CLAIM_MISMATCH),
        ("GET", {"tenant": None}, Reason.CLAIM_MISMATCH),
        ("DELETE", {}, Reason.CONDITION_FALSE),
    ],
)
def test_requirements(snapshot: Snapshot, method: str, claims: dict[str, Any], reason: Reason) -> None:
    step, made = ask(snapshot, method, **claims)
    assert (step.outcome, step.reason) == (Outcome.ADMIT if reason is Reason.OK else Outcome.DENY, reason)
    scope = 'Bearer error="insufficient_scope", scope="users.read"'
    assert made.challenge == (scope if reason is Reason.SCOPE_MISSING else None)
    assert made.answer is None
    if reason is not Reason.OK:
        assert reason.status == 403
        assert step.detail


@pytest.mark.parametrize(
    ("issuer", "claims", "credentials", "scope", "step_up"),
    [
        ("dev", {}, ("jwt",), "Bearer", "Bearer"),
        ("dev", {"cnf": {"jkt": "x"}}, ("jwt",), "DPoP", "DPoP"),
        ("dev", {"cnf": {"x5t#S256": "x"}}, ("jwt",), "Bearer", "Bearer"),
        ("api-key", {}, ("api-key",), None, 'ApiKey name="x-machine"'),
        ("api-key", {}, ("jwt", "api-key"), None, "Bearer"),
        ("certificate", {}, ("certificate",), None, "Certificate"),
    ],
)
def test_a_challenge_is_of_the_credential_that_was_shown(
    snapshot: Snapshot,
    issuer: str,
    claims: dict[str, Any],
    credentials: tuple[Credential, ...],
    scope: str | None,
    step_up: str,
) -> None:
    """RFC 9449, section 7.1; RFC 9470, section 3. A 401 has to have one (RFC 9110, section 11.6.1), a 403 has not."""
    for require, begins in (
        (Requirement(scopes_all=frozenset({"a"})), scope),
        (Requirement(acr_values=("mfa",)), step_up),
    ):
        made = exchange(replace(snapshot, key_field=b"x-machine"), "GET", "/plain")
        assert made.route is not None
        made.principal = Principal("alice", issuer, (), frozenset(), claims, 0.0)
        made.route = replace(made.route, credentials=credentials)
        requiring(made, require)
        decided(Authorization(), made)
        challenge = made.challenge
        assert challenge is begins is None or (begins and (challenge or "").startswith(begins)), challenge
        assert ("insufficient_" in (challenge or "")) is (begins in {"Bearer", "DPoP"})
        assert ('algs="ES256 ' in (challenge or "")) is (begins == "DPoP")


def test_a_condition_that_fails_denies(snapshot: Snapshot) -> None:
    class Fails:
        source = "fails"

        reads = None

        def holds(self, facts: Any) -> bool:
            raise ValueError(facts["principal"]["claims"]["absent"])

    made = ask(snapshot)[1]
    assert made.route is not None
    requiring(made, Requirement(when=Fails()))
    assert decided(Authorization(), made).reason is Reason.CONDITION_ERROR


def test_a_route_without_requirement_admits_a_principal(snapshot: Snapshot) -> None:
    assert ask(snapshot, path="/plain")[0].outcome is Outcome.ADMIT


def test_a_public_route_admits_anyone(snapshot: Snapshot) -> None:
    assert ask(snapshot, path="/status", anonymous=True)[0].outcome is Outcome.ADMIT


def test_a_route_that_is_not_public_needs_a_principal_even_without_requirement(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "GET", "/plain")
    step = decided(Authorization(), made)  # as if Authentication had been lost
    assert (step.outcome, step.reason) == (Outcome.DENY, Reason.CREDENTIAL_MISSING)
    assert made.challenge == "Bearer"


def test_a_challenge_of_authentication_is_kept(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "GET", "/plain")
    made.challenge = 'Bearer error="invalid_token"'
    assert decided(Authorization(), made).reason is Reason.CREDENTIAL_MISSING
    assert made.challenge == 'Bearer error="invalid_token"'


@pytest.mark.parametrize(
    ("require", "reason"),
    [
        (Requirement(scopes_all=frozenset({"a"})), Reason.SCOPE_MISSING),
        (Requirement(roles_any=frozenset({"a"})), Reason.ROLE_MISSING),
        (Requirement(claims={"a": (1,)}), Reason.CLAIM_MISMATCH),
    ],
)
def test_a_public_route_with_a_requirement_admits_nobody(
    snapshot: Snapshot, require: Requirement, reason: Reason
) -> None:
    made = exchange(snapshot, "GET", "/status")
    assert made.route is not None
    requiring(made, require)
    step = decided(Authorization(), made)
    assert (step.outcome, step.reason) == (Outcome.DENY, reason)


@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_no_route_is_final_in_every_mode(tmp_path: Path, mode: str) -> None:
    step, made = ask(snapshot_of(tmp_path, mode), path="/nowhere")
    assert (step.outcome, step.reason, step.reason.status) == (Outcome.DENY, Reason.NO_ROUTE, 404)
    assert made.answer is None
    assert made.verdict.final is not None


@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_a_method_that_is_not_allowed_names_those_that_are(tmp_path: Path, mode: str) -> None:
    reporting = snapshot_of(tmp_path, mode)
    for path, allow in (("/users/7", b"DELETE, GET, HEAD, POST"), ("/status", b"GET, HEAD")):
        step, made = ask(reporting, "PATCH", path)
        assert (step.outcome, step.reason, step.reason.status) == (Outcome.DENY, Reason.METHOD_NOT_ALLOWED, 405)
        assert made.answer is not None
        assert (made.answer.status, made.answer.fields) == (405, ((b"Allow", allow),))


@pytest.mark.parametrize("mode", ["enforce", "report"])
@pytest.mark.parametrize("allow", [(), ("GET",)])
def test_a_path_that_may_be_that_of_another_route_is_final_in_every_mode(
    tmp_path: Path, mode: str, allow: tuple[str, ...]
) -> None:
    made = ask(snapshot_of(tmp_path, mode), path="/nowhere")[1]
    made.verdict = Verdict("")
    made.no_route = NoRoute(allow, "The path could be read as that of another route.")
    step = decided(Authorization(), made)
    assert (step.outcome, step.reason, step.reason.status) == (Outcome.DENY, Reason.PATH_AMBIGUOUS, 400)
    assert step.detail == made.no_route.ambiguous
    assert made.answer is None
    assert made.verdict.final is not None


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize(("mode", "path"), [("report", "/users/7"), ("enforce", "/trial")])
def test_report_mode_observes_and_goes_on(tmp_path: Path, mode: str, path: str, anonymous: bool) -> None:
    step, made = ask(snapshot_of(tmp_path, mode), path=path, anonymous=anonymous, scope="")
    assert step.outcome is Outcome.OBSERVE
    assert step.reason is (Reason.CREDENTIAL_MISSING if anonymous else Reason.SCOPE_MISSING)
    assert made.verdict.final is None


@pytest.mark.parametrize("lost", ["head", "routing"])
def test_without_the_stages_before_it_nothing_is_decided(snapshot: Snapshot, lost: str, caplog: Any) -> None:
    made = ask(snapshot)[1]
    if lost == "head":
        made.head = None
    else:
        made.route = None
    step = decided(Authorization(), made)
    assert (step.outcome, step.reason) == (Outcome.DENY, Reason.STAGE_ERROR)


def test_what_is_decided_already_is_left_alone(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "GET", "/users/7")
    made.verdict.record(Step("authentication", Outcome.DENY, Reason.CREDENTIAL_MISSING))
    assert Authorization().run(made) is None
    assert len(made.verdict.steps) == 1
