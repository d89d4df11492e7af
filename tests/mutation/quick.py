"""Mutants that admit what is to be denied, in each file that has the last word on something; CI runs them."""

from typing import Final

from tests.mutation.making import Mutant, mutants_of

ADMITTING: Final = (
    # An exception in a stage admits: 1,900 tests once passed with this one.
    "stages/stage.py Row._run: step = stage.failed(error) → stage.admitted",
    "stages/stage.py Stage._run_later: step = self.failed(error) → self.admitted",
    "stages/stage.py Stage._record: if step.stage != self.name: never",
    "core/verdict.py Verdict.record: if outcome not in GOES_ON: never",
    "stages/enforcer.py Enforcer.enforce: if not (ready and verdict.admitted_by(self._required)): never",
    "stages/enforcer.py Enforcer.requestheaders: if not self.enforce(exchange): never",
    "keys/verify.py Verifier.verify: if signed is None: never",
    "core/claims.py verify_claims: if 'cnf' in claims: never",
    "core/claims.py check_times: if now >= times.expires + leeway: never",
    "stages/network_access.py NetworkAccess.decide: if not networks.admit(client): never",
    "stages/quota.py Quota._step: if not enforced: always",
)
"""Names, as `./run.sh mutants` writes them."""

UNCHANGED: Final = ("stages/network_access.py",)
"""Whose tests must pass without a mutant before those of mutants are believed to fail; the suite runs all others."""


def quick() -> list[Mutant]:
    """Return them; one that is not there any more is an error."""
    paths = sorted({name.partition(" ")[0] for name in ADMITTING})
    made = {mutant.name: mutant for path in paths for mutant in mutants_of(path)}
    return [made[name] for name in ADMITTING]
