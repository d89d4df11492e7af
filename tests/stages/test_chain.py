"""The chain: what is lost from a list, or said twice, is told at the start, and starts nothing."""

import re
from pathlib import Path

import pytest

from mitmgate import chain
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.declared import declare, of, policy_model, stages
from mitmgate.policy.scalars import Name
from mitmgate.policy.section import Section
from mitmgate.services import open_services
from mitmgate.usage import UserError
from tests.stages.exchanges import Source, snapshot_of


@pytest.mark.parametrize("lost", chain.REQUIRED)
def test_a_stage_that_is_not_to_sign_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    snapshot = snapshot_of(tmp_path)
    monkeypatch.setattr(chain, "REQUIRED", tuple(name for name in chain.REQUIRED if name != lost))
    with pytest.raises(UserError, match="but what has to sign is"):
        chain.stages(Source(snapshot), open_services(snapshot))


def test_a_stage_that_needs_services_is_not_made_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy(Stage):
        name = "needy"

        def __init__(self, store: object) -> None:
            self.store = store

    snapshot = snapshot_of(tmp_path)
    monkeypatch.setattr(chain, "STAGES", (*chain.STAGES, Needy))
    with pytest.raises(UserError, match="missing 1 required positional argument: 'store'"):
        chain.stages(Source(snapshot), open_services(snapshot))


def test_a_name_without_a_stage_is_no_stage() -> None:
    with pytest.raises(UserError, match=re.escape("mitmgate.stages.quota has 0 stages of the name quota")):
        chain._stage("quota")


class OfPolicy(Section):
    """Members that are there already."""

    upstreams: Name = "none"
    """One of the policy's own."""


class OfRoute(Section):
    """A member that two stages declare."""

    closed: Name | None = None
    """For two."""


def test_a_member_has_one_owner() -> None:
    class First(Stage):
        name = "first"
        section = OfPolicy

    class Second(Stage):
        name = "second"
        route_section = OfRoute

    class Third(Second):
        name = "third"

    alone: tuple[type[Stage], ...] = (First,)
    both: tuple[type[Stage], ...] = (Second, Third)
    before, model = list(stages()), policy_model()
    with pytest.raises(ValueError, match="first declares the member upstreams, which the policy has"):
        declare(alone)
    with pytest.raises(ValueError, match="third declares the member closed, which second has"):
        declare(both)
    assert (list(stages()), policy_model()) == (before, model), "what is refused changes nothing"


def test_members_that_nobody_declares_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no stage of the chain declares OfPolicy"):
        of(snapshot_of(tmp_path).policy, OfPolicy)
