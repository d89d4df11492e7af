"""The peers: none is measured that does not decide as the gateway does, and one that is not here is told by name."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import peer_gateways as peers
from bench.conformance import check
from bench.rig import Rig, rig
from bench.subjects import STOCK, Subject

LOCK = json.loads((peers.PEERS / "package-lock.json").read_text())


@pytest.fixture(scope="module")
def made() -> Iterator[Rig]:
    with rig() as made:
        yield made


@pytest.fixture(scope="module")
def here() -> tuple[dict[str, Subject], dict[str, str]]:
    found, absent = peers.peers()
    return {subject.name: subject for subject in found}, absent


def test_each_peer_is_here_or_told_to_be_missing(here: tuple[dict[str, Subject], dict[str, str]]) -> None:
    found, absent = here
    assert {*found, *absent} == {"haproxy", "fastify"}
    assert not set(found) & set(absent)
    assert "haproxy" in found  # the tests install it
    assert all(subject.lacks for subject in found.values())
    assert all(absent.values())


@pytest.mark.parametrize("name", ["haproxy", "fastify"])
def test_a_peer_decides_as_the_gateway_does(
    made: Rig, here: tuple[dict[str, Subject], dict[str, str]], name: str
) -> None:
    found, absent = here
    if name in absent:
        assert re.search("node|npm", absent[name])
        return
    checks = check(made, found[name])
    assert len(checks) == 12
    assert [one for one in checks if not one.passed] == []


def test_a_proxy_that_decides_nothing_is_found_out(made: Rig) -> None:
    checks = check(made, replace(STOCK, judged=True))
    failed = {one.what for one in checks if not one.passed}
    assert {"without a token", "without the scope", "the service sees no Authorization"} <= failed
    assert any(what.startswith("the limit of") for what in failed)


def test_a_subject_that_does_not_start_is_told(made: Rig) -> None:
    broken = replace(STOCK, command=lambda *_: lambda *_: ["false"])
    (one,) = check(made, broken)
    assert (one.what, one.passed) == ("it starts", False)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found, absent = peers.peers()
    assert found == []
    assert "haproxy is missing" in absent["haproxy"]
    assert "npm" in absent["fastify"]


def test_the_lock_names_exact_versions_with_digests_and_no_address() -> None:
    wanted = json.loads((peers.PEERS / "package.json").read_text())["dependencies"]
    locked = {name.removeprefix("node_modules/"): entry for name, entry in LOCK["packages"].items() if name}
    assert all("integrity" in entry and "resolved" not in entry for entry in locked.values())
    assert {name: locked[name]["version"] for name in wanted} == wanted
