"""Mutants that admit what is to be denied, in each file that has the last word on something; CI runs them."""

from tests.mutation.making import Mutant, mutants_of
from tests.mutation.running import rows


def admitting() -> dict[str, str]:
    """Read from docs/mutants.md which mutants admit, and for each a test that notices it."""
    return {row.name: row.words.strip("`") for row in rows("What admits")}


def quick() -> list[Mutant]:
    """Return them; KeyError: one is not there any more."""
    names = admitting()
    paths = sorted({name.partition(" ")[0] for name in names})
    made = {mutant.name: mutant for path in paths for mutant in mutants_of(path)}
    return [made[name] for name in names]
