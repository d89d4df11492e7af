"""OpenApi: a head is an operation of the route's document, or it is denied with what was wrong."""

import shutil
from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.openapi import OpenApi
from tests.live.harness import ROOT
from tests.stages.exchanges import assert_contains_exceptions, assert_leaves_decided_alone, routed, said

POLICY = """\
version: 1
mode: enforce
upstreams: {users: {endpoints: ["http://127.0.0.1:9"]}}
routes:
  - name: pets
    match: {prefix: /pets}
    upstream: users
    auth: none
    openapi: {document: petstore.yaml, base: /, body: 1KiB}
  - name: lax
    match: {prefix: /lax}
    upstream: users
    auth: none
    rewrite: {strip_prefix: true}
    openapi: {document: petstore.yaml, base: /, unknown_query: allow}
  - name: trial
    match: {prefix: /trial}
    upstream: users
    auth: none
    mode: report
    openapi: {document: petstore.yaml}
  - {name: other, match: {prefix: /other}, upstream: users, auth: none}
"""
JSON = (b"Content-Type", b"application/json")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return loaded(tmp_path_factory.mktemp("policy"), POLICY)


def loaded(directory: Path, policy: str) -> Snapshot:
    shutil.copy(ROOT / "docs/examples/petstore.yaml", directory)
    (directory / "policy.yaml").write_text(policy)
    return load_snapshot(directory / "policy.yaml", {})


@pytest.mark.parametrize(
    ("method", "target", "reason"),
    [
        ("GET", "/pets", Reason.OK),
        ("HEAD", "/pets/7", Reason.OK),
        ("GET", "/pets/7/x", Reason.OPERATION_UNKNOWN),
        ("PATCH", "/pets/7", Reason.OPERATION_NOT_ALLOWED),
        ("GET", "/pets/0", Reason.PARAMETER_INVALID),
        ("GET", "/pets/mine", Reason.PARAMETER_MISSING),
        ("GET", "/pets?x=1", Reason.PARAMETER_UNKNOWN),
        ("POST", "/pets", Reason.BODY_UNEXPECTED),
        ("GET", "/lax/pets?x=1&limit=7", Reason.OK),
        ("GET", "/lax/pets?x=1&limit=700", Reason.PARAMETER_INVALID),
    ],
)
def test_admits_or_denies(snapshot: Snapshot, method: str, target: str, reason: Reason) -> None:
    made = routed(snapshot, method, target)
    assert said(OpenApi(), made) == (Outcome.ADMIT if reason is Reason.OK else Outcome.DENY, reason)
    assert (made.operation is None) == (reason in {Reason.OPERATION_UNKNOWN, Reason.OPERATION_NOT_ALLOWED})


@pytest.mark.parametrize(
    ("fields", "reason", "checked"),
    [
        ([JSON, (b"Content-Length", b"1024")], Reason.OK, True),
        ([JSON, (b"Transfer-Encoding", b"chunked")], Reason.OK, True),
        ([JSON, (b"Content-Length", b"1025")], Reason.BODY_TOO_LARGE, False),
        ([(b"Content-Type", b"text/xml"), (b"Content-Length", b"9")], Reason.CONTENT_TYPE_REFUSED, False),
    ],
)
def test_a_body_is_to_be_checked(
    snapshot: Snapshot, fields: list[tuple[bytes, bytes]], reason: Reason, checked: bool
) -> None:
    made = routed(snapshot, "POST", "/pets", fields)
    assert said(OpenApi(), made)[1] is reason
    assert (made.body_check is not None) is checked
    made = routed(snapshot, "POST", "/lax/pets", [JSON, (b"Content-Length", b"1025")])
    assert (said(OpenApi(), made)[1], made.body_check) == (Reason.OK, None)


def test_without_a_document_there_is_nothing_to_decide(snapshot: Snapshot) -> None:
    assert said(OpenApi(), routed(snapshot, "GET", "/other"))[0] is Outcome.SKIP
    assert said(OpenApi(), routed(snapshot, "GET", "/nowhere"))[0] is Outcome.SKIP


@pytest.mark.parametrize(("path", "mode"), [("/trial/x", "enforce"), ("/pets/x", "report")])
def test_report_mode_observes(tmp_path: Path, path: str, mode: str) -> None:
    made = routed(loaded(tmp_path, POLICY.replace("mode: enforce", f"mode: {mode}", 1)), "GET", path)
    assert said(OpenApi(), made)[0] is Outcome.OBSERVE
    assert (made.verdict.final, made.answer) == (None, None)


def test_already_denied(snapshot: Snapshot) -> None:
    assert_leaves_decided_alone(OpenApi(), routed(snapshot, "GET", "/pets/x"))


def test_raises(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contains_exceptions(OpenApi, snapshot, routed(snapshot, "GET", "/pets"), monkeypatch)


def test_where_a_proxy_only_asks_nobody_has_the_body(snapshot: Snapshot) -> None:
    """Forward-auth: the path is the client's own, and what has to be checked can't be."""
    stage = OpenApi(decides=True)
    assert said(stage, routed(snapshot, "GET", "/pets/7")) == (Outcome.ADMIT, Reason.OK)
    posted = routed(snapshot, "POST", "/pets", [JSON, (b"Content-Length", b"9")])
    assert said(stage, posted) == (Outcome.DENY, Reason.BODY_INVALID)
    assert said(stage, routed(snapshot, "POST", "/pets/7/photo.png")) == (Outcome.ADMIT, Reason.OK)
    assert said(stage, routed(snapshot, "GET", "/lax/pets")) == (Outcome.DENY, Reason.OPERATION_UNKNOWN)
