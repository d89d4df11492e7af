"""The mutants that are known to admit are noticed, by the command that a developer runs."""

import subprocess

from tests.live.harness import ROOT
from tests.mutation.making import mutants_of
from tests.mutation.quick import admitting


def test_mutants_that_admit_are_noticed() -> None:
    ran = subprocess.run(
        [ROOT / "run.sh", "mutants", "--quick"], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    number = len(admitting())
    assert number >= 40
    assert f"{number} mutants: {number} noticed, 0 not" in ran.stdout


def test_a_mutants_name_names_it_alone() -> None:
    for path in ("pipeline/stage.py", "core/claims.py", "core/http1/reader.py"):
        names = [mutant.name for mutant in mutants_of(path)]
        assert len(set(names)) == len(names) > 50
