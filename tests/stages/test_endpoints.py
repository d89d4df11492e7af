"""Endpoints: the health check is one exact path, answered here and by nobody else."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from mitmgate.core.address import CidrSet
from mitmgate.core.reason import Reason
from mitmgate.core.resource import Resource, Resources
from mitmgate.core.rules import Networks
from mitmgate.core.verdict import Outcome
from mitmgate.pipeline.enforcer import BLACK_HOLE
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.endpoints import Endpoints
from tests.stages.exchanges import (
    assert_contains_exceptions,
    assert_leaves_decided_alone,
    assert_refused,
    enforced,
    routed,
    said,
    snapshot_of,
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("path", ["/health", "/health?deep=1", "/%68ealth"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("mode", ["enforce", "report"])
def test_answers_health_and_sends_nothing(snapshot: Snapshot, method: str, path: str, mode: str) -> None:
    made = routed(replace(snapshot, mode=mode), method, path)  # type: ignore[arg-type]  # a Mode
    assert said(Endpoints(), made) == (Outcome.ANSWER, Reason.HEALTH)
    flow = enforced(snapshot, made)
    assert flow.response is not None
    assert (flow.response.status_code, flow.response.content) == (200, b'{"status":"ok"}\n')
    assert flow.response.headers["Cache-Control"] == "no-store"
    assert (flow.request.host, made.admitted) == (BLACK_HOLE, False)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/health"),
        ("OPTIONS", "/health"),
        ("GET", "/health/"),
        ("GET", "/Health"),
        ("GET", "/healthz"),
        ("GET", "/health/x"),
        ("GET", "/users/health"),
        ("GET", "/users/7?path=/health"),
    ],
)
def test_skips_everything_else(snapshot: Snapshot, method: str, path: str) -> None:
    made = routed(snapshot, method, path)
    assert said(Endpoints(), made) == (Outcome.SKIP, Reason.NOT_APPLICABLE)
    assert made.answer is None


@pytest.mark.parametrize("mode", ["enforce", "report"])
@pytest.mark.parametrize(
    ("method", "path", "outcome"),
    [
        ("GET", "/health", (Outcome.ANSWER, Reason.HEALTH)),
        ("OPTIONS", "/", (Outcome.ANSWER, Reason.HEALTH)),
        ("GET", "/", (Outcome.DENY, Reason.HOST_INVALID)),
        ("OPTIONS", "/users/7", (Outcome.DENY, Reason.HOST_INVALID)),
        ("POST", "/health", (Outcome.DENY, Reason.HOST_INVALID)),
        ("GET", "/users/7", (Outcome.DENY, Reason.HOST_INVALID)),
    ],
)
def test_a_request_without_host_is_for_the_gateway_or_for_nobody(
    snapshot: Snapshot, method: str, path: str, outcome: tuple[Outcome, Reason], mode: str
) -> None:
    made = routed(replace(snapshot, mode=mode), method, path)  # type: ignore[arg-type]  # a Mode
    assert made.head is not None
    made.head = replace(made.head, host="")  # as Hygiene leaves one of HTTP/1.0
    assert said(Endpoints(), made) == outcome
    assert made.verdict.final is not None
    if outcome[0] is Outcome.DENY:
        assert_refused(snapshot, made, Reason.HOST_INVALID)


def test_with_a_host_options_is_a_request_like_any_other(snapshot: Snapshot) -> None:
    assert said(Endpoints(), routed(snapshot, "OPTIONS", "/")) == (Outcome.SKIP, Reason.NOT_APPLICABLE)


def test_the_policy_names_the_path(snapshot: Snapshot) -> None:
    other = replace(snapshot, health_path="/up")
    assert said(Endpoints(), routed(other, path="/up"))[0] is Outcome.ANSWER
    assert said(Endpoints(), routed(other, path="/health"))[0] is Outcome.SKIP


def test_already_denied(snapshot: Snapshot) -> None:
    assert_leaves_decided_alone(Endpoints(), routed(snapshot, path="/health"))


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(Endpoints, snapshot, routed(snapshot, path="/health"), monkeypatch)


def test_without_head_it_denies(snapshot: Snapshot) -> None:
    made = routed(snapshot, path="/health")
    made.head = None
    assert said(Endpoints(), made) == (Outcome.DENY, Reason.STAGE_ERROR)
    assert_refused(snapshot, made, Reason.STAGE_ERROR)


METADATA = "/.well-known/oauth-protected-resource/orders"


@pytest.mark.parametrize(
    ("host", "public", "client", "answers"),
    [
        ("api.example", None, "198.51.100.7", True),
        ("inside.example", "api.example:8443", "198.51.100.7", True),  # what a trusted proxy was asked for
        ("api.example", "other.example", "198.51.100.7", False),
        ("other.example", None, "198.51.100.7", False),
        ("api.example", "a b", "198.51.100.7", False),
        ("api.example", None, "192.0.2.1", False),  # whose address may not come in at all
        ("api.example", None, None, False),
    ],
)
def test_metadata_is_for_its_host_and_for_who_may_come_in(
    snapshot: Snapshot, host: str, public: str | None, client: str | None, answers: bool
) -> None:
    resources = Resources([Resource("https://api.example", "api.example", "/orders", b"{}")])
    networks = Networks(CidrSet(()), CidrSet(("192.0.2.0/24",)))
    made = routed(replace(snapshot, resources=resources, networks=networks), path=METADATA)
    assert made.head is not None
    made.head = replace(made.head, host=host)
    made.public_host, made.client = public, None if client is None else ip_address(client)
    expected = (Outcome.ANSWER, Reason.RESOURCE_METADATA) if answers else (Outcome.SKIP, Reason.NOT_APPLICABLE)
    assert said(Endpoints(), made) == expected
    assert (made.answer is not None) is answers
