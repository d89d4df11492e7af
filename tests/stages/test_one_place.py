"""What `--coverage` counts of a stage, and what `check` warns of for it, stands in the stage's file alone.

Without what a stage declares, exactly that is missing; and none of the modules that ask the stages names one.
"""

import ast
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from pydantic import BaseModel

from mitmgate import chain
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.loader import load
from mitmgate.policy.model import Policy
from mitmgate.policy.model_routes import Route
from mitmgate.policy.problem import Problem
from mitmgate.replay.coverage import Coverage
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import Decision, decided
from mitmgate.replay.offline import OfflinePolicy, load_offline
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.traffic import Recorded
from mitmgate.review import review
from tests.live.harness import ROOT
from tests.replay.test_coverage import PINNED as COVERED
from tests.replay.test_coverage import traffic

STAGES = {stage.name: stage for stage in chain.STAGES}
ASKING = (
    *("check_command", "review", "policy/lint", "pipeline/coverage", "pipeline/networks", "pipeline/warnings"),
    *(f"replay/{name}" for name in ("advice", "condition_trace", "coverage", "coverage_report", "explain")),
    *("pipeline/stage", "replay/explain_text"),
)
"""The modules of coverage, check and explain that are no stage's."""
WITHOUT_RULES = {"arrival", "hygiene", "endpoints"}
WITHOUT_WARNINGS = {"hygiene", "client-quota", "size-limit"}
type Seen = list[tuple[Recorded, Exchange, Decision]]


@pytest.fixture(scope="module")
def decided_traffic(tmp_path_factory: pytest.TempPathFactory) -> tuple[OfflinePolicy, Seen]:
    """Decide some of the traffic of tests/replay/test_coverage.py."""
    directory = shutil.copytree(COVERED, tmp_path_factory.mktemp("one-place") / "coverage")
    policy = load_offline(str(directory / "rich.yaml"), {"S": "s" * 32})
    decider = Decider(policy.snapshot, OfflineRing())
    exchanges = [(recorded, decider.decide(recorded)) for recorded in islice(traffic(policy), 0, None, 8)]
    return policy, [(recorded, exchange, decided(exchange)) for recorded, exchange in exchanges]


@pytest.fixture(scope="module")
def warned(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Load the policy of tests/policy/test_warnings.py that raises nearly every warning."""
    pinned = ROOT / "tests" / "policy" / "warnings"
    directory = shutil.copytree(pinned, tmp_path_factory.mktemp("one-place") / "warnings")
    return load(directory / "many.yaml", {"S": "s" * 32})


def nothing(*given: object) -> Iterator[object]:
    return iter(())


def counted(policy: OfflinePolicy, seen: Seen) -> Coverage:
    coverage = Coverage(policy)
    for recorded, exchange, decision in seen:
        coverage.seen(recorded, exchange, decision, None)
    return coverage


def of_check(loaded: Loaded) -> Counter[Problem]:
    found = review(loaded)
    return Counter([*found.warnings, *(problem for problem, _ in found.acknowledged)])


@pytest.mark.parametrize("name", chain.REQUIRED)
def test_what_coverage_counts_is_declared_by_the_stage(
    name: str, decided_traffic: tuple[OfflinePolicy, Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, seen = decided_traffic
    stage, whole = STAGES[name], counted(policy, seen)
    declared = list(stage.rules(policy.loaded))
    assert bool(declared) is (name not in WITHOUT_RULES)
    monkeypatch.setattr(stage, "rules", classmethod(nothing))
    monkeypatch.setattr(stage, "outside", lambda *given: None)
    rest = counted(policy, seen)
    own = [rule for rule in whole.rules if rule not in rest.rules]
    assert Counter(rule.what for rule in own) == Counter(rule.what for rule in declared)
    assert rest.branches == [branch for branch in whole.branches if branch[0] in rest.rules]
    assert bool(rest.outside) is (name != "openapi")
    assert any(whole.counts[rule.location, branch] for rule in own for branch in rule.branches) is bool(own)
    monkeypatch.setattr(stage, "covered", nothing)
    rest = counted(policy, seen)
    assert not any(rest.counts[rule.location, branch] for rule in own for branch in rule.branches)


@pytest.mark.parametrize("name", chain.REQUIRED)
def test_what_check_warns_of_is_declared_by_the_stage(
    name: str, warned: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, whole = STAGES[name], of_check(warned)
    declared = Counter(stage.warnings(warned, compile_policy(warned)))
    assert bool(declared) is (name not in WITHOUT_WARNINGS)
    monkeypatch.setattr(stage, "warnings", classmethod(nothing))
    assert whole - of_check(warned) == declared


def test_who_asks_the_stages_names_none() -> None:
    """Members of the policy that are called like a stage aside (`cors`, `rewrite`)."""
    models: list[type[BaseModel]] = [Policy, Route]
    for stage in chain.STAGES:
        models += [stage.section, stage.route_section]
    members = {name for model in models for name in model.model_fields}
    said = []
    for module in ASKING:
        tree = ast.parse(Path(chain.__file__).parent.joinpath(f"{module}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in STAGES.keys() - members:
                said.append(f"{module}: {node.value}")
            elif isinstance(node, ast.ImportFrom) and "mitmgate.stages." in (node.module or ""):
                said.append(f"{module}: {node.module}")
    assert said == []
