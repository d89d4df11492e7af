"""Authentication: 401s and their challenges, what is skipped, what is read, when it waits."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.test.tflow import tflow

from mitmgate.core.reason import Reason
from mitmgate.core.routing import NoRoute
from mitmgate.core.rules import KeySource
from mitmgate.core.verdict import Outcome, Step
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.exchange import Exchange, begin
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.authentication import Authentication
from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key, sign
from tests.stages.identity import NOW, decided, exchange, snapshot_of, token


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


def stage_of(*snapshots: Snapshot) -> Authentication:
    ring = KeyRing()
    for one in snapshots:
        ring.configure(one.issuers)
    return Authentication(ring)


def ask(
    snapshot: Snapshot, authorization: str | None, path: str = "/users/7", method: str = "GET"
) -> tuple[Step, Exchange]:
    made = exchange(snapshot, method, path, authorization)
    return decided(stage_of(snapshot), made), made


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_a_good_token_becomes_a_principal(snapshot: Snapshot, scheme: str) -> None:
    step, made = ask(snapshot, scheme + token(snapshot))
    assert (step.outcome, step.reason) == (Outcome.ADMIT, Reason.OK)
    assert made.principal is not None
    assert (made.principal.subject, made.principal.issuer, made.principal.roles) == ("alice", "dev", ("user",))
    assert made.challenge is None


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        (None, Reason.CREDENTIAL_MISSING),
        ("", Reason.SCHEME_UNSUPPORTED),
        ("Basic YWxpY2U6eA==", Reason.SCHEME_UNSUPPORTED),
        ("Bearer\tx", Reason.SCHEME_UNSUPPORTED),
        ("Bearerx", Reason.SCHEME_UNSUPPORTED),
        ("Token {token}", Reason.SCHEME_UNSUPPORTED),
        ("{token}", Reason.SCHEME_UNSUPPORTED),
        ("DPoPx {token}", Reason.SCHEME_UNSUPPORTED),
    ],
)
def test_no_bearer_token_has_a_bare_challenge(snapshot: Snapshot, authorization: str | None, reason: Reason) -> None:
    given = None if authorization is None else authorization.format(token=token(snapshot))
    step, made = ask(snapshot, given)
    assert (step.outcome, step.reason, step.reason.status) == (Outcome.DENY, reason, 401)
    assert made.challenge == "Bearer"
    assert made.principal is None


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        ("Bearer", Reason.TOKEN_MALFORMED),
        ("Bearer ", Reason.TOKEN_MALFORMED),
        ("Bearer x", Reason.TOKEN_MALFORMED),
        ('Bearer a"b\\c.d.e', Reason.TOKEN_MALFORMED),
        ("Bearer {token},{token}", Reason.TOKEN_MALFORMED),
        ("Bearer {token} {token}", Reason.TOKEN_MALFORMED),
        ("Bearer {token}, Bearer {token}", Reason.TOKEN_MALFORMED),
        ("Bearer {token}é", Reason.TOKEN_MALFORMED),
        ("Bearer " + "x" * 9000, Reason.TOKEN_TOO_LARGE),
        ("Bearer {expired}", Reason.TOKEN_EXPIRED),
        ("Bearer {early}", Reason.TOKEN_NOT_YET_VALID),
        ("Bearer {foreign}", Reason.TOKEN_ISSUER_UNKNOWN),
        ("Bearer {other}", Reason.TOKEN_AUDIENCE_REFUSED),
    ],
)
def test_a_bad_token_is_invalid_token(snapshot: Snapshot, authorization: str, reason: Reason) -> None:
    given = authorization.format(
        token=token(snapshot),
        expired=token(snapshot, now=NOW - 1000),
        early=token(snapshot, now=NOW + 1000),
        foreign=token(snapshot, iss="https://other.example"),
        other=token(snapshot, aud="api://users"),
    )
    step, made = ask(snapshot, given)
    assert (step.outcome, step.reason, step.reason.status) == (Outcome.DENY, reason, 401)
    assert made.challenge == f'Bearer error="invalid_token", error_description="{step.detail}"'
    assert made.principal is None


def test_a_token_may_be_as_long_as_the_policy_says(snapshot: Snapshot) -> None:
    given = token(snapshot)
    for longest, reason in ((len(given), Reason.OK), (len(given) - 1, Reason.TOKEN_TOO_LARGE)):
        assert ask(replace(snapshot, max_token=longest), "Bearer " + given)[0].reason is reason


def test_a_query_without_a_token_is_none_of_its_business(snapshot: Snapshot) -> None:
    assert ask(snapshot, "Bearer " + token(snapshot), "/users/7?page=2")[0].reason is Reason.OK


def test_what_is_told_without_a_credential_needs_none(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "GET", "/nowhere")
    made.no_route = NoRoute((), "The path holds a dot segment.", public=True)
    assert decided(stage_of(snapshot), made).outcome is Outcome.SKIP


@pytest.mark.parametrize("path", ["/users/7?access_token={token}", "/users/7?token={token}"])
def test_tokens_in_a_query_are_not_read(snapshot: Snapshot, path: str) -> None:
    step, _ = ask(snapshot, None, path.format(token=token(snapshot)))
    assert step.reason is Reason.CREDENTIAL_MISSING


def test_a_public_route_is_skipped_whatever_it_brings(snapshot: Snapshot) -> None:
    for authorization in (None, "Bearer x", "Bearer " + token(snapshot)):
        step, made = ask(snapshot, authorization, "/status")
        assert step.outcome is Outcome.SKIP
        assert made.principal is None
        assert made.challenge is None


@pytest.mark.parametrize(
    ("method", "path", "outcome"),
    [
        ("GET", "/nowhere", Outcome.DENY),
        ("PATCH", "/users/7", Outcome.DENY),
        ("PATCH", "/status", Outcome.DENY),  # also where the path is public: another method's route may not be
    ],
)
def test_no_route_is_not_told_to_strangers(snapshot: Snapshot, method: str, path: str, outcome: Outcome) -> None:
    assert ask(snapshot, None, path, method)[0].outcome is outcome
    assert ask(snapshot, "Bearer x", path, method)[0].outcome is outcome
    assert ask(snapshot, "Bearer " + token(snapshot), path, method)[0].outcome is Outcome.ADMIT


def test_without_any_identity_a_missing_route_needs_no_token(snapshot: Snapshot) -> None:
    bare = replace(snapshot, default_issuers=None)
    assert ask(bare, None, "/nowhere")[0].outcome is Outcome.SKIP


def test_an_issuer_that_the_route_does_not_accept_is_unknown(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "GET", "/users/7", "Bearer " + token(snapshot))
    assert made.route is not None
    made.route = replace(made.route, issuers=())
    assert decided(stage_of(snapshot), made).reason is Reason.TOKEN_ISSUER_UNKNOWN


@pytest.mark.parametrize(("mode", "path"), [("report", "/users/7"), ("enforce", "/trial")])
def test_report_mode_observes_and_goes_on_without_principal(tmp_path: Path, mode: str, path: str) -> None:
    reporting = snapshot_of(tmp_path, mode)
    step, made = ask(reporting, "Bearer x", path)
    assert (step.outcome, step.reason) == (Outcome.OBSERVE, Reason.TOKEN_MALFORMED)
    assert made.principal is None
    assert made.verdict.final is None


@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_a_second_token_in_the_query_is_refused(tmp_path: Path, mode: str) -> None:
    """In report mode the request goes on as the principal that it is of."""
    reporting = snapshot_of(tmp_path, mode)
    step, made = ask(reporting, "Bearer " + token(reporting), "/users/7?a=b&access_token=x")
    assert (step.outcome, step.reason) == (
        Outcome.DENY if mode == "enforce" else Outcome.OBSERVE,
        Reason.CREDENTIAL_AMBIGUOUS,
    )
    assert made.principal is not None and made.principal.subject == "alice"
    assert (made.challenge or "").startswith('Bearer error="invalid_request"') is (mode == "enforce")


def test_keys_that_are_not_there_are_503_without_challenge(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "GET", "/users/7", "Bearer " + token(snapshot))
    step = decided(Authentication(KeyRing()), made)
    assert (step.outcome, step.reason, step.reason.status) == (Outcome.DENY, Reason.KEYS_UNAVAILABLE, 503)
    assert made.challenge is None


@pytest.mark.parametrize("lost", ["head", "routing"])
def test_without_the_stages_before_it_nothing_is_decided(snapshot: Snapshot, lost: str, caplog: Any) -> None:
    made = exchange(snapshot, "GET", "/users/7", "Bearer " + token(snapshot))
    if lost == "head":
        made.head = None
    else:
        made.route = None
    step = decided(stage_of(snapshot), made)
    assert (step.outcome, step.reason) == (Outcome.DENY, Reason.STAGE_ERROR)


def test_an_unexpected_exception_denies(snapshot: Snapshot, caplog: Any) -> None:
    class Broken(KeyRing):
        def authenticate(self, *arguments: Any) -> Any:
            raise RuntimeError("broken")

    made = exchange(snapshot, "GET", "/users/7", "Bearer " + token(snapshot))
    assert decided(Authentication(Broken()), made).reason is Reason.STAGE_ERROR
    assert made.principal is None


def test_what_is_decided_already_is_left_alone(snapshot: Snapshot) -> None:
    made = exchange(snapshot, "GET", "/users/7", "Bearer " + token(snapshot))
    made.verdict.record(Step("hygiene", Outcome.DENY, Reason.HOST_INVALID))
    flow = tflow()
    begin(flow, made)
    assert stage_of(snapshot).requestheaders(flow) is None
    assert len(made.verdict.steps) == 1
    assert made.principal is None


@pytest.fixture
def server() -> Iterator[JwksServer]:
    with JwksServer(jwk_set(jwk("ES256", private_key("ES256"), kid="old"))) as made:
        yield made


def test_a_key_that_is_not_known_is_waited_for(snapshot: Snapshot, server: JwksServer) -> None:
    key = private_key("ES256", 1)
    claims = {"iss": "https://dev.example", "aud": "api://orders", "sub": "alice", "exp": NOW + 60}
    source = KeySource("jwks_url", url=server.url, min_refresh=0.0, max_stale=1e9)
    dev = replace(snapshot.issuers["dev"], algorithms=("ES256",), keys=source)
    remote = replace(snapshot, issuers={"dev": dev})

    async def test() -> None:
        ring = KeyRing()
        ring.configure(remote.issuers)
        await ring.start()
        server.document = jwk_set(jwk("ES256", key, kid="new"))
        for kid, outcome, reason in (
            ("newer", Outcome.DENY, Reason.TOKEN_KEY_UNKNOWN),
            ("new", Outcome.ADMIT, Reason.OK),
        ):
            bearer = "Bearer " + sign("ES256", key, claims, {"kid": kid}).decode()
            made = exchange(remote, "GET", "/users/7", bearer)
            pending = Authentication(ring).run(made)
            if pending is not None:
                await pending
            (step,) = made.verdict.steps
            assert (step.outcome, step.reason) == (outcome, reason)
            assert (made.principal is None) is (outcome is Outcome.DENY)
        await ring.close()

    asyncio.run(test())
    assert server.fetches == 2
